"""Settings of the correlation."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pipeline.settings.base import BUDGET, Memory, Number, Section

Kernel = Literal["auto", "sparse", "dense"]

DeviceName = Literal["auto", "cpu", "cuda"]

#: The share of the rows that select in which a feature may always fire and be correlated.
RAREST = 0.01

#: Rows that choose pairs.
Select = Literal["half", "all"]

#: Seed of the hash that assigns documents to halves.
SplitSeed = Annotated[int, Number, Field(ge=0, lt=2**62)]

Measure = Literal["pearson", "cosine", "spearman", "jaccard", "phi"]

#: What r is called in labels, by measure.
MEASURE_NAMES: dict[Measure, str] = {
    "pearson": "Pearson correlation",
    "cosine": "cosine similarity",
    "spearman": "Spearman rank correlation",
    "phi": "phi coefficient of firing",
    "jaccard": "Jaccard index of firing",
}


#: The type of the whole matrix on disk.
FullType = Literal["float32", "float16"]


class CorrelateSettings(Section):
    """How features are correlated."""

    top_k: Annotated[int, Number, Field(ge=1, le=256)] = Field(
        16, description="Partners kept for each feature, both ways."
    )
    keep_above: Annotated[float, Number, Field(gt=0, le=1)] = Field(
        0.1, description="Keep every pair with at least this r; matching can go no lower."
    )
    select: Select = Field(
        "half",
        description="Rows that choose the partners: half of the documents, and the chosen pairs' r on the other half "
        "is given beside it (r_heldout); or all rows, and there is no held-out r.",
    )
    split_seed: SplitSeed = Field(
        0,
        description="Seed of the halves: whether a document chooses or is held out follows from its number, or its "
        "group, and this seed alone.",
    )
    measure: Measure = Field(
        "pearson",
        description="What r is. Jaccard and phi are of firing: where values are not 0. Spearman needs space beside the "
        "result for ranks of both stores, until it is done.",
    )
    min_firing: Annotated[int, Number, Field(ge=0)] = Field(
        20,
        description="Leave out features that fire in fewer of the rows that select than this, or than 1 % of these "
        "rows if that is less: what r they reach is luck.",
    )
    kernel: Kernel = Field("auto", description="How products are computed; auto: by the densities of the stores.")
    full: FullType | None = Field(
        None,
        description="Keep the whole matrix too (r_all), of this type: in the same memory, and n_a · n_b values of "
        "disk.",
    )
    device: DeviceName = Field(
        "auto",
        description="Where products are computed; auto: on GPUs if all workers have one (and CuPy), with the dense "
        "kernel always, with the sparse one where that is faster.",
    )
    memory: Memory = Field("auto", description=BUDGET)

    @property
    def n_halves(self) -> int:
        """2 if half of the rows is held out, else 1."""
        return 2 if self.select == "half" else 1

    def fewest_firing(self, n_rows: int) -> int:
        """Return in how many of the rows that select a feature must fire to be correlated.

        >>> CorrelateSettings().fewest_firing(150_000), CorrelateSettings().fewest_firing(250)
        (20, 2)
        """
        return min(self.min_firing, int(n_rows * RAREST))


_AS_CORRELATED = "as the pairs were correlated, if absent"
_SPLIT_SEED = f"Seed of the halves, {_AS_CORRELATED}."


class IntervalSettings(Section):
    """How intervals of r are found."""

    level: Annotated[float, Number, Field(gt=0, lt=1)] = Field(0.95, description="Nominal coverage of the intervals.")
    select: Select | None = Field(None, description=f"Halves of the rows, {_AS_CORRELATED}.")
    split_seed: SplitSeed | None = Field(None, description=_SPLIT_SEED)
    measure: Measure | None = Field(None, description=f"What r is, {_AS_CORRELATED}. Not spearman.")
    memory: Memory = Field("auto", description=BUDGET)


class ConvergenceSettings(Section):
    """How is found whether r settles."""

    threshold: Annotated[float, Number, Field(ge=-1, le=1)] | None = Field(
        None,
        description="A pair is good where r reaches this in both halves. By default the minimum of the match, or of "
        "what was kept.",
    )
    measure: Measure | None = Field(None, description=f"What r is, {_AS_CORRELATED}. Not spearman.")
    split_seed: SplitSeed | None = Field(None, description=_SPLIT_SEED)
    memory: Memory = Field("auto", description=BUDGET)
