"""Shared fixtures: a Dask client for the whole session, a tiny experiment, a small text, hypothesis profiles."""

from __future__ import annotations

import hashlib
import importlib
import json
import logging
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
import scipy.sparse as sp
from distributed import Client
from filelock import FileLock
from hypothesis import HealthCheck, settings

import storage
from benchmarks.toy import make_inputs
from pipeline.experiment.run import RunResult, run
from pipeline.settings.experiment import load_experiment
from pipeline.work import workers
from pipeline.work.profiler import PROFILER
from pipeline.work.workers import local_client
from storage.rundir import RunDirectory

settings.register_profile("default", deadline=None, max_examples=30, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("thorough", deadline=None, max_examples=500)
settings.load_profile("default")

# several test processes on one host would race for the usual port
workers.DASHBOARD_PORT = 0

# clusters that tests start themselves must not stop for good either
dask.config.set(PROFILER)


@pytest.fixture(scope="module", autouse=True)
def _dask_configuration_is_left_as_it_was() -> Iterator[None]:
    """Dask has one configuration a process: what a file of tests leaves in it decides over the next file's."""
    yield
    unchanged: dict[str, Any] = {}
    dask.config.refresh(unchanged)
    dask.config.set(PROFILER, config=unchanged)
    client_of_the_session = {"scheduler": dask.config.get("scheduler", None)}
    assert dask.config.config | client_of_the_session == unchanged | client_of_the_session


@pytest.fixture(scope="session")
def bound_by_permissions() -> list[str]:
    """What a command starts with, so that read-only folders are read-only for the administrator too."""
    return ["setpriv", "--bounding-set=-dac_override", "--inh-caps=-dac_override"] if os.geteuid() == 0 else []


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


@pytest.fixture(scope="session")
def local_run(tiny_run: RunResult) -> dict[str, str]:
    """Return a hash of each data file of each store and result of the tiny experiment, run here."""
    return data_files(tiny_run.directory.root)


def data_files(folder: Path) -> dict[str, str]:
    """Return a hash of every data file below a run directory; metadata carries times of creation."""
    files = [path for path in sorted(folder.rglob("*.zarr/**/*")) if path.is_file() and path.suffix != ".json"]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="session")
def digest() -> Callable[[Path], dict[str, str]]:
    """Return :func:`data_files`."""
    return data_files


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """Take back what a command of a test did to logging: its handlers write to streams that are closed by now."""
    root = logging.getLogger()
    before = root.handlers[:], root.level
    yield
    root.handlers[:] = before[0]
    root.setLevel(before[1])


@dataclass(frozen=True)
class Text:
    """A corpus on disk and the coordinates of its rows."""

    folder: Path
    tokens: dict[str, np.ndarray]
    pieces: list[str]

    @property
    def corpus(self) -> Path:
        return self.folder / "corpus.zarr"

    def store(self, active: np.ndarray, name: str = "a", **options: Any) -> Path:
        """Write a store of activations over the rows."""
        path = self.folder / f"{name}.zarr"
        data = active if options.get("layout") == "dense" else sp.csr_array(active)
        attrs = {"corpus_hash": storage.open_corpus(self.corpus).hash, "model": "toy", "site": "layers.0"}
        storage.write_activations(path, data, tokens=self.tokens, attrs=attrs, **options, overwrite=True)
        return path

    def rows_of(self, *pieces: str) -> np.ndarray:
        """Return the rows whose text, blanks cut, is one of `pieces`."""
        return np.flatnonzero([piece.strip() in pieces for piece in self.pieces])


def make_text(folder: Path, documents: Sequence[str], pattern: str = r"\s?\w+|\s?[^\w\s]|\s") -> Text:
    """Write a corpus whose rows are what `pattern` matches, one after the other."""
    storage.write_corpus(folder / "corpus.zarr", documents, overwrite=True)
    found = [
        (i, *match.span(), match.group()) for i, text in enumerate(documents) for match in re.finditer(pattern, text)
    ]
    columns = [np.array(column) for column in list(zip(*found, strict=True))[:3]]
    tokens = dict(zip(("document", "char_start", "char_end"), columns, strict=True))
    tokens["position"] = np.concatenate([np.arange(n) for n in np.bincount(tokens["document"])])
    return Text(folder, tokens, [one[3] for one in found])


@pytest.fixture
def text_of(tmp_path: Path) -> Callable[..., Text]:
    def make(*documents: str, **options: Any) -> Text:
        return make_text(tmp_path, documents, **options)

    return make
