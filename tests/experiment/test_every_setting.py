"""Every setting of an experiment: what `status` names after a change of it is what `run` then makes."""

from __future__ import annotations

import datetime as dt
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from distributed import Client
from pydantic import BaseModel

from pipeline.experiment.run import run
from pipeline.experiment.status import status
from pipeline.settings.experiment import Experiment, load_experiment
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

#: Another valid value of every setting, by its place; a pair is a value and what has to be changed with it.
CHANGES: dict[str, Any] = {
    "name": "other",
    "corpus.path": "fewer.jsonl",
    "corpus.split": "test",
    "corpus.subset": "other",
    "corpus.column": "body",
    "corpus.revision": "main",
    "corpus.streaming": True,
    "corpus.documents": 25,
    "corpus.tokens": 300,
    "corpus.seed": 1,
    "corpus.max_length": 30,
    "align.pool": "max",
    "a.model": "llama-2",
    "a.label": "A",
    "a.revision": "main",
    "a.dictionary": "identity",
    "a.sites": ["layers.1"],
    "a.kind": ("pre_topk", {"b.kind": "pre_topk"}),
    "a.dtype": "bfloat16",
    "a.prepend_bos": False,
    "a.batch_size": 3,
    "a.device": "cpu",
    "a.randomise": 3,
    "a.allow_bad_site": True,
    "a.trust_remote_code": True,
    "store.dtype": "float16",
    "store.shard_rows": 512,
    "correlate.top_k": 5,
    "correlate.keep_above": 0.04,
    "correlate.select": "all",
    "correlate.measure": "cosine",
    "correlate.min_firing": 2,
    "correlate.kernel": "dense",
    "correlate.full": "float32",
    "correlate.device": "cpu",
    "correlate.memory": "2GB",
    "match.method": "mutual",
    "match.min_correlation": 0.06,
    "match.max_uses": (2, {"match.method": "unique"}),
    "match.filters": [],
    "compare.metrics": ["svcca_pc1"],
    "compare.nulls": ["random_features"],
    "compare.null_runs": 6,
    "compare.seed": 1,
    "compare.intervals": 5,
    "compare.memory": "2GB",
    "contexts.distinct_documents": True,
    "contexts.quantiles": [0.5],
    "contexts.bins": 10,
    "contexts.tokens": 8,
    "contexts.seed": 1,
    "concepts": ("default", {"report.contexts": 5}),
    "semantics": None,
    "semantics.concepts": "concepts.yaml",
    "semantics.only": ["calendar"],
    "semantics.inflections": False,
    "semantics.rule": {"name": "share", "of": 2},
    "semantics.approaches": ["global"],
    "semantics.sides": "either",
    "semantics.within": "mutual",
    "semantics.min_pairs": 4,
    "semantics.metrics": ["rsa", "svcca_pc1", "svcca"],
    "semantics.judged": ["svcca_pc1", "rsa"],
    "semantics.nulls": ["random_pairs"],
    "semantics.null_runs": 6,
    "semantics.seed": 1,
    "semantics.embedding": None,
    "semantics.clusters": 2,
    "semantics.geometry": "a",
    "report.contexts": 5,
    "report.pairs": 6,
}
#: Results that others depend on by their content: whether it changes is known when they are made.
CONTENT = {"corpus.zarr", "activations", "pairs"}
#: What is read beside the experiment, and what is not in it by default: found in a test of its own.
OTHER_CHANGES: dict[str, Any] = {
    "match.filters.by_data": [{"name": "non_concept", "by": "data"}],
    "semantics.rule.at_least": {"name": "count", "at_least": 2, "of": 2},
    "semantics.rule.pmi": {"name": "pmi"},
}


