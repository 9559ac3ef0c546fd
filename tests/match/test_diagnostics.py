"""Diagnostics count what a plain loop counts; the command shows them."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from jobs.cli import app
from pipeline.match.diagnostics import compare_methods, diagnose, hubs, r_by_rank, summarise, uses_histogram
from pipeline.match.run import match
from pipeline.settings.match import MatchSettings, parse_filter
from pipeline.settings.registries import METHODS
from pipeline.text.top_tokens import TopTokens
from storage import open_result
from storage.errors import InputError

NAN = np.nan


@pytest.fixture
def random_correlation(correlation):
    rng = np.random.default_rng(0)
    r = rng.uniform(-0.3, 1, (30, 25)) ** 3
    r[:, 4] = np.linspace(0.5, 0.9, 30)  # a hub
    r[7], r[:, 9] = NAN, NAN
    return correlation(r, r_heldout=r - 0.05)


@given(st.integers(0, 2**32 - 1))
def test_counts_equal_those_of_a_loop(seed):
    import xarray as xr

    rng = np.random.default_rng(seed)
    n = int(rng.integers(0, 30))
    a, b = rng.integers(0, 8, n), rng.integers(0, 8, n)
    pairs = xr.Dataset({"feature_a": ("pair", a), "feature_b": ("pair", b), "r": ("pair", rng.random(n))})
    pairs["rank_b"] = "pair", rng.integers(0, 9, n)
    counts: dict[int, int] = {}
    for used in (b.tolist().count(feature) for feature in set(b.tolist())):
        counts[used] = counts.get(used, 0) + 1
    assert uses_histogram(pairs, "b") == counts
    by_use = sorted(set(b.tolist()), key=lambda feature: (-b.tolist().count(feature), feature))
    found = hubs(pairs, "b", 3)
    assert [hub["feature"] for hub in found] == by_use[:3]
    for hub in found:
        assert hub["mean_r"] == pytest.approx(pairs.r.values[b == hub["feature"]].mean())
    for line in r_by_rank(pairs, "b"):
        inside = (pairs.rank_b.values >= line["from"]) & (pairs.rank_b.values <= line["to"])
        assert line["pairs"] == inside.sum()
        assert line["mean_r"] == pytest.approx(pairs.r.values[inside].mean())
    assert sum(line["pairs"] for line in r_by_rank(pairs, "b")) == n


def test_hubs_say_what_they_fire_on(random_correlation):
    pairs = match(random_correlation, method="best")
    tokens = np.full((25, 2), -1)
    tokens[4] = 1, 0
    (hub,) = hubs(pairs, "b", 1, TopTokens(tokens, tokens, ["the", "."]))
    assert (hub["feature"], hub["tokens"]) == (4, [".", "the"])
    assert hub["uses"] == pairs.uses_b.values.max()


@pytest.mark.parametrize("method", METHODS)
def test_shares_and_totals(random_correlation, method):
    pairs = match(random_correlation, method=method)
    found = summarise(pairs)
    one_to_one = method not in ("best", "best_of_b")
    assert (found["share_unique"] == 1) == one_to_one
    assert found["total_r"] == pytest.approx(pairs.r.values.sum())
    assert found["matched_a"] == len(set(pairs.feature_a.values.tolist()))
    assert found["mean_r_heldout"] == pytest.approx(found["mean_r"] - 0.05)
    json.dumps(diagnose(pairs))


def test_all_methods_side_by_side_are_those_methods(random_correlation):
    table = compare_methods(random_correlation, min_correlation=0.2, max_uses=3)
    assert table["matching"].values.tolist() == list(METHODS)
    for method in METHODS:
        pairs = match(random_correlation, method=method, min_correlation=0.2, max_uses=3 if method == "unique" else 1)
        for name, value in summarise(pairs).items():
            assert table[name].sel(matching=method).item() == value
    of = table["total_r"].to_series()
    assert of["optimal"] == max(of[method] for method in METHODS if method not in ("best", "best_of_b", "unique"))
    assert table.attrs["mean_best_r_a"] == pytest.approx(
        match(random_correlation, method="best", min_correlation=0.2).r.mean().item()
    )


def test_no_pairs_have_no_means(correlation):
    table = compare_methods(correlation([[0.01]]))
    assert table["pairs"].values.tolist() == [0] * len(METHODS)
    assert np.isnan(table["mean_r"].values).all()


def call(*arguments):
    return CliRunner().invoke(app, ["match", *map(str, arguments)])


def test_the_command_prints_one_table_of_all_methods(random_correlation):
    shown = call(random_correlation, "--all").stdout
    assert all(method in shown for method in METHODS)
    found = json.loads(call(random_correlation, "--all", "--json", "--max-uses", 2).stdout)
    assert [line["method"] for line in found["methods"]] == list(METHODS)


def test_the_command_filters_and_reports(random_correlation, tmp_path):
    out = tmp_path / "pairs.zarr"
    done = call(random_correlation, "--out", out, "--method", "best", "--filter", "max_uses:after:n=2", "--json")
    found = json.loads(done.stdout)
    assert found["filters"][0]["name"] == "max_uses"
    assert found["most_uses_b"] <= 2
    assert sum(found["fates_b"].values()) == 25
    shown = call(random_correlation, "--out", out, "--filter", "min_firing:n=100", "--hubs", 3).stdout
    assert "min firing, before" in shown
    assert "most used features of B" in shown


def test_the_command_writes_pairs_for_a_spreadsheet(random_correlation, tmp_path):
    file = tmp_path / "new" / "pairs.csv"
    assert call(random_correlation, "--out", tmp_path / "pairs.zarr", "--csv", file).exit_code == 0
    table, pairs = pd.read_csv(file, float_precision="round_trip"), open_result(tmp_path / "pairs.zarr", "match")
    assert table.columns[:4].tolist() == ["feature_a", "feature_b", "r", "r_heldout"]
    for name in table.columns:
        np.testing.assert_array_equal(table[name], pairs[name].values)


def test_the_command_says_that_heldout_r_took_part_in_the_choice(random_correlation, tmp_path):
    out, file, filtered = tmp_path / "pairs.zarr", tmp_path / "pairs.csv", ("--filter", "min_heldout_r:value=0.3")
    found = json.loads(call(random_correlation, "--out", out, "--csv", file, *filtered, "--json").stdout)
    assert found["heldout_note"] == open_result(out, "match").attrs["heldout_note"]
    assert pd.read_csv(file)["heldout_in_choice"].all()
    for more in (("--out", out), ("--all",)):
        shown = call(random_correlation, *more, *filtered).stdout
        assert "took part in choosing these pairs (min_heldout_r)" in " ".join(shown.split())
    assert json.loads(call(random_correlation, "--all", *filtered, "--json").stdout)["heldout_note"]
    assert "heldout_note" not in call(random_correlation, "--all", "--json").stdout


def test_the_command_says_what_is_missing_or_wrong(random_correlation, tmp_path):
    assert "--all" in call(random_correlation).stderr
    wrong = call(random_correlation, "--out", tmp_path / "x.zarr", "--filter", "min_r:later:value=0.1")
    assert wrong.exit_code == 2
    assert "'before' or 'after'" in wrong.stderr


def test_filters_as_written_on_the_command_line():
    assert parse_filter("fraction:fraction=0.5:keep=bottom") == {"name": "fraction", "fraction": 0.5, "keep": "bottom"}
    with pytest.raises(InputError, match="value"):
        MatchSettings.make(filters=[parse_filter("min_r:value=high")])
