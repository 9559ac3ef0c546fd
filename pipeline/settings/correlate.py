"""Settings of the correlation."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pipeline.settings.base import Section

Kernel = Literal["auto", "sparse", "dense"]

DeviceName = Literal["auto", "cpu", "cuda"]

Measure = Literal["pearson", "cosine", "spearman", "jaccard", "phi"]

#: What r is called in labels, by measure.
MEASURE_NAMES: dict[Measure, str] = {
    "pearson": "Pearson correlation",
    "cosine": "cosine similarity",
    "spearman": "Spearman rank correlation",
    "phi": "phi coefficient of firing",
    "jaccard": "Jaccard index of firing",
}


class CorrelateConfig(Section):
    """How features are correlated."""

    top_k: Annotated[int, Field(ge=1, le=256)] = 16
    keep_above: Annotated[float, Field(gt=0, le=1)] = Field(0.1, description="keep every pair with at least this r")
    select: Literal["half", "all"] = Field(
        "half", description="rows that choose candidates: half of the documents (r_heldout is on the others), or all"
    )
    measure: Measure = Field(
        "pearson", description="what r is; jaccard and phi are of firing, that is where values are not 0"
    )
    kernel: Kernel = "auto"
    full: Literal["float32", "float16"] | None = Field(None, description="store the whole matrix too, as this type")
    device: DeviceName = Field("auto", description="where products are computed; auto: on GPUs if all workers have one")
    memory: str = Field("auto", description="budget over all workers, as '4GB'; half of what is free if 'auto'")
