from __future__ import annotations

import importlib
import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from scipy.spatial.distance import pdist
from scipy.stats import kstest, spearmanr
from threadpoolctl import threadpool_info, threadpool_limits

import storage
from pipeline.compare.arrays import compare_rows
from pipeline.compare.nulls import Draws
from pipeline.compare.run import compare
from pipeline.correlate.intervals import intervals
from pipeline.settings.registries import NULLS
from pipeline.work.workers import local_client
from storage.errors import BudgetError, FormatError, InputError, MissingInputError

N_A, N_B = 50, 60


def pairs_of(features_a, features_b) -> xr.Dataset:
    return xr.Dataset(
        {
            "feature_a": ("pair", np.asarray(features_a, np.int32)),
            "feature_b": ("pair", np.asarray(features_b, np.int32)),
            "fate_a": ("id_a", np.zeros(N_A, np.int8)),
            "fate_b": ("id_b", np.zeros(N_B, np.int8)),
        }
    )


@pytest.fixture
def stores(tmp_path: Path) -> tuple[Path, Path]:
    """Two stores whose first 40 decoder rows are the same but for a rotation and noise."""
    rng = np.random.default_rng(0)
    a = rng.normal(size=(N_A, 6)).astype(np.float32)
    b = rng.normal(size=(N_B, 8)).astype(np.float32)
    b[:40] = a[:40] @ rng.normal(size=(6, 8)) + 0.3 * rng.normal(size=(40, 8))
    for name, decoder in {"a": a, "b": b}.items():
        storage.write_activations(tmp_path / f"{name}.zarr", np.eye(5, len(decoder)), decoder=decoder, overwrite=True)
    return tmp_path / "a.zarr", tmp_path / "b.zarr"


@pytest.fixture
def matched() -> xr.Dataset:
    order = np.random.default_rng(1).permutation(40)
    return pairs_of(order, order)


def decoders(stores) -> list[np.ndarray]:
    return [xr.open_zarr(store).decoder.values.astype(float) for store in stores]


def test_scores_are_those_of_the_pairs_decoder_rows(stores, matched, client):
    scores = compare(matched, *stores, null_runs=50, client=client).load()
    assert scores["null"].values.tolist() == ["shuffled"]
    scores = scores.sel(null="shuffled")
    x, y = (rows[matched.feature_a.values] for rows in decoders(stores))
    expected = spearmanr(pdist(x, "cosine"), pdist(y, "cosine")).statistic
    assert float(scores.score.sel(metric="rsa")) == pytest.approx(expected, abs=1e-6)
    assert (scores.score > scores.null_q95).all()
    assert (scores.p == 1 / 51).all()
    assert (scores.z > 3).all()
    np.testing.assert_allclose(scores.null_mean, scores.null_score.mean("run"))
    np.testing.assert_allclose(scores.null_std, scores.null_score.std("run"))
    np.testing.assert_allclose(scores.null_q05, np.quantile(scores.null_score, 0.05, axis=1))
    np.testing.assert_allclose(scores.difference, scores.score - scores.null_mean)
    np.testing.assert_allclose(scores.z, (scores.score - scores.null_mean) / scores.null_std)
    assert scores.null_score.dims == ("metric", "run")
    assert int(scores.n_pairs) == 40
    assert scores.note.values.tolist() == ["", "", ""]
    assert scores.low.isnull().all()


def test_unrelated_pairs_are_at_chance(stores, client):
    scores = compare(pairs_of(np.arange(10, 50), np.arange(20, 60)), *stores, null_runs=99, client=client)
    assert (scores.p > 0.01).all()


def test_metrics_come_in_the_order_asked_for(stores, matched, client):
    full = compare(matched, *stores, null_runs=5, client=client)
    some = compare(matched, *stores, metrics=["svcca_pc1", "rsa"], null_runs=5, client=client)
    assert some.metric.values.tolist() == ["svcca_pc1", "rsa"]
    xr.testing.assert_allclose(some, full.sel(metric=["svcca_pc1", "rsa"]), atol=1e-6)


