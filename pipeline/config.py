"""The experiment file: one YAML, validated before anything is computed. All defaults live here.

>>> config = Experiment.model_validate({
...     "name": "toy",
...     "corpus": {"path": "texts.jsonl"},
...     "a": {"model": "gpt2", "dictionary": "identity", "sites": ["layers.1"]},
...     "b": {"model": "gpt2", "dictionary": "identity", "sites": ["layers.2", "layers.3"]},
... })
>>> config.correlate.top_k
16
>>> config.site_pairs
[('layers.1', 'layers.2'), ('layers.1', 'layers.3')]
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from pipeline.registries import FILTERS, METHODS, NULLS, takes_max_uses
from storage.errors import FormatError, InputError, shorten, shown
from storage.rundir import RunDirectory, Side
from storage.yaml_files import read_yaml

ActivationKind = Literal["post", "pre_topk", "raw"]
Kernel = Literal["auto", "sparse", "dense"]
DeviceName = Literal["auto", "cpu", "cuda"]
Measure = Literal["pearson", "cosine", "spearman", "jaccard", "phi"]
Pool = Literal["last", "max", "mean"]


def _known(look_up: Callable[[str], object]) -> AfterValidator:
    """Return the check that there is what a text names; see :mod:`pipeline.registries`."""

    def check(text: str) -> str:
        try:
            look_up(text)
        except InputError as error:
            raise ValueError(str(error)) from error
        return text

    return AfterValidator(check)


def _parse_metric(text: str) -> object:
    return importlib.import_module("pipeline.compare.metrics").parse_metric(text)  # stages read this module


#: A metric as users write it: a name, or a name with options.
Metric = Annotated[str, _known(_parse_metric)]
Null = Annotated[str, _known(NULLS.__getitem__)]
MatchMethod = Annotated[str, _known(METHODS.__getitem__)]

#: What r is called in labels, by measure.
MEASURE_NAMES: dict[Measure, str] = {
    "pearson": "Pearson correlation",
    "cosine": "cosine similarity",
    "spearman": "Spearman rank correlation",
    "phi": "phi coefficient of firing",
    "jaccard": "Jaccard index of firing",
}
NonConceptKind = Literal["punctuation", "blank", "beginning", "position", "frequent", "single_token"]
#: Share from which on a feature is of a kind that stands for no concept.
NON_CONCEPT_LIMITS: dict[NonConceptKind, float] = {
    "punctuation": 0.5,
    "blank": 0.5,
    "beginning": 0.5,
    "position": 0.9,
    "frequent": 0.1,
    "single_token": 0.9,
}
SITE_PLACEHOLDER = "{site}"


class Section(BaseModel):
    """A part of the experiment file: unknown keys are errors, values are not coerced across types."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class CorpusConfig(Section):
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
    def _one_source(self) -> CorpusConfig:
        if (self.dataset is None) == (self.path is None):
            raise ValueError("give exactly one of 'dataset' and 'path'")
        return self


class AlignConfig(Section):
    """How tokens of two tokenizers become rows."""

    pool: Pool = Field(
        "last", description="a row's value: the activation at the last token of its segment, or the max or mean over it"
    )


class ModelConfig(Section):
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


class StoreConfig(Section):
    """How activations are kept on disk."""

    dtype: Literal["float32", "float16"] = "float32"
    shard_rows: Annotated[int, Field(ge=1)] = Field(16_384, description="rows that one task writes as one file")


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


def _filter(value: Any) -> Any:
    """Return the filter that a mapping stands for; what is wrong with it is said at its name and key."""
    if not isinstance(value, Mapping):
        return value
    name = str(value.get("name"))
    try:
        return FILTERS[name].model_validate(dict(value))
    except InputError as error:
        raise ValueError(str(error)) from error
    except ValidationError as error:
        found = [
            InitErrorDetails(
                type=PydanticCustomError(item["type"], "{message}", {"message": item["msg"]}),
                loc=(name, *item["loc"]),
                input=item["input"],
            )
            for item in error.errors()
        ]
        raise ValidationError.from_exception_data("filter", found) from error


