"""One experiment from text to report: every stage over the grid of sites, each skipped when it is done already."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import xarray as xr
from distributed import Client

from pipeline.compare.run import compare
from pipeline.compare.score_grid import power_notes, save_scores
from pipeline.config import Experiment, load_experiment
from pipeline.correlate.best_layer import best_layer
from pipeline.correlate.grid import one_after_the_other
from pipeline.correlate.run import correlate, correlate_share
from pipeline.harvest.contexts import contexts
from pipeline.match.run import match
from pipeline.report.run import report
from pipeline.semantics.non_concept import non_concept_features
from pipeline.semantics_stage import run_semantics
from pipeline.share import Share
from pipeline.usage import UsageLog
from pipeline.workers import deferred_interrupt, ensure_client
from storage.errors import InputError
from storage.results import open_result
from storage.rundir import RunDirectory

logger = logging.getLogger(__name__)

Stage = Literal["harvest", "correlate", "match", "compare", "semantics", "report"]
STAGES: tuple[Stage, ...] = get_args(Stage)


@dataclass(frozen=True)
class RunResult:
    """What :func:`run` leaves behind: the folder, and its results opened lazily."""

    directory: RunDirectory
    experiment: Experiment

    @property
    def report(self) -> Path:
        """The HTML report."""
        return self.directory.report

    def pairs(self, site_a: str, site_b: str) -> xr.Dataset:
        """Open the matched pairs of two sites."""
        return open_result(self.directory.pairs(site_a, site_b))

    def scores(self, site_a: str, site_b: str) -> xr.Dataset:
        """Open the scores, nulls and p-values of two sites."""
        return open_result(self.directory.scores(site_a, site_b))


def run(
    experiment: str | Path | Experiment,
    *,
    run_dir: str | Path | None = None,
    until: Stage = "report",
    share: Share | None = None,
    client: Client | None = None,
) -> RunResult:
    """Run an experiment, or go on with it.

    A finished stage whose inputs and settings have not changed is skipped; a half-finished one goes on at its first
    missing part.

    Parameters
    ----------
    experiment
        The YAML file, or an experiment in memory.
    run_dir
        Where everything is written; ``runs/NAME`` by default.
    until
        The last stage to run.
    share
        For job arrays without a scheduler: begin the stage `until`, or do this share of it, and leave it unfinished;
        `harvest` or `correlate`. See :mod:`pipeline.share`.
    client
        Where the tasks run; threads of this process by default.

    Returns
    -------
    RunResult

    Raises
    ------
    InputError
        If the experiment is not valid, or something that it names is missing; before anything is computed.

    Examples
    --------
    >>> run("experiment.yaml", until="match")  # doctest: +SKIP
    """
    config = experiment if isinstance(experiment, Experiment) else load_experiment(experiment)
    directory = RunDirectory.of(config.name, run_dir)
    if share is not None and until not in _SHARERS:
        raise InputError(f"A share is of the stage {' or '.join(_SHARERS)}: give it as `until`, not {until!r}")
    wanted = STAGES[: STAGES.index(until) + 1]
    if share is not None:
        # the process that begins a stage finishes those before it; the others find them finished
        wanted = wanted[:-1] if share.begins else ()
    with ensure_client(client) as used:
        usage = UsageLog(directory.usage, used)
        for stage in wanted:
            logger.info("[%d/%d] %s", STAGES.index(stage) + 1, len(STAGES), stage)
            with usage.stage(stage):
                _RUNNERS[stage](config, directory, used)
        if share is not None:
            with usage.stage(f"{until} {share}"):
                _SHARERS[until](config, directory, share, used)
    return RunResult(directory, config)


def _harvest(config: Experiment, directory: RunDirectory, client: Client) -> None:
    # torch and transformers take seconds to import: only the stage that runs models pays for them
    from pipeline.harvest.run import harvest  # noqa: PLC0415

    _begin_harvest(config, directory, client)
    for side, model in config.sides:
        folder = directory.activations(side, "x").parent
        harvest(directory.corpus, directory.rows, model, side, config.store, folder, client=client)
        for site in model.sites:
            contexts(
                directory.activations(side, site),
                out=directory.contexts(side, site),
                top_n=config.report.contexts,
                client=client,
                **config.contexts.model_dump(),
            )


def check_inputs(config: Experiment) -> None:
    """Raise if a model, a dictionary or the text is not there or does not fit: no cluster, no file is needed for that.

    Raises
    ------
    InputError
        See :func:`pipeline.harvest.site_check.check_model`; the message names what to change.
    """
    from pipeline.harvest.site_check import check_model  # noqa: PLC0415 - as above
    from pipeline.harvest.sources import local_files  # noqa: PLC0415

    if config.corpus.path is not None:
        local_files(Path(config.corpus.path))
    with deferred_interrupt():  # the first check imports torch, transformers and sae-lens
        for _, model in config.sides:
            check_model(model)


def _begin_harvest(config: Experiment, directory: RunDirectory, client: Client) -> None:
    """Check the inputs, and make the text and its rows."""
    check_inputs(config)  # what does not fit is said before anything is written
    directory.write_experiment(config.model_dump(mode="json"))
    make_text(config, directory, client)


def make_text(config: Experiment, directory: RunDirectory, client: Client) -> None:
    """Make what a harvest starts from, where it is not there yet: the corpus, and the rows that both models share."""
    from pipeline.harvest.corpus import build_corpus  # noqa: PLC0415 - as above
    from pipeline.harvest.run import make_rows  # noqa: PLC0415

    build_corpus(config.corpus, directory.corpus, config.a)
    make_rows(
        directory.corpus, config.a, config.b, config.corpus.max_length, directory.rows,
        pool=config.align.pool, client=client,
    )  # fmt: skip


def _harvest_share(config: Experiment, directory: RunDirectory, share: Share, client: Client) -> None:
    from pipeline.harvest.run import harvest  # noqa: PLC0415 - as above

    if share.begins:
        _begin_harvest(config, directory, client)
    for side, model in config.sides:
        folder = directory.activations(side, "x").parent
        harvest(directory.corpus, directory.rows, model, side, config.store, folder, share=share, client=client)


def _correlate_share(config: Experiment, directory: RunDirectory, share: Share, client: Client) -> None:
    for site_a, site_b in config.site_pairs:
        correlate_share(
            directory.activations("a", site_a),
            directory.activations("b", site_b),
            out=directory.correlation(site_a, site_b),
            share=share,
            client=client,
            **config.correlate.model_dump(),
        )


def _correlate(config: Experiment, directory: RunDirectory, client: Client) -> None:
    with one_after_the_other(client):
        for site_b, site_a in itertools.product(config.b.sites, config.a.sites):
            correlate(
                directory.activations("a", site_a),
                directory.activations("b", site_b),
                out=directory.correlation(site_a, site_b),
                client=client,
                **config.correlate.model_dump(),
            )
    best_layer({sites: directory.correlation(*sites) for sites in config.site_pairs}, directory.best_layer)


def _match(config: Experiment, directory: RunDirectory, client: Client) -> None:
    needs_contexts, needs_non_concept = config.match.needs_contexts, config.match.needs_non_concept
    if needs_non_concept:
        _recognise(config, directory, client)
    for site_a, site_b in config.site_pairs:
        match(
            directory.correlation(site_a, site_b),
            out=directory.pairs(site_a, site_b),
            contexts=(directory.contexts("a", site_a), directory.contexts("b", site_b)) if needs_contexts else None,
            stores=(directory.activations("a", site_a), directory.activations("b", site_b)),
            corpus=directory.corpus,
            non_concept=(directory.non_concept("a", site_a), directory.non_concept("b", site_b))
            if needs_non_concept
            else None,
            **config.match.model_dump(),
        )


def _recognise(config: Experiment, directory: RunDirectory, client: Client) -> None:
    """Find the features that stand for no concept, for the filter that drops them."""
    for side, model in config.sides:
        for site in model.sites:
            non_concept_features(
                directory.contexts(side, site),
                directory.activations(side, site),
                directory.corpus,
                out=directory.non_concept(side, site),
                client=client,
            )


def _compare(config: Experiment, directory: RunDirectory, client: Client) -> None:
    for site_a, site_b in config.site_pairs:
        compare(
            directory.pairs(site_a, site_b),
            directory.activations("a", site_a),
            directory.activations("b", site_b),
            out=directory.scores(site_a, site_b),
            client=client,
            **config.compare.model_dump(),
        )
    for null, note in power_notes(save_scores(directory, config.site_pairs)).items():
        logger.warning("%s: %s", null, note)


def _semantics(config: Experiment, directory: RunDirectory, client: Client) -> None:
    if config.semantics is None:
        logger.info("No concepts are asked for: give `concepts: default` in the experiment file to look for them")
        return
    run_semantics(config, config.semantics, directory, client)


def _report(config: Experiment, directory: RunDirectory, _: Client) -> None:  # noqa: ARG001
    logger.info("Report: %s", report(directory.root))


_RUNNERS: dict[Stage, Callable[[Experiment, RunDirectory, Client], None]] = {
    "harvest": _harvest,
    "correlate": _correlate,
    "match": _match,
    "compare": _compare,
    "semantics": _semantics,
    "report": _report,
}

#: Stages whose work can be shared among processes without a scheduler.
_SHARERS: dict[Stage, Callable[[Experiment, RunDirectory, Share, Client], None]] = {
    "harvest": _harvest_share,
    "correlate": _correlate_share,
}
