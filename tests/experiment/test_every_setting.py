"""Every setting of an experiment: what `status` names after a change of it is what `run` then makes."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from distributed import Client
from pydantic import BaseModel

from pipeline.experiment.run import run
from pipeline.experiment.stages import all_tasks
from pipeline.experiment.status import status
from pipeline.settings.experiment import Experiment, load_experiment
from pipeline.settings.harvest import StoredSettings
from pipeline.work.task import Item
from storage import read_manifest
from storage.rundir import RunDirectory

pytest.importorskip("torch")

EXPERIMENT: dict[str, Any] = {
    "name": "small",
    "corpus": {"path": "texts.jsonl", "max_length": 40},
    "a": {"model": "llama", "dictionary": "sae-llama", "sites": ["layers.0"]},
    "b": {"model": "bert", "dictionary": "sae-bert", "sites": ["encoder.layer.0"]},
    "correlate": {"top_k": 4, "keep_above": 0.05},
    "match": {"min_correlation": 0.05, "filters": [{"name": "min_r", "value": 0.05}]},
    "rematch": {"nulls": ["token"], "draws": 1, "metrics": [], "fractions": []},
    "compare": {"metrics": ["rsa"], "null_runs": 5},
    "semantics": {
        "only": ["animals"],
        "rule": {"name": "count", "at_least": 1, "of": 2},
        "null_runs": 5,
        "min_pairs": 3,
        "metrics": ["rsa", "svcca_pc1"],
        "judged": ["rsa", "svcca_pc1"],
        "nulls": ["shuffled"],
        "embedding": "model:a",
    },
    "report": {"contexts": 4, "pairs": 5},
}

#: What a change of a setting makes a run make again, by the results whose manifests change.
NOTHING: frozenset[str] = frozenset()
CORPUS = frozenset({"corpus"})
STORE_A = frozenset({"harvest A"})
STORES = STORE_A | {"harvest B"}
ROWS = STORES | {"rows"}
SEMANTICS = frozenset({"semantics"})
CONCEPTS = SEMANTICS | {"concepts A", "concepts B"}
CONTEXTS = CONCEPTS | {"contexts A", "contexts B", "words"}
#: Concepts are cut out of the draws of the null token.
REMATCH = SEMANTICS | {"rematch"}
MATCH = REMATCH | {"match"}
NON_CONCEPT = frozenset({"non_concept A", "non_concept B"})
CORRELATE = MATCH | {"correlate", "best_layer"}
COMPARE = frozenset({"compare", "scores"})
NEW_SITE = MATCH | {"harvest A", "contexts A", "concepts A", "correlate", "compare"}

Change = tuple[Any, frozenset[str]] | tuple[Any, frozenset[str], dict[str, Any]]
#: Another valid value of every setting, by its place; what follows from it; and what has to be changed with it.
CHANGES: dict[str, Change] = {
    "name": ("other", NOTHING),
    "corpus.path": ("fewer.jsonl", CORPUS),
    "corpus.split": ("test", NOTHING),
    "corpus.subset": ("other", NOTHING),
    "corpus.column": ("body", CORPUS),
    "corpus.group": ("topic", CORPUS),
    "corpus.revision": ("main", NOTHING),
    "corpus.streaming": (True, NOTHING),
    "corpus.documents": (25, CORPUS),
    "corpus.tokens": (300, CORPUS),
    "corpus.seed": (1, CORPUS),
    "corpus.max_length": (30, ROWS),
    "align.pool": ("max", ROWS),
    "a.model": ("llama-2", ROWS),
    "a.label": ("A", NOTHING),
    "a.revision": ("main", NOTHING),
    "a.dictionary": ("identity", STORE_A),
    "a.sites": (["layers.1"], NEW_SITE),
    "a.kind": ("pre_topk", STORES, {"b.kind": "pre_topk"}),
    "a.dtype": ("bfloat16", STORE_A),
    "a.prepend_bos": (False, ROWS),
    "a.batch_size": (3, STORE_A),
    "a.device": ("cpu", NOTHING),
    "a.randomise": (3, ROWS),
    "a.allow_bad_site": (True, NOTHING),
    "a.trust_remote_code": (True, NOTHING),
    "store.dtype": ("float16", STORES),
    "store.shard_rows": (512, STORES),
    "correlate.top_k": (5, CORRELATE),
    "correlate.keep_above": (0.04, CORRELATE),
    "correlate.min_firing": (3, CORRELATE),
    "correlate.select": ("all", CORRELATE),
    "correlate.split_seed": (1, CORRELATE),
    "correlate.measure": ("cosine", CORRELATE),
    "correlate.kernel": ("dense", NOTHING),
    "correlate.full": ("float32", CORRELATE),
    "correlate.device": ("cpu", NOTHING),
    "correlate.memory": ("2GB", NOTHING),
    "match.method": ("mutual", MATCH),
    "match.min_correlation": (0.06, MATCH),
    "match.max_uses": (2, MATCH, {"match.method": "unique"}),
    "match.filters": ([], MATCH),
    "match.check_on": ("other-run", MATCH),
    "rematch": (None, SEMANTICS),
    "rematch.nulls": (["document"], REMATCH),
    "rematch.draws": (2, REMATCH),
    "rematch.previous": (1, REMATCH),
    "rematch.metrics": (["rsa"], REMATCH),
    "rematch.fractions": ([0.5], REMATCH),
    "rematch.seed": (1, REMATCH),
    "rematch.memory": ("2GB", NOTHING),
    "compare": (None, NOTHING),
    "compare.metrics": (["svcca_pc1"], COMPARE),
    "compare.nulls": (["random_features"], COMPARE),
    "compare.null_runs": (6, COMPARE),
    "compare.stop_after": (3, COMPARE),
    "compare.seed": (1, COMPARE),
    "compare.intervals": (5, COMPARE),
    "compare.memory": ("2GB", NOTHING),
    "yardsticks": ({"use": [{"name": "token"}]}, frozenset({"yardsticks"})),
    "yardsticks.use": ([{"name": "token"}], frozenset({"yardsticks"})),
    "yardsticks.floor": ("token", frozenset({"yardsticks"}), {"yardsticks.use": [{"name": "token"}]}),
    "yardsticks.ceiling": (None, frozenset({"yardsticks"}), {"yardsticks.use": [{"name": "token"}]}),
    "yardsticks.groups": (5, frozenset({"yardsticks"}), {"yardsticks.use": [{"name": "token"}]}),
    "contexts.distinct_documents": (True, CONTEXTS),
    "contexts.quantiles": ([0.5], CONTEXTS),
    "contexts.bins": (10, CONTEXTS),
    "contexts.tokens": (8, CONTEXTS),
    "contexts.seed": (1, CONTEXTS),
    "concepts": ("default", CONTEXTS, {"report.contexts": 5}),
    "semantics": (None, NOTHING),
    "semantics.concepts": ("concepts.yaml", CONCEPTS),
    "semantics.only": (["calendar"], CONCEPTS),
    "semantics.inflections": (False, CONCEPTS),
    "semantics.rule": ({"name": "share", "of": 2}, CONCEPTS),
    "semantics.approaches": (["global"], SEMANTICS),
    "semantics.sides": ("either", SEMANTICS),
    "semantics.within": ("mutual", SEMANTICS),
    "semantics.min_pairs": (4, SEMANTICS),
    "semantics.metrics": (["rsa", "svcca_pc1", "svcca"], SEMANTICS),
    "semantics.judged": (["svcca_pc1", "rsa"], SEMANTICS),
    "semantics.nulls": (["random_pairs"], SEMANTICS),
    "semantics.null_runs": (6, SEMANTICS),
    "semantics.seed": (1, SEMANTICS),
    "semantics.embedding": (None, SEMANTICS),
    "semantics.clusters": (2, SEMANTICS),
    "semantics.geometry": ("a", SEMANTICS),
    "report.contexts": (5, CONTEXTS),
    "report.pairs": (6, NOTHING),
}
#: Other values, that bring other tasks.
MORE_CHANGES: dict[str, Change] = {
    "match.filters by data": ([{"name": "non_concept", "by": "data"}], NON_CONCEPT | MATCH),
    "semantics.rule at_least": ({"name": "count", "at_least": 2, "of": 2}, CONCEPTS),
    "semantics.rule pmi": ({"name": "pmi"}, CONCEPTS),
}
#: Results that others depend on by their content: whether it changes is known when they are made.
CONTENT = {"corpus.zarr", "activations", "contexts", "pairs"}
#: Settings that are changed at once for a run: what each of them alone makes it do is what `status` names.
TOGETHER: dict[str, list[str]] = {
    "the text": [f"corpus.{name}" for name in ("path", "column", "group", "documents", "tokens", "seed")],
    "the rows": ["corpus.max_length", "align.pool", "a.prepend_bos", "a.randomise", "a.model"],
    "the stores": ["a.kind", "a.dtype", "a.batch_size", "store.dtype", "store.shard_rows"],
    "a dictionary": ["a.dictionary"],
    "a site": ["a.sites"],
    "contexts": [place for place in CHANGES if place.startswith("contexts.")] + ["report.contexts"],
    "correlate": [place for place in CHANGES if place.startswith("correlate.")],
    "match": ["match.method", "match.min_correlation", "match.filters by data", "match.check_on"],
    "uses": ["match.max_uses", "match.filters"],
    "rematch": [f"rematch.{name}" for name in ("nulls", "draws", "previous", "metrics", "fractions", "seed")],
    "compare": [place for place in CHANGES if place.startswith("compare.")],
    "concepts": ["semantics.only", "semantics.inflections", "semantics.rule"],
    "a file of concepts": ["semantics.concepts", "semantics.rule pmi"],
    "semantics": [
        *(f"semantics.{name}" for name in ("approaches", "sides", "within", "min_pairs", "metrics", "judged", "nulls")),
        *(f"semantics.{name}" for name in ("null_runs", "seed", "embedding", "clusters", "geometry")),
    ],
    "yardsticks": ["yardsticks", *(f"yardsticks.{name}" for name in ("use", "floor", "ceiling", "groups"))],
    "nothing": [place for place, change in CHANGES.items() if "." in place and not change[1]],
}


def leaves(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Yield the place of every setting; of both models, those of A, and none of stores in their place."""
    for name, field in section.model_fields.items():
        kinds = [getattr(kind, "__origin__", kind) for kind in getattr(field.annotation, "__args__", ())]
        inner = [kind for kind in (field.annotation, *kinds) if is_section(kind) and kind is not StoredSettings]
        if f"{prefix}{name}" == "b":
            continue
        if len(inner) != 1 or type(None) in getattr(field.annotation, "__args__", ()):
            yield f"{prefix}{name}"
        if len(inner) == 1:
            yield from leaves(inner[0], f"{prefix}{name}.")


