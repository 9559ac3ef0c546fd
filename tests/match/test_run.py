from __future__ import annotations

import importlib
import subprocess
import sys

import numpy as np
import pytest
import xarray as xr

import storage
from pipeline.match.fates import FATES
from pipeline.match.run import match
from pipeline.settings.registries import METHODS
from storage import open_result
from storage.errors import FormatError, InputError, MissingInputError

NAN = np.nan


def fate_names(fate: xr.DataArray) -> list[str]:
    names = dict(zip(fate.attrs["flag_values"], fate.attrs["flag_meanings"].split(), strict=True))
    return [names[code] for code in fate.values.tolist()]


@pytest.fixture
def small(correlation):
    """Four features against four: A's feature 2 is dead, B's feature 3 is dead, A's feature 3 reaches 0.15 only."""
    r = [[0.9, 0.8, 0.05, NAN], [0.85, 0.2, 0.1, NAN], [NAN] * 4, [0.15, 0.0, -0.5, NAN]]
    heldout = np.where(np.isnan(r), NAN, 0.5 * np.asarray(r))
    heldout[1, 1] = NAN
    return correlation(r, r_heldout=heldout)


def test_a_result_holds_pairs_ranks_and_heldout_r(small):
    pairs = match(small, method="greedy", min_correlation=0.1)
    assert pairs.sizes == {"pair": 2, "id_a": 4, "id_b": 4}
    assert pairs.feature_a.values.tolist() == [0, 1]
    assert pairs.feature_b.values.tolist() == [0, 1]
    assert pairs.r.values.tolist() == [0.9, 0.2]
    np.testing.assert_array_equal(pairs.r_heldout, [0.45, NAN])
    assert pairs.rank_b.values.tolist() == [0, 1]
    assert pairs.rank_a.values.tolist() == [0, 1]
    dtypes = {name: str(pairs[name].dtype) for name in ("feature_a", "feature_b", "rank_a", "rank_b", "fate_a")}
    assert dtypes == {
        "feature_a": "int32",
        "feature_b": "int32",
        "rank_a": "int32",
        "rank_b": "int32",
        "fate_a": "int8",
    }
    assert (pairs.n_pairs, pairs.n_candidates, pairs.method) == (2, 6, "greedy")
    assert pairs.mean_r == pytest.approx(0.55)
    assert pairs.mean_r_heldout == 0.45


def test_trap_6_dead_features_are_never_matched_and_every_feature_has_a_fate(small):
    pairs = match(small, method="greedy", min_correlation=0.16)
    assert fate_names(pairs.fate_a) == ["matched", "matched", "dead", "below_min_r"]
    assert fate_names(pairs.fate_b) == ["matched", "matched", "below_min_r", "dead"]
    assert pairs.fates_a == {"matched": 2, "dead": 1, "below_min_r": 1, "taken": 0}
    flags = pairs.fate_a.attrs
    assert dict(zip(flags["flag_meanings"].split(), flags["flag_values"], strict=True)) == {
        fate.name: fate.code for fate in FATES
    }


def test_a_feature_whose_partners_went_to_others_is_taken(small):
    pairs = match(small, method="mutual", min_correlation=0.1)
    assert pairs.feature_a.values.tolist() == [0]
    assert fate_names(pairs.fate_a) == ["matched", "taken", "dead", "taken"]


def test_the_minimum_is_inclusive(correlation):
    path = correlation([[0.3, 0.1]])
    assert match(path, method="best_of_b", min_correlation=0.1).sizes["pair"] == 2
    assert match(path, method="best_of_b", min_correlation=np.nextafter(0.1, 1)).sizes["pair"] == 1


def test_without_heldout_rows_it_is_nan(correlation):
    pairs = match(correlation([[0.3]]))
    assert np.isnan(pairs.r_heldout.values).all()
    assert pairs.mean_r_heldout is None


@pytest.mark.parametrize(("r_heldout", "expected"), [(0.1, "0 of 3 pairs reach it"), (0.9, "3 of 3 pairs reach it")])
def test_pairs_that_are_luck_are_counted(correlation, caplog, r_heldout, expected):
    caplog.set_level("INFO")
    match(correlation(np.eye(3) * 0.9, r_heldout=np.eye(3) * r_heldout), min_correlation=0.5)
    assert expected in caplog.text
    assert ("Most pairs are luck" in caplog.text) == (r_heldout < 0.5)


@pytest.mark.parametrize("method", METHODS)
def test_a_matrix_without_candidates_gives_no_pairs(correlation, tmp_path, method):
    pairs = match(correlation([[0.01, NAN], [NAN, NAN]]), method=method, out=tmp_path / "pairs.zarr")
    assert pairs.sizes["pair"] == 0
    assert pairs.feature_a.dtype == np.int32
    assert pairs.fates_a == {"matched": 0, "dead": 1, "below_min_r": 1, "taken": 0}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs_from_disk_to_disk(small, tmp_path, method):
    written = match(small, method=method, out=tmp_path / "pairs.zarr")
    xr.testing.assert_identical(written.load().drop_attrs(), match(small, method=method).drop_attrs())


