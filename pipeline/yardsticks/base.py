"""What every yardstick is: the pairs of features that something much worse, or much better, than two models gives.

A floor is compared as A and B are. A ceiling compares each side with a repetition of itself. Both go through the stages
of the run with its settings; what is the same is the run's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.rematch.run import drawn_pairs
from pipeline.settings.base import Section
from pipeline.settings.experiment import Experiment
from pipeline.settings.registries import YARDSTICKS
from pipeline.work.task import Task
from storage import open_result
from storage.errors import InputError
from storage.rundir import RunDirectory

YardstickType = TypeVar("YardstickType", bound="Yardstick")
Sites = tuple[str, str]


@dataclass(frozen=True)
class Matching:
    """Pairs of features of two stores, the highest r first.

    Attributes
    ----------
    stores
        Of either side.
    a, b
        Features, int32 (pair,).
    r, r_heldout
        Float64 (pair,); the second NaN where no rows were held out.
    """

    stores: tuple[Path, Path]
    a: NDArray[np.int32]
    b: NDArray[np.int32]
    r: NDArray[np.float64]
    r_heldout: NDArray[np.float64]

    @classmethod
    def of(cls, stores: tuple[Path, Path], columns: dict[str, NDArray[Any]]) -> Matching:
        """Return pairs by the names of the attributes, in the order of r, ties in that of the features."""
        order = np.lexsort((columns["b"], columns["a"], -columns["r"]))
        a, b = (columns[side][order].astype(np.int32) for side in "ab")
        r, heldout = (columns[name][order].astype(np.float64) for name in ("r", "r_heldout"))
        return cls(stores, a, b, r, heldout)

    @classmethod
    def read(cls, pairs: Path, stores: tuple[Path, Path]) -> Matching:
        """Return the pairs of a result of ``match``."""
        made = open_result(pairs, "match")
        names = {"a": "feature_a", "b": "feature_b", "r": "r", "r_heldout": "r_heldout"}
        return cls.of(stores, {name: made[variable].values for name, variable in names.items()})

    def __len__(self) -> int:
        """Return the number of pairs."""
        return len(self.a)

    def top(self, n: int) -> Matching:
        """Return the n pairs of highest r."""
        return Matching(self.stores, self.a[:n], self.b[:n], self.r[:n], self.r_heldout[:n])


class Yardstick(Section):
    """What all yardsticks have in common; the fields are its settings.

    Attributes
    ----------
    name
        What users write; a field with its one value.
    kind
        Whether it is a floor or a ceiling.
    title
        What tables call it.
    paths
        Names of settings that are paths; in an experiment file they start at the file's folder.
    same_space
        Whether a ceiling's two decoders are of one space, so that their directions can be compared.
    """

    kind: ClassVar[Literal["floor", "ceiling"]]
    title: ClassVar[str]
    paths: ClassVar[tuple[str, ...]] = ()
    same_space: ClassVar[bool] = False
    name: str

    def check(self, config: Experiment) -> None:
        """Raise an InputError if the experiment lacks what the yardstick needs."""

    def tasks(self, config: Experiment, run: RunDirectory) -> Iterator[Task]:  # noqa: ARG002
        """Yield the tasks that make what its matchings are read from."""
        return iter(())

    def results(self, config: Experiment, run: RunDirectory, sites: Sites) -> list[Path]:
        """Return the results that the matchings of two sites are read from."""
        raise NotImplementedError(type(self).__name__)

    def matchings(self, config: Experiment, run: RunDirectory, sites: Sites) -> list[Matching]:
        """Return its matchings at two sites: one for each draw of a floor, one for each side of a ceiling."""
        raise NotImplementedError(type(self).__name__)


class Drawn(Yardstick):
    """A floor of B's rows permuted: the draws that ``rematch`` has stored.

    Attributes
    ----------
    null
        Its null of rows.
    """

    kind: ClassVar[Literal["floor", "ceiling"]] = "floor"
    null: ClassVar[str]

    def check(self, config: Experiment) -> None:
        """Raise an InputError unless the run draws from the null."""
        if config.rematch is None or self.null not in config.rematch.nulls:
            raise InputError(
                f"the yardstick {self.name} is the null {self.null} of `rematch`, which the experiment does not draw: "
                f"give 'rematch: {{}}', or leave {self.name} out of the yardsticks"
            )

    def results(self, config: Experiment, run: RunDirectory, sites: Sites) -> list[Path]:  # noqa: ARG002
        """Return the stored draws."""
        return [run.rematched(*sites)]

    def matchings(self, config: Experiment, run: RunDirectory, sites: Sites) -> list[Matching]:  # noqa: ARG002
        """Return the pairs of every draw."""
        stores = run.activations("a", sites[0]), run.activations("b", sites[1])
        _, *draws = drawn_pairs(open_result(run.rematched(*sites), "rematch"), self.null)
        return [Matching.of(stores, draw) for draw in draws]


def register(kind: type[YardstickType]) -> type[YardstickType]:
    """Add a yardstick by the one value of its field ``name``; to be used as a decorator."""
    YARDSTICKS.add(kind.__pydantic_fields__["name"].default, kind)
    return kind
