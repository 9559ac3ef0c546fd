"""The tasks of the matchings with B's rows permuted, where they are asked for: one for every pair of sites."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.correlate.stage import correlation_cost
from pipeline.match.filters import TextInputs
from pipeline.rematch.run import draws_done, rematch, rematch_manifest
from pipeline.settings.experiment import Experiment
from pipeline.settings.rematch import RematchSettings
from pipeline.work.task import Cost, Outlook, Stage, Task
from storage.rundir import RunDirectory

#: Seconds of a matching and its scores that no size explains, and of a row of a permuted copy (measured).
MATCHING_SECONDS, ROW_SECONDS = 1.0, 1e-5
#: Bytes of a pair of a draw in the result.
PAIR_BYTES = 24.0


def tasks(config: Experiment, run: RunDirectory) -> Iterator[Task]:
    """Yield the tasks; none where they are not asked for."""
    if config.rematch is not None:
        for pair in config.site_pairs:
            yield _rematched(config, config.rematch, run, pair)


def _rematched(config: Experiment, settings: RematchSettings, run: RunDirectory, sites: tuple[str, str]) -> Task:
    stores = run.activations("a", sites[0]), run.activations("b", sites[1])
    pairs, cor, out, match = run.pairs(*sites), run.correlation(*sites), run.rematched(*sites), config.match
    contexts = (run.contexts("a", sites[0]), run.contexts("b", sites[1])) if match.needs_contexts else None
    non_concept = (run.non_concept("a", sites[0]), run.non_concept("b", sites[1])) if match.needs_non_concept else None
    text = TextInputs.of(contexts, stores, run.corpus, non_concept)

    def cost(outlook: Outlook) -> Cost:
        once = correlation_cost(config, run, sites, outlook)
        matchings = len(settings.nulls) * (settings.draws + 1) + 2 * len(settings.fractions)
        pairs_kept = len(settings.nulls) * (settings.draws + 1) * min(map(outlook.n_features, stores))
        return Cost(
            seconds=matchings * (once.seconds + once.rows * ROW_SECONDS + MATCHING_SECONDS),
            rows=once.rows,
            tasks=matchings * once.tasks,
            flops=matchings * once.flops,
            read=matchings * 2 * once.read,
            disk=24.0 * outlook.n_features(stores[0]) + pairs_kept * PAIR_BYTES,
            memory=once.memory,
            note=f"{matchings} matchings",
        )

    return Task(
        "rematch",
        " × ".join(sites),
        {out: lambda identify: rematch_manifest(pairs, cor, settings, text=text, corpus=run.corpus, identify=identify)},
        (pairs, cor, *stores, run.corpus, *(contexts or ()), *(non_concept or ())),
        lambda client: rematch(
            pairs,
            cor,
            *stores,
            settings,
            out=out,
            corpus=run.corpus,
            contexts=contexts,
            non_concept=non_concept,
            overwrite=True,
            client=client,
        ),
        cost=cost,
        progress=draws_done,
    )


STAGE = Stage("rematch", tasks)
