"""What is done, what would run and why: the answer of `status` is what `run` then does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from distributed import Client
from typer.testing import CliRunner

from jobs.cli import app
from pipeline.config import Experiment, load_experiment
from pipeline.experiment.run import RunResult, run
from pipeline.experiment.status import status
from pipeline.work.task import Item
from storage.files import partial_path
from storage.rundir import RunDirectory


@pytest.fixture
def copied(tiny_run: RunResult, tmp_path: Path) -> RunDirectory:
    """A finished run that a test may spoil."""
    return RunDirectory(Path(shutil.copytree(tiny_run.directory.root, tmp_path / "run")))


def changed(config: Experiment, section: str, **values: object) -> Experiment:
    return config.model_copy(update={section: getattr(config, section).model_copy(update=values)})


def not_done(items: list[Item]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for item in items:
        if item.state != "done":
            found.setdefault(item.stage, set()).add(item.state)
    return found


def test_nothing_is_there(tiny_inputs: Path, tmp_path: Path) -> None:
    items = status(load_experiment(tiny_inputs / "experiment.yaml"), RunDirectory(tmp_path / "run"))
    assert {item.state for item in items} == {"to do"}
    assert [item.stage for item in items].count("correlate") == 4
    assert not (tmp_path / "run").exists(), "looking writes nothing"


def test_all_is_done(tiny_run: RunResult) -> None:
    items = status(tiny_run.experiment, tiny_run.directory)
    assert not_done(items) == {}
    assert all(item.path.exists() and not item.why for item in items)


@pytest.mark.parametrize(
    ("section", "values", "stages", "why"),
    [
        ("compare", {"null_runs": 60}, {"compare", "scores"}, "null_runs is 60, and was 50"),
        (
            "match",
            {"method": "mutual"},
            {"match", "compare", "scores", "semantics"},
            "method is mutual, and was greedy",
        ),
        ("correlate", {"top_k": 5}, {"correlate", "match", "compare", "scores", "semantics"}, "top_k is 5, and was 4"),
        ("report", {"contexts": 5}, {"contexts", "concepts", "semantics"}, "top_n is 5, and was 4"),
        (
            "contexts",
            {"bins": 10},
            {"contexts", "concepts", "semantics"},
            "bins is 10, and was 20",
        ),
        (
            "store",
            {"dtype": "float16"},
            {"harvest", "contexts", "correlate", "match", "compare", "scores", "concepts", "semantics"},
            "dtype is float16, and was float32",
        ),
    ],
)
def test_a_changed_setting_names_what_depends_on_it(
    tiny_run: RunResult, section: str, values: dict[str, object], stages: set[str], why: str
) -> None:
    items = status(changed(tiny_run.experiment, section, **values), tiny_run.directory)
    assert not_done(items) == {stage: {"out of date"} for stage in {*stages, "report"}}
    assert any(item.why == why for item in items)


def test_what_it_names_is_what_a_run_makes_again(copied: RunDirectory, tiny_run: RunResult, client: Client) -> None:
    config = changed(tiny_run.experiment, "match", method="mutual")
    named = {item.path for item in status(config, copied) if item.state != "done" and item.stage != "report"}
    before = {path: (path / "zarr.json").stat().st_mtime_ns for path in copied.root.rglob("*.zarr")}
    run(config, run_dir=copied.root, client=client)
    again = {path for path, then in before.items() if (path / "zarr.json").stat().st_mtime_ns != then}
    assert again == named
    assert not_done(status(config, copied)) == {}


def test_a_missing_result_and_all_behind_it(copied: RunDirectory, tiny_run: RunResult) -> None:
    shutil.rmtree(copied.correlation("layers.0", "encoder.layer.1"))
    items = status(tiny_run.experiment, copied)
    assert not_done(items) == {
        "correlate": {"to do"},
        "match": {"out of date"},
        "compare": {"out of date"},
        "scores": {"out of date"},
        "semantics": {"out of date"},
        "report": {"out of date"},
    }
    assert next(item.why for item in items if item.stage == "match" and item.state != "done") == (
        "correlate layers.0 × encoder.layer.1 is to do"
    )


def test_a_replaced_input_is_seen(copied: RunDirectory, tiny_run: RunResult) -> None:
    one, other = (copied.correlation("layers.0", f"encoder.layer.{i}") for i in (0, 1))
    shutil.rmtree(one)
    shutil.copytree(other, one)
    items = status(tiny_run.experiment, copied)
    assert any(
        item.stage == "match" and "layers.0--encoder.layer.0.zarr is not the one that it was made from" in item.why
        for item in items
    )


def test_unfinished_work_tells_how_far_it_is(copied: RunDirectory, tiny_run: RunResult) -> None:
    store = copied.activations("a", "layers.0")
    shard = next((store / "activation" / "c").glob("*/0"))
    n_shards = len(list((store / "activation" / "c").glob("*/0")))
    assert n_shards > 2
    shard.unlink()
    store.rename(partial_path(store))
    item = next(one for one in status(tiny_run.experiment, copied) if one.path == store)
    assert (item.state, item.why) == ("begun", f"{n_shards - 1} of {n_shards} shards are done")


def test_command(tiny_run: RunResult, tiny_inputs: Path, tmp_path: Path) -> None:
    shown = CliRunner().invoke(app, ["status", str(tiny_run.directory.root), "--json"])
    assert shown.exit_code == 0, shown.output
    summary = json.loads(shown.stdout)
    assert set(summary["counts"]) == {"done"}
    experiment = str(tiny_inputs / "experiment.yaml")
    shown = CliRunner().invoke(app, ["status", experiment, "--run-dir", str(tmp_path / "new")])
    assert shown.exit_code == 0, shown.output
    assert "not there yet" in shown.stdout
    shown = CliRunner().invoke(app, ["status", str(tmp_path)])
    assert shown.exit_code == 2
    assert "is no run directory" in shown.output
