"""Settings of the text, the models, the rows, the stores and the contexts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, field_validator, model_validator

from pipeline.settings.base import SITE_PLACEHOLDER, Flag, Number, Section
from storage.errors import InputError

ActivationKind = Literal["post", "pre_topk", "raw"]
#: What names files of a run directory.
SiteName = Annotated[str, Field(pattern=r"^[\w+-][\w.+-]*$")]

Pool = Literal["last", "max", "mean"]


class CorpusSettings(Section):
    """Which text both models read."""

    dataset: str | None = Field(None, description="Id of a Hugging Face dataset, or the folder of a local one.")
    path: str | None = Field(None, description="A .txt, .jsonl or .parquet file, or a folder of them.")
    split: str = Field("train", description="The split of the dataset.")
    subset: str | None = Field(None, description="The configuration of the dataset, where it has several.")
    column: str = Field("text", description="The column or JSON key that holds the text.")
    group: str | None = Field(
        None,
        description="The column or JSON key of what documents may have in common, such as the article that they are "
        "sections of. No group is split between the half that chooses pairs and the half that is held out.",
    )
    revision: str | None = Field(None, description="Branch, tag or commit of the dataset; its newest by default.")
    streaming: bool | None = Field(
        None,
        description="Read a hub dataset as it comes, without downloading all of it first. By default this is done "
        "where only its first documents are taken.",
    )
    documents: PositiveInt | None = Field(None, description="How many documents are taken; all by default.")
    tokens: PositiveInt | None = Field(
        None,
        description="Stop after the document with which the tokenizer of model A has counted this many tokens of text.",
    )
    seed: int | None = Field(
        None, description="Sample the documents at random with this seed; without one, the first are taken."
    )
    max_length: Annotated[int, Field(ge=8)] = Field(
        300, description="Longest window in tokens, special tokens included; less where a model's context is shorter."
    )

    @model_validator(mode="after")
    def _one_source(self) -> CorpusSettings:
        if (self.dataset is None) == (self.path is None):
            raise ValueError("give exactly one of 'dataset' and 'path'")
        return self


class AlignSettings(Section):
    """How tokens of two tokenizers become rows."""

    pool: Pool = Field(
        "last",
        description="The value of a row: the activation at the last token of its segment, or the maximum or mean over "
        "the segment's tokens.",
    )


class ModelSettings(Section):
    """One of the two models, and where and how its activations are read."""

    model: str = Field(description="Hub id, local folder, or GGUF file.")
    label: str | None = Field(None, description="What the report calls the model; its name by default.")
    revision: str | None = Field(None, description="Branch, tag or commit of the model; its newest by default.")
    dictionary: str | dict[str, str] = Field(
        description="Hub id or folder of the dictionaries, 'identity' for raw units, 'random:FEATURES:K' for the "
        "control, or a mapping with one of these for each site; '{site}' stands for the name of the site."
    )
    sites: list[str] = Field(min_length=1, description="Where in the network activations are read.")
    kind: ActivationKind = Field(
        "post",
        description="What is stored: the dictionary's activations (post), those before its top k are chosen "
        "(pre_topk), or raw units.",
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="Type in which the network computes."
    )
    prepend_bos: bool | str | None = Field(
        None,
        description="Whether every window begins with BOS, or the token that it begins with; by default as the "
        "dictionary was trained.",
    )
    batch_size: PositiveInt = Field(8, description="Windows in one pass through the network.")
    device: str = Field("auto", description="Where the network computes; auto: on the worker's GPU, if it has one.")
    randomise: int | None = Field(
        None,
        ge=0,
        description="As a control, draw the weights anew by the architecture's own initialisation with this seed.",
    )
    allow_bad_site: bool = Field(
        False, description="Harvest also where the site check finds that a dictionary does not belong to its site."
    )
    trust_remote_code: bool = Field(False, description="Run code that comes with the model.")

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


class StoredSettings(Section):
    """One of the two sides as activations that are there already, without its model."""

    store: str | dict[str, str] = Field(
        description="Path of an activation store (`subspace import` makes them), or a mapping with one for each site; "
        "'{site}' stands for the name of the site."
    )
    sites: Annotated[list[SiteName], Field(min_length=1)] = Field(
        description="What the stores are called; by default as the mapping names them, or as the file of the one store."
    )
    label: str | None = Field(None, description="What the report calls the model; its name by default.")

    @model_validator(mode="before")
    @classmethod
    def _named_sites(cls, content: Any) -> Any:
        """Name the sites where they are not named: the run directory needs them."""
        store = content.get("store") if isinstance(content, dict) else None
        if isinstance(store, dict):
            return {"sites": list(store), **content}
        if isinstance(store, str) and SITE_PLACEHOLDER not in store:
            return {"sites": [Path(store).stem], **content}
        return content

    @model_validator(mode="after")
    def _a_store_for_each_site(self) -> StoredSettings:
        paths = [self.store_of(site) for site in self.sites]
        if len(set(self.sites)) < len(self.sites) or len(set(paths)) < len(paths):
            raise ValueError(f"each site has a name and a store of its own; not {self.sites} at {paths}")
        return self

    def store_of(self, site: str) -> str:
        """Return the path of the store of `site`."""
        if isinstance(self.store, dict):
            if site not in self.store:
                raise ValueError(f"no store is given for site {site!r}; there are {sorted(self.store)}")
            return self.store[site]
        return self.store.replace(SITE_PLACEHOLDER, site)


class StoreSettings(Section):
    """How activations are kept on disk."""

    dtype: Literal["float32", "float16"] = Field("float32", description="Type of the stored activations.")
    shard_rows: Annotated[int, Field(ge=1)] = Field(16_384, description="Rows that one task writes as one file.")


#: Counters of each feature's tokens; counts are exact where a feature fires on no more different ones.
COUNTERS = 64


class ContextsSettings(Section):
    """What is kept of where each feature fires, besides its top rows (of which ``report.contexts`` is the number)."""

    distinct_documents: Annotated[bool, Flag("--distinct-documents")] = Field(
        False,
        description="Keep at most one row of a document for each feature, its best one: a text that repeats itself "
        "then does not fill the list.",
    )
    quantiles: Annotated[list[Annotated[float, Field(ge=0, le=1)]], Number, Flag("--quantile")] = Field(
        [0.1, 0.3, 0.5, 0.7, 0.9],
        description="At these quantiles of its positive activations a row is kept for each feature. They are those of "
        "a simple random sample of 64 of its firing rows, which is all of them for features that fire no more often.",
    )
    bins: Annotated[int, Number, Field(ge=0)] = Field(
        20, description="Bins of the histogram of positive activations, from 0 to the feature's maximum."
    )
    tokens: Annotated[int, Number, Field(ge=0, le=COUNTERS)] = Field(
        16,
        description="Commonest tokens kept for each feature, if the store has token ids. They are counted over all "
        "firing rows with 64 counters a feature, so memory is bounded; token_missed says by how much counts may be too "
        "low.",
    )
    seed: Annotated[int, Number, Field(ge=0)] = Field(0, description="Seed of the samples.")
