"""The tasks of the comparison: the scores of every pair of sites, and the grid of all of them."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator

from distributed import Client

from pipeline.compare.nulls import SAME_ROWS
from pipeline.compare.run import compare, compare_manifest
from pipeline.compare.score_grid import grid_manifest, power_notes, save_scores, table_paths
from pipeline.settings.compare import CompareSettings
from pipeline.settings.experiment import Experiment
from pipeline.settings.registries import NULLS
from pipeline.work.task import Cost, Outlook, Stage, Task
from storage.rundir import RunDirectory

logger = logging.getLogger(__name__)

#: Seconds of one pair of pairs in a null run of RSA, and of one product in one of SVCCA, on one core (measured).
RSA_SECONDS, SVCCA_SECONDS = 8e-9, 4e-11
#: The same where a null draws other rows, which are ranked and decomposed in every run.
DRAWN_RSA_SECONDS, DRAWN_SVCCA_SECONDS = 4e-7, 1e-9


def tasks(config: Experiment, run: RunDirectory) -> Iterator[Task]:
    """Yield the tasks; none where the experiment leaves the comparison out."""
    settings = config.compare
    if settings is None:
        return
    for pair in config.site_pairs:
        yield _scores(settings, run, pair)

    def gather(_: Client) -> None:
        for null, note in power_notes(save_scores(run, config.site_pairs)).items():
            logger.warning("%s: %s", null, note)

    results = {sites: run.scores(*sites) for sites in config.site_pairs}
    manifest = functools.partial(grid_manifest, results)
    yield Task("scores", "", {run.score_grid: manifest}, tuple(results.values()), gather, tables=table_paths(run))


def _scores(settings: CompareSettings, run: RunDirectory, pair: tuple[str, str]) -> Task:
    site_a, site_b = pair
    stores = run.activations("a", site_a), run.activations("b", site_b)
    contexts = run.contexts("a", site_a), run.contexts("b", site_b)
    pairs, out = run.pairs(site_a, site_b), run.scores(site_a, site_b)

    def cost(outlook: Outlook) -> Cost:
        n, runs, slots = min(map(outlook.n_features, stores)), settings.null_runs, outlook.n_slots
        products, pairs_of_pairs = runs * n * 512.0 * 512.0, runs * n * n / 2.0
        shuffled = sum(NULLS[null].source in SAME_ROWS for null in settings.nulls)
        drawn = len(settings.nulls) - shuffled
        shuffling = (pairs_of_pairs * RSA_SECONDS + products * SVCCA_SECONDS) * shuffled
        drawing = (pairs_of_pairs * DRAWN_RSA_SECONDS + products * DRAWN_SVCCA_SECONDS) * drawn
        return Cost(
            seconds=0.5 + (shuffling + drawing) / slots,
            rows=n,
            tasks=slots,
            flops=2 * products,
            read=n * 1024 * 4.0,
            disk=runs * 8.0 * len(settings.metrics) * len(settings.nulls),
            memory=8.0 * n * n / 2,
            note=f"at most {n:,} pairs",
        )

    return Task(
        "compare",
        f"{site_a} × {site_b}",
        {out: lambda _: compare_manifest(pairs, stores, settings, contexts, run.corpus)},
        (pairs, *stores, *contexts, run.corpus),
        lambda client: compare(
            pairs, *stores, settings, contexts=contexts, corpus=run.corpus, out=out, overwrite=True, client=client
        ),
        opens=(pairs, *stores, *contexts, run.corpus),
        cost=cost,
    )


STAGE = Stage("compare", tasks)
