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
        16, description="Partners kept per feature, in both directions."
    )
    keep_above: Annotated[float, Number, Field(gt=0, le=1)] = Field(
        0.1, description="Keep every pair with at least this r; matching cannot use a lower minimum."
    )
    select: Select = Field(
        "half",
        description="Rows on which partners are selected. half: half of the documents; r of the selected "
        "pairs on the other half is reported too (r_heldout). all: all rows, without a "
        "held-out r.",
    )
    split_seed: SplitSeed = Field(
        0,
        description="Seed of the halves: it determines, together with the number of a document or its "
        "group, whether the document is in the selection half or the held-out half.",
    )
    measure: Measure = Field(
        "pearson",
        description="What r is. jaccard and phi compare firing (values that are not 0). spearman "
        "temporarily needs disk space next to the result for the ranks of both stores.",
    )
    min_firing: Annotated[int, Number, Field(ge=0)] = Field(
        20,
        description="Leave out features that fire in fewer rows of the selection half than this, or than "
        "1 % of these rows if that is less: their r would be due to chance.",
    )
    kernel: Kernel = Field(
        "auto", description="How products are computed; auto: depends on the densities of the stores."
    )
    full: FullType | None = Field(
        None,
        description="Also keep the whole matrix (r_all), with this dtype: needs no more memory, but n_a "
        "· n_b values on disk.",
    )
    device: DeviceName = Field(
        "auto",
        description="Where products are computed; auto: on GPUs if all workers have one (and CuPy), "
        "always with the dense kernel, with the sparse kernel only if that is faster.",
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


_AS_CORRELATED = "default: as in the correlation"
_SPLIT_SEED = f"Seed of the halves; {_AS_CORRELATED}."


class IntervalSettings(Section):
    """How intervals of r are found."""

    level: Annotated[float, Number, Field(gt=0, lt=1)] = Field(0.95, description="Nominal coverage of the intervals.")
    select: Select | None = Field(None, description=f"Halves of the rows; {_AS_CORRELATED}.")
    split_seed: SplitSeed | None = Field(None, description=_SPLIT_SEED)
    measure: Measure | None = Field(None, description=f"What r is; {_AS_CORRELATED}. Not spearman.")
    memory: Memory = Field("auto", description=BUDGET)


class ConvergenceSettings(Section):
    """How is found whether r settles."""

    threshold: Annotated[float, Number, Field(ge=-1, le=1)] | None = Field(
        None,
        description="A pair is good if r reaches this in both halves. Default: the minimum r of the "
        "matching, or the keep_above of the correlation.",
    )
    measure: Measure | None = Field(None, description=f"What r is; {_AS_CORRELATED}. Not spearman.")
    split_seed: SplitSeed | None = Field(None, description=_SPLIT_SEED)
    memory: Memory = Field("auto", description=BUDGET)