def is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def test_every_setting_is_changed() -> None:
    """A new setting has to be added here: what it decides over is then seen."""
    assert set(leaves(Experiment)) - {"corpus.dataset"} == set(CHANGES)


def test_every_setting_that_matters_is_run() -> None:
    run_with = {place for places in TOGETHER.values() for place in places}
    # as semantics without anything of its own; to semantics, as nulls without token
    by_default = {"concepts", "rematch"}
    assert {place for place, change in CHANGES.items() if change[1]} - run_with == by_default


Make = Callable[[Path], None]


@pytest.fixture(scope="module")
def inputs(once: Callable[[str, Make], Path], tiny_inputs: Path, client: Client) -> Path:
    """The tiny models, a shorter text, and whatever else a changed setting names, a run on other text too."""

    def make(folder: Path) -> None:
        shutil.copytree(tiny_inputs, folder)
        texts = [json.loads(line)["text"] for line in (tiny_inputs / "texts.jsonl").read_text().splitlines()]
        lines = [json.dumps({"text": text, "body": text.upper(), "topic": i % 9}) for i, text in enumerate(texts[:30])]
        (folder / "texts.jsonl").write_text("\n".join(lines))
        (folder / "fewer.jsonl").write_text("\n".join(lines[:28]))
        shutil.copytree(folder / "llama", folder / "llama-2")
        settings = json.loads((folder / "llama-2" / "config.json").read_text())
        (folder / "llama-2" / "config.json").write_text(json.dumps({**settings, "rms_norm_eps": 1e-5}))
        (folder / "concepts.yaml").write_text("animals: {keywords: [cat, bird]}\n")
        (folder / "experiment.yaml").write_text(yaml.safe_dump(EXPERIMENT))
        other = EXPERIMENT | {"corpus": EXPERIMENT["corpus"] | {"path": "fewer.jsonl"}}
        (folder / "other.yaml").write_text(yaml.safe_dump(other))
        void(run(folder / "other.yaml", run_dir=folder / "other-run", until="harvest", client=client))

    return once("settings", make)


