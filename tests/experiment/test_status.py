"""What is done, what would run and why: the answer of `status` is what `run` then does."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import xarray as xr
from distributed import Client
from typer.testing import CliRunner

from jobs.cli import app
from jobs.watch.recorder import Record
from pipeline.experiment.forecast import plan
from pipeline.experiment.run import RunResult, run
from pipeline.experiment.stages import STAGES, ordered_stages
from pipeline.experiment.status import status
from pipeline.settings.experiment import Experiment, load_experiment
from pipeline.settings.semantics import CountRule
from pipeline.work.task import Cost, Identify, Item, Stage, Task
from storage import Manifest, fingerprint, new_manifest, open_result, write_result
from storage.errors import InputError
from storage.files import partial_path
from storage.rundir import RunDirectory


@pytest.fixture
def copied(tiny_run: RunResult, tmp_path: Path) -> RunDirectory:
    """A finished run that a test may spoil."""
    return RunDirectory(Path(shutil.copytree(tiny_run.directory.root, tmp_path / "run")))


def changed(config: Experiment, section: str, **values: object) -> Experiment:
    return config.model_copy(update={section: getattr(config, section).model_copy(update=values)})


def not_done(items: list[Item]) -> dict[str, set[str]]:
    result: dict[str, set[str]] = {}
    for item in items:
        if item.state != "current":
            result.setdefault(item.stage, set()).add(item.state)
    return result


def test_nothing_is_there(tiny_inputs: Path, tmp_path: Path) -> None:
    items = status(load_experiment(tiny_inputs / "experiment.yaml"), RunDirectory(tmp_path / "run"))
    assert {item.state for item in items} == {"missing"}
    assert [item.stage for item in items].count("correlate") == 4
    assert not (tmp_path / "run").exists(), "looking writes nothing"


def test_all_is_done(tiny_run: RunResult) -> None:
    items = status(tiny_run.experiment, tiny_run.directory)
    assert not_done(items) == {}
    assert all(item.path.exists() and not item.why for item in items)


@pytest.mark.parametrize(
    ("section", "values", "outdated", "waiting", "why"),
    [
        ("compare", {"null_runs": 60}, {"compare", "scores"}, set(), "null_runs is 60, and was 50"),
        (
            "match",
            {"method": "mutual"},
            {"match", "semantics"},
            {"compare", "scores"},
            "method is mutual, and was greedy",
        ),
        (
            "correlate",
            {"full": "float32"},
            {"correlate", "best_layer", "match", "semantics"},
            {"compare", "scores"},
            "full is float32, and was not set",
        ),
        (
            "semantics",
            {"rule": CountRule(at_least=2, of=4)},
            {"concepts", "semantics"},
            set(),
            "rule.at_least is 2, and was 1",
        ),
        (
            "report",
            {"contexts": 5},
            {"contexts", "concepts", "words", "semantics"},
            {"compare", "scores"},
            "top_n is 5, and was 4",
        ),
        (
            "store",
            {"dtype": "float16"},
            {"harvest"},
            {"contexts", "correlate", "best_layer", "match", "compare", "scores", "concepts", "words", "semantics"},
            "dtype is float16, and was float32",
        ),
    ],
)
def test_a_changed_setting_names_what_depends_on_it(
    tiny_run: RunResult, section: str, values: dict[str, object], outdated: set[str], waiting: set[str], why: str
) -> None:
    items = status(changed(tiny_run.experiment, section, **values), tiny_run.directory)
    report = items.pop()
    assert (report.stage, report.state) == ("report", "waiting" if waiting else "outdated")
    assert not_done(items) == {stage: {"outdated"} for stage in outdated} | {stage: {"waiting"} for stage in waiting}
    assert any(item.why == why for item in items)


def test_what_waits_names_what_it_waits_for(tiny_run: RunResult) -> None:
    items = status(changed(tiny_run.experiment, "match", method="mutual"), tiny_run.directory)
    waiting = {item.stage: item.why for item in items if item.state == "waiting"}
    assert waiting["compare"] == "waits for match layers.1 × encoder.layer.1"
    assert waiting["scores"] == "waits for match layers.0 × encoder.layer.0"


def test_a_source_that_is_gone_is_said(copied: RunDirectory, tiny_run: RunResult) -> None:
    items = status(changed(tiny_run.experiment, "corpus", path="/nowhere/at/all.jsonl"), copied)
    assert items[0].state == "waiting"
    assert "No corpus at /nowhere" in items[0].why
    assert not_done(items)["rows"] == {"waiting"}


def test_unfinished_work_of_other_settings_is_no_progress(copied: RunDirectory, tiny_run: RunResult) -> None:
    out = copied.correlation("layers.0", "encoder.layer.0")
    out.rename(partial_path(out))
    config = changed(tiny_run.experiment, "correlate", top_k=5)
    item = next(one for one in status(config, copied) if one.path == out)
    assert (item.state, item.why) == ("missing", "unfinished work is there, but top_k is 5, and was 4")


def test_a_missing_result_and_all_behind_it(copied: RunDirectory, tiny_run: RunResult) -> None:
    shutil.rmtree(copied.correlation("layers.0", "encoder.layer.1"))
    items = status(tiny_run.experiment, copied)
    # the same inputs and settings give the same result: what was made from it stays
    assert not_done(items) == {"correlate": {"missing"}}
    shutil.rmtree(copied.activations("a", "layers.0"))
    shutil.rmtree(copied.contexts("a", "layers.0"))
    result = {item.stage: item for item in status(tiny_run.experiment, copied) if item.state != "current"}
    assert result["harvest"].why == "not there yet"
    assert (result["contexts"].state, result["contexts"].why) == ("missing", "waits for harvest A layers.0")
    assert (result["match"].state, result["match"].why) == ("waiting", "waits for harvest A layers.0")


def test_a_replaced_input_is_seen(copied: RunDirectory, tiny_run: RunResult) -> None:
    one, other = (copied.correlation("layers.0", f"encoder.layer.{i}") for i in (0, 1))
    shutil.rmtree(one)
    shutil.copytree(other, one)
    items = [item for item in status(tiny_run.experiment, copied) if item.state != "current"]
    # made again from the right stores, it is what its pairs were made from
    assert [(item.path, item.why) for item in items] == [(one, "b is not the one that it was made from")]


def first_shard(path: Path) -> Path:
    return next(file for file in sorted(path.glob("*/c/**/*")) if file.is_file())


def test_all_damaged_parts_are_named_and_made_again_by_one_run(
    copied: RunDirectory, tiny_run: RunResult, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    pair = ("layers.0", "encoder.layer.1")
    parts = [
        copied.corpus, copied.rows, copied.activations("a", "layers.0"), copied.activations("b", "encoder.layer.1"),
        copied.contexts("a", "layers.1"), copied.correlation(*pair), copied.pairs(*pair), copied.scores(*pair),
        copied.score_grid, copied.semantics(*pair),
    ]  # fmt: skip
    lost = [first_shard(path) for path in parts]
    before = [file.read_bytes() for file in lost]
    for i, file in enumerate(lost):
        if i % 2:
            file.unlink()
        else:
            file.write_bytes(file.read_bytes()[:-1])
    items = {item.path: item for item in status(tiny_run.experiment, copied)}
    assert {path for path, item in items.items() if item.state == "damaged"} == {*parts}
    assert all(str(file) in items[path].why for path, file in zip(parts, lost, strict=True))
    assert not [item for item in items.values() if item.state == "missing"]
    caplog.set_level("INFO")
    run(tiny_run.experiment, run_dir=copied.root, client=client)
    assert not_done(status(tiny_run.experiment, copied)) == {}
    assert [file.read_bytes() for file in lost] == before
    said = "\n".join(record.getMessage() for record in caplog.records)
    assert not [part for part in parts if f"{items[part].label} is damaged" not in said]


def test_tables_that_were_deleted_are_named_and_written_again(
    copied: RunDirectory, tiny_run: RunResult, client: Client
) -> None:
    names = ["best_layer_a.csv", "best_layer_b.csv", "pairs.csv", "scores.csv", "scores.tex"]
    names += ["semantics.csv", "semantics.html", "semantics.tex", "concepts.html"]
    before = {name: (copied.root / name).read_bytes() for name in names}
    results = {path: (path / "zarr.json").stat().st_mtime_ns for path in copied.root.rglob("*.zarr")}
    for name in names:
        (copied.root / name).unlink()
    items = {item.stage: item for item in status(tiny_run.experiment, copied) if item.state != "current"}
    assert {item.state for item in items.values()} == {"unfinished"}
    assert all(any(name in item.why for item in items.values()) for name in names), items
    run(tiny_run.experiment, run_dir=copied.root, client=client)
    assert {name: (copied.root / name).read_bytes() for name in names} == before
    assert not_done(status(tiny_run.experiment, copied)) == {}
    made = {path for path in results if (path / "zarr.json").stat().st_mtime_ns != results[path]}
    assert not made, "tables are made from results that are there"


def test_unfinished_work_tells_how_far_it_is(copied: RunDirectory, tiny_run: RunResult) -> None:
    store = copied.activations("a", "layers.0")
    shard = next((store / "activation" / "c").glob("*/0"))
    n_shards = len(list((store / "activation" / "c").glob("*/0")))
    assert n_shards > 2
    shard.unlink()
    store.rename(partial_path(store))
    item = next(one for one in status(tiny_run.experiment, copied) if one.path == store)
    assert (item.state, item.why) == ("unfinished", f"{n_shards - 1} of {n_shards} shards are done")


def test_command(tiny_run: RunResult, tiny_inputs: Path, tmp_path: Path) -> None:
    shown = CliRunner().invoke(app, ["status", str(tiny_run.directory.root), "--json"])
    assert shown.exit_code == 0, shown.output
    summary = json.loads(shown.stdout)
    assert set(summary["counts"]) == {"current"}
    experiment = str(tiny_inputs / "experiment.yaml")
    shown = CliRunner().invoke(app, ["status", experiment, "--run-dir", str(tmp_path / "new")])
    assert shown.exit_code == 0, shown.output
    assert "not there yet" in shown.stdout
    shown = CliRunner().invoke(app, ["status", str(tmp_path)])
    assert shown.exit_code == 2
    assert "is not a run directory" in shown.output


@pytest.mark.parametrize(("ended", "code"), [("finished", 0), ("stopped by InputError", 1)])
def test_following_a_run_that_is_over(ended: str, code: int, copied: RunDirectory) -> None:
    shown = CliRunner().invoke(app, ["status", str(copied.root), "--follow"])
    assert shown.exit_code == 2
    assert "Nothing was run or submitted" in shown.output
    session = {**vars(Record("2026-01-01T00:00:00.000+00:00")), "ended": ended, "seconds": 7.0}
    (copied.root / "watch.json").write_text(json.dumps({"sessions": [session]}))
    shown = CliRunner().invoke(app, ["status", str(copied.root), "--follow"])
    assert shown.exit_code == code
    assert f"{ended} after 7 s" in shown.stdout


def test_a_stage_from_outside(
    copied: RunDirectory, tiny_run: RunResult, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One object with the tasks and one registration: it is run, shown and planned like those of the package."""

    def count_manifest(identify: Identify) -> Manifest:
        return new_manifest("count", {"pairs": identify(pairs)}, {"of": "pairs"})

    def count(_: Client) -> None:
        result = xr.Dataset({"n": open_result(pairs).sizes["pair"]})
        write_result(result, target, count_manifest(fingerprint), overwrite=True)

    def tasks(_: Experiment, run: RunDirectory) -> list[Task]:
        return [Task("count", "layers.0", {target: count_manifest}, (pairs,), count, cost=lambda _: Cost(7.0))]

    pairs, target = copied.pairs("layers.0", "encoder.layer.0"), copied.root / "count.zarr"
    monkeypatch.setattr(STAGES, "_items", dict(STAGES._items))
    STAGES.register(Stage("count", tasks))
    assert [stage.name for stage in ordered_stages()][-2:] == ["count", "report"]
    assert not_done(status(tiny_run.experiment, copied)) == {"count": {"missing"}}
    steps = plan(tiny_run.experiment, run_dir=copied.root, client=client)
    assert [(step.stage, step.seconds) for step in steps if step.state == "to do"] == [("count", 7.0)]
    run(tiny_run.experiment, run_dir=copied.root, until="count", client=client)
    assert int(open_result(target, "count")["n"]) == open_result(pairs).sizes["pair"]
    assert not_done(status(tiny_run.experiment, copied)) == {}
    other = changed(tiny_run.experiment, "match", method="mutual")
    assert not_done(status(other, copied))["count"] == {"outdated"}