#: A filter of pairs, with its settings: one of :data:`pipeline.registries.FILTERS`.
PairFilter = Annotated[Any, BeforeValidator(_filter)]


class MatchConfig(Section):
    """How pairs are chosen."""

    method: MatchMethod = "greedy"
    min_correlation: Annotated[float, Field(gt=-1, le=1)] = 0.1
    max_uses: PositiveInt = Field(1, description="method unique: how many features of A may share one of B")
    filters: list[PairFilter] = Field([], description="what else is dropped, in this order")

    @model_validator(mode="after")
    def _uses_belong_to_unique(self) -> MatchConfig:
        if self.max_uses > 1 and not takes_max_uses(self.method):
            raise ValueError(
                f"max_uses belongs to the method 'unique', not {self.method!r}; to drop features that are used often, "
                "give filters: [{name: max_uses, n: …}]"
            )
        return self

    @property
    def needs_non_concept(self) -> bool:
        """Whether a filter reads which features stand for no concept."""
        return any("non_concept" in each.needs for each in self.filters)

    @property
    def needs_contexts(self) -> bool:
        """Whether a filter reads contexts."""
        return any("contexts" in each.needs for each in self.filters)


class CompareConfig(Section):
    """What the matched spaces are compared by, and against which chance."""

    metrics: list[Metric] = Field(
        ["svcca", "rsa", "svcca_pc1"], min_length=1, description="names, with options where wanted: 'svcca:k=20'"
    )
    nulls: list[Null] = Field(["shuffled"], min_length=1, description="what chance is")
    null_runs: PositiveInt = 1000
    seed: int = 0
    intervals: Annotated[int, Field(ge=0)] = Field(
        0, description="bootstrap runs over pairs, for an interval of each score"
    )

    @field_validator("nulls")
    @classmethod
    def _nulls_of_a_run(cls, nulls: list[Null]) -> list[Null]:
        if outside := [null for null in nulls if NULLS[null].source in ("pool", "control")]:
            raise ValueError(
                f"{', '.join(outside)} needs a larger matching or a control store, which the comparison of whole sites "
                "does not have; use `subspace compare --pool/--control-a/--control-b` on its results"
            )
        return nulls


class CountRule(Section):
    """A feature belongs to a concept if `at_least` of its `of` top contexts stand at a keyword."""

    name: Literal["count"] = "count"
    at_least: PositiveInt = 2
    of: PositiveInt = Field(5, description="top contexts looked at")

    @model_validator(mode="after")
    def _can_be_met(self) -> CountRule:
        if self.at_least > self.of:
            raise ValueError(f"at least {self.at_least} of {self.of} contexts can never be")
        return self


class ShareRule(Section):
    """A feature belongs to a concept if keywords have `at_least` this share of the activation in its top contexts."""

    name: Literal["share"] = "share"
    at_least: Annotated[float, Field(gt=0, le=1)] = 0.5
    of: PositiveInt = Field(8, description="top contexts looked at")


class PmiRule(Section):
    """A feature belongs to a concept if it fires on the concept's rows 2**`at_least` times as often as by chance."""

    name: Literal["pmi"] = "pmi"
    at_least: float = Field(3.0, description="pointwise mutual information, in bits")
    min_count: PositiveInt = Field(5, description="rows of the concept on which the feature must fire")


class ProbeRule(Section):
    """The features that a sparse linear probe weighs most when it tells the concept's rows from others."""

    name: Literal["probe"] = "probe"
    features: PositiveInt = Field(20, description="most features that a concept gets")
    rows: Annotated[int, Field(ge=100)] = Field(20_000, description="rows of the sample that has no keyword")
    rows_of_concept: Annotated[int, Field(ge=10)] = Field(2_000, description="most rows of each concept in the sample")
    strength: Annotated[float, Field(gt=0)] = Field(1.0, description="C of the logistic regression with an L1 penalty")
    seed: int = 0