@pytest.fixture(scope="module")
def finished(once: Callable[[str, Make], Path], inputs: Path, client: Client) -> Path:
    """A finished run, not to be changed."""
    return once("settings-run", lambda folder: void(run(inputs / "experiment.yaml", run_dir=folder, client=client)))


def void(_: object) -> None:
    """Forget a value."""


def changed(inputs: Path, *places: str) -> Experiment:
    """Return the experiment with other values of some settings."""
    content = yaml.safe_load((inputs / "experiment.yaml").read_text())
    if "concepts" in places:
        del content["semantics"]
    for place in places:
        value, _, *besides = {**CHANGES, **MORE_CHANGES}[place]
        for where, what in {place.split()[0]: value, **(besides[0] if besides else {})}.items():
            *sections, name = where.split(".")
            section = content
            for key in sections:
                section = section.setdefault(key, {})
            section[name] = what
    path = inputs / f"experiment-{uuid.uuid4().hex}.yaml"
    path.write_text(yaml.safe_dump(content))
    return load_experiment(path)


def written(folder: Path) -> dict[Path, int]:
    """Return when each result was written."""
    return {path.parent: path.stat().st_mtime_ns for path in folder.rglob("zarr.json") if is_result(path)}


def is_result(path: Path) -> bool:
    return not (path.parent.parent / "zarr.json").exists()