def test_a_stage_stands_before_the_one_that_it_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(STAGES, "_items", dict(STAGES._items))
    STAGES.register(Stage("early", lambda *_: [], before="correlate"))
    assert [stage.name for stage in ordered_stages()][:3] == ["harvest", "early", "correlate"]
    STAGES.register(Stage("lost", lambda *_: [], before="semantic"))
    with pytest.raises(InputError, match="no stage 'semantic'; did you mean 'semantics'"):
        ordered_stages()


def test_a_stage_that_is_not_there(tiny_run: RunResult, client: Client) -> None:
    with pytest.raises(InputError, match="no stage 'count'; there are harvest, correlate"):
        run(tiny_run.experiment, run_dir=tiny_run.directory.root, until="count", client=client)


def test_a_stage_that_is_misspelt_on_the_command_line(tiny_inputs: Path, tmp_path: Path) -> None:
    arguments = ["run", str(tiny_inputs / "experiment.yaml"), "--run-dir", str(tmp_path / "run"), "--until", "mach"]
    refused = CliRunner().invoke(app, arguments)
    assert refused.exit_code == 2
    assert "did you mean 'match'" in refused.output
    assert not (tmp_path / "run").exists()


def test_no_dictionary_is_loaded(tiny_run: RunResult) -> None:
    """A login node has no memory for them, and looking must not take long."""
    code = """
import json, sys
from pathlib import Path
from pipeline.settings.experiment import Experiment
from pipeline.experiment.status import status
from storage.rundir import RunDirectory

run = RunDirectory(Path(sys.argv[1]))
states = {item.state for item in status(Experiment.model_validate(run.read_experiment()), run)}
print(json.dumps([sorted(states), "torch" in sys.modules]))
"""
    command = [sys.executable, "-c", code, str(tiny_run.directory.root)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [["current"], False]


def test_a_dictionary_of_the_same_size_and_time_is_seen(
    copied: RunDirectory, tiny_inputs: Path, tmp_path: Path, client: Client
) -> None:
    """As `cp -p` and `rsync -a` put it there: a sample of the content is compared."""
    config = Experiment.model_validate(copied.read_experiment())
    folder = shutil.copytree(tiny_inputs / "sae-llama", tmp_path / "sae-llama")
    other = config.model_copy(update={"a": config.a.model_copy(update={"dictionary": str(folder)})})
    run(other, run_dir=copied.root, until="harvest", client=client)
    weights = folder / "sae.safetensors"
    content, times = bytearray(weights.read_bytes()), weights.stat()
    content[-5] ^= 1
    weights.write_bytes(content)
    os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))
    # in a process of its own, which has not described the models yet
    code = "import sys; from jobs.cli import app; app(['status', sys.argv[1]])"
    shown = subprocess.run([sys.executable, "-c", code, copied.root], capture_output=True, text=True, check=True).stdout
    assert "dictionary is not the one that it was made from" in shown


def test_another_dictionary_is_seen(copied: RunDirectory, tiny_inputs: Path, tmp_path: Path) -> None:
    config = Experiment.model_validate(copied.read_experiment())
    folder = shutil.copytree(tiny_inputs / "sae-llama", tmp_path / "another")
    other = config.model_copy(update={"a": config.a.model_copy(update={"dictionary": str(folder)})})
    reasons = [item.why for item in status(other, copied) if item.state == "outdated" and item.stage == "harvest"]
    assert reasons == ["dictionary is not the one that it was made from"] * 2
