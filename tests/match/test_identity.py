"""The token part of r against NumPy on dense data; unequal shards, sinks, many tokens."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

import storage
from pipeline.match import identity
from pipeline.match.identity import token_identity
from storage.errors import InputError
from storage.writer import ActivationWriter

N = 200


def write(path, x, tokens, sink, layout, shard_rows):
    writer = ActivationWriter.create(
        path, n_tokens=N, n_features=x.shape[1], tokens=tokens, layout=layout, shard_rows=shard_rows, chunk=(10, 3)
    )
    for i in range(writer.n_shards):
        rows = writer.shard_slice(i)
        writer.write_shard(i, x[rows], sink=sink[rows])
    writer.finalise()


@pytest.fixture(params=["csr", "dense"])
def case(request, tmp_path, monkeypatch):
    monkeypatch.setattr(identity, "BLOCK_PAIRS", 3)
    rng = np.random.default_rng(0)
    token = rng.integers(0, 9, N)
    tokens = {name: np.arange(N) for name in ("document", "char_start", "char_end")} | {"token_id": token * 7}
    latent = rng.normal(size=(9, 5))[token] + rng.normal(size=(N, 5))
    a = (latent + rng.normal(size=(N, 5))) * (rng.random((N, 5)) < 0.7)
    b = (latent[:, ::-1] + rng.normal(size=(N, 5))) * (rng.random((N, 5)) < 0.7)
    a[:, 3] = token == 2  # nothing but its token
    a, b = a.astype("f4"), b.astype("f4")
    sinks = rng.random((2, N)) < 0.05
    write(tmp_path / "a.zarr", a, tokens, sinks[0], request.param, 50)
    write(tmp_path / "b.zarr", b, tokens, sinks[1], request.param, 70)
    kept = ~sinks.any(axis=0)
    pairs = xr.Dataset(
        {"feature_a": ("pair", [0, 1, 2, 3, 4, 4, 0, 1]), "feature_b": ("pair", [4, 3, 2, 1, 0, 1, 1, 0])}
    )
    return tmp_path, pairs, a[kept].astype(float), b[kept].astype(float), token[kept]


def test_every_part_is_that_of_numpy(case):
    folder, pairs, a, b, token = case
    found = token_identity(pairs, folder / "a.zarr", folder / "b.zarr")
    means = {}
    for name, x in {"a": a, "b": b}.items():
        means[name] = np.zeros_like(x)
        for each in np.unique(token):
            means[name][token == each] = x[token == each].mean(axis=0)
    for i, (fa, fb) in enumerate(zip(pairs.feature_a.values, pairs.feature_b.values, strict=True)):
        x, y, mx, my = a[:, fa], b[:, fb], means["a"][:, fa], means["b"][:, fb]
        scale = x.std() * y.std()
        expected = {
            "r": np.corrcoef(x, y)[0, 1],
            "token_part": np.cov(mx, my, bias=True)[0, 1] / scale,
            "r_of_means": np.corrcoef(mx, my)[0, 1],
            "r_within": np.nan if fa == 3 else np.corrcoef(x - mx, y - my)[0, 1],
            "explained_a": mx.var() / x.var(),
            "explained_b": my.var() / y.var(),
        }
        for name, value in expected.items():
            np.testing.assert_allclose(found[name].values[i], value, atol=1e-9, err_msg=name)
    np.testing.assert_allclose(found.token_part + found.rest_part, found.r, atol=1e-12)
    assert found.attrs["n_rows"] == len(token)


def test_a_feature_that_never_varies_has_no_parts(tmp_path):
    tokens = {name: np.arange(N) for name in ("document", "char_start", "char_end", "token_id")}
    x = np.zeros((N, 2), "f4")
    x[:, 1] = np.arange(N)
    write(tmp_path / "a.zarr", x, tokens, np.zeros(N, bool), "csr", 50)
    pairs = xr.Dataset({"feature_a": ("pair", [0, 1]), "feature_b": ("pair", [1, 1])})
    found = token_identity(pairs, tmp_path / "a.zarr", tmp_path / "a.zarr")
    assert np.isnan(found.r.values[0])
    assert found.r.values[1] == found.token_part.values[1] == pytest.approx(1)


def test_from_disk_to_disk_and_current(case, tmp_path, monkeypatch):
    folder, pairs, *_ = case
    out = tmp_path / "identity.zarr"
    first = token_identity(pairs, folder / "a.zarr", folder / "b.zarr", out).load()
    monkeypatch.setattr(identity, "_shards", None)
    xr.testing.assert_identical(first, token_identity(pairs, folder / "a.zarr", folder / "b.zarr", out).load())


def test_wrong_stores(case, tmp_path):
    folder, pairs, *_ = case
    with pytest.raises(InputError, match="not the store of side A"):
        token_identity(pairs.assign_attrs(stores={"a": "x", "b": "y"}), folder / "a.zarr", folder / "b.zarr")
    storage.write_activations(tmp_path / "bare.zarr", np.eye(5), overwrite=True)
    with pytest.raises(InputError, match="no token ids"):
        token_identity(pairs, tmp_path / "bare.zarr", folder / "b.zarr")