def of_state(items: list[Item], *states: str) -> set[Path]:
    return {item.path for item in items if item.state in states}


def name_of(item: Item) -> str:
    """Return the kind of a result, with the side of the model that it is of."""
    side = item.what.partition(" ")[0]
    return f"{item.stage} {side}" if side in ("A", "B") else item.stage


def downstream(config: Experiment, directory: RunDirectory, paths: set[Path]) -> set[Path]:
    """Return these results and all that are made from them."""
    for task in (task for tasks in all_tasks(config, directory).values() for task in tasks):
        if paths & {*task.inputs, *task.targets}:
            paths = paths | {*task.targets}
    return paths


@pytest.mark.parametrize("place", [*CHANGES, *MORE_CHANGES])
def test_what_status_names(place: str, finished: Path, inputs: Path) -> None:
    config, directory = changed(inputs, place), RunDirectory(finished)
    *items, report = status(config, directory)
    assert (report.stage, report.state in ("outdated", "waiting")) == ("report", True), "it shows the whole experiment"
    certain = [item for item in items if item.state in ("outdated", "missing")]
    assert {name_of(item) for item in certain} == {**CHANGES, **MORE_CHANGES}[place][1]
    affected = downstream(config, directory, {item.path for item in certain}) - {report.path}
    assert {item.path for item in items if item.state != "current"} == affected


@pytest.mark.parametrize("name", TOGETHER)
def test_what_status_names_is_what_a_run_makes(
    name: str, finished: Path, inputs: Path, tmp_path: Path, client: Client
) -> None:
    config, folder = changed(inputs, *TOGETHER[name]), tmp_path / "run"
    shutil.copytree(finished, folder)
    items = status(config, RunDirectory(folder))[:-1]
    before = written(folder)
    fingerprints = {path: fingerprint_of(path) for path in before}

    run(config, run_dir=folder, until="yardsticks", client=client)

    again = {path for path, when in written(folder).items() if before.get(path) != when}
    certain, waiting = of_state(items, "outdated", "missing"), of_state(items, "waiting")
    # what waits is made again if, and only if, what it waits for came out otherwise
    assert again == certain | {path for path in waiting if fingerprint_of(path) != fingerprints[path]}
    assert not waiting or {path.relative_to(folder).parts[0] for path in certain} & CONTENT
    after = [item for item in status(config, RunDirectory(folder)) if item.stage != "report"]
    assert not [item for item in after if item.state != "current"]


def fingerprint_of(path: Path) -> str:
    """Return the fingerprint of a result's manifest."""
    manifest = read_manifest(path)
    assert manifest is not None
    return manifest.fingerprint
