"""Top activating rows: against a plain sort in NumPy, over several panels of features and slabs of rows."""

from __future__ import annotations

import importlib
import tempfile
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import storage
from pipeline.harvest.contexts import contexts
from storage.errors import InputError, MissingInputError

CHUNK = (7, 5)
SHARD_ROWS = 14


def write(path: Path, data: np.ndarray, sink: np.ndarray, layout: str = "csr", **attrs: str) -> Path:
    """Write a store of many small shards and panels."""
    writer = storage.ActivationWriter.create(
        path,
        n_tokens=len(data),
        n_features=data.shape[1],
        layout=layout,
        shard_rows=SHARD_ROWS,
        chunk=CHUNK,
        attrs=attrs,
    )
    for i in range(writer.n_shards):
        rows = writer.shard_slice(i)
        writer.write_shard(i, data[rows] if layout == "dense" else sp.csr_array(data[rows]), sink[rows])
    writer.finalise()
    return path


def expected(data: np.ndarray, sink: np.ndarray, top_n: int) -> tuple[np.ndarray, np.ndarray]:
    """Sort every feature's active rows that are no sinks by descending activation, then by row."""
    rows = np.full((data.shape[1], top_n), -1)
    values = np.full(rows.shape, np.nan, dtype=np.float32)
    for feature, column in enumerate(data.T):
        order = [row for row in np.lexsort((np.arange(len(data)), -column)) if column[row] != 0 and not sink[row]]
        rows[feature, : len(order)] = order[:top_n]
        values[feature, : len(order)] = column[order[:top_n]]
    return rows, values


# few distinct values, so that ties are the rule
LEVELS = st.sampled_from([0.0, 0.0, 0.5, 1.0, 2.0])
MATRICES = hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=40).flatmap(
    lambda shape: st.tuples(hnp.arrays(np.float32, shape, elements=LEVELS), hnp.arrays(bool, shape[0]))
)


@settings(max_examples=15)
@given(case=MATRICES, top_n=st.integers(1, 9), layout=st.sampled_from(["csr", "dense"]))
def test_equals_a_sort(client, case: tuple[np.ndarray, np.ndarray], top_n: int, layout: str) -> None:
    data, sink = case
    with tempfile.TemporaryDirectory() as folder:
        found = contexts(write(Path(folder) / "s.zarr", data, sink, layout), top_n=top_n, client=client)
    rows, values = expected(data, sink, top_n)
    assert found["row"].dims == found["value"].dims == ("feature", "rank")
    np.testing.assert_array_equal(found["row"], rows)
    np.testing.assert_array_equal(found["value"], values)


def test_several_panels_and_slabs(client, tmp_path, monkeypatch) -> None:
    rng = np.random.default_rng(0)
    data = np.where(rng.random((100, 23)) < 0.3, rng.integers(1, 4, (100, 23)), 0).astype(np.float32)
    sink = rng.random(100) < 0.1
    path = write(tmp_path / "s.zarr", data, sink)
    monkeypatch.setattr(importlib.import_module("pipeline.harvest.contexts"), "SLAB_BYTES", 1)
    found = contexts(path, client=client)
    rows, values = expected(data, sink, 8)
    np.testing.assert_array_equal(found["row"], rows)
    np.testing.assert_array_equal(found["value"], values)


def test_negative_activations_of_raw_units_are_listed_after_positive_ones(client, tmp_path) -> None:
    data = np.array([[-2.0], [0.0], [3.0], [-1.0]], dtype=np.float32)
    path = write(tmp_path / "s.zarr", data, np.zeros(4, bool), "dense")
    assert contexts(path, top_n=4, client=client)["row"].values.tolist() == [[2, 3, 0, -1]]


def test_float16_stores(client, tmp_path) -> None:
    storage.write_activations(tmp_path / "s.zarr", sp.csr_array(np.eye(4, dtype=np.float32)), dtype="float16")
    assert contexts(tmp_path / "s.zarr", top_n=1, client=client)["row"].values.ravel().tolist() == [0, 1, 2, 3]


def test_a_current_result_is_kept_and_another_setting_replaces_it(client, tmp_path) -> None:
    path = write(tmp_path / "s.zarr", np.eye(30, dtype=np.float32), np.zeros(30, bool), site="layers.3", model="toy")
    out = tmp_path / "contexts" / "s.zarr"
    first = contexts(path, out, top_n=2, client=client)
    created = storage.read_manifest(out).created
    assert first.attrs["site"] == "layers.3"
    assert first.attrs["model"] == "toy"
    modified = (out / "zarr.json").stat().st_mtime_ns
    contexts(path, out, top_n=2, client=client)
    assert (out / "zarr.json").stat().st_mtime_ns == modified
    assert contexts(path, out, top_n=3, client=client).sizes["rank"] == 3
    assert storage.read_manifest(out).created >= created
    assert storage.open_result(out, "contexts").sizes == {"feature": 30, "rank": 3}


def test_sparse_stores_are_never_made_dense(client, tmp_path, monkeypatch) -> None:
    path = write(tmp_path / "s.zarr", np.eye(30, dtype=np.float32), np.zeros(30, bool))

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("made dense")

    for method in ("toarray", "todense"):
        monkeypatch.setattr(sp.csr_array, method, refuse)
    assert contexts(path, client=client)["row"].values[:, 0].tolist() == list(range(30))


def test_bad_input(client, tmp_path) -> None:
    with pytest.raises(MissingInputError, match=r"none\.zarr"):
        contexts(tmp_path / "none.zarr", client=client)
    path = write(tmp_path / "s.zarr", np.eye(3, dtype=np.float32), np.zeros(3, bool))
    with pytest.raises(InputError, match="top_n is 0"):
        contexts(path, top_n=0, client=client)
