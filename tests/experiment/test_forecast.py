"""``subspace plan``: what a run will take, beside what it did take."""

from __future__ import annotations

import dataclasses
import importlib
import json
import shutil

import pytest
from typer.testing import CliRunner

import storage
from jobs.cli import app
from pipeline.correlate.gpus import GPUS
from pipeline.correlate.rates import Rates, load_rates, measure_rates, save_rates
from pipeline.experiment.run import run
from pipeline.report.stage import REPORT_SECONDS
from pipeline.settings.experiment import load_experiment

plan_module = importlib.import_module("pipeline.experiment.forecast")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache folder of our own, so that no machine's rates are used."""
    monkeypatch.setenv("SUBSPACE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_what_was_planned_is_what_a_run_takes(tiny_inputs, tmp_path, client, cache, caplog):
    experiment = load_experiment(tiny_inputs / "experiment.yaml")
    caplog.set_level("INFO", "pipeline")
    steps = plan_module.plan(experiment, run_dir=tmp_path / "run", client=client)
    assert "--calibrate measures them" in caplog.text
    assert [step.state for step in steps] == ["to do"] * len(steps)
    assert {step.stage for step in steps} == {"harvest", "correlate", "match", "compare", "semantics", "report"}
    assert all(step.seconds > 0 for step in steps)
    result = run(experiment, run_dir=tmp_path / "run", until="semantics", client=client)
    for step, side in zip(steps, "ab", strict=False):
        stores = [result.directory.activations(side, site) for site in getattr(experiment, side).sites]
        real = sum(file.stat().st_size for store in stores for file in store.rglob("*") if file.is_file())
        assert step.rows == storage.open_activations(stores[0]).sizes["token"]
        assert 0.3 < step.disk / real < 3  # tiny stores are mostly metadata
    again = plan_module.plan(experiment, run_dir=tmp_path / "run", client=client)
    assert [step.state for step in again] == ["there"] * (len(steps) - 1) + ["to do"]
    assert sum(step.seconds for step in again) == REPORT_SECONDS
    other = experiment.model_copy(update={"compare": experiment.compare.model_copy(update={"seed": 1})})
    outdated = plan_module.plan(other, run_dir=tmp_path / "run", client=client)
    assert {step.stage for step in outdated if step.state == "to do"} == {"compare", "report"}


def test_the_plan_of_a_finished_run_says_that_nothing_is_left(tiny_inputs, tiny_run, cache):
    arguments = ["plan", str(tiny_inputs / "experiment.yaml"), "--run-dir", str(tiny_run.directory.root)]
    shown = CliRunner().invoke(app, arguments)
    assert shown.exit_code == 0, shown.output
    assert "All results exist: a run would make none." in shown.stdout
    assert "In total about" not in shown.stdout


def test_the_command_prints_a_table_and_json(tiny_inputs, tmp_path, cache):
    runner = CliRunner()
    arguments = ["plan", str(tiny_inputs / "experiment.yaml"), "--run-dir", str(tmp_path / "run")]
    shown = runner.invoke(app, arguments)
    assert shown.exit_code == 0, shown.output
    assert "what is to come" in shown.stdout
    assert "In total about" in shown.stdout
    printed = json.loads(runner.invoke(app, [*arguments, "--json"]).stdout.splitlines()[-1])
    assert printed["seconds"] == pytest.approx(sum(step["seconds"] for step in printed["steps"]))
    assert printed["disk_bytes"] > 0


def test_a_full_disk_and_too_little_memory_are_said_at_once(tiny_inputs, tmp_path, client, cache, monkeypatch):
    experiment = load_experiment(tiny_inputs / "experiment.yaml")
    little = experiment.model_copy(update={"correlate": experiment.correlate.model_copy(update={"memory": "300MB"})})
    with pytest.raises(storage.BudgetError, match=r"projected.*allowed"):
        plan_module.plan(little, run_dir=tmp_path / "run", client=client)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(storage.BudgetError, match=r"GB of disk \(projected\)"):
        plan_module.plan(experiment, run_dir=tmp_path / "run", client=client)
    assert not (tmp_path / "run" / "activations").exists()


def test_rates_are_measured_kept_and_used(cache, monkeypatch):
    assert load_rates(cache) is None
    measured = measure_rates(1)
    assert all(value > 0 for value in dataclasses.astuple(measured))
    assert measured.product < 1e-6
    assert save_rates(measured, cache).is_file()
    assert load_rates(cache) == measured
    monkeypatch.setattr(plan_module, "measure_rates", lambda _: Rates(start=5.0))
    assert plan_module.find_rates(calibrate=True).start == 5.0
    assert plan_module.find_rates(calibrate=False).start == 5.0


def test_a_gpu_that_is_not_here_is_planned_for(tiny_inputs, tmp_path, client, cache):
    """By its published figures; a name without any stops at once."""
    experiment = load_experiment(tiny_inputs / "experiment.yaml")
    steps = plan_module.plan(experiment, run_dir=tmp_path / "run", client=client, gpu="H100")
    correlations = [step for step in steps if step.stage == "correlate"]
    assert len(correlations) == 4
    assert all("of the GPU" in step.what for step in correlations)
    wrong = CliRunner().invoke(app, ["plan", str(tiny_inputs / "experiment.yaml"), "--gpu", "h1000"])
    assert wrong.exit_code == 2
    assert "no figures for a GPU 'h1000'" in wrong.stderr


def test_a_faster_gpu_takes_less_time():
    """Of products and of copies; the host's own rates stay."""
    host = Rates(entry=1.0)
    slow, fast = (GPUS[name].rates(host) for name in ("t4", "h200"))
    assert slow.entry == fast.entry == 1.0
    assert fast.gpu_byte < slow.gpu_byte < 1e-11
    assert fast.gpu_dense_product < slow.gpu_dense_product
    assert fast.gpu_copy < slow.gpu_copy
