"""The tasks of the matching: the pairs of features at every pair of sites."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.match.filters import TextInputs
from pipeline.match.run import match, match_manifest
from pipeline.settings.experiment import Experiment
from pipeline.work.task import Cost, Outlook, Stage, Task
from storage.manifest import read_attrs
from storage.rundir import RunDirectory

#: Seconds and bytes of a kept pair while it is matched (measured, greedy), and bytes of a pair in its result.
MATCH_SECONDS, MATCH_BYTES, PAIR_BYTES = 4e-7, 40, 40


def tasks(config: Experiment, run: RunDirectory) -> Iterator[Task]:
    """Yield the tasks."""
    for site_a, site_b in config.site_pairs:
        yield _pairs(config, run, site_a, site_b)


def _pairs(config: Experiment, run: RunDirectory, site_a: str, site_b: str) -> Task:
    settings, cor, out = config.match, run.correlation(site_a, site_b), run.pairs(site_a, site_b)
    stores = run.activations("a", site_a), run.activations("b", site_b)
    contexts = (run.contexts("a", site_a), run.contexts("b", site_b)) if settings.needs_contexts else None
    non_concept = (run.non_concept("a", site_a), run.non_concept("b", site_b)) if settings.needs_non_concept else None
    text = TextInputs.of(contexts, stores, run.corpus, non_concept)

    def cost(outlook: Outlook) -> Cost:
        kept = outlook.kept[cor] if cor in outlook.kept else float(read_attrs(cor)["n_kept"])
        return Cost(
            seconds=0.3 + kept * MATCH_SECONDS,
            rows=int(kept),
            read=kept * 16,
            disk=float(min(map(outlook.n_features, stores)) * PAIR_BYTES),
            memory=kept * MATCH_BYTES,
            note=settings.method,
        )

    return Task(
        "match",
        f"{site_a} × {site_b}",
        {out: lambda identify: match_manifest(cor, settings, text, identify)},
        (cor, *((run.corpus, *contexts) if contexts else ()), *(non_concept or ())),
        lambda _: match(
            cor,
            settings,
            out=out,
            overwrite=True,
            contexts=contexts,
            stores=stores,
            corpus=run.corpus,
            non_concept=non_concept,
        ),
        cost=cost,
    )


STAGE = Stage("match", tasks)
