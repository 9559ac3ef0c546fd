"""The tasks of the harvest: the text, the table of rows, the stores of each model, and the contexts of each site."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from distributed import Client

from pipeline.harvest.contexts import contexts, contexts_manifest
from pipeline.harvest.stored import check_stored, stored_tasks
from pipeline.settings.experiment import Experiment
from pipeline.settings.harvest import ModelSettings, StoreSettings
from pipeline.work.share import Share
from pipeline.work.task import Cost, Expect, Identify, Outlook, Stage, Task
from pipeline.work.workers import deferred_interrupt
from storage.errors import FormatError, MissingInputError
from storage.manifest import Manifest
from storage.rundir import RunDirectory, Side
from storage.sparse_array import read_shards

# What runs models is imported where it is called: torch and transformers take seconds


@dataclass(frozen=True)
class LaterModel:
    """A model that can be told only from results: its sites, how it is told then, and the results."""

    sites: list[str]
    model: Callable[[], ModelSettings]
    reads: tuple[Path, ...] = ()


def tasks(config: Experiment, run: RunDirectory) -> Iterator[Task]:
    """Yield the tasks, each behind those whose results it reads."""
    yield from stored_tasks(config, run) if config.is_stored else _harvest_tasks(config, run)
    for side, settings in config.sides:
        for site in settings.sites:
            yield contexts_task(config, run, side, site)


def _harvest_tasks(config: Experiment, run: RunDirectory) -> Iterator[Task]:
    """Yield the tasks that run the models: the text, the rows, and the stores of either side."""
    models = config.models

    def make_corpus(_: Client) -> None:
        from pipeline.harvest.corpus import build_corpus

        build_corpus(config.corpus, run.corpus, models["a"])

    def corpus_manifest(_: Identify) -> Manifest:
        from pipeline.harvest import manifests

        return manifests.corpus_manifest(config.corpus, models["a"])

    yield Task("corpus", "", {run.corpus: corpus_manifest}, (), make_corpus, by_content=True, prepares=True)
    yield rows_task(config, run)
    for side, model in models.items():
        yield harvest_task(config, run, side, model)


def rows_task(config: Experiment, run: RunDirectory) -> Task:
    """Return the task of the rows that both models share."""
    models, length, pool = config.models, config.corpus.max_length, config.align.pool

    def make(client: Client) -> None:
        from pipeline.harvest import rows

        rows.make_rows(run.corpus, models["a"], models["b"], length, run.rows, pool=pool, client=client)

    def manifest(identify: Identify) -> Manifest:
        from pipeline.harvest import manifests

        known = {side: manifests.known_identity(run.models, side, model) for side, model in models.items()}
        return manifests.rows_manifest(identify(run.corpus), known, length, pool)

    return Task("rows", "", {run.rows: manifest}, (run.corpus,), make, prepares=True)


def harvest_task(config: Experiment, run: RunDirectory, side: Side, of: ModelSettings | LaterModel) -> Task:
    """Return the task of one model: all its sites in one pass over the text."""
    later = of if isinstance(of, LaterModel) else LaterModel(of.sites, lambda: of)
    stores = {site: run.activations(side, site) for site in later.sites}

    def arguments() -> tuple[Path, Path, ModelSettings, Side, StoreSettings, Path]:
        return run.corpus, run.rows, later.model(), side, config.store, run.activations_folder(side)

    def expect(site: str) -> Expect:
        def manifest(identify: Identify) -> Manifest:
            from pipeline.harvest import manifests

            inputs, model = (identify(run.corpus), identify(run.rows)), later.model()
            known = manifests.known_identity(run.models, side, model)
            return manifests.store_manifest(*inputs, known, site, side, model, config.store)

        return manifest

    def make(client: Client, share: Share | None = None) -> None:
        from pipeline.harvest.manifests import keep_identity
        from pipeline.harvest.run import harvest

        if share is None:
            # before: whoever dies after the last store does not come here again, since the stores are whole
            keep_identity(run.models, side, later.model())
        harvest(*arguments(), share=share, client=client)

    def cost(outlook: Outlook) -> Cost:
        from pipeline.harvest.forecast import forecast_harvest
        from pipeline.harvest.run import begin

        return forecast_harvest(begin(*arguments()), outlook)

    return Task(
        "harvest",
        side.upper(),
        {path: expect(site) for site, path in stores.items()},
        (run.corpus, run.rows, *later.reads),
        make,
        opens=later.reads,
        by_content=True,
        of_sites=True,
        cost=cost,
        share=lambda share, client: make(client, share),
        progress=shards_done,
    )


def contexts_task(config: Experiment, run: RunDirectory, side: Side, site: str) -> Task:
    """Return the task of the contexts of one site's features."""
    store, out = run.activations(side, site), run.contexts(side, site)
    top_n, settings = config.report.contexts, config.contexts
    return Task(
        "contexts",
        f"{side.upper()} {site}",
        {out: functools.partial(contexts_manifest, store, top_n, settings)},
        (store,),
        lambda client: contexts(store, out, top_n, settings=settings, overwrite=True, client=client),
    )


def shards_done(partial: Path) -> str:
    """Say how many shards of an unfinished store are on disk."""
    try:
        shards = read_shards(partial, "activation")
    except (FormatError, MissingInputError):
        return ""
    return f"{shards.n_shards - len(shards.missing())} of {shards.n_shards} shards are done"


def check(config: Experiment) -> None:
    """Raise if a model, a dictionary or the text is not there or does not fit: no cluster, no file is needed for that.

    Raises
    ------
    InputError
        See :func:`pipeline.harvest.site_check.check_model`; the message names what to change.
    """
    from pipeline.harvest.site_check import check_model
    from pipeline.harvest.sources import local_files

    if config.corpus.path is not None:
        local_files(Path(config.corpus.path))
    if config.is_stored:
        check_stored(config)
        return
    with deferred_interrupt():  # the first check imports torch, transformers and sae-lens
        for model in config.models.values():
            check_model(model)


STAGE = Stage("harvest", tasks, check=check)