Rule = Annotated[CountRule | ShareRule | PmiRule | ProbeRule, Field(discriminator="name")]


class SemanticsConfig(Section):
    """Which concepts are looked for, and which features belong to them."""

    concepts: str | list[str] = Field(
        "default", description="'default', a YAML file of your own, or a list of these; later groups replace earlier"
    )
    only: list[str] | None = Field(None, description="names of the concepts to keep; all by default")
    inflections: bool | None = Field(
        None, description="plurals and verb forms of every keyword, or of none; by default as the groups ask for"
    )
    rule: Rule = CountRule()
    approaches: list[Literal["global", "within"]] = Field(
        ["global", "within"], description="pairs of the whole space cut out, features paired within the concept"
    )
    sides: Literal["both", "either"] = Field(
        "both", description="whose features must belong to the concept, of pairs cut out of the whole space"
    )
    within: MatchMethod = Field("greedy", description="how features are paired within a concept: any matching method")
    min_pairs: Annotated[int, Field(ge=3)] = Field(10, description="subspaces of fewer pairs are not tested")
    metrics: list[Metric] = ["svcca:k=4", "rsa", "svcca_pc1", "svcca"]
    judged: Annotated[list[Metric], Field(min_length=2, max_length=2)] = Field(
        ["svcca:k=4", "rsa"], description="the two metrics that both have to beat chance"
    )
    nulls: list[Null] = ["shuffled", "random_features", "random_pairs"]
    null_runs: PositiveInt = 1000
    seed: Annotated[int, Field(ge=0)] = 0
    embedding: str | None = Field(
        "model:b",
        description="words' vectors for the coherence: 'model:a' or 'model:b' (input embeddings), 'gensim:FILE', "
        "'sentence-transformers:FOLDER', or null for none",
    )
    clusters: Annotated[int, Field(ge=0)] = Field(
        0, description="clusters of the pairs by decoder geometry that are tested like concepts; 0 for none"
    )
    geometry: Literal["joint", "a", "b"] = Field("joint", description="whose decoder rows find the clusters")

    @model_validator(mode="after")
    def _judged_are_scored(self) -> SemanticsConfig:
        if missing := [metric for metric in self.judged if metric not in self.metrics]:
            raise ValueError(f"judged names {missing[0]!r}, which is not among the metrics {self.metrics}")
        return self

    @field_validator("nulls")
    @classmethod
    def _nulls_of_subsets(cls, nulls: list[Null]) -> list[Null]:
        if outside := [null for null in nulls if NULLS[null].source == "control"]:
            raise ValueError(f"{', '.join(outside)} needs a control store, which subspaces do not have")
        return nulls

    @field_validator("embedding")
    @classmethod
    def _known_source(cls, embedding: str | None) -> str | None:
        kinds = ("model:a", "model:b", "gensim:", "sentence-transformers:", "model:")
        if embedding is not None and not embedding.startswith(kinds):
            raise ValueError("it is model:a, model:b, gensim:FILE, sentence-transformers:FOLDER, or null")
        return embedding


class ContextsConfig(Section):
    """What is kept of where each feature fires, besides its top rows (of which ``report.contexts`` is the number)."""

    distinct_documents: bool = Field(False, description="at most one top row of a document for each feature")
    quantiles: list[Annotated[float, Field(ge=0, le=1)]] = [0.1, 0.3, 0.5, 0.7, 0.9]
    bins: Annotated[int, Field(ge=0)] = Field(20, description="bins of the histogram of activations")
    tokens: Annotated[int, Field(ge=0, le=64)] = Field(16, description="commonest tokens of each feature")
    seed: int = 0


class ReportConfig(Section):
    """What the report shows."""

    contexts: PositiveInt = Field(8, description="top activating contexts kept for each feature")
    pairs: PositiveInt = Field(100, description="best pairs shown for each pair of sites")


