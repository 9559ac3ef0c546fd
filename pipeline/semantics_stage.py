"""Meanings over a whole run directory: concepts of every site, subspaces of every pair of sites, and the table."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import xarray as xr
from distributed import Client

from pipeline.config import Experiment, ModelConfig, SemanticsConfig
from pipeline.semantics.concepts import load_concepts
from pipeline.semantics.membership import concept_features
from pipeline.semantics.run import Site, SubspaceSettings, embed_words, semantics
from pipeline.semantics.tables import semantics_table, write_tables
from pipeline.workers import deferred_interrupt
from storage import open_activations
from storage.errors import MissingInputError
from storage.rundir import RunDirectory, Side

logger = logging.getLogger(__name__)


def run_semantics(
    config: Experiment, settings: SemanticsConfig, directory: RunDirectory, client: Client | None = None
) -> xr.Dataset:
    """Make what is missing of the semantics of a run whose pairs are matched.

    Parameters
    ----------
    config
        The experiment.
    settings
        Its section ``semantics``.
    directory
        The run.
    client
        Where the tasks run; threads of this process by default.

    Returns
    -------
    xarray.Dataset
        The table; see :func:`pipeline.semantics.tables.semantics_table`. It is written to the run directory, as CSV,
        HTML and LaTeX too.

    Raises
    ------
    InputError
        If a concept file or setting is wrong; before anything is computed.
    MissingInputError
        If an earlier stage has not run.
    """
    concepts = load_concepts(settings.concepts, only=settings.only, inflections=settings.inflections)
    subspaces = _subspace_settings(config, settings)
    _require(config, directory)
    sites = {
        (side, name): Site(
            directory.activations(side, name), directory.contexts(side, name), directory.concepts(side, name)
        )
        for side, model in config.sides
        for name in model.sites
    }
    for site in sites.values():
        concept_features(
            site.contexts, site.store, directory.corpus, concepts, settings.rule, out=site.concepts, client=client
        )
    words = _words(config, settings, directory, list(sites.values()))
    for site_a, site_b in config.site_pairs:
        semantics(
            directory.pairs(site_a, site_b),
            directory.correlation(site_a, site_b),
            (sites["a", site_a], sites["b", site_b]),
            directory.corpus,
            subspaces,
            words=words,
            out=directory.semantics(site_a, site_b),
            client=client,
        )
    results = {pair: directory.semantics(*pair) for pair in config.site_pairs}
    table = semantics_table(results, directory.semantics_table, judged=settings.judged)
    write_tables(table, directory.semantics_table.with_suffix(""))
    return table


def _subspace_settings(config: Experiment, settings: SemanticsConfig) -> SubspaceSettings:
    return SubspaceSettings(
        approaches=tuple(settings.approaches),
        sides=settings.sides,
        within=settings.within,
        min_correlation=config.match.min_correlation,
        min_pairs=settings.min_pairs,
        metrics=tuple(settings.metrics),
        nulls=tuple(settings.nulls),
        null_runs=settings.null_runs,
        seed=settings.seed,
        clusters=settings.clusters,
        geometry=settings.geometry,
    )


def _require(config: Experiment, directory: RunDirectory) -> None:
    for pair in config.site_pairs:
        if not directory.pairs(*pair).exists():
            raise MissingInputError(
                f"{directory.root} has no matched pairs of {' and '.join(pair)}; run the experiment until match: "
                "subspace run EXPERIMENT.yaml --until match"
            )


def _words(config: Experiment, settings: SemanticsConfig, directory: RunDirectory, sites: list[Site]) -> Path | None:
    """Look up the embeddings that coherence needs; return where they are."""
    source = settings.embedding
    if source is None:
        return None
    own = {"model:a": ("a", config.a), "model:b": ("b", config.b)}.get(source)
    with deferred_interrupt():  # imports transformers
        embed_words(
            sites,
            directory.corpus,
            source,
            lambda: source if own is None else f"model:{_folder(own[1])}",
            identity=_files(source) if own is None else _identity(directory, "a" if own[0] == "a" else "b", own[1]),
            out=directory.words,
        )
    return directory.words


def _identity(directory: RunDirectory, side: Side, model: ModelConfig) -> dict[str, Any]:
    """Return what the activations record of the model that they come from."""
    with open_activations(directory.activations(side, model.sites[0])) as store:
        return {name: store.attrs.get(name) for name in ("model", "model_revision")}


def _files(source: str) -> dict[str, int]:
    """Return the files that vectors come from, with their sizes."""
    root = Path(source.partition(":")[2])
    files = [root] if root.is_file() else sorted(file for file in root.glob("*") if file.is_file())
    return {file.name: file.stat().st_size for file in files}


def _folder(model: ModelConfig) -> str:
    """Return the folder of a model; of one from the hub, that of its cached copy."""
    from pipeline.harvest.models import describe  # noqa: PLC0415 - imports torch

    folder = describe(model).folder
    if Path(folder).is_dir():
        return folder
    from huggingface_hub import snapshot_download  # noqa: PLC0415 - as above

    wanted = ["*.json", "*.safetensors", "*.txt", "*.model"]
    return str(snapshot_download(folder, revision=model.revision, allow_patterns=wanted))
