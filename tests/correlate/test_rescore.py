"""What the dense kernel computes again in float64, so that rounding decides nothing."""

from __future__ import annotations

import importlib

import numpy as np
import pytest

import storage
from pipeline.correlate.kernels.reduce import Best
from pipeline.correlate.rescore import doubtful

rescore = importlib.import_module("pipeline.correlate.rescore")


class DiedError(Exception):
    """What stands for the end of a worker."""


@pytest.fixture
def tied(make_case, values):
    """Stores in which many features of B are copies of each other, and some of A."""
    rng = np.random.default_rng(0)
    x = values(rng, 400, 48, 0.4)
    y = np.concatenate([np.repeat(x[:, :3], 20, axis=1), x + values(rng, 400, 48, 0.2), x[:, 20:30]], axis=1)
    x[:, 40:] = x[:, [20]]
    return make_case(x, y)


@pytest.mark.parametrize("method", ["dense", "float32"])
def test_many_copies_are_listed_by_id(tied, client, force, method):
    reference = tied.correlate("sparse", client=client, top_k=4, kernel="sparse")
    force(method, panel=16, slab_rows=64)
    found = tied.correlate(client=client, top_k=4, kernel="dense")
    for name in ("best_a", "best_b"):
        np.testing.assert_array_equal(found[name].values, reference[name].values)
    np.testing.assert_array_equal(found["best_b"].values[0], [0, 1, 2, 3])
    assert (found["r_b"].values[:3] == 1).all()
    tied.check(found, 4, 0.1)


def test_pairs_at_the_threshold_are_kept_or_not_by_float64(tied, client, force):
    truth = np.sort(tied.truth("half")[0].ravel())
    threshold = float(truth[truth > 0.2][10])
    kept = []
    for method in ("resident", "float32"):
        force(method, panel=16, slab_rows=64)
        kernel = "sparse" if method == "resident" else "dense"
        ds = tied.correlate(method, client=client, keep_above=threshold - 1e-9, kernel=kernel)
        kept.append(storage.read_csr(ds.encoding["source"], name="r"))
        assert ds.attrs["n_kept"] == kept[-1].nnz
    np.testing.assert_array_equal(kept[0].indptr, kept[1].indptr)
    np.testing.assert_array_equal(kept[0].indices, kept[1].indices)


