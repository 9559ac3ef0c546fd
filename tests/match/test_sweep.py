"""A sweep is what match and compare give one by one."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from typer.testing import CliRunner

import storage
from jobs.cli import app
from pipeline.compare.run import compare
from pipeline.correlate.run import correlate
from pipeline.experiment.sweep import plot_sweep, sweep
from pipeline.match.run import match
from pipeline.settings.match import steps
from pipeline.work.outputs import claim_outputs
from storage.errors import InputError


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    rng = np.random.default_rng(0)
    x = rng.exponential(size=(500, 40)) * (rng.random((500, 40)) < 0.3)
    noisy = x[:, rng.permutation(40)] * (rng.random((500, 40)) < 0.8)
    noisy[:, :5] += x[:, [0]]  # the same feature of A is the best of several
    for name, values in {"a": x, "b": noisy}.items():
        storage.write_activations(folder / f"{name}.zarr", values, decoder=rng.normal(size=(40, 6)), overwrite=True)
    correlate(folder / "a.zarr", folder / "b.zarr", out=folder / "cor.zarr")
    return folder


def test_a_filter_that_reads_heldout_r_is_noted(experiment, tmp_path):
    points = {"min_correlations": [0.1], "max_uses": [2]}
    assert "heldout_note" not in sweep(experiment / "cor.zarr", **points).attrs
    filters = [{"name": "reproducible", "tolerance": 0.1}]
    note = sweep(experiment / "cor.zarr", **points, filters=filters).attrs["heldout_note"]
    assert "took part in choosing these pairs (reproducible)" in note
    command = ["sweep", str(experiment / "cor.zarr"), "--out", str(tmp_path / "sweep.zarr"), "--min-correlation", "0.1"]
    shown = CliRunner().invoke(app, [*command, "--max-uses", "2", "--filter", "reproducible", "--json"])
    assert json.loads(shown.stdout)["heldout_note"] == note


def test_every_point_is_that_of_match_and_compare(experiment, client):
    stores = experiment / "a.zarr", experiment / "b.zarr"
    found = sweep(
        experiment / "cor.zarr",
        min_correlations=[0.4, 0.1],
        max_uses=[3, 1],
        stores=stores,
        metrics=["rsa", "svcca_pc1"],
        null_runs=20,
        seed=3,
        client=client,
    )
    assert found.min_correlation.values.tolist() == [0.1, 0.4]
    assert found.max_uses.values.tolist() == [1, 3]
    for minimum in (0.1, 0.4):
        for n in (1, 3):
            one = found.sel(min_correlation=minimum, max_uses=n)
            pairs = match(experiment / "cor.zarr", method="unique", min_correlation=minimum, max_uses=n)
            assert one.pairs == pairs.sizes["pair"]
            assert one.mean_r == pairs.mean_r
            scores = compare(pairs, *stores, metrics=["rsa", "svcca_pc1"], null_runs=20, seed=3, client=client)
            for name in ("score", "null_mean", "p"):
                np.testing.assert_array_equal(one[name].values, scores.sel(null="shuffled")[name].values)


def test_other_methods_drop_what_is_used_more(experiment):
    found = sweep(experiment / "cor.zarr", min_correlations=[0.2], max_uses=[1, 100], method="best")
    filters = [{"name": "max_uses", "n": 1}]
    assert found.pairs.values[0].tolist() == [
        match(experiment / "cor.zarr", method="best", filters=filters).sizes["pair"],
        match(experiment / "cor.zarr", method="best").sizes["pair"],
    ]


def test_minimums_without_pairs_are_points_too(experiment):
    found = sweep(experiment / "cor.zarr", min_correlations=[0.1, 1.0], filters=[{"name": "min_firing", "n": 1}])
    assert found.pairs.values[1, 0] == 0
    assert np.isnan(found.mean_r.values[1, 0])


def test_wrong_sweeps(experiment):
    with pytest.raises(InputError, match=r"min_correlations: .* at least 1 item"):
        sweep(experiment / "cor.zarr", min_correlations=[])
    with pytest.raises(InputError, match=r"keep_above=0\.05"):
        sweep(experiment / "cor.zarr", min_correlations=[0.05, 0.2])
    with pytest.raises(InputError, match="give the stores"):
        sweep(experiment / "cor.zarr", min_correlations=[0.2], metrics=["rsa"])
    with pytest.raises(InputError, match="not a list of numbers"):
        steps("a")
    with pytest.raises(InputError, match="not a list of numbers"):
        steps("0:1:0")


@pytest.mark.parametrize("suffix", [".svg", ".png"])
def test_from_the_command_line_with_table_and_figure(experiment, tmp_path, suffix):
    out, csv, plot = tmp_path / "sweep.zarr", tmp_path / "sweep.csv", tmp_path / f"sweep{suffix}"
    arguments = [
        "sweep",
        experiment / "cor.zarr",
        "--out",
        out,
        "--min-correlation",
        "0.1:0.3:0.1",
        "--max-uses",
        "1,2",
    ]
    stores = ["--stores", experiment / "a.zarr", experiment / "b.zarr", "--metric", "rsa", "--null-runs", 9]
    files = ["--csv", csv, "--plot", plot, "--json"]
    done = CliRunner().invoke(app, [str(argument) for argument in (*arguments, *stores, *files)])
    assert done.exit_code == 0, done.output
    lines = json.loads(done.stdout.splitlines()[-1])["lines"]
    table = pd.read_csv(csv)
    assert len(lines) == len(table) == 6
    assert {"min_correlation", "max_uses", "metric", "pairs", "mean_r", "score", "null_mean", "p"} <= set(table)
    assert plot.stat().st_size > 5000
    with xr.open_zarr(out) as kept:
        assert kept.pairs.values.ravel().tolist() == table.pairs.tolist()


def test_the_figure_has_a_panel_for_each_score(experiment, tmp_path):
    plain = sweep(experiment / "cor.zarr", min_correlations=[0.1, 0.2])
    assert [axes.get_title() for axes in plot_sweep(plain).axes] == ["pairs", "mean r"]
    for name, message in {
        "x.txt": r"ends in \.png or \.svg or \.pdf",
        "mine.png": "not written by this command",
    }.items():
        (tmp_path / name).write_text("mine")
        with pytest.raises(InputError, match=message), claim_outputs(figure=tmp_path / name, overwrite=True):
            pass
    for ending in (".png", ".svg", ".pdf"):
        for other in (plain, plain.isel(max_uses=[0, 0])):
            with claim_outputs(figure=tmp_path / f"x{ending}", overwrite=True) as outputs:
                outputs.write_figure(plot_sweep(other))