class Experiment(Section):
    """A whole experiment: two models on the same text, at a grid of sites."""

    name: Annotated[str, Field(pattern=r"^[\w.+-]+$")]
    corpus: CorpusConfig
    a: ModelConfig
    b: ModelConfig
    align: AlignConfig = AlignConfig()
    store: StoreConfig = StoreConfig()
    correlate: CorrelateConfig = CorrelateConfig()
    match: MatchConfig = MatchConfig()
    compare: CompareConfig = CompareConfig()
    contexts: ContextsConfig = ContextsConfig()
    concepts: str | list[str] | None = Field(
        None, description="short for semantics: {concepts: …}: look for concepts, with all other settings by default"
    )
    semantics: SemanticsConfig | None = Field(
        None, description="the stage runs where this or 'concepts' is given; {} for all defaults"
    )
    report: ReportConfig = ReportConfig()

    @model_validator(mode="before")
    @classmethod
    def _concepts_ask_for_semantics(cls, content: Any) -> Any:
        if not isinstance(content, dict) or content.get("concepts") is None:
            return content
        section = content.get("semantics") or {}
        if "concepts" in section:
            raise ValueError("'concepts' is given twice, at the top and under 'semantics'; give one of them")
        # it is kept in one place only, so that the experiment reads the same from the run directory
        return {**content, "concepts": None, "semantics": {**section, "concepts": content["concepts"]}}

    @model_validator(mode="after")
    def _kept_pairs_suffice(self) -> Experiment:
        if self.match.min_correlation < self.correlate.keep_above:
            raise ValueError(
                f"match.min_correlation ({self.match.min_correlation}) is below correlate.keep_above "
                f"({self.correlate.keep_above}): pairs below keep_above are not kept; lower keep_above"
            )
        return self

    @model_validator(mode="after")
    def _contexts_suffice(self) -> Experiment:
        wanted = 0 if self.semantics is None else getattr(self.semantics.rule, "of", 0)
        if wanted > self.report.contexts:
            raise ValueError(
                f"semantics.rule looks at {wanted} top contexts of each feature, and report.contexts keeps "
                f"{self.report.contexts}; raise report.contexts, or lower `of`"
            )
        return self

    def allowing_bad_sites(self) -> Experiment:
        """Return the same experiment with ``allow_bad_site`` on both sides."""
        sides = {side: getattr(self, side).model_copy(update={"allow_bad_site": True}) for side in ("a", "b")}
        return self.model_copy(update=sides)

    @property
    def sides(self) -> tuple[tuple[Side, ModelConfig], tuple[Side, ModelConfig]]:
        """Both sides and their models."""
        return ("a", self.a), ("b", self.b)

    @property
    def site_pairs(self) -> list[tuple[str, str]]:
        """The grid A.sites × B.sites, in the order of the file."""
        return [(a, b) for a in self.a.sites for b in self.b.sites]


def load_experiment(path: str | Path) -> Experiment:
    """Read and validate an experiment file; relative paths in it start at the file's folder.

    Parameters
    ----------
    path
        The YAML file.

    Returns
    -------
    Experiment

    Raises
    ------
    MissingInputError
        If there is no such file.
    InputError
        If it is no YAML mapping, or a key or value is wrong; the message names each.
    """
    file = Path(path)
    content = read_yaml(file, f"No experiment file at {file}")
    if not isinstance(content, dict):
        raise InputError(f"{file} must hold a mapping of settings, not {type(content).__name__}")
    try:
        experiment = Experiment.model_validate(content)
    except ValidationError as error:
        raise InputError(f"{file}:\n" + "\n".join(_explain(error))) from error
    return _resolve_paths(experiment, file.parent)


