"""What the tests of correlation share: stores from dense arrays, forced plans, and an oracle in plain NumPy."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse

import storage
from pipeline.correlate.run import correlate

RANKED = {"b": ("best_b", "r_b", "r_heldout_b"), "a": ("best_a", "r_a", "r_heldout_a")}


def half_of(number, seed=0):
    """Return the half of a document or group: the highest bit of SplitMix64, in whole numbers of Python."""

    def mix(z):
        z = (z + 0x9E3779B97F4A7C15) % 2**64
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
        return z ^ z >> 31

    return mix(mix(seed) ^ int(number) % 2**64) >> 63


def pearson(x, y):
    """Two-pass Pearson of all columns, float64; NaN where a column does not vary."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    constant_x, constant_y = x.min(0) == x.max(0), y.min(0) == y.max(0)
    x, y = x - x.mean(0), y - y.mean(0)
    with np.errstate(all="ignore"):
        r = (x.T @ y) / np.sqrt(np.outer((x * x).sum(0), (y * y).sum(0)))
    r[constant_x], r[:, constant_y] = np.nan, np.nan
    return r


class Case:
    """Two stores, the arrays that they were made from, and what correlating them must give."""

    def __init__(
        self,
        folder: Path,
        x,
        y,
        documents=None,
        sink=None,
        dtype="float32",
        layouts=("csr", "csr"),
        oracle=pearson,
        groups=None,
    ):
        self.folder, self.oracle = folder, oracle
        self.x, self.y = (np.asarray(side, dtype) for side in (x, y))
        self.documents, self.groups = documents, groups
        self.sink = np.zeros(len(x), bool) if sink is None else sink
        self.a, self.b = folder / "a.zarr", folder / "b.zarr"
        for path, side, layout in zip((self.a, self.b), (self.x, self.y), layouts, strict=True):
            self._write(path, side, layout, dtype)

    def _write(self, path, values, layout, dtype):
        n = len(values)
        tokens = None
        if self.documents is not None:
            place = np.arange(n)
            tokens = {"document": self.documents, "char_start": place, "char_end": place + 1}
            tokens |= {} if self.groups is None else {"group": self.groups}
        writer = storage.ActivationWriter.create(
            path, n_tokens=n, n_features=values.shape[1], tokens=tokens, dtype=dtype, layout=layout,
            shard_rows=64, chunk=(32, 16), attrs={"kind": "post"},
        )  # fmt: skip
        for i in range(writer.n_shards):
            rows = writer.shard_slice(i)
            wide = values[rows].astype(np.float32) if dtype == "float16" else values[rows]
            writer.write_shard(i, scipy.sparse.csr_array(wide) if layout == "csr" else values[rows], self.sink[rows])
        writer.finalise()

    def halves(self, select, split_seed=0):
        """Return the rows that choose, and those that are held out."""
        rows = np.flatnonzero(~self.sink)
        half = np.full(len(self.sink), -1)
        half[rows] = np.arange(len(rows)) >= (len(rows) + 1) // 2
        texts = self.documents if self.groups is None else self.groups
        if texts is not None and len(set(texts[rows])) > 1:
            half[rows] = [half_of(number, split_seed) for number in texts[rows]]
        return [half == h for h in range(2)] if select == "half" else [half >= 0]

    def correlate(self, name="cor", **arguments):
        return correlate(self.a, self.b, out=self.folder / f"{name}.zarr", **arguments)

    def truth(self, select):
        return [self.oracle(self.x[rows], self.y[rows]) for rows in self.halves(select)]

    def check(self, ds, top_k, keep_above, tolerance=1e-6):
        """Compare everything in a result with the oracle."""
        self.check_r(ds, top_k, keep_above, tolerance)
        self.check_statistics(ds)

    def check_r(self, ds, top_k, keep_above, tolerance=1e-6):
        """Compare ranking, kept pairs and histogram with the oracle."""
        truth = self.truth(ds.attrs["select"])
        for side, r in (("b", truth[0]), ("a", truth[0].T)):
            held_out = None if len(truth) == 1 else (truth[1] if side == "b" else truth[1].T)
            check_ranking(ds, side, r, held_out, top_k, tolerance)
        check_kept(Path(ds.encoding["source"]), truth, keep_above, tolerance)
        check_histogram(ds, truth[0], 1e-9 if ds.attrs["kernel"] == "sparse" else tolerance)

    def check_statistics(self, ds):
        rows = self.halves(ds.attrs["select"])[0]
        for side, values in (("a", self.x), ("b", self.y)):
            chosen = values[rows].astype(np.float64)
            scale = np.abs(chosen).max() + 1
            np.testing.assert_allclose(ds[f"mean_{side}"], chosen.mean(0), rtol=1e-9, atol=1e-9 * scale)
            np.testing.assert_allclose(ds[f"std_{side}"], chosen.std(0), rtol=1e-6, atol=1e-9 * scale)
            np.testing.assert_array_equal(ds[f"n_active_{side}"], (chosen != 0).sum(0))
            varies = chosen.min(0) < chosen.max(0)
            np.testing.assert_array_equal(ds[f"defined_{side}"], varies)
            assert ds.attrs[f"n_undefined_{side}"] == (~varies).sum()


