"""Shared fixtures: a Dask client for the whole session, a tiny experiment, hypothesis profiles."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dask
import pytest
from distributed import Client
from filelock import FileLock
from hypothesis import HealthCheck, settings

from benchmarks.toy import make_inputs
from pipeline import workers
from pipeline.config import load_experiment
from pipeline.run import RunResult, run
from pipeline.workers import local_client
from storage.rundir import RunDirectory

settings.register_profile("default", deadline=None, max_examples=30, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("thorough", deadline=None, max_examples=500)
settings.load_profile("default")

# several test processes on one host would race for the usual port
workers.DASHBOARD_PORT = 0


@pytest.fixture(scope="module", autouse=True)
def _dask_configuration_is_left_as_it_was() -> Iterator[None]:
    """Dask has one configuration a process: what a file of tests leaves in it decides over the next file's."""
    yield
    unchanged: dict[str, Any] = {}
    dask.config.refresh(unchanged)
    client_of_the_session = {"scheduler": dask.config.get("scheduler", None)}
    assert dask.config.config | client_of_the_session == unchanged | client_of_the_session


Bench = Callable[..., dict[str, Any]]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Bench:
    """Run ``benchmarks.NAME`` with arguments of its command line; return the object that its last line holds.

    What it measures runs in this process too, unless asked: in ones of their own, imports would take most of the time.
    """

    def measured_here(code: str, arguments: dict[str, Any]) -> dict[str, Any]:
        figures: dict[str, Any] = {"peak_gb": 1.0, "cpu_seconds": 1.0}
        exec(code, {"arguments": json.loads(json.dumps(arguments)), "figures": figures})
        return figures

    def call(name: str, *arguments: str, own_processes: bool = False) -> dict[str, Any]:
        module = importlib.import_module(f"benchmarks.{name}")
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        if not own_processes:
            monkeypatch.setattr(module, "run_measured", measured_here, raising=False)
        module.main()
        found: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
        return found

    return call


@pytest.fixture(scope="session")
def client() -> Iterator[Client]:
    """A local client of two threads in this process."""
    with local_client(threads_per_worker=2) as own:
        yield own


Make = Callable[[Path], None]


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Make], Path]:
    """Make a folder once for all processes of this test session, by a function that is given its path."""
    base = tmp_path_factory.getbasetemp()
    # each process of pytest-xdist has a folder of its own below the session's
    shared = base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base

    def find_or_make(name: str, make: Make) -> Path:
        folder, finished = shared / name, shared / f"{name}.finished"
        with FileLock(shared / f"{name}.lock"):
            if not finished.exists():
                shutil.rmtree(folder, ignore_errors=True)
                make(folder)
                finished.touch()
        return folder

    return find_or_make


@pytest.fixture(scope="session")
def tiny_inputs(once: Callable[[str, Make], Path]) -> Path:
    """Two tiny random models, their dictionaries, a corpus, and ``experiment.yaml``; not to be changed."""
    return once("tiny", make_inputs)


@pytest.fixture(scope="session")
def tiny_run(once: Callable[[str, Make], Path], tiny_inputs: Path) -> RunResult:
    """The tiny experiment, all its stages run on threads; not to be changed."""

    def make(folder: Path) -> None:
        with local_client(threads_per_worker=2) as client:
            run(tiny_inputs / "experiment.yaml", run_dir=folder, client=client)

    folder = once("tiny-run", make)
    return RunResult(RunDirectory(folder), load_experiment(tiny_inputs / "experiment.yaml"))
