"""The grid of scores: stacked by label, corrected apart for each null, written as data, CSV and LaTeX."""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from scipy.stats import false_discovery_control

import storage
from pipeline.compare.arrays import compare_rows
from pipeline.compare.score_grid import (
    SCORE_COLUMNS,
    best_sites,
    power_notes,
    save_scores,
    score_grid,
    scores_table,
    to_latex,
    written_table,
)
from storage.errors import FormatError, MissingInputError
from storage.rundir import RunDirectory


def scored(seed, n=40, noise=1.0, metrics=("svcca", "svcca_pc1"), nulls=("shuffled",), runs=99, client=None):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 4))
    bank = rng.normal(size=(80, 4)), rng.normal(size=(80, 5))
    y = x @ rng.normal(size=(4, 5)) + noise * rng.normal(size=(n, 5))
    features = bank if "random_features" in nulls else None
    return compare_rows(
        x, y, metrics=list(metrics), nulls=list(nulls), features=features, null_runs=runs, seed=seed, client=client
    )


@pytest.fixture(scope="module")
def results(client):
    nulls = ("shuffled", "random_features")
    return {
        ("layers.1", "layers.2"): scored(0, nulls=nulls, client=client),
        ("layers.1", "layers.10"): scored(1, noise=50.0, nulls=nulls, client=client),
        ("layers.3", "layers.2"): scored(2, metrics=("rsa", "svcca"), client=client),
    }


def test_every_score_stands_under_its_labels(results):
    grid = score_grid(results)
    assert grid.site_b.values.tolist() == ["layers.2", "layers.10"], "in the order given, not of the alphabet"
    assert grid.metric.values.tolist() == ["svcca", "svcca_pc1", "rsa"]
    assert grid.null.values.tolist() == ["shuffled", "random_features"]
    for (a, b), one in results.items():
        here = grid.sel(site_a=a, site_b=b)
        assert int(here.n_pairs) == 40
        for metric in one.metric.values:
            assert float(here.score.sel(metric=metric)) == float(one.score.sel(metric=metric))
            for null in one.null.values:
                for name in ("null_mean", "null_std", "null_q05", "null_q95", "difference", "z", "p"):
                    expected = one[name].sel(metric=metric, null=null)
                    xr.testing.assert_equal(
                        here[name].sel(metric=metric, null=null).drop_vars(["site_a", "site_b"]), expected
                    )
    assert np.isnan(grid.score.sel(site_a="layers.3", site_b="layers.10")).all()
    assert np.isnan(grid.p.sel(site_a="layers.3", null="random_features")).all()
    assert int(grid.null_runs.sel(site_a="layers.3", site_b="layers.2", metric="rsa", null="shuffled")) == 99


def test_p_is_corrected_over_the_grid_for_each_null(results):
    grid = score_grid(results)
    for null, tests in (("shuffled", 6), ("random_features", 4)):
        one = grid.sel(null=null)
        p = one.p.values[np.isfinite(one.p.values)]
        assert int(one.tests) == len(p) == tests
        np.testing.assert_allclose(one.p_bh.values[np.isfinite(one.p.values)], false_discovery_control(p))
        smallest = np.nanargmin(one.p.values)
        assert one.p_holm.values.flat[smallest] == pytest.approx(min(1, tests * np.nanmin(one.p.values)))


def test_the_best_of_the_grid_is_held_against_the_best_of_every_run(results):
    grid = score_grid(results)
    for metric, sites in (("svcca", list(results)), ("svcca_pc1", list(results)[:2])):
        at = {"metric": metric, "null": "shuffled"}
        scores = np.array([float(results[pair].score.sel(metric=metric)) for pair in sites])
        runs = np.stack([results[pair].null_score.sel(at).values for pair in sites])
        tau = np.quantile(np.column_stack([runs, scores]), 0.95, axis=1)
        heights, highest = (scores - tau) / (1 - tau), ((runs.T - tau) / (1 - tau)).max(axis=1)
        for (a, b), height in zip(sites, heights, strict=True):
            here = grid.sel(site_a=a, site_b=b, **at)
            assert float(here.calibrated) == pytest.approx(height)
            assert float(here.p_max) == pytest.approx((np.sum(highest >= height) + 1) / 100)
            assert float(here.p) <= float(here.p_max)
    assert np.isnan(grid.p_max.sel(site_a="layers.3", site_b="layers.10")).all()
    best = best_sites(scores_table(grid)).set_index(["metric", "null"])
    assert best.loc[("svcca", "shuffled"), "site_b"] == "layers.2"
    assert best.loc[("svcca", "shuffled"), "p_max"] == 0.01


