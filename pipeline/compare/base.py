"""What every metric is: rows prepared once, then scored under any pairing of them.

Metrics that start from the same preparation are of one family: they share what is prepared, and also what has to be
computed for each pairing (for all linear metrics, one product of two matrices).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline.compare.rows import paired_rows

Rows = NDArray[np.float64]
#: ``pairing[i]`` is the B row that is paired with A row i; int64, shape (n,).
Pairing = NDArray[np.int64]


class Metric(ABC):
    """One way to say how alike two sides of paired rows are; a frozen dataclass whose fields are its options.

    Attributes
    ----------
    name
        What users write.
    of_moments
        Whether it is made from second moments of the rows, and so can compare activations.
    """

    name: ClassVar[str]
    of_moments: ClassVar[bool] = False

    def __call__(self, x: ArrayLike, y: ArrayLike) -> float:
        """Return the score of two sides of paired rows.

        Parameters
        ----------
        x, y
            Paired rows, shapes (n, d_x) and (n, d_y).

        Returns
        -------
        float
            NaN where it is not defined on these rows, as where a side does not vary.

        Raises
        ------
        InputError
            If the two sides differ in rows, have fewer than 3, or hold NaN or infinity.
        """
        return of_rows(self, *paired_rows(x, y))

    @property
    def family(self) -> Hashable:
        """Metrics whose family is equal share :meth:`prepare` and :meth:`arrange`; alone by default."""
        return self

    @staticmethod
    def prepare(metrics: Sequence[Any], x: Rows, y: Rows) -> Any:  # noqa: ARG004
        """Return what every pairing reuses, for `metrics` of one family and checked rows of both sides."""
        return x, y

    @staticmethod
    def compact(state: Any) -> Any:
        """Return the state for thousands of pairings: it may be rounded, as long as no score moves by 1e-7."""
        return state

    def arrange(self, state: Any, pairing: Pairing) -> Any:
        """Return what all metrics of the family need of one pairing; both sides' rows by default."""
        x, y = state
        return x, y[pairing]

    @abstractmethod
    def score(self, arranged: Any) -> float:
        """Return the score of what :meth:`arrange` made; NaN if it is not defined on these rows."""

    def memory(self, n: int, d_a: int, d_b: int) -> int:
        """Return how many bytes the family takes at most, for n pairs; twice the rows and a copy by default."""
        return 4 * 8 * n * (d_a + d_b)

    def within(self, budget: int, n: int, d_a: int, d_b: int) -> Metric:  # noqa: ARG002
        """Return the metric, or a form of it that takes no more than `budget` bytes; itself where there is none."""
        return self

    def warning(self, state: Any) -> str:  # noqa: ARG002
        """Say, from what was prepared, why the score means little here; an empty string where it does not."""
        return ""


@dataclass(frozen=True)
class Family:
    """Metrics that share one preparation, in the order asked for."""

    metrics: tuple[Metric, ...]

    def prepare(self, x: Rows, y: Rows) -> Any:
        """Return what every pairing reuses."""
        return self.metrics[0].prepare(self.metrics, x, y)

    def compact(self, state: Any) -> Any:
        """Return the state for thousands of pairings."""
        return self.metrics[0].compact(state)

    def scores(self, state: Any, pairing: Pairing) -> list[float]:
        """Return every metric's score of one pairing."""
        arranged = self.metrics[0].arrange(state, pairing)
        return [metric.score(arranged) for metric in self.metrics]

    def scores_of(self, x: Rows, y: Rows) -> list[float]:
        """Return every metric's score of rows that are paired in their own order."""
        return self.scores(self.prepare(x, y), np.arange(len(x)))

    def memory(self, n: int, d_a: int, d_b: int) -> int:
        """Return how many bytes the family takes at most."""
        return max(metric.memory(n, d_a, d_b) for metric in self.metrics)

    def within(self, budget: int, n: int, d_a: int, d_b: int) -> Family:
        """Return the family in the forms of its metrics that fit a budget, where they have such."""
        return Family(tuple(metric.within(budget, n, d_a, d_b) for metric in self.metrics))

    def only(self, keep: Iterable[Metric]) -> Family:
        """Return the family with some of its metrics; what was prepared for all serves them too."""
        kept = set(keep)
        return Family(tuple(metric for metric in self.metrics if metric in kept))


def families(metrics: Iterable[Metric]) -> list[Family]:
    """Group metrics by what they share.

    Examples
    --------
    >>> from pipeline.settings.compare import parse_metric
    >>> [len(family.metrics) for family in families(map(parse_metric, ["svcca", "rsa", "svcca_pc1"]))]
    [2, 1]
    """
    groups: dict[Hashable, list[Metric]] = {}
    for metric in metrics:
        groups.setdefault(metric.family, []).append(metric)
    return [Family(tuple(group)) for group in groups.values()]


def of_rows(metric: Metric, x: Rows, y: Rows) -> float:
    """Return one metric's score of checked rows that are paired in their own order."""
    return Family((metric,)).scores_of(x, y)[0]
