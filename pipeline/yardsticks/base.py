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

from pipeline.correlate.rows import splitmix64
from pipeline.rematch.run import drawn_pairs
from pipeline.settings.base import Section
from pipeline.settings.experiment import Experiment
from pipeline.settings.registries import YARDSTICKS
from pipeline.work.task import Task
from storage import open_result
from storage.errors import FormatError, InputError
from storage.rundir import RunDirectory

YardstickType = TypeVar("YardstickType", bound="Yardstick")
Sites = tuple[str, str]


@dataclass(frozen=True)
class Matching:
    """Pairs of features of two stores, in an order of the features of A that is drawn, and the same in all matchings.

    So the first pairs of two matchings are samples of each, whatever their r, and have features of A in common.

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
        """Return pairs by the names of the attributes."""
        order = np.lexsort((splitmix64(columns["b"]), splitmix64(columns["a"])))
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

    def sample(self, n: int) -> Matching:
        """Return n pairs that are drawn without regard to their r."""
        return Matching(self.stores, self.a[:n], self.b[:n], self.r[:n], self.r_heldout[:n])

    def groups(self, n: int) -> NDArray[np.int64]:
        """Return the group of each pair, one of n by chance, the same for a feature of A in all matchings; (pair,)."""
        # hashed twice: the order above is by the hash itself
        return (splitmix64(splitmix64(self.a).view(np.int64)) % np.uint64(n)).astype(np.int64)


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

    def check_run(self, config: Experiment, run: RunDirectory) -> None:
        """Raise a SubspaceError if what a finished run has is not what the yardstick reads."""

    def tasks(self, config: Experiment, run: RunDirectory) -> Iterator[Task]:  # noqa: ARG002
        """Yield the tasks that make what its matchings are read from."""
        return iter(())

    def results(self, config: Experiment, run: RunDirectory, sites: Sites) -> list[Path]:
        """Return the results that the matchings of two sites are read from."""
        raise NotImplementedError(type(self).__name__)

    def matchings(self, config: Experiment, run: RunDirectory, sites: Sites) -> list[Matching]:
        """Return its matchings at two sites: one for each draw of a floor, one for each side of a ceiling."""
        raise NotImplementedError(type(self).__name__)

    def real(self, run: RunDirectory, sites: Sites) -> Matching:
        """Return the pairs that its matchings are beside: those of the run, on the same rows."""
        return Matching.read(run.pairs(*sites), _stores(run, sites))

    def overlap(self, run: RunDirectory, sites: Sites) -> float:  # noqa: ARG002
        """Return the share of partners that two of its draws have in common."""
        return 0.0


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

    def check_run(self, config: Experiment, run: RunDirectory) -> None:
        """Raise a FormatError if the draws were stored by an earlier release, without what is read of them."""
        for sites in config.site_pairs:
            path = run.rematched(*sites)
            if not {"matched_null", "overlap"} <= set(open_result(path, "rematch").variables):
                raise FormatError(
                    f"{path} was made by an earlier release, and lacks what the yardstick {self.name} reads; make it "
                    f"again with: subspace run EXPERIMENT.yaml --run-dir {run.root}"
                )

    def results(self, config: Experiment, run: RunDirectory, sites: Sites) -> list[Path]:  # noqa: ARG002
        """Return the stored draws."""
        return [run.rematched(*sites)]

    def matchings(self, config: Experiment, run: RunDirectory, sites: Sites) -> list[Matching]:  # noqa: ARG002
        """Return the pairs of every draw."""
        return self._drawn(run, sites)[1:]

    def real(self, run: RunDirectory, sites: Sites) -> Matching:
        """Return the real pairs of the rows that can change places."""
        return self._drawn(run, sites)[0]

    def overlap(self, run: RunDirectory, sites: Sites) -> float:
        """Return the share of partners that two draws have in common."""
        return float(open_result(run.rematched(*sites), "rematch")["overlap"].sel(null=self.null))

    def _drawn(self, run: RunDirectory, sites: Sites) -> list[Matching]:
        drawn = drawn_pairs(open_result(run.rematched(*sites), "rematch"), self.null)
        return [Matching.of(_stores(run, sites), pairs) for pairs in drawn]


def _stores(run: RunDirectory, sites: Sites) -> tuple[Path, Path]:
    return run.activations("a", sites[0]), run.activations("b", sites[1])


def register(kind: type[YardstickType]) -> type[YardstickType]:
    """Add a yardstick by the one value of its field ``name``; to be used as a decorator."""
    YARDSTICKS.add(kind.__pydantic_fields__["name"].default, kind)
    return kind