def test_the_maximum_rests_on_the_runs_that_all_pairs_of_sites_have(client):
    one, other = (scored(seed, noise=50.0, runs=300, client=client) for seed in (1, 2))
    ended = one.copy(deep=True)
    ended.null_score[..., 120:] = np.nan
    grid = score_grid({("a", "b"): ended, ("a", "c"): other})
    assert (grid.max_runs == 100).all()
    early = score_grid({("a", "b"): one.isel(run=slice(100)), ("a", "c"): other.isel(run=slice(100))})
    np.testing.assert_allclose(grid.p_max, early.p_max)
    bare = score_grid({("a", "b"): one.drop_vars("null_score")})
    assert bare.calibrated.isnull().all()
    assert (bare.max_runs == 0).all()


def test_too_few_runs_are_said(results, client):
    assert power_notes(score_grid(results)) == {
        "shuffled": "99 null runs cannot give p below 0.01, and over 6 tests that is 0.06 after Holm: run at least 119"
    }
    assert power_notes(score_grid({("a", "b"): scored(0, runs=39, client=client)})) == {}


def test_csv_is_tidy(results):
    table = scores_table(score_grid(results))
    assert list(table.columns) == list(SCORE_COLUMNS)
    assert len(table) == 3 * 2 * 2
    assert (table["note"] != "not compared").all()
    read = pd.read_csv(io.StringIO(table.to_csv(index=False)), keep_default_na=False, na_values=[""])
    assert set(read["site_b"]) == {"layers.2", "layers.10"}


def test_latex_is_a_booktabs_table(results, client):
    table = scores_table(score_grid(results))
    text = to_latex(table)
    for part in (r"\toprule", r"\midrule", r"\bottomrule", r"svcca\_pc1", r"random\_features", r"$\pm$"):
        assert part in text
    assert text.count(r"\\") == len(table) + 1
    assert text.count(r"\bfseries") == (table["p_holm"] < 0.05).sum()
    long = to_latex(pd.concat([table] * 4))
    assert r"\begin{longtable}" in long
    assert r"\begin{longtable}" not in text


def test_tables_say_on_how_many_runs_p_rests(results, client):
    one = scored(1, noise=50.0, runs=300, client=client)
    ended = one.assign(p_runs=one.p_runs * 0 + 120)
    table = scores_table(score_grid({("a", "b"): ended, ("a", "c"): one.drop_vars("p_runs")}))
    assert table["p_runs"].tolist() == [120, 120, 300, 300], "in earlier releases no null ended early"
    assert written_table(table)["runs"].tolist() == ["120", "120", "300", "300"]
    assert "runs" not in written_table(scores_table(score_grid(results)))


def test_latex_bold_marks_what_is_significant(client):
    table = scores_table(score_grid({("a", "b"): scored(0, metrics=("svcca",), client=client)}))
    assert r"\bfseries 0." in to_latex(table)


def test_the_run_writes_one_grid_and_leaves_a_current_one(results, tmp_path):
    directory = RunDirectory(tmp_path)
    with pytest.raises(MissingInputError, match="no pair of sites"):
        save_scores(directory, list(results))
    for i, (sites, one) in enumerate(results.items()):
        manifest = storage.new_manifest("compare", {}, {"number": i})
        storage.write_result(one.assign_attrs(manifest.to_attrs()), directory.scores(*sites), manifest, overwrite=True)
    wanted = [*results, ("layers.3", "layers.10")]
    grid = save_scores(directory, wanted)
    assert {path.name for path in tmp_path.iterdir()} == {"scores", "scores.zarr", "scores.csv", "scores.tex"}
    before = (tmp_path / "scores.zarr" / "zarr.json").stat().st_mtime_ns
    again = save_scores(directory, wanted)
    assert (tmp_path / "scores.zarr" / "zarr.json").stat().st_mtime_ns == before
    xr.testing.assert_identical(grid.load(), again.load())
    table = pd.read_csv(tmp_path / "scores.csv")
    assert len(table) == 12
    xr.testing.assert_equal(xr.open_zarr(tmp_path / "scores.zarr").p_holm.load(), score_grid(results).p_holm)


def test_results_of_older_releases_are_refused():
    with pytest.raises(FormatError, match="make it again"):
        score_grid({("a", "b"): xr.Dataset({"score": ("metric", [0.1]), "null": (("metric", "run"), [[0.1]])})})
