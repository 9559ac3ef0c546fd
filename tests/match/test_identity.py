"""What a pair shares beyond the segment, against plain loops over pairs of rows; halves, sinks, unequal shards."""

from __future__ import annotations

import itertools
import tracemalloc

import numpy as np
import pytest
import scipy.sparse
import scipy.stats
import xarray as xr

import storage
from pipeline.correlate.rows import read_halves
from pipeline.match import identity
from pipeline.match.excess import excess_of_pairs, make_cells
from pipeline.match.identity import token_identity
from storage.errors import InputError
from storage.writer import ActivationWriter

N = 160
NAMES = ("r", "token_part", "excess", "excess_low", "excess_high", "excess_p", "n_effective")


def write(path, x, tokens, sink, layout, shard_rows):
    writer = ActivationWriter.create(
        path, n_tokens=len(x), n_features=x.shape[1], tokens=tokens, layout=layout, shard_rows=shard_rows, chunk=(10, 3)
    )
    for i in range(writer.n_shards):
        rows = writer.shard_slice(i)
        writer.write_shard(i, x[rows], sink=sink[rows])
    writer.finalise()


@pytest.fixture(params=["csr", "dense"])
def case(request, tmp_path):
    rng = np.random.default_rng(0)
    token, document = rng.integers(0, 9, N), np.sort(rng.integers(0, 12, N))
    token[[3, 90]] = 40, 41  # in one row each
    token[document == 5] = np.where(rng.random((document == 5).sum()) < 0.3, 42, token[document == 5])
    place = np.arange(N)
    tokens = {"document": document, "char_start": place, "char_end": place + 1, "token_id": token * 7}
    latent = rng.normal(size=(43, 5))[token] + rng.normal(size=(N, 5))
    a = (latent + rng.normal(size=(N, 5))) * (rng.random((N, 5)) < 0.7)
    b = (latent[:, ::-1] + rng.normal(size=(N, 5))) * (rng.random((N, 5)) < 0.7)
    a[:, 3] = token == 2  # nothing but its token
    b[:, 4] = 0
    a, b = a.astype("f4"), b.astype("f4")
    if request.param == "dense":
        a += 100
    sinks = rng.random((2, N)) < 0.05
    write(tmp_path / "a.zarr", a, tokens, sinks[0], request.param, 50)
    write(tmp_path / "b.zarr", b, tokens, sinks[1], request.param, 70)
    ids = [0, 1, 2, 3, 4, 4, 0, 1], [4, 3, 2, 1, 0, 1, 1, 0]
    pairs = xr.Dataset({f"feature_{side}": ("pair", features) for side, features in zip("ab", ids, strict=True)})
    return tmp_path, pairs, a.astype(float), b.astype(float), token, document


def estimate(x, y, token, document, level=0.95):
    """Compare every two rows of one token in two documents."""
    n = len(x)
    same = (token[:, None] == token) & (document[:, None] != document)
    rows_of_token = (token[:, None] == token).sum(axis=1)
    weight = same.sum(axis=1) / np.maximum(rows_of_token - 1, 1)
    total = weight.sum()
    mean = {"x": weight @ x / total, "y": weight @ y / total}
    var_x, var_y = weight @ (x - mean["x"]) ** 2 / total, weight @ (y - mean["y"]) ** 2 / total
    if var_x < 1e-9 or var_y < 1e-9:
        return dict.fromkeys(NAMES, np.nan)
    scale = np.sqrt(var_x * var_y)
    within = sum(
        (x[i] - x[j]) * (y[i] - y[j]) / (rows_of_token[i] - 1)
        for i, j in itertools.combinations(range(n), 2)
        if same[i, j]
    )
    excess = within / total / scale
    on_excess, on_within = [], []
    for d in np.unique(document):
        influence = 0.0
        for i in np.flatnonzero((document == d) & (weight > 0)):
            others = same[i]
            factor = np.sqrt(others.sum() / rows_of_token[i])
            influence += factor * weight[i] * (x[i] - x[others].mean()) * (y[i] - y[others].mean())
        rows = document == d
        of_x, of_y = (weight[rows] @ (v[rows] - v_mean) ** 2 for v, v_mean in ((x, mean["x"]), (y, mean["y"])))
        on_within.append((influence - within / total * weight[rows].sum()) / total)
        on_excess.append((influence / scale - excess / 2 * (of_x / var_x + of_y / var_y)) / total)
    on_excess, on_within = np.array(on_excess), np.array(on_within)
    n_effective = np.nan
    if np.abs(on_excess).max() > 1e-10:
        n_effective = min((psi**2).sum() ** 2 / (psi**4).sum() for psi in (on_excess, on_within))
    freedom = n_effective - 1 if n_effective >= 2 else np.nan
    half_width = scipy.stats.t.ppf((1 + level) / 2, freedom) * np.sqrt((on_excess**2).sum()) / (1 - excess**2)
    r = weight @ ((x - mean["x"]) * (y - mean["y"])) / total / scale
    t = within / total / np.sqrt(max((on_within**2).sum(), 1e-30))
    return {
        "r": r,
        "token_part": r - excess,
        "excess": excess,
        "excess_low": np.tanh(np.arctanh(excess) - half_width),
        "excess_high": np.tanh(np.arctanh(excess) + half_width),
        "excess_p": scipy.stats.t.sf(t, freedom),
        "n_effective": n_effective,
    }