def test_a_result_opens_with_plain_xarray_in_a_fresh_interpreter(small, tmp_path):
    out = tmp_path / "pairs.zarr"
    written = match(small, out=out)
    code = f"import xarray as xr; print(xr.open_zarr({str(out)!r}).feature_a.values.tolist())"
    shown = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert shown.strip() == str(written.feature_a.values.tolist())


def test_a_current_result_is_left_alone_and_another_setting_replaces_it(small, tmp_path, monkeypatch):
    out = tmp_path / "pairs.zarr"
    match(small, method="greedy", out=out)
    module = importlib.import_module("pipeline.match.run")
    with monkeypatch.context() as patched:
        patched.setattr(module, "read_edges", None)
        assert match(small, method="greedy", out=out).method == "greedy"
    assert match(small, method="best", out=out).method == "best"
    assert [path.name for path in tmp_path.iterdir() if "partial" in path.name or "old" in path.name] == []


def test_an_opened_result_is_as_good_as_its_path(small):
    xr.testing.assert_identical(match(open_result(small)).drop_attrs(), match(small).drop_attrs())


def test_bad_input_is_one_clear_message(small, tmp_path):
    with pytest.raises(InputError, match=r"min_correlation is 0\.05.*keep_above=0\.05 \(subspace correlate"):
        match(small, method="greedy", min_correlation=0.05)
    with pytest.raises(InputError, match=r"min_correlation: .* less than or equal to 1 \(given: 1\.5\)"):
        match(small, method="greedy", min_correlation=1.5)
    with pytest.raises(InputError, match=r"'hungarian'; there are optimal, greedy, "):
        match(small, method="hungarian")
    with pytest.raises(InputError, match=r"min_correlation: .*given: nan"):
        match(small, min_correlation=NAN)
    with pytest.raises(InputError, match=r"filters\.0: a filter is a mapping with its name.*given: 'min_r'"):
        match(small, filters=["min_r"])
    with pytest.raises(InputError, match=r"settings is 'greedy', not MatchSettings"):
        match(small, "greedy")
    with pytest.raises(InputError, match="give the path"):
        match(xr.Dataset())
    with pytest.raises(MissingInputError, match=r"nowhere\.zarr"):
        match(tmp_path / "nowhere.zarr")
    pairs = tmp_path / "pairs.zarr"
    match(small, out=pairs)
    with pytest.raises(FormatError, match="'match', not 'correlate'"):
        match(pairs)


def test_matching_never_makes_the_kept_pairs_dense(small, monkeypatch):
    from scipy import sparse

    def refuse(*_args, **_kwargs):
        raise AssertionError("dense")

    for name in ("toarray", "todense"):
        monkeypatch.setattr(sparse.csr_array, name, refuse)
    for method in METHODS:
        match(small, method=method)


def test_best_of_either_side_is_what_correlation_ranked_first(tmp_path, client):
    from pipeline.correlate.run import correlate

    rng = np.random.default_rng(0)
    base = rng.exponential(size=(600, 45)) * (rng.random((600, 45)) < 0.2)
    base[:, 7] = 0
    other = base @ (rng.random((45, 38)) < 0.05) * (rng.random((600, 38)) < 0.7)
    for name, activations in {"a": base, "b": other}.items():
        storage.write_activations(
            tmp_path / f"{name}.zarr", activations, layout="csr", shard_rows=128, chunk=(128, 16), overwrite=True
        )
    cor = correlate(tmp_path / "a.zarr", tmp_path / "b.zarr", out=tmp_path / "cor.zarr", client=client)
    for method, own, partner, best, r in (
        ("best", "feature_a", "feature_b", "best_b", "r_b"),
        ("best_of_b", "feature_b", "feature_a", "best_a", "r_a"),
    ):
        pairs = match(cor, method=method, min_correlation=0.1).sortby(["feature_a", "feature_b"]).sortby(own)
        first = cor.isel(rank=0)
        kept = np.flatnonzero(first[r].values >= 0.1)
        np.testing.assert_array_equal(pairs[own], kept)
        np.testing.assert_array_equal(pairs[partner], first[best].values[kept])
        np.testing.assert_array_equal(pairs.r, first[r].values[kept])
        np.testing.assert_array_equal(pairs.r_heldout, first[r.replace("r_", "r_heldout_")].values[kept])
    assert fate_names(match(cor).fate_a)[7] == "dead"
    assert set(match(cor).stores) == {"a", "b"}