def leaves(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Yield the place of every setting; of both models, those of A."""
    for name, field in section.model_fields.items():
        inner = [kind for kind in (field.annotation, *getattr(field.annotation, "__args__", ())) if is_section(kind)]
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


Make = Callable[[Path], None]


def today() -> list[str]:
    """Return a third of the settings, another one every day; all with ``SUBSPACE_EVERY_SETTING=1``."""
    if os.environ.get("SUBSPACE_EVERY_SETTING"):
        return list(CHANGES)
    return list(CHANGES)[dt.datetime.now(dt.UTC).date().toordinal() % 3 :: 3]


@pytest.fixture(scope="module")
def inputs(once: Callable[[str, Make], Path], tiny_inputs: Path) -> Path:
    """The tiny models, a shorter text, and whatever else a changed setting names."""

    def make(folder: Path) -> None:
        shutil.copytree(tiny_inputs, folder)
        texts = [json.loads(line)["text"] for line in (tiny_inputs / "texts.jsonl").read_text().splitlines()]
        lines = [json.dumps({"text": text, "body": text.upper()}) for text in texts[:30]]
        (folder / "texts.jsonl").write_text("\n".join(lines))
        (folder / "fewer.jsonl").write_text("\n".join(lines[:28]))
        shutil.copytree(folder / "llama", folder / "llama-2")
        settings = json.loads((folder / "llama-2" / "config.json").read_text())
        (folder / "llama-2" / "config.json").write_text(json.dumps({**settings, "rms_norm_eps": 1e-5}))
        (folder / "concepts.yaml").write_text("animals: {keywords: [cat, bird]}\n")
        (folder / "experiment.yaml").write_text(yaml.safe_dump(EXPERIMENT))

    return once("settings", make)


@pytest.fixture(scope="module")
def finished(once: Callable[[str, Make], Path], inputs: Path, client: Client) -> Path:
    """A finished run, not to be changed."""
    return once("settings-run", lambda folder: void(run(inputs / "experiment.yaml", run_dir=folder, client=client)))


def void(_: object) -> None:
    """Forget a value."""


def changed(inputs: Path, place: str, value: Any) -> Experiment:
    """Return the experiment with another value of a setting."""
    content = yaml.safe_load((inputs / "experiment.yaml").read_text())
    value, besides = value if isinstance(value, tuple) else (value, {})
    if place == "concepts":
        del content["semantics"]
    for where, what in {place: value, **besides}.items():
        *sections, name = where.split(".")
        section = content
        for key in sections:
            section = section.setdefault(key, {})
        section[name] = what
    path = inputs / f"experiment-{place}.yaml"
    path.write_text(yaml.safe_dump(content))
    return load_experiment(path)


def written(folder: Path) -> dict[Path, int]:
    """Return when each result was written."""
    return {path.parent: path.stat().st_mtime_ns for path in folder.rglob("zarr.json") if is_result(path)}


def is_result(path: Path) -> bool:
    return not (path.parent.parent / "zarr.json").exists()


def of_state(items: list[Item], *states: str) -> set[Path]:
    return {item.path for item in items if item.state in states}


@pytest.mark.parametrize("place", today())
def test_what_status_names_is_what_a_run_makes(
    place: str, finished: Path, inputs: Path, tmp_path: Path, client: Client
) -> None:
    hold_status_against_run(changed(inputs, place, CHANGES[place]), finished, tmp_path / "run", client)


@pytest.mark.parametrize("case", OTHER_CHANGES)
def test_values_that_bring_other_tasks(case: str, finished: Path, inputs: Path, tmp_path: Path, client: Client) -> None:
    config = changed(inputs, case.rpartition(".")[0], OTHER_CHANGES[case])
    hold_status_against_run(config, finished, tmp_path / "run", client)


def hold_status_against_run(config: Experiment, finished: Path, folder: Path, client: Client) -> None:
    shutil.copytree(finished, folder)
    directory = RunDirectory(folder)
    items = status(config, directory)
    report = items.pop()
    assert report.stage == "report"
    assert report.state in ("outdated", "waiting"), "it shows the whole experiment"
    before = written(folder)
    fingerprints = {path: fingerprint_of(path) for path in before}

    run(config, run_dir=folder, until="semantics", client=client)

    again = {path for path, when in written(folder).items() if before.get(path) != when}
    certain, waiting = of_state(items, "outdated", "missing"), of_state(items, "waiting")
    # what waits is made again if, and only if, what it waits for came out otherwise
    assert again == certain | {path for path in waiting if fingerprint_of(path) != fingerprints[path]}
    assert not waiting or {path.relative_to(folder).parts[0] for path in certain} & CONTENT
    after = [item for item in status(config, directory) if item.stage != "report"]
    assert not [item for item in after if item.state != "current"]


def fingerprint_of(path: Path) -> str:
    """Return the fingerprint of a result's manifest."""
    manifest = read_manifest(path)
    assert manifest is not None
    return manifest.fingerprint
