"""The tasks of the matching: the pairs of features at every pair of sites."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pipeline.match.filters import TextInputs
from pipeline.match.run import match, match_manifest
from pipeline.settings.experiment import Experiment
from pipeline.work.task import Cost, Outlook, Stage, Task
from storage import open_activations
from storage.errors import MissingInputError
from storage.manifest import read_attrs
from storage.rundir import RunDirectory

#: Seconds and bytes of a kept pair while it is matched (measured, greedy), and bytes of a pair in its result.
MATCH_SECONDS, MATCH_BYTES, PAIR_BYTES = 4e-7, 40, 40
#: Bytes of the rows of a store that are read at once where pairs are checked on other text.
SLAB_BYTES = 16 * 2**20


def tasks(config: Experiment, run: RunDirectory) -> Iterator[Task]:
    """Yield the tasks."""
    for site_a, site_b in config.site_pairs:
        yield pairs_task(config, run, site_a, site_b)


def pairs_task(config: Experiment, run: RunDirectory, site_a: str, site_b: str) -> Task:
    """Return the task of the matched pairs of two sites."""
    settings, cor, out = config.match, run.correlation(site_a, site_b), run.pairs(site_a, site_b)
    stores = run.activations("a", site_a), run.activations("b", site_b)
    contexts = (run.contexts("a", site_a), run.contexts("b", site_b)) if settings.needs_contexts else None
    non_concept = (run.non_concept("a", site_a), run.non_concept("b", site_b)) if settings.needs_non_concept else None
    text = TextInputs.of(contexts, stores, run.corpus, non_concept)
    other = settings.check_stores((site_a, site_b))

    def cost(outlook: Outlook) -> Cost:
        kept = outlook.kept[cor] if cor in outlook.kept else float(read_attrs(cor)["n_kept"])
        return Cost(
            seconds=0.3 + kept * MATCH_SECONDS,
            rows=int(kept),
            read=kept * 16,
            disk=float(min(map(outlook.n_features, stores)) * PAIR_BYTES),
            memory=max(kept * MATCH_BYTES, 0.0 if other is None else _check_bytes(other)),
            note=settings.method,
        )

    return Task(
        "match",
        f"{site_a} × {site_b}",
        {out: lambda identify: match_manifest(cor, settings, text, identify, check_on=other)},
        (cor, *((run.corpus, *contexts) if contexts else ()), *(non_concept or ()), *(other or ())),
        lambda client: match(
            cor,
            settings,
            out=out,
            overwrite=True,
            contexts=contexts,
            stores=stores,
            corpus=run.corpus,
            non_concept=non_concept,
            check_on=other,
            memory=config.correlate.memory,
            client=client,
        ),
        cost=cost,
    )


def _check_bytes(stores: tuple[Path, Path]) -> float:
    """Return the least memory that r on other text takes: of its rows, and of a slab of both stores."""
    sizes = [open_activations(path).sizes for path in stores]
    return float(64 * sizes[0]["token"] + sum(64 * of["feature"] for of in sizes) + 2 * SLAB_BYTES)


def check(config: Experiment) -> None:
    """Raise if the other run lacks a store that pairs are to be checked on, before anything is computed.

    Raises
    ------
    MissingInputError
        If it does.
    """
    for sites in config.site_pairs:
        for side, site, path in zip("AB", sites, config.match.check_stores(sites) or (), strict=False):
            if not path.exists():
                raise MissingInputError(
                    f"match.check_on: there is no {path}, so r of the pairs cannot be checked at {site} of {side}; run "
                    "an experiment with the same models, dictionaries and sites on the other text first"
                )


STAGE = Stage("match", tasks)