def test_a_run_that_dies_while_kept_pairs_are_corrected_goes_on(tied, client, force, monkeypatch):
    force("float32", panel=16, slab_rows=64)
    reference = tied.correlate("reference", client=client, kernel="dense")
    write, written = rescore.write_sparse_shard, []

    def dies(*arguments):
        if len(written) == 1:
            raise DiedError
        written.append(arguments)
        write(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(rescore, "write_sparse_shard", dies)
        with pytest.raises(DiedError):
            tied.correlate(client=client, kernel="dense")
    assert written
    resumed = tied.correlate(client=client, kernel="dense")
    assert resumed.attrs["n_kept"] == reference.attrs["n_kept"]
    for name in reference.variables:
        np.testing.assert_array_equal(resumed[name].values, reference[name].values)


def test_pairs_that_are_dropped_are_dropped_once_if_the_run_dies_between_both_halves(tied, client, force, monkeypatch):
    """``r`` is cut already and there is no ``r_heldout`` yet: what goes on from there finds fewer pairs."""
    force("float32", panel=16, slab_rows=64)
    truth = tied.truth("half")[0]
    below = np.sort(truth[(truth > 0.2) & (truth < 0.5)])[10]
    arguments = {"client": client, "kernel": "dense", "keep_above": float(below) + 1e-9}
    reference = tied.correlate("reference", **arguments)
    write, cut = rescore.write_sparse_shard, set()

    def dies(folder, name, i, shard):
        before = storage.read_csr(folder, slice(16 * i, 16 * i + shard.shape[0]), name="r")
        if name == "r" and shard.nnz < before.nnz:
            cut.add(i)
        if name == "r_heldout" and i in cut:
            raise DiedError
        write(folder, name, i, shard)

    with monkeypatch.context() as patch:
        patch.setattr(rescore, "write_sparse_shard", dies)
        with pytest.raises(DiedError):
            tied.correlate(**arguments)
    resumed = tied.correlate(**arguments)
    tied.check(resumed, 16, arguments["keep_above"])
    for name in ("r", "r_heldout"):
        kept = [storage.read_csr(ds.encoding["source"], name=name) for ds in (reference, resumed)]
        np.testing.assert_array_equal(kept[0].indices, kept[1].indices)
        np.testing.assert_array_equal(kept[0].data, kept[1].data)


def test_more_features_at_once_than_one_pass_takes(tied, client, force, monkeypatch):
    force("float32", panel=16, slab_rows=64)
    reference = tied.correlate("reference", client=client, kernel="dense")
    monkeypatch.setattr(rescore, "AT_ONCE", 2)
    again = tied.correlate(client=client, kernel="dense")
    for name in reference.variables:
        np.testing.assert_array_equal(again[name].values, reference[name].values)


def test_chains_of_close_values_count_as_far_as_they_reach():
    r = np.array([[0.8, 0.5, 0.5 - 1e-6, 0.5 - 2e-6, 0.4], [0.8, 0.7, 0.6, 0.6, 0.6], [0.95, 0.5, 0.1, np.nan, np.nan]])
    ids = np.where(np.isnan(r), -1, 1).astype(np.int32)
    places, whole = doubtful(Best(ids, np.nan_to_num(r, nan=-np.inf), r), top_k=2)
    expected = [[0, 1, 1, 1, 0], [0, 0, 0, 0, 0], [1, 0, 0, 0, 0]]
    np.testing.assert_array_equal(places, np.array(expected, bool))
    assert not whole.any()
    assert doubtful(Best(ids, np.nan_to_num(r, nan=-np.inf), r), top_k=3)[1].tolist() == [False, True, False]


AWKWARD = {
    "sparse": lambda rng, n: (rng.random(n) < 0.1) * rng.random(n),
    "half full": lambda rng, n: (rng.random(n) < 0.6) * rng.random(n),
    "normal": lambda rng, n: rng.standard_normal(n),
    "heavy tail": lambda rng, n: np.exp(2 * rng.standard_normal(n)),
    "one spike": lambda rng, n: np.eye(1, n, rng.integers(n))[0] + 1e-3 * rng.standard_normal(n),
    "once": lambda rng, n: np.eye(1, n, rng.integers(n))[0],
    "far away": lambda rng, n: 1e4 + rng.standard_normal(n),
    "two values": lambda rng, n: 3.3 * (rng.random(n) < 0.6),
    "mostly one value": lambda rng, n: 5.123 + (rng.random(n) < 0.05) * rng.random(n),
    "bfloat16": lambda rng, n: 3.296875 * (rng.random(n) < 0.95),
}


@pytest.fixture(scope="module")
def awkward(tmp_path_factory):
    """Two stores of awkward features, so many rows that products are float32, and their values in float64."""
    folder, rng, n = tmp_path_factory.mktemp("awkward"), np.random.default_rng(0), 2 * rescore_rows()
    sides = [np.stack([make(rng, n) for make in AWKWARD.values() for _ in range(4)], axis=1) for _ in "ab"]
    mixture = rng.random(sides[0].shape[1])
    sides[1] = sides[0] * (1 - mixture) + sides[1] * mixture
    x, y = (side.astype(np.float32) for side in sides)
    for name, side in (("a", x), ("b", y)):
        storage.write_activations(folder / name, side, layout="dense", overwrite=True)
    return folder, x.astype(np.float64), y.astype(np.float64)


def correlate_awkward(folder, out, client, select):
    correlate = importlib.import_module("pipeline.correlate.run").correlate
    arguments = {"select": select, "keep_above": 1e-4, "min_firing": 0, "kernel": "dense", "out": out, "client": client}
    return correlate(folder / "a", folder / "b", **arguments)


def test_float32_products_are_within_a_millionth_on_awkward_data(awkward, tmp_path, client):
    folder, x, y = awkward
    found = correlate_awkward(folder, tmp_path / "c", client, "all")
    truth = np.corrcoef(x, y, rowvar=False)[: x.shape[1], x.shape[1] :]
    kept = storage.read_csr(tmp_path / "c", name="r").toarray()
    assert (kept != 0).sum() > 300
    assert np.abs(kept - truth)[kept != 0].max() < 1e-6
    ranked = np.take_along_axis(truth, found["best_b"].values, axis=1)
    np.testing.assert_allclose(found["r_b"].values, ranked, atol=1e-6, rtol=0)
    assert (np.diff(ranked) <= 1e-13).all()


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_held_out_r_is_that_of_float64_on_awkward_data(awkward, tmp_path, client):
    folder, x, y = awkward
    found = correlate_awkward(folder, tmp_path / "c", client, "half")
    held_out = slice(len(x) // 2, None)
    truth = np.corrcoef(x[held_out], y[held_out], rowvar=False)[: x.shape[1], x.shape[1] :]
    r, r_heldout = (storage.read_csr(tmp_path / "c", name=name) for name in ("r", "r_heldout"))
    np.testing.assert_array_equal(r.indices, r_heldout.indices)
    rows = np.repeat(np.arange(x.shape[1]), np.diff(r.indptr))
    assert len(rows) > 300
    np.testing.assert_allclose(r_heldout.data, truth[rows, r.indices], atol=1e-11, rtol=0)
    for side, expected in (("b", truth), ("a", truth.T)):
        ids = found[f"best_{side}"].values
        listed = np.where(ids >= 0, np.take_along_axis(expected, ids, axis=1), np.nan)
        np.testing.assert_allclose(found[f"r_heldout_{side}"].values, listed, atol=1e-11, rtol=0)


def rescore_rows() -> int:
    """Return the rows below which products are float64 throughout."""
    return int(importlib.import_module("pipeline.correlate.kernels.dense").FEWEST_ROWS)
