"""The tasks of the meanings: concepts of every site, subspaces of every pair of sites, and the table of all."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import xarray as xr
from distributed import Client

from pipeline.semantics.concepts import Concept, chosen_concepts
from pipeline.semantics.membership import concept_features, concepts_manifest
from pipeline.semantics.non_concept import non_concept_features, non_concept_manifest
from pipeline.semantics.run import (
    Inputs,
    Site,
    embed_words,
    semantics,
    semantics_manifest,
    words_manifest,
)
from pipeline.semantics.tables import semantics_table, table_manifest, table_paths, write_tables
from pipeline.settings.experiment import Experiment
from pipeline.settings.harvest import ModelSettings
from pipeline.settings.rematch import SHUFFLES, VOCABULARY
from pipeline.settings.semantics import NonConceptSettings, SemanticsSettings
from pipeline.work.task import Assessment, Cost, Identify, Outlook, Stage, Task
from pipeline.work.workers import ClientSource, deferred_interrupt, ensure_client
from storage import Manifest, open_activations, open_result
from storage.errors import MissingInputError
from storage.rundir import RunDirectory, Side

logger = logging.getLogger(__name__)

#: Subspaces with pairs enough to be tested at two sites, different numbers of pairs among them, and seconds of one
#: run of a null for one such number, on one core (measured on the demo, 10 to 80 pairs).
SUBSPACES, SUBSPACE_SIZES, DRAW_SECONDS, SHUFFLE_SECONDS = 40, 30, 2e-3, 4e-4


def tasks(config: Experiment, run: RunDirectory) -> Iterator[Task]:
    """Yield the tasks, each behind those whose results it reads; none where no concepts are asked for."""
    settings = config.semantics
    if settings is None:
        return
    sites = {
        (side, name): Site(run.activations(side, name), run.contexts(side, name), run.concepts(side, name))
        for side, model in config.sides
        for name in model.sites
    }
    load = functools.cache(lambda: chosen_concepts(settings))
    for (side, name), site in sites.items():
        yield _concepts(settings, run, f"{side.upper()} {name}", site, load)
    if settings.embedding is not None:
        yield _words(config, settings.embedding, run, list(sites.values()))
    for pair in config.site_pairs:
        yield _subspaces(config, settings, run, pair, (sites["a", pair[0]], sites["b", pair[1]]))

    def gather(_: Client) -> None:
        # The files come before the result, since that says that all of it is there
        write_tables(semantics_table(results, judged=settings.judged), run.semantics_table)
        semantics_table(results, run.semantics_table, judged=settings.judged, overwrite=True)

    results = {pair: run.semantics(*pair) for pair in config.site_pairs}
    manifest = functools.partial(table_manifest, results, settings.judged)
    tables = table_paths(run.semantics_table)
    yield Task("semantics", "table", {run.semantics_table: manifest}, tuple(results.values()), gather, tables=tables)


def non_concept_tasks(config: Experiment, run: RunDirectory) -> Iterator[Task]:
    """Yield the tasks that find the features without a concept, where the filter that drops them is used."""
    for side, model in config.sides if config.match.needs_non_concept else ():
        for site in model.sites:
            inputs, out = (
                (run.contexts(side, site), run.activations(side, site), run.corpus),
                run.non_concept(side, site),
            )
            yield Task(
                "non_concept",
                f"{side.upper()} {site}",
                {out: functools.partial(non_concept_manifest, inputs, NonConceptSettings())},
                inputs,
                functools.partial(_find_non_concept, inputs, out),
            )


def _find_non_concept(inputs: tuple[Path, Path, Path], out: Path, client: Client) -> None:
    non_concept_features(*inputs, out=out, overwrite=True, client=client)


def _concepts(
    settings: SemanticsSettings, run: RunDirectory, what: str, site: Site, load: Callable[[], dict[str, Concept]]
) -> Task:
    inputs = site.contexts, site.store, run.corpus
    return Task(
        "concepts",
        what,
        {site.concepts: lambda identify: concepts_manifest(inputs, load(), settings.rule, identify)},
        inputs,
        lambda client: concept_features(
            *inputs, load(), settings.rule, out=site.concepts, overwrite=True, client=client
        ),
    )


def _words(config: Experiment, source: str, run: RunDirectory, sites: list[Site]) -> Task:
    """Return the task that looks up the embeddings that coherence needs."""
    of_run = {f"model:{side}": (side, model) for side, model in config.models.items()}.get(source)

    def identity() -> dict[str, Any]:
        return _files(source) if of_run is None else _identity(run, *of_run)

    def locate() -> str:
        return source if of_run is None else f"model:{_folder(of_run[1])}"

    def look_up(_: Client) -> None:
        with deferred_interrupt():  # imports transformers
            embed_words(sites, run.corpus, source, locate, identity=identity(), out=run.words, overwrite=True)

    def manifest(identify: Identify) -> Manifest:
        return words_manifest(sites, run.corpus, source, identity(), identify)

    inputs = (run.corpus, *(path for site in sites for path in (site.contexts, site.store)))
    opens = () if of_run is None else (run.activations(of_run[0], of_run[1].sites[0]),)
    return Task("words", "", {run.words: manifest}, inputs, look_up, opens=opens)


def _subspaces(
    config: Experiment, settings: SemanticsSettings, run: RunDirectory, pair: tuple[str, str], sites: tuple[Site, Site]
) -> Task:
    words = None if settings.embedding is None else run.words
    threshold, out = config.match.min_correlation, run.semantics(*pair)
    draws = config.rematch.draws if config.rematch is not None and VOCABULARY in config.rematch.nulls else 0
    rematched = run.rematched(*pair) if draws else None
    inputs = Inputs(run.pairs(*pair), run.correlation(*pair), sites, run.corpus, words, threshold, rematched)

    def make(client: Client) -> None:
        paths = inputs.pairs, inputs.correlation, sites, run.corpus
        options = {"words": words, "rematched": rematched, "out": out}
        semantics(*paths, settings, min_correlation=threshold, **options, overwrite=True, client=client)

    def cost(outlook: Outlook) -> Cost:
        drawn = sum(null != "shuffled" for null in settings.nulls)
        sized = SUBSPACE_SIZES + settings.clusters
        rows = sum(outlook.n_features(site.store) for site in sites)
        shuffles = settings.null_runs + draws * SHUFFLES
        work = settings.null_runs * drawn * sized * DRAW_SECONDS + shuffles * SUBSPACES * SHUFFLE_SECONDS
        return Cost(
            seconds=1 + work / outlook.n_slots,
            rows=rows,
            tasks=SUBSPACES * (1 + draws) + drawn * sized,
            read=rows * 1024 * 4.0,
            disk=500_000.0,
            memory=rows * 1024 * 4.0,
            note="concepts",
        )

    return Task(
        "semantics",
        f"{pair[0]} × {pair[1]}",
        {out: functools.partial(semantics_manifest, inputs, settings)},
        tuple(inputs.paths().values()),
        make,
        cost=cost,
    )


def check(config: Experiment) -> None:
    """Raise if a concept file is missing or wrong, before anything is computed."""
    if config.semantics is not None:
        chosen_concepts(config.semantics)


def run_semantics(config: Experiment, directory: RunDirectory, client: ClientSource = None) -> xr.Dataset:
    """Make what is missing of the semantics of a run whose pairs are matched, and return the table.

    Raises
    ------
    InputError
        If a concept file is wrong; before anything is computed.
    MissingInputError
        If an earlier stage has not run.
    """
    check(config)
    for pair in config.site_pairs:
        if not directory.pairs(*pair).exists():
            raise MissingInputError(
                f"{directory.root} has no matched pairs of {' and '.join(pair)}; run the experiment until match: "
                "subspace run EXPERIMENT.yaml --until match"
            )
    todo = list(tasks(config, directory))
    with directory.claim(), ensure_client(client) as used:
        Assessment(todo).finish(todo, used)
    return open_result(directory.semantics_table)


def _identity(directory: RunDirectory, side: Side, model: ModelSettings) -> dict[str, Any]:
    """Return what the activations record of the model that they come from."""
    with open_activations(directory.activations(side, model.sites[0])) as store:
        return {name: store.attrs.get(name) for name in ("model", "model_revision")}


def _files(source: str) -> dict[str, int]:
    """Return the files that vectors come from, with their sizes."""
    root = Path(source.partition(":")[2])
    files = [root] if root.is_file() else sorted(file for file in root.glob("*") if file.is_file())
    return {file.name: file.stat().st_size for file in files}


def _folder(model: ModelSettings) -> str:
    """Return the folder of a model with its weights; of one from the hub, that of its cached copy."""
    from pipeline.harvest.models import locate  # noqa: PLC0415 - imports torch

    return locate(model, weights=True)


STAGE = Stage("semantics", tasks, check=check)