def stored_experiment(directory: RunDirectory) -> Experiment:
    """Return the experiment that was last run in a run directory.

    Raises
    ------
    MissingInputError
        If the folder is no run directory.
    FormatError
        If the file is damaged, or of another version.
    """
    content = directory.read_experiment()
    try:
        return Experiment.model_validate(content)
    except ValidationError as error:
        raise FormatError(
            f"The experiment kept in {directory.root} is damaged, or of another version; `subspace run` "
            "EXPERIMENT.yaml writes it again:\n" + "\n".join(_explain(error))
        ) from error


def _explain(error: ValidationError) -> Iterator[str]:
    """Yield one line for each wrong key or value, with the nearest valid key where a key is unknown."""
    for item in error.errors():
        where = ".".join(shorten(str(part), 80) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            known = list(_fields_at(item["loc"][:-1]))
            near = difflib.get_close_matches(shorten(str(item["loc"][-1]), 80), known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"valid keys: {', '.join(known)}"
            yield f"  {where}: unknown key; {hint}"
        else:
            message = item["msg"].removeprefix("Value error, ")
            yield f"  {where or 'experiment'}: {message} (given: {shown(item['input'])})"


def _fields_at(location: tuple[Any, ...]) -> Iterator[str]:
    """Yield the valid keys of the section at `location`."""
    section: Any = Experiment
    for part in location:
        field = getattr(section, "model_fields", {}).get(part)
        # inside a list of filters, the location goes on with a number and the filter's name
        section = _section_of(field.annotation) if field is not None else _filter_named(part)
    yield from getattr(section, "model_fields", {})


def _section_of(annotation: Any) -> Any:
    """Return the section that a field holds; of an optional one, what it is when it is there."""
    return next((one for one in get_args(annotation) if hasattr(one, "model_fields")), annotation)


def _filter_named(part: object) -> Any:
    return FILTERS[part] if isinstance(part, str) and part in FILTERS else Section


def _resolve_paths(experiment: Experiment, folder: Path) -> Experiment:
    """Make relative paths absolute, where something exists under `folder`; hub ids stay as they are."""
    corpus = experiment.corpus.model_copy(
        update={
            "path": _resolve(experiment.corpus.path, folder),
            "dataset": _resolve(experiment.corpus.dataset, folder),
        }
    )
    sides = {side: _resolve_model(getattr(experiment, side), folder) for side in ("a", "b")}
    filters = [
        each.model_copy(update={name: _resolve(getattr(each, name), folder) for name in each.paths})
        for each in experiment.match.filters
    ]
    match = experiment.match.model_copy(update={"filters": filters})
    semantics = None if experiment.semantics is None else _resolve_semantics(experiment.semantics, folder)
    return experiment.model_copy(update={"corpus": corpus, "match": match, "semantics": semantics, **sides})


def _resolve_semantics(semantics: SemanticsConfig, folder: Path) -> SemanticsConfig:
    kind, _, place = (semantics.embedding or "").partition(":")
    found = {"concepts": _resolve_concepts(semantics.concepts, folder)}
    if place not in ("", "a", "b"):
        found["embedding"] = f"{kind}:{_resolve(place, folder)}"
    return semantics.model_copy(update=found)


def _resolve_concepts(concepts: str | list[str], folder: Path) -> str | list[str]:
    if isinstance(concepts, str):
        return _resolve(concepts, folder) or concepts
    return [_resolve(each, folder) or each for each in concepts]


def _resolve_model(side: ModelConfig, folder: Path) -> ModelConfig:
    dictionary = side.dictionary
    resolved: Any = (
        {site: _resolve(value, folder) for site, value in dictionary.items()}
        if isinstance(dictionary, dict)
        else _resolve(dictionary, folder)
    )
    return side.model_copy(update={"model": _resolve(side.model, folder), "dictionary": resolved})


def _resolve(value: str | None, folder: Path) -> str | None:
    if value is None or Path(value).is_absolute():
        return value
    stem = value.split(SITE_PLACEHOLDER)[0] or "."
    return str(folder.resolve() / value) if (folder / stem).exists() and stem != "." else value