def test_estimates_are_those_of_all_pairs_of_rows(case):
    folder, pairs, a, b, token, document = case
    found = token_identity(pairs, folder / "a.zarr", folder / "b.zarr", level=0.9)
    halves = read_halves(folder / "a.zarr", folder / "b.zarr", "half", seed=0)
    assert found.attrs["segments_known_by"] == "token ids"
    for half, suffix in enumerate(("", "_heldout")):
        rows = halves == half
        several = np.array([len(np.unique(document[rows & (token == t)])) > 1 for t in token])
        assert found.attrs["n_rows"][half] == (rows & several).sum()
        assert found.attrs["n_rows_left_out"][half] == (rows & ~several).sum() > 0
        for i, (fa, fb) in enumerate(zip(pairs.feature_a.values, pairs.feature_b.values, strict=True)):
            expected = estimate(a[rows, fa], b[rows, fb], token[rows], document[rows], 0.9)
            for name in NAMES:
                values = found[f"{name}{suffix}"].values
                np.testing.assert_allclose(values[i], expected[name], atol=1e-5, err_msg=f"{name}{suffix} {i}")
    assert np.isnan(found.excess.values[0])  # B's feature never fires
    assert found.excess.values[3] == pytest.approx(0, abs=1e-6)  # A's is nothing but its token


def test_one_row_per_document_gives_the_covariance_within_tokens():
    rng = np.random.default_rng(1)
    token = rng.integers(0, 5, 60)
    x, y = rng.normal(size=(2, 60)) + token
    cells = make_cells(token, np.arange(60))
    order = np.argsort(cells.place)
    sides = [scipy.sparse.csc_array(values[order, None].astype("f4")) for values in (x, y)]
    found = excess_of_pairs(*sides, ([0], [0]), cells)
    within = sum((token == t).sum() * np.cov(x[token == t], y[token == t])[0, 1] for t in range(5))
    assert found.excess[0] == pytest.approx(within / 60 / x.std() / y.std(), abs=1e-6)
    assert found.r[0] == pytest.approx(np.corrcoef(x, y)[0, 1], abs=1e-6)


def test_the_text_tells_segments_apart_and_the_previous_one_too(tmp_path):
    texts = ["ab" * 6, "aabb" * 3, "ba" * 6, "abba" * 3] * 3
    corpus = storage.write_corpus(tmp_path / "corpus.zarr", texts)
    document, start = np.divmod(np.arange(12 * len(texts)), 12)
    letter = np.array([texts[d][i] for d, i in zip(document, start, strict=True)])
    first = start == 0
    before = np.where(first, "", np.roll(letter, 1))
    tokens = {"document": document, "char_start": start, "char_end": start + 1}
    x = np.stack([before == "a", letter == "a"], axis=1).astype("f4")
    write(tmp_path / "a.zarr", x, tokens, np.zeros(len(x), bool), "csr", 50)
    pairs = xr.Dataset({f"feature_{side}": ("pair", [0]) for side in "ab"}, attrs={"select": "all"})
    stores = tmp_path / "a.zarr", tmp_path / "a.zarr"
    found = token_identity(pairs, *stores, corpus=corpus.path)
    assert "excess_heldout" not in found
    assert found.excess.values[0] > 0.5
    expected = estimate(x[:, 0], x[:, 0], (letter == "a").astype(int), document)
    assert found.excess.values[0] == pytest.approx(expected["excess"], abs=1e-6)
    assert token_identity(pairs, *stores, corpus=corpus.path, previous=True).excess.values[0] == pytest.approx(0)


