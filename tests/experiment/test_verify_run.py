"""Verification of a whole run: what is missing of it, and what was exchanged."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from jobs.cli import app
from pipeline.experiment.run import RunResult
from pipeline.experiment.status import expected
from storage.rundir import RunDirectory
from storage.verify import Verification, verify


@pytest.fixture
def copied(tiny_run: RunResult, tmp_path: Path) -> RunDirectory:
    """A finished run that a test may spoil."""
    return RunDirectory(Path(shutil.copytree(tiny_run.directory.root, tmp_path / "run")))


def faulty(run: RunDirectory, done: Verification) -> set[str]:
    return {Path(fault.path).relative_to(run.root).as_posix() for fault in done.faults}


def exchange(one: Path, other: Path) -> None:
    aside = one.with_name("aside")
    for source, to in ((one, aside), (other, one), (aside, other)):
        source.rename(to)


def test_a_whole_run_is_whole(copied: RunDirectory) -> None:
    done = verify(copied.root, expect=expected)
    assert (done.faults, done.missing) == ([], [])


@pytest.mark.parametrize("folder", ["pairs", "correlation", "scores", "activations/a", "contexts/a", "concepts/a"])
def test_exchanged_results_are_found(copied: RunDirectory, folder: str) -> None:
    one, other = sorted((copied.root / folder).glob("*.zarr"))[:2]
    exchange(one, other)
    done = verify(copied.root, expect=expected)
    assert {path.relative_to(copied.root).as_posix() for path in (one, other)} <= faulty(copied, done)


@pytest.mark.parametrize(
    "name", ["scores.zarr", "best_layer.zarr", "concepts", "semantics.zarr", "semantics", "models.json", "rows.zarr"]
)
def test_what_is_missing_is_found(copied: RunDirectory, name: str) -> None:
    lost = copied.root / name
    paths = {lost, *lost.glob("*.zarr"), *lost.glob("*/*.zarr")} - ({lost} if lost.suffix == "" else set())
    shutil.rmtree(lost) if lost.is_dir() else lost.unlink()
    done = verify(copied.root, expect=expected)
    assert {path.relative_to(copied.root).as_posix() for path in paths} <= faulty(copied, done)


def test_the_command_expects_what_the_tasks_make(copied: RunDirectory) -> None:
    exchange(*sorted((copied.root / "pairs").glob("*.zarr"))[:2])
    done = CliRunner().invoke(app, ["verify", str(copied.root)])
    assert done.exit_code == 5, done.output
    assert "was made from other inputs than the present ones: correlation" in done.output