def check_ranking(ds, side, r, held_out, top_k, tolerance):
    names = RANKED[side]
    ids, values = ds[names[0]].values, ds[names[1]].values
    assert ids.dtype == np.int32
    assert ids.shape == (len(r), top_k)
    for feature in range(len(r)):
        used = ids[feature] >= 0
        n = min(top_k, np.count_nonzero(~np.isnan(r[feature])))
        assert used.sum() == n
        assert used[:n].all()
        assert np.isnan(values[feature, n:]).all()
        partners, found = ids[feature, :n], values[feature, :n]
        assert len(set(partners)) == n
        np.testing.assert_allclose(found, r[feature, partners], atol=tolerance, rtol=0)
        best = np.sort(r[feature][~np.isnan(r[feature])])[::-1][:n]
        np.testing.assert_allclose(found, best, atol=tolerance, rtol=0)
        assert (np.diff(found) <= 0).all()
        ties = np.diff(found) == 0
        assert (np.diff(partners)[ties] > 0).all()
        if held_out is not None:
            other = ds[names[2]].values[feature]
            np.testing.assert_allclose(other[:n], held_out[feature, partners], atol=tolerance, rtol=0)
            assert np.isnan(other[n:]).all()


def check_kept(path, truth, keep_above, tolerance):
    kept = storage.read_csr(path, name="r")
    sure = np.nan_to_num(truth[0], nan=-2)
    pattern = np.zeros(kept.shape, bool)
    pattern[np.repeat(np.arange(kept.shape[0]), np.diff(kept.indptr)), kept.indices] = True
    assert (pattern | (sure < keep_above + tolerance)).all()
    assert (~pattern | (sure > keep_above - tolerance)).all()
    np.testing.assert_allclose(kept.toarray()[pattern], truth[0][pattern], atol=tolerance, rtol=0)
    if len(truth) > 1:
        held_out = storage.read_csr(path, name="r_heldout")
        np.testing.assert_array_equal(held_out.indices, kept.indices)
        np.testing.assert_array_equal(held_out.indptr, kept.indptr)
        np.testing.assert_allclose(held_out.data, truth[1][pattern], atol=tolerance, rtol=0)


def check_histogram(ds, r, tolerance):
    values = np.sort(r[~np.isnan(r)])
    histogram, left = ds["histogram"].values, ds["bin_left"].values
    assert histogram.sum() == len(values)
    below = np.concatenate([[0], np.cumsum(histogram)[:-1]])
    # a value that rounding may have moved over an edge counts for either side
    assert (np.searchsorted(values, left - tolerance) <= below).all()
    assert (below <= np.searchsorted(values, left + tolerance)).all()
    np.testing.assert_array_equal(ds["bin_right"].values[:-1], left[1:])


@pytest.fixture
def make_case(tmp_path):
    """Make stores in a fresh folder each."""
    count = iter(range(10_000))

    def make(x, y, **arguments):
        folder = tmp_path / str(next(count))
        folder.mkdir()
        return Case(folder, x, y, **arguments)

    return make


@pytest.fixture
def force(monkeypatch):
    """Force the method, the width of panels and strips, and the rows of slabs that plans use."""
    plan = importlib.import_module("pipeline.correlate.plan")

    def apply(method, panel=16, slab_rows=32, strip=None):
        if method == "float32":  # the dense kernel as it works on many rows
            method = "dense"
            monkeypatch.setattr(importlib.import_module("pipeline.correlate.moments"), "FEWEST_ROWS", 0)
        monkeypatch.setattr(plan, "_methods", lambda kernel: [method])
        monkeypatch.setattr(plan, "_widths", lambda *sizes: iter([panel]))

        def with_strips(panels, ways, shape):
            return panels if strip is None else plan._plan(ways[0], plan.Cut(panel, strip), shape)

        monkeypatch.setattr(plan, "_with_strips", with_strips)
        monkeypatch.setattr(plan, "_slab_rows", lambda *sizes: slab_rows)
        monkeypatch.setattr(plan, "DENSE_ROWS", slab_rows)
        monkeypatch.setattr(plan, "DENSE_FEATURES", panel)

    return apply


def sparse_values(rng, n, features, density):
    """Random activations: zero, or between 0 and 4, some features stronger than others."""
    strength = rng.uniform(0.1, 4, features)
    return ((rng.random((n, features)) < density) * rng.random((n, features)) * strength).astype(np.float32)


@pytest.fixture
def values():
    """Give the function that makes random activations."""
    return sparse_values
