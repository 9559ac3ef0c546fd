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

from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Discriminator, Field, Tag, ValidationError, model_validator

from pipeline.settings.base import SITE_PLACEHOLDER, Section, explain
from pipeline.settings.compare import CompareSettings
from pipeline.settings.correlate import CorrelateSettings
from pipeline.settings.harvest import (
    AlignSettings,
    ContextsSettings,
    CorpusSettings,
    ModelSettings,
    StoredSettings,
    StoreSettings,
)
from pipeline.settings.match import RunMatchSettings
from pipeline.settings.rematch import RematchSettings
from pipeline.settings.report import ReportSettings
from pipeline.settings.semantics import SemanticsSettings
from pipeline.settings.yardsticks import YardsticksSettings
from storage.errors import FormatError, InputError
from storage.rundir import RunDirectory, Side
from storage.yaml_files import read_yaml


def _kind_of_side(content: Any) -> str:
    """Return what a side is given as, by what only the one has: a store, or a model."""
    stored = "store" in content if isinstance(content, dict) else isinstance(content, StoredSettings)
    return (StoredSettings if stored else ModelSettings).__name__


#: A model whose activations are harvested, or activations that are there.
SideSettings = Annotated[
    Annotated[ModelSettings, Tag("ModelSettings")] | Annotated[StoredSettings, Tag("StoredSettings")],
    Discriminator(_kind_of_side),
]


class Experiment(Section):
    """A whole experiment: two models on the same text, at a grid of sites."""

    name: Annotated[str, Field(pattern=r"^\.*[\w+-][\w.+-]*$")]
    corpus: CorpusSettings
    a: SideSettings
    b: SideSettings
    align: AlignSettings = AlignSettings()
    store: StoreSettings = StoreSettings()
    correlate: CorrelateSettings = CorrelateSettings()
    match: Annotated[RunMatchSettings, AfterValidator(RunMatchSettings.checked)] = RunMatchSettings()
    rematch: RematchSettings | None = Field(None, description="the stage runs if this is given; {} for all defaults")
    compare: Annotated[CompareSettings, AfterValidator(CompareSettings.of_sites)] | None = Field(
        CompareSettings(), description="null skips the stage, e.g. for activations without decoder rows"
    )
    yardsticks: YardsticksSettings | None = Field(
        None, description="the stage runs where this is given; {} for the floors and ceilings that need nothing else"
    )
    contexts: ContextsSettings = ContextsSettings()
    concepts: str | list[str] | None = Field(
        None, description="short for semantics: {concepts: …}; all other settings have their defaults"
    )
    semantics: SemanticsSettings | None = Field(
        None, description="the stage runs if this or 'concepts' is given; {} for all defaults"
    )
    report: ReportSettings = ReportSettings()

    # of validators in front, the last one acts first: this one finds the section that `concepts` makes
    @model_validator(mode="before")
    @classmethod
    def _no_embeddings_without_models(cls, content: Any) -> Any:
        """Leave embeddings out of the semantics of stores, where none are named: by default they are a model's."""
        if not isinstance(content, dict) or _kind_of_side(content.get("b")) != StoredSettings.__name__:
            return content
        section = content.get("semantics")
        return content | {"semantics": {"embedding": None, **section}} if isinstance(section, dict) else content

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

    @model_validator(mode="after")
    def _stored_sides_fit(self) -> Experiment:
        if not self.is_stored:
            return self
        if self.models:
            raise ValueError(
                f"{next(iter(self.models))} is a model and the other side a store: give two stores, or two models, "
                "which are then run on the same rows"
            )
        corpus = self.corpus
        if given := [name for name in ("documents", "tokens", "seed") if getattr(corpus, name) is not None]:
            raise ValueError(
                f"corpus.{given[0]} would take a part of the text, and stores have rows of all of it: leave it out"
            )
        if self.semantics is not None and str(self.semantics.embedding).startswith("model:"):
            raise ValueError(
                f"semantics.embedding {self.semantics.embedding} needs the model, and there are only stores; give "
                "gensim:FILE, or leave it out"
            )
        return self

    def allowing_bad_sites(self) -> Experiment:
        """Return the same experiment with ``allow_bad_site`` on both sides."""
        sides: dict[str, Any] = {
            side: model.model_copy(update={"allow_bad_site": True}) for side, model in self.models.items()
        }
        return self.model_copy(update=sides)

    @property
    def sides(self) -> tuple[tuple[Side, ModelSettings | StoredSettings], tuple[Side, ModelSettings | StoredSettings]]:
        """Both sides."""
        return ("a", self.a), ("b", self.b)

    @property
    def models(self) -> dict[Side, ModelSettings]:
        """The models that are to be run, by side; none where activations are there."""
        return {side: model for side, model in self.sides if isinstance(model, ModelSettings)}

    @property
    def stored(self) -> dict[Side, StoredSettings]:
        """The sides whose activations are there."""
        return {side: stores for side, stores in self.sides if isinstance(stores, StoredSettings)}

    @property
    def is_stored(self) -> bool:
        """Whether activations are there, and no model is run."""
        return bool(self.stored)

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
        raise InputError(f"{file}:\n" + "\n".join(explain(error, Experiment))) from error
    return resolve_paths(experiment, file.parent)