def test_results_do_not_depend_on_workers_but_on_the_seed(stores, matched, client):
    one = compare(matched, *stores, null_runs=45, seed=3, client=client)
    with local_client(n_workers=3, threads_per_worker=1) as other:
        xr.testing.assert_identical(
            one, compare(matched, *stores, null_runs=45, seed=3, client=other).assign_attrs(one.attrs)
        )
    assert not np.array_equal(one.null_score, compare(matched, *stores, null_runs=45, seed=4, client=client).null_score)


def test_p_is_uniform_when_nothing_is_shared(tmp_path, client):
    rng = np.random.default_rng(0)
    n, experiments = 25, 40
    paths = tmp_path / "a.zarr", tmp_path / "b.zarr"
    for path in paths:
        storage.write_activations(
            path, np.eye(2, n * experiments), decoder=rng.normal(size=(n * experiments, 5)), overwrite=True
        )
    p = []
    for i in range(experiments):
        ids = np.arange(i * n, (i + 1) * n)
        pairs = pairs_of(ids, rng.permutation(ids)).drop_vars(["fate_a", "fate_b"])
        p.append(compare(pairs, *paths, null_runs=19, seed=i, client=client).p)
    for metric, values in xr.concat(p, "experiment").groupby("metric"):
        assert kstest(values.values.ravel(), "uniform").pvalue > 0.01, metric


def test_saturation_is_noted_and_is_not_significant(stores, client):
    few = np.arange(4)
    scores = compare(pairs_of(few, few), *stores, null_runs=30, client=client).sel(null="shuffled")
    assert scores.note.sel(metric="svcca").item().startswith("saturated: 4 pairs")
    assert float(scores.score.sel(metric="svcca")) == pytest.approx(1)
    assert float(scores.p.sel(metric="svcca")) == 1
    assert scores.note.sel(metric="rsa").item() == ""


@pytest.mark.parametrize("n", [0, 1, 2])
def test_too_few_pairs_are_undefined_and_do_not_stop_a_grid(stores, tmp_path, caplog, n):
    with caplog.at_level(logging.WARNING):
        scores = compare(pairs_of(range(n), range(n)), *stores, null_runs=4, out=tmp_path / "scores.zarr")
    assert scores.score.isnull().all()
    assert scores.p.isnull().all()
    assert scores.null_score.shape == (1, 3, 4)
    assert scores.note.values.tolist() == [f"undefined: {n} pairs, at least 3 are needed"] * 3
    assert "too few" in caplog.text


def test_a_metric_that_is_undefined_on_these_rows_does_not_stop_the_others(tmp_path, client, caplog):
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(20, 4))
    rows[3] = 0
    for name in "ab":
        storage.write_activations(tmp_path / f"{name}.zarr", np.eye(2, 20), decoder=rows, overwrite=True)
    pairs = pairs_of(range(20), range(20)).drop_vars(["fate_a", "fate_b"])
    scores = compare(pairs, tmp_path / "a.zarr", tmp_path / "b.zarr", null_runs=9, client=client)
    assert np.isnan(scores.score.sel(metric="rsa"))
    assert np.isnan(scores.p.sel(metric="rsa"))
    assert scores.note.sel(metric="rsa").item().startswith("undefined")
    assert float(scores.score.sel(metric="svcca")) == pytest.approx(1)


