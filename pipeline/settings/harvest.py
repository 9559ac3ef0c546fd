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

    dataset: str | None = Field(None, description="Id of a Hugging Face dataset, or folder of a local one.")
    path: str | None = Field(None, description="A .txt, .jsonl or .parquet file, or a folder of them.")
    split: str = Field("train", description="Split of the dataset.")
    subset: str | None = Field(None, description="Configuration of the dataset, if it has several.")
    column: str = Field("text", description="Column or JSON key of the text.")
    group: str | None = Field(
        None,
        description="Column or JSON key of the group that a document belongs to, such as the article of "
        "which it is a section. No group is split between the selection half and the "
        "held-out half.",
    )
    revision: str | None = Field(None, description="Branch, tag or commit of the dataset; default: the newest.")
    streaming: bool | None = Field(
        None,
        description="Stream a hub dataset instead of downloading all of it first. Default: only if just "
        "its first documents are used.",
    )
    documents: PositiveInt | None = Field(None, description="Number of documents; default: all.")
    tokens: PositiveInt | None = Field(
        None,
        description="Number of tokens: stop after the document in which the tokenizer of model A reaches this count.",
    )
    seed: int | None = Field(
        None, description="Draw a random sample of the documents with this seed; default: use the first ones."
    )
    max_length: Annotated[int, Field(ge=8)] = Field(
        300,
        description="Maximum length of a window in tokens, including special tokens; less if a model's "
        "context is shorter.",
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
        description="Value of a row: the activation at the last token of its segment, or the maximum or "
        "mean over its tokens.",
    )


class ModelSettings(Section):
    """One of the two models, and where and how its activations are read."""

    model: str = Field(description="Hub id, local folder, or GGUF file.")
    label: str | None = Field(None, description="Name of the model in the report; default: its own name.")
    revision: str | None = Field(None, description="Branch, tag or commit of the model; default: the newest.")
    dictionary: str | dict[str, str] = Field(
        description="Hub id or folder of the dictionaries, 'identity' for raw units, 'random:FEATURES:K' "
        "for the control, or a mapping from each site to one of these; '{site}' is replaced "
        "by the name of the site."
    )
    sites: list[str] = Field(min_length=1, description="Sites: where in the network activations are read.")
    kind: ActivationKind = Field(
        "post",
        description="What is stored: the dictionary's activations (post), those before the top k are "
        "selected (pre_topk), or raw units.",
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="dtype in which the network computes."
    )
    prepend_bos: bool | str | None = Field(
        None,
        description="Whether every window starts with BOS, or the token that it starts with; default: as "
        "the dictionary was trained.",
    )
    batch_size: PositiveInt = Field(8, description="Windows per forward pass.")
    device: str = Field("auto", description="Where the network computes; auto: on the worker's GPU if it has one.")
    randomise: int | None = Field(
        None,
        ge=0,
        description="As a control, redraw the weights by the architecture's own initialisation with this seed.",
    )
    allow_bad_site: bool = Field(
        False, description="Harvest even if the site check finds that a dictionary does not fit its site."
    )
    trust_remote_code: bool = Field(False, description="Run code that is shipped with the model.")

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
        description="Path of an activation store (made by `subspace import`), or a mapping from each "
        "site to one; '{site}' is replaced by the name of the site."
    )
    sites: Annotated[list[SiteName], Field(min_length=1)] = Field(
        description="Names of the sites; default: the keys of the mapping, or the file name of the single store."
    )
    label: str | None = Field(None, description="Name of the model in the report; default: its own name.")

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

    dtype: Literal["float32", "float16"] = Field("float32", description="dtype of the stored activations.")
    shard_rows: Annotated[int, Field(ge=1)] = Field(16_384, description="Rows that one task writes as one file.")


#: Counters of each feature's tokens; counts are exact where a feature fires on no more different ones.
COUNTERS = 64


class ContextsSettings(Section):
    """What is kept of where each feature fires, besides its top rows (of which ``report.contexts`` is the number)."""

    distinct_documents: Annotated[bool, Flag("--distinct-documents")] = Field(
        False,
        description="Keep at most one row per document for each feature, the best one, so that a "
        "repetitive document does not fill the list.",
    )
    quantiles: Annotated[list[Annotated[float, Field(ge=0, le=1)]], Number, Flag("--quantile")] = Field(
        [0.1, 0.3, 0.5, 0.7, 0.9],
        description="Keep a row per feature at each of these quantiles of its positive activations. They "
        "are estimated from a simple random sample of 64 firing rows, or from all of them if "
        "the feature fires no more often.",
    )
    bins: Annotated[int, Number, Field(ge=0)] = Field(
        20, description="Bins of the histogram of positive activations, from 0 to the maximum of the feature."
    )
    tokens: Annotated[int, Number, Field(ge=0, le=COUNTERS)] = Field(
        16,
        description="Most common tokens kept per feature, if the store has token ids. They are counted "
        "over all firing rows with 64 counters per feature, which bounds memory; "
        "token_missed is the most by which a count may be too low.",
    )
    seed: Annotated[int, Number, Field(ge=0)] = Field(0, description="Seed of the samples.")