def stored_experiment(directory: RunDirectory) -> Experiment:
    """Return the experiment that was last run in a run directory.

    Raises
    ------
    MissingInputError
        If the folder is not a run directory.
    FormatError
        If the file is damaged, or of another version.
    """
    content = directory.read_experiment()
    try:
        return Experiment.model_validate(content)
    except ValidationError as error:
        raise FormatError(
            f"The experiment kept in {directory.root} is damaged, or of another version; `subspace run` "
            "EXPERIMENT.yaml writes it again:\n" + "\n".join(explain(error, Experiment))
        ) from error


def resolve_paths(experiment: Experiment, folder: Path) -> Experiment:
    """Make relative paths absolute, where something exists under `folder`; hub ids stay as they are."""
    corpus = experiment.corpus.model_copy(
        update={
            "path": _resolve(experiment.corpus.path, folder),
            "dataset": _resolve(experiment.corpus.dataset, folder),
        }
    )
    sides: dict[str, Any] = {side: _resolve_model(model, folder) for side, model in experiment.models.items()}
    sides |= {side: _resolve_stores(stores, folder) for side, stores in experiment.stored.items()}
    filters = [_resolve_item(item, folder) for item in experiment.match.filters]
    checked_on = _resolve(experiment.match.check_on, folder)
    match = experiment.match.model_copy(update={"filters": filters, "check_on": checked_on})
    semantics = None if experiment.semantics is None else _resolve_semantics(experiment.semantics, folder)
    yardsticks = experiment.yardsticks
    if yardsticks is not None:
        yardsticks = yardsticks.model_copy(update={"use": [_resolve_item(item, folder) for item in yardsticks.use]})
    changes = {"corpus": corpus, "match": match, "semantics": semantics, "yardsticks": yardsticks, **sides}
    return experiment.model_copy(update=changes)


def _resolve_item(item: Any, folder: Path) -> Any:
    """Make the paths of a filter or yardstick absolute."""
    return item.model_copy(update={name: _resolve(getattr(item, name), folder) for name in item.paths})


def _resolve_semantics(semantics: SemanticsSettings, folder: Path) -> SemanticsSettings:
    kind, _, place = (semantics.embedding or "").partition(":")
    changes = {"concepts": _resolve_concepts(semantics.concepts, folder)}
    if place not in ("", "a", "b"):
        changes["embedding"] = f"{kind}:{_resolve(place, folder)}"
    return semantics.model_copy(update=changes)


def _resolve_concepts(concepts: str | list[str], folder: Path) -> str | list[str]:
    if isinstance(concepts, str):
        return _resolve(concepts, folder) or concepts
    return [_resolve(file, folder) or file for file in concepts]


def _resolve_stores(side: StoredSettings, folder: Path) -> StoredSettings:
    root = folder.resolve()
    store: Any = (
        {site: str(root / path) for site, path in side.store.items()}
        if isinstance(side.store, dict)
        else str(root / side.store)
    )
    return side.model_copy(update={"store": store})


def _resolve_model(side: ModelSettings, folder: Path) -> ModelSettings:
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
