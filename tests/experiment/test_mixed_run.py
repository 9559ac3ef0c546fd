"""Results of a run that were not made from those beside them: no verb shows their figures."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from jobs.cli import app
from pipeline.experiment.run import RunResult
from pipeline.match.run import match
from storage.provenance import RunInputs
from storage.rundir import RunDirectory

X, Y = ("layers.0", "encoder.layer.0"), ("layers.0", "encoder.layer.1")


@pytest.fixture
def copied(tiny_run: RunResult, tmp_path: Path) -> RunDirectory:
    """A finished run that a test may spoil."""
    return RunDirectory(Path(shutil.copytree(tiny_run.directory.root, tmp_path / "run")))


def exchange(one: Path, other: Path) -> None:
    aside = one.with_name("aside")
    for source, to in ((one, aside), (other, one), (aside, other)):
        source.rename(to)


def compared(run: RunDirectory) -> set[tuple[str, str]]:
    table = pd.read_csv(run.score_grid.with_suffix(".csv"))
    return {(a, b) for a, b in zip(table["site_a"], table["site_b"], strict=True)}


def test_results_of_a_whole_run_belong_together(tiny_run: RunResult) -> None:
    run, config = tiny_run.directory, tiny_run.experiment
    inputs = RunInputs(run, config.site_pairs)
    results = [path.parent for path in run.root.rglob("zarr.json") if (path.parent / "zarr.json").exists()]
    assert {inputs.why_not(path) for path in results} == {""}
    assert all(inputs.belongs(run.scores(*pair)) for pair in config.site_pairs)


@pytest.mark.parametrize("folder", ["scores", "pairs", "correlation"])
def test_exchanged_results_are_left_out_of_the_scores(copied: RunDirectory, tiny_run: RunResult, folder: str) -> None:
    exchange(getattr(copied, folder)(*X), getattr(copied, folder)(*Y))
    done = CliRunner().invoke(app, ["scores", str(copied.root)])
    assert done.exit_code == 0, done.output
    assert compared(copied) == {*tiny_run.experiment.site_pairs} - {X, Y}
    said = " ".join(done.stderr.split())
    assert f"{folder}/layers.0--encoder.layer.0.zarr was made from other inputs than the present ones" in said
    assert "`subspace run` makes it again" in said


@pytest.mark.parametrize("folder", ["contexts", "activations"])
def test_a_site_with_exchanged_results_is_not_shown(copied: RunDirectory, folder: str) -> None:
    of = getattr(copied, folder)
    exchange(of("a", "layers.0"), of("a", "layers.1"))
    done = CliRunner().invoke(app, ["report", str(copied.root)])
    assert done.exit_code == 2, done.output
    assert "made from other inputs than the present ones" in " ".join(done.stderr.split())


def test_scores_of_earlier_pairs_are_not_shown_beside_new_ones(copied: RunDirectory, tiny_run: RunResult) -> None:
    earlier = copied.report.read_text(encoding="utf-8")
    match(copied.correlation(*X), method="mutual", min_correlation=0.9, out=copied.pairs(*X), overwrite=True)
    done = CliRunner().invoke(app, ["report", str(copied.root)])
    assert done.exit_code == 0, done.output
    reason = "scores/layers.0--encoder.layer.0.zarr was made from other inputs than the present ones"
    said = " ".join(done.stderr.split())
    where = "(pairs/layers.0--encoder.layer.0.zarr); `subspace run` makes it again"
    assert said.count(f"left out, with what was made from it: {reason} {where}") == 1
    page = copied.report.read_text(encoding="utf-8")
    assert reason in page
    assert reason not in earlier
    assert X not in compared(copied)
    pairs = pd.read_csv(copied.pairs_table)
    assert not ((pairs["site_a"] == X[0]) & (pairs["site_b"] == X[1])).any()


def test_layers_are_not_followed_over_exchanged_pairs(copied: RunDirectory) -> None:
    exchange(copied.pairs(*X), copied.pairs(*Y))
    done = CliRunner().invoke(app, ["layers", str(copied.root)])
    assert done.exit_code == 2
    assert "pairs/layers.0--encoder.layer.0.zarr was made from other inputs" in " ".join(done.stderr.split())
