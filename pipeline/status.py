"""What of an experiment is done, what a run would do next, and why: ``subspace status``.

Only manifests are read: nothing is computed, no model is loaded. A result is out of date where its manifest names other
settings than the experiment has now, or other inputs than are on disk; everything behind it follows. What only a run
can see (that the text or the weights behind a name have changed) is not looked at.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pipeline.config import Experiment, SemanticsConfig
from storage import fingerprint, read_manifest
from storage.errors import FormatError, MissingInputError
from storage.files import partial_path
from storage.manifest import Manifest, json_values
from storage.rundir import RunDirectory
from storage.sparse_array import read_metadata

State = Literal["done", "to do", "begun", "out of date"]

#: Values of settings that mean: whatever was chosen.
ANY = ("auto", None)


@dataclass(frozen=True)
class Item:
    """One result of an experiment.

    Attributes
    ----------
    stage, what
        The stage, and the model, site or pair of sites.
    path
        Where the result is, or will be.
    state
        ``done``: a run leaves it as it is. ``begun``: a run goes on with it. ``to do``. ``out of date``: a run makes
        it again.
    why
        What is missing or has changed; empty where it is done.
    """

    stage: str
    what: str
    path: Path
    state: State
    why: str = ""


@dataclass(frozen=True)
class _Expected:
    """A result as the experiment wants it: its inputs by the names that its manifest uses, and its settings."""

    stage: str
    what: str
    path: Path
    inputs: Mapping[str, Path]
    settings: Mapping[str, Any]


def status(config: Experiment, directory: RunDirectory) -> list[Item]:
    """Return the state of every result of an experiment, in the order of running.

    Parameters
    ----------
    config
        The experiment.
    directory
        Its run directory; it needs not exist.

    Returns
    -------
    list of Item

    Examples
    --------
    >>> side = {"model": "gpt2", "dictionary": "identity", "sites": ["layers.1"]}
    >>> config = Experiment.model_validate({"name": "toy", "corpus": {"path": "x.txt"}, "a": side, "b": side})
    >>> [(item.stage, item.state) for item in status(config, RunDirectory(Path("nowhere")))][:2]
    [('corpus', 'to do'), ('rows', 'to do')]
    """
    items: dict[Path, Item] = {}
    for expected in _all_expected(config, directory):
        items[expected.path] = _item(expected, items)
    return [*items.values(), _report(directory, items)]


def _all_expected(config: Experiment, run: RunDirectory) -> Iterator[_Expected]:
    """Yield every result, each after its inputs."""
    corpus = config.corpus.model_dump(include={"column", "documents", "seed"})
    yield _Expected("corpus", "", run.corpus, {}, corpus)
    yield _Expected("rows", "", run.rows, {"corpus": run.corpus}, {"pool": config.align.pool})
    for side, model in config.sides:
        for site in model.sites:
            what, store = f"{side.upper()} {site}", run.activations(side, site)
            settings = {**config.store.model_dump(), "model_dtype": model.dtype}
            yield _Expected("harvest", what, store, {"corpus": run.corpus, "rows": run.rows}, settings)
            kept = {"top_n": config.report.contexts, **config.contexts.model_dump()}
            yield _Expected("contexts", what, run.contexts(side, site), {"activations": store}, kept)
    for site_a, site_b in config.site_pairs:
        stores = {"a": run.activations("a", site_a), "b": run.activations("b", site_b)}
        cor, pairs = run.correlation(site_a, site_b), run.pairs(site_a, site_b)
        what = f"{site_a} × {site_b}"
        yield _Expected("correlate", what, cor, stores, config.correlate.model_dump())
        yield _Expected("match", what, pairs, {"correlation": cor}, config.match.model_dump())
        # scores name the features that are paired, not the result that pairs them: it only has to be there before
        inputs = {**stores, "matched": pairs}
        yield _Expected("compare", what, run.scores(site_a, site_b), inputs, config.compare.model_dump())
    yield _Expected("scores", "", run.score_grid, {f"{a}--{b}": run.scores(a, b) for a, b in config.site_pairs}, {})
    if config.semantics is not None:
        yield from _expected_semantics(config, config.semantics, run)


def _expected_semantics(config: Experiment, settings: SemanticsConfig, run: RunDirectory) -> Iterator[_Expected]:
    rule, chosen = {"rule": settings.rule.model_dump()}, settings.model_dump()
    for side, model in config.sides:
        for site in model.sites:
            store, contexts = run.activations(side, site), run.contexts(side, site)
            inputs = {"activations": store, "contexts": contexts, "corpus": run.corpus}
            yield _Expected("concepts", f"{side.upper()} {site}", run.concepts(side, site), inputs, rule)
    for a, b in config.site_pairs:
        both = {"concepts_a": run.concepts("a", a), "concepts_b": run.concepts("b", b)}
        inputs = {**both, "correlation": run.correlation(a, b), "pairs": run.pairs(a, b)}
        yield _Expected("semantics", f"{a} × {b}", run.semantics(a, b), inputs, chosen)
    tables = {f"{a}--{b}": run.semantics(a, b) for a, b in config.site_pairs}
    yield _Expected("semantics", "table", run.semantics_table, tables, {"judged": settings.judged})


def _item(expected: _Expected, before: Mapping[Path, Item]) -> Item:
    item = Item(expected.stage, expected.what, expected.path, "done")
    waits = [before[path] for path in expected.inputs.values() if before[path].state != "done"]
    manifest = read_manifest(expected.path)
    if manifest is None:
        return _unfinished(item, expected.path)
    changes = [*_changed_settings(expected, manifest), *_changed_inputs(expected, manifest)]
    changes += [f"{' '.join(filter(None, (one.stage, one.what)))} is {one.state}" for one in waits]
    return replace(item, state="out of date", why="; ".join(changes)) if changes else item


def _unfinished(item: Item, path: Path) -> Item:
    partial = partial_path(path)
    if not partial.is_dir():
        return replace(item, state="to do", why="not there yet")
    return replace(item, state="begun", why=_progress(partial) or "unfinished work is there")


def _progress(partial: Path) -> str:
    """Say how many parts of unfinished work are on disk, where it is made of parts."""
    panels = partial / "panels"
    if panels.is_dir():
        return f"{len(list(panels.glob('panel-*.npz')))} panels are done"
    try:
        metadata = read_metadata(partial / "activation")
    except (FormatError, MissingInputError):
        return ""
    rows, step = metadata["shape"][0], metadata["chunk_grid"]["configuration"]["chunk_shape"][0]
    n_done = sum(1 for shard in (partial / "activation" / "c").glob("*/0"))
    return f"{n_done} of {-(-rows // step)} shards are done"


def _changed_settings(expected: _Expected, manifest: Manifest) -> Iterator[str]:
    """Yield a line for each setting that a result was made with and that is another one now."""
    for name, wanted in json_values(dict(expected.settings)).items():
        if name in manifest.settings and wanted not in ANY:
            then, now = _plain(manifest.settings[name]), _plain(wanted)
            if isinstance(then, dict) and isinstance(now, list):  # what is named, and what each name stands for
                then, now = sorted(then), sorted(now)
            if then != now:
                yield f"{name} is {now}, and was {then}"


def _plain(value: Any) -> Any:
    """Leave out of filters the lists of tokens: manifests hold what they contain, experiments where they are."""
    if isinstance(value, list) and all(isinstance(each, dict) for each in value):
        return [{key: one for key, one in each.items() if key != "tokens"} for each in value]
    return value


def _changed_inputs(expected: _Expected, manifest: Manifest) -> Iterator[str]:
    for name, path in expected.inputs.items():
        try:
            now = fingerprint(path)
        except (FormatError, MissingInputError):
            continue  # what is missing stands in the list itself
        if name in manifest.inputs and manifest.inputs[name] != now:
            yield f"{path.name} is not the one that it was made from"


def _report(directory: RunDirectory, items: Mapping[Path, Item]) -> Item:
    """Return the state of the report, which every run writes anew: out of date if a result is younger."""
    item = Item("report", "", directory.report, "done")
    if not directory.report.is_file():
        return replace(item, state="to do", why="not there yet")
    written = directory.report.stat().st_mtime
    younger = [one for one in items if (one / "zarr.json").is_file() and (one / "zarr.json").stat().st_mtime > written]
    waiting = [one for one in items.values() if one.state != "done"]
    if younger or waiting:
        why = f"{younger[0].name} is younger" if younger else f"{waiting[0].stage} {waiting[0].what} is to come first"
        return replace(item, state="out of date", why=why)
    return item