def test_tasks_of_this_process_call_blas_with_one_thread(stores, matched, client, monkeypatch):
    def spy(*args):
        seen.extend(library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas")
        return places(*args)

    seen: list[int] = []
    places = Draws.places
    monkeypatch.setattr(Draws, "places", spy)
    with threadpool_limits(2, user_api="blas"):
        compare(matched, *stores, null_runs=5, client=client)
        after = {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}
    assert set(seen) == {1}
    assert after == {2}


def test_trap_2_no_score_comes_without_its_null(stores, matched):
    with pytest.raises(InputError, match=r"null_runs: .* greater than 0"):
        compare(matched, *stores, null_runs=0)


def test_from_disk_to_disk_and_back_with_plain_xarray(stores, matched, tmp_path, client):
    manifest = storage.new_manifest("match", {}, {})
    storage.write_result(matched, tmp_path / "pairs.zarr", manifest, overwrite=True)
    out = tmp_path / "scores.zarr"
    opened = [storage.open_activations(store) for store in stores]
    written = compare(tmp_path / "pairs.zarr", *opened, null_runs=5, out=out, client=client)
    expected = compare(matched, *stores, null_runs=5, client=client)
    xr.testing.assert_equal(written.load(), expected)
    code = f"import xarray as xr; print(xr.open_zarr({str(out)!r}).score.sel(metric='rsa').values)"
    shown = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert float(shown) == float(expected.score.sel(metric="rsa"))


def test_a_current_result_is_left_alone_and_another_setting_replaces_it(stores, matched, tmp_path, client, monkeypatch):
    out = tmp_path / "scores.zarr"
    compare(matched, *stores, null_runs=5, out=out, client=client)
    with monkeypatch.context() as patched:
        patched.setattr(importlib.import_module("pipeline.compare.engine"), "ensure_client", None)
        assert compare(matched, *stores, null_runs=5, out=out).seed == 0
    assert compare(matched, *stores, null_runs=5, seed=1, out=out, client=client).seed == 1
    assert (
        compare(
            matched.isel(pair=slice(20)), *stores, null_runs=5, seed=1, out=out, overwrite=True, client=client
        ).n_pairs
        == 20
    )


def test_what_does_not_fit_is_refused_before_anything_is_computed(stores, matched, monkeypatch):
    monkeypatch.setattr(importlib.import_module("pipeline.compare.engine"), "ensure_client", None)
    with pytest.raises(BudgetError, match=r"40 pairs need .* \(svcca/svcca_pc1 .*, rsa .*\), allowed are .*higher min"):
        compare(matched, *stores, memory="10kB")


def test_rows_without_stores_give_the_same(stores, matched, client):
    x, y = (rows[matched.feature_a.values] for rows in decoders(stores))
    expected = compare(matched, *stores, null_runs=20, client=client)
    ids = matched.feature_a.values
    xr.testing.assert_allclose(compare_rows(x, y, ids=ids, null_runs=20, client=client), expected, atol=1e-9)
    with pytest.raises(InputError, match="ids must be 40 different numbers"):
        compare_rows(x, y, ids=ids[:3])
    assert compare_rows(x[:2], y[:2], null_runs=3).score.isnull().all()
    with pytest.raises(InputError, match=r"shapes \(5, 6\) and \(4, 8\)"):
        compare_rows(x[:5], y[:4])


def test_nulls_that_draw_other_rows_equal_plain_code(stores, matched, tmp_path, client):
    x, y = (rows[matched.feature_a.values] for rows in decoders(stores))
    control = np.random.default_rng(5).normal(size=(70, 6)).astype(np.float32)
    storage.write_activations(tmp_path / "control.zarr", np.ones((2, 70)), decoder=control, overwrite=True)
    pool = pairs_of(np.arange(50), np.arange(50))
    kinds = ["random_features", "random_pairs", "random_dictionary", "shuffled"]
    given = {"metrics": ["rsa"], "nulls": kinds, "null_runs": 9, "seed": 2, "client": client}
    found = compare(matched, *stores, pool=pool, control=(tmp_path / "control.zarr", None), **given)
    a, b = decoders(stores)
    live = [np.flatnonzero(xr.open_zarr(store).n_active.values > 0) for store in stores]
    assert [len(each) for each in live] == [5, 5], "an identity of five rows"
    again = compare_rows(
        x, y, features=(a[live[0]], b[live[1]]), pool=(a[:50], b[:50]), control=(control.astype(float), None),
        ids=matched.feature_a.values, **given,
    )  # fmt: skip
    assert found["null"].values.tolist() == kinds
    xr.testing.assert_allclose(found, again, atol=1e-9)
    assert found.note.item() == "without the null random_features: 40 rows cannot be drawn from the 5 of side A"
    assert found.p.sel(null="random_features").isnull().all()
    for run in range(9):
        at = Draws(NULLS["random_pairs"], 40, (50, 50), 9, 2).places(run)[0]
        expected = spearmanr(pdist(a[at], "cosine"), pdist(b[at], "cosine")).statistic
        assert float(found.null_score.sel(null="random_pairs")[0, run]) == pytest.approx(expected, abs=1e-6)
        at = Draws(NULLS["random_dictionary"], 40, (70, None), 9, 2).places(run)[0]
        expected = spearmanr(pdist(control[at], "cosine"), pdist(y, "cosine")).statistic
        assert float(found.null_score.sel(null="random_dictionary")[0, run]) == pytest.approx(expected, abs=1e-6)
    for name, level in (("null_q05", 0.05), ("null_q95", 0.95)):
        defined = found.null_score.sel(null="random_pairs", metric="rsa")
        assert float(found[name].sel(null="random_pairs", metric="rsa")) == pytest.approx(np.quantile(defined, level))


def test_live_features_are_drawn(stores, tmp_path, client):
    for name, store in zip("ab", stores, strict=True):
        decoder = xr.open_zarr(store).decoder.values
        active = np.zeros((2, len(decoder)))
        active[:, 10:] = 1
        storage.write_activations(tmp_path / f"live-{name}.zarr", active, decoder=decoder, overwrite=True)
    paths = [tmp_path / f"live-{name}.zarr" for name in "ab"]
    a, b = decoders(paths)
    scores = compare(
        pairs_of(range(20), range(20)), *paths, metrics=["rsa"], nulls=["random_features"], null_runs=3, client=client
    )
    for run in range(3):
        at = Draws(NULLS["random_features"], 20, (40, 50), 3, 0).places(run)
        expected = spearmanr(pdist(a[10 + at[0]], "cosine"), pdist(b[10 + at[1]], "cosine")).statistic
        assert float(scores.null_score[0, 0, run]) == pytest.approx(expected, abs=1e-6)


def test_a_pool_that_is_no_larger_is_said(stores, matched, client):
    scores = compare(matched, *stores, metrics=["rsa"], nulls=["random_pairs"], pool=matched, null_runs=3)
    assert (
        scores.note.item()
        == "without the null random_pairs: the pool has 40 pairs, not more than the 40 that are compared"
    )
    assert scores.null_score.isnull().all()


def test_a_control_of_another_model_is_refused(stores, matched, tmp_path):
    storage.write_activations(tmp_path / "control.zarr", np.ones((2, 70)), decoder=np.ones((70, 7)), overwrite=True)
    with pytest.raises(InputError, match=r"control .* has rows of 7 dimensions, side A of 6"):
        compare(matched, *stores, nulls=["random_dictionary"], control=(tmp_path / "control.zarr", None))


def test_intervals_hold_the_score_and_are_noted_where_there_is_none(stores, matched, client):
    scores = compare(matched, *stores, metrics=["rsa"], null_runs=3, intervals=20, client=client)
    assert np.isnan(scores.low.item())
    assert scores.note.item() == f"no interval: {matched.sizes['pair']} pairs, at least 60 are needed"
    x = np.random.default_rng(0).normal(size=(90, 6))
    scores = compare_rows(x, x + x[::-1], metrics=["rsa", "cca"], null_runs=3, intervals=20, client=client)
    assert (scores.low < scores.score).all()
    assert (scores.score < scores.high).all()
    assert (scores.high - scores.low < 0.7).all()


def test_bad_input_is_one_clear_message(stores, matched, tmp_path):
    with pytest.raises(InputError, match=r"there is no metric 'svccca'; did you mean 'svcca'.*, rsa, "):
        compare(matched, *stores, metrics=["svccca"])
    with pytest.raises(InputError, match=r"there is no null 'none'; there are shuffled, .*random_dictionary"):
        compare(matched, *stores, nulls=["none"])
    with pytest.raises(InputError, match=r"shuffled_words moves pairs by their words: give contexts="):
        compare(matched, *stores, nulls=["shuffled_words"])
    with pytest.raises(InputError, match=r"random_pairs draws pairs of a larger matching: give pool="):
        compare(matched, *stores, nulls=["random_pairs"])
    with pytest.raises(InputError, match=r"random_dictionary draws rows of a control: give control=\(A, B\)"):
        compare(matched, *stores, nulls=["random_dictionary"], control=(None, None))
    with pytest.raises(InputError, match=r"intervals: .* greater than or equal to 0 \(given: -1\)"):
        compare(matched, *stores, intervals=-1)
    with pytest.raises(InputError, match="at least 2 groups of pairs"):
        compare(matched, *stores, intervals=1)
    with pytest.raises(InputError, match=r"seed: .* greater than or equal to 0"):
        compare(matched, *stores, seed=-1)
    with pytest.raises(InputError, match="each once"):
        compare(matched, *stores, metrics=["rsa", "rsa"])
    with pytest.raises(InputError, match="each once"):
        compare(matched, *stores, nulls=["shuffled", "shuffled"])
    with pytest.raises(InputError, match="A of the pairs has 50: give the stores that were correlated, A first"):
        compare(matched, *reversed(stores))
    storage.write_activations(tmp_path / "none.zarr", np.eye(2, N_A), overwrite=True)
    with pytest.raises(InputError, match=r"none\.zarr has no decoder rows"):
        compare(matched, tmp_path / "none.zarr", stores[1])
    with pytest.raises(MissingInputError, match=r"nowhere\.zarr"):
        compare(tmp_path / "nowhere.zarr", *stores)
    with pytest.raises(FormatError, match="match"):
        compare(stores[0], *stores)
    with pytest.raises(InputError, match="give the path"):
        compare(matched, xr.Dataset(), stores[1])


def test_swapped_stores_are_refused_and_other_ones_are_warned_of(stores, matched, client, caplog):
    a, b = (storage.fingerprint(store) for store in stores)
    swapped = matched.drop_vars(["fate_a", "fate_b"]).assign_attrs(stores={"a": b, "b": a})
    with pytest.raises(InputError, match="wrong order"):
        compare(swapped, *stores)
    with caplog.at_level(logging.WARNING):
        compare(matched.assign_attrs(stores={"a": a, "b": b}), *stores, null_runs=2, client=client)
        assert "other stores" not in caplog.text
        compare(matched.assign_attrs(stores={"a": a, "b": "else"}), *stores, null_runs=2, client=client)
        assert "other stores" in caplog.text


@pytest.mark.parametrize("value", [-1, np.nan, 0.5, np.inf, 1e12])
def test_what_is_no_number_of_a_feature_is_named(stores, value):
    ids = np.arange(30.0)
    pairs = xr.Dataset({"feature_a": ("pair", ids), "feature_b": ("pair", np.r_[ids[:-1], value])})
    for read in (compare, intervals):
        with pytest.raises(
            InputError, match=r"feature_b must be numbers of features, not \S+ in pair 29: take the pairs as"
        ):
            read(pairs, *stores)


def test_features_that_became_floats_are_the_same_features(stores, client):
    ids = np.arange(30)
    whole, floats = (
        compare(xr.Dataset({f"feature_{side}": ("pair", values) for side in "ab"}), *stores, null_runs=3, client=client)
        for values in (ids, ids.astype(float))
    )
    xr.testing.assert_equal(whole, floats)