def test_from_disk_to_disk_and_current(case, tmp_path, monkeypatch):
    folder, pairs, *_ = case
    out = tmp_path / "identity.zarr"
    first = token_identity(pairs, folder / "a.zarr", folder / "b.zarr", out).load()
    monkeypatch.setattr(identity, "_shards", None)
    xr.testing.assert_identical(first, token_identity(pairs, folder / "a.zarr", folder / "b.zarr", out).load())


def test_few_documents_are_said(tmp_path, caplog):
    place = np.arange(24)
    tokens = {"document": place // 6, "char_start": place, "char_end": place + 1, "token_id": place % 2}
    x = (np.random.default_rng(0).random((24, 1)) < 0.2).astype("f4")
    write(tmp_path / "a.zarr", x, tokens, np.zeros(24, bool), "csr", 50)
    pairs = xr.Dataset({f"feature_{side}": ("pair", [0]) for side in "ab"}, attrs={"select": "all"})
    found = token_identity(pairs, tmp_path / "a.zarr", tmp_path / "a.zarr")
    assert found.n_effective.values[0] < 2
    assert np.isfinite(found.excess.values[0])
    assert np.isnan(found.excess_p.values[0])
    assert "1 of 1 pairs have fewer than 2 effective documents" in found.attrs["note"]
    assert found.attrs["note"] in caplog.text


def test_memory_is_bounded_by_the_values_of_paired_features(tmp_path):
    n, n_features, n_pairs = 40_000, 300, 100
    rng = np.random.default_rng(0)
    place = np.arange(n)
    tokens = {"document": place // 100, "char_start": place, "char_end": place + 1, "token_id": rng.integers(0, 50, n)}
    x = scipy.sparse.random_array((n, n_features), density=0.05, format="csr", dtype=np.float32, rng=rng)
    storage.write_activations(tmp_path / "a.zarr", x, tokens=tokens, shard_rows=2000)
    pairs = xr.Dataset({f"feature_{side}": ("pair", np.arange(n_pairs)) for side in "ab"})
    token_identity(pairs.isel(pair=[0]), tmp_path / "a.zarr", tmp_path / "a.zarr")  # what stays: compiled code
    tracemalloc.start()
    token_identity(pairs, tmp_path / "a.zarr", tmp_path / "a.zarr")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    shard = 2 * 2000 * n_features * 0.05 * 40
    assert peak < shard + 32 * 2 * x[:, :n_pairs].nnz + 100 * n


def test_wrong_stores_and_levels(case, tmp_path):
    folder, pairs, *_ = case
    stores = folder / "a.zarr", folder / "b.zarr"
    with pytest.raises(InputError, match="not the store of side A"):
        token_identity(pairs.assign_attrs(stores={"a": "x", "b": "y"}), *stores)
    with pytest.raises(InputError, match="level is between 0 and 1, not 1"):
        token_identity(pairs, *stores, level=1)
    place = np.arange(8)
    rows = dict.fromkeys(("document", "char_start", "char_end", "token_id"), place)
    storage.write_activations(tmp_path / "unlike.zarr", np.eye(8), tokens=rows)
    with pytest.raises(InputError, match=r"No segment \(token ids\) of .*unlike.zarr is in two documents of one half"):
        token_identity(pairs, tmp_path / "unlike.zarr", tmp_path / "unlike.zarr")
    storage.write_activations(tmp_path / "bare.zarr", np.eye(5), overwrite=True)
    with pytest.raises(InputError, match="no corpus was given"):
        token_identity(pairs, tmp_path / "bare.zarr", tmp_path / "bare.zarr")
