"""Settings of the text, the models, the rows, the stores and the contexts."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveInt, field_validator, model_validator

from pipeline.settings.base import SITE_PLACEHOLDER, Section
from storage.errors import InputError

ActivationKind = Literal["post", "pre_topk", "raw"]

Pool = Literal["last", "max", "mean"]


class CorpusSettings(Section):
    """Which text both models read."""

    dataset: str | None = Field(None, description="Hugging Face dataset id, or the folder of a local one")
    path: str | None = Field(None, description="a .txt, .jsonl or .parquet file, or a folder of them")
    split: str = "train"
    subset: str | None = Field(None, description="the dataset's configuration, where it has several")
    column: str = Field("text", description="the column or JSON key that holds the text")
    revision: str | None = None
    streaming: bool | None = Field(
        None,
        description="read a hub dataset as it comes, without downloading all of it first; by default, where only its "
        "first documents are taken",
    )
    documents: PositiveInt | None = Field(None, description="how many documents; all by default")
    tokens: PositiveInt | None = Field(
        None, description="stop after the document with which model A's tokenizer has so many tokens of text"
    )
    seed: int | None = Field(
        None, description="sample the documents at random with this seed; the first ones if absent"
    )
    max_length: Annotated[int, Field(ge=8)] = Field(300, description="tokens a window, special tokens included")

    @model_validator(mode="after")
    def _one_source(self) -> CorpusSettings:
        if (self.dataset is None) == (self.path is None):
            raise ValueError("give exactly one of 'dataset' and 'path'")
        return self


class AlignSettings(Section):
    """How tokens of two tokenizers become rows."""

    pool: Pool = Field(
        "last", description="a row's value: the activation at the last token of its segment, or the max or mean over it"
    )


class ModelSettings(Section):
    """One of the two models, and where and how its activations are read."""

    model: str = Field(description="hub id, local folder, or GGUF file")
    label: str | None = Field(None, description="what the report calls it; its name if absent")
    revision: str | None = None
    dictionary: str | dict[str, str] = Field(
        description="hub id or folder of the dictionaries, 'identity' for raw units, 'random:FEATURES:K' for the "
        "control, or one for each site; '{site}' in it stands for the site"
    )
    sites: list[str] = Field(min_length=1)
    kind: ActivationKind = "post"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    prepend_bos: bool | None = Field(None, description="as the dictionary was trained, if absent")
    batch_size: PositiveInt = 8
    device: str = Field("auto", description="auto: the GPU of the worker, if it has one")
    randomise: int | None = Field(
        None, ge=0, description="control: weights drawn anew by the architecture's own initialisation, with this seed"
    )
    allow_bad_site: bool = Field(
        False, description="harvest also where the site check finds that a dictionary does not belong to its site"
    )
    trust_remote_code: bool = False

    @field_validator("sites")
    @classmethod
    def _unique_sites(cls, sites: list[str]) -> list[str]:
        if len(set(sites)) < len(sites):
            raise ValueError(f"a site is named twice: {sites}")
        return sites

    @property
    def id(self) -> str:
        """The model as stores name it: a randomised one is another model."""
        return self.model if self.randomise is None else f"{self.model}#random-{self.randomise}"

    def dictionary_of(self, site: str) -> str:
        """Return where the dictionary of `site` is, with ``{site}`` filled in."""
        if isinstance(self.dictionary, dict):
            if site not in self.dictionary:
                raise InputError(f"No dictionary is given for site {site!r}; the file names {sorted(self.dictionary)}")
            return self.dictionary[site]
        return self.dictionary.replace(SITE_PLACEHOLDER, site)


class StoreSettings(Section):
    """How activations are kept on disk."""

    dtype: Literal["float32", "float16"] = "float32"
    shard_rows: Annotated[int, Field(ge=1)] = Field(16_384, description="rows that one task writes as one file")


class ContextsSettings(Section):
    """What is kept of where each feature fires, besides its top rows (of which ``report.contexts`` is the number)."""

    distinct_documents: bool = Field(False, description="at most one top row of a document for each feature")
    quantiles: list[Annotated[float, Field(ge=0, le=1)]] = Field([0.1, 0.3, 0.5, 0.7, 0.9])
    bins: Annotated[int, Field(ge=0)] = Field(20, description="bins of the histogram of activations")
    tokens: Annotated[int, Field(ge=0, le=64)] = Field(16, description="commonest tokens of each feature")
    seed: int = 0
