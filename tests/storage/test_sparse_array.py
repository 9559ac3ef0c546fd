"""Sparse Zarr arrays: what we write, zarr reads chunk by chunk; what we read equals SciPy's slices."""

from __future__ import annotations

import itertools
import json
import tempfile
import tracemalloc
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse
import zarr
from hypothesis import given
from hypothesis import strategies as st

import storage
from storage.errors import CorruptError, FormatError, InputError, MissingInputError
from storage.sparse_array import read_layout

DIMS = ("token", "feature")


def write(folder, matrix, *, shard_rows, chunk, dtype=None, name="m"):
    storage.create_sparse_array(
        folder, name, matrix.shape, dtype or matrix.dtype, dims=DIMS, shard_rows=shard_rows, chunk=chunk
    )
    layout = read_layout(folder, name)
    for i in range(layout.n_shards):
        storage.write_sparse_shard(folder, name, i, matrix[layout.shard_slice(i)])
    return layout


@st.composite
def arrays(draw):
    """A matrix of any sparsity with whole empty rows and panels, and a way to cut it with ragged edges."""
    rows, columns = draw(st.integers(1, 30)), draw(st.integers(1, 40))
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    dense = rng.standard_normal((rows, columns)) * (
        rng.random((rows, columns)) < draw(st.sampled_from([0, 0.02, 0.3, 1]))
    )
    if draw(st.booleans()):
        dense[: rows // 2] = 0
    dense[:, : draw(st.integers(0, columns))] = 0
    dtype = draw(st.sampled_from(["float16", "float32", "float64"]))
    chunk = draw(st.integers(1, 6)), draw(st.integers(1, 50))
    return dense.astype(dtype), dtype, chunk, chunk[0] * draw(st.integers(1, 4))


def slices(length):
    bound = st.one_of(st.none(), st.integers(-length - 3, length + 3))
    return st.builds(slice, bound, bound, st.sampled_from([None, 1, 2, 5, -1, -3]))


@given(st.data(), arrays())
def test_slices_equal_those_of_the_dense_matrix_and_zarr_reads_the_same(data, case):
    dense, dtype, chunk, shard_rows = case
    wide = dense.astype("f4") if dtype == "float16" else dense
    with tempfile.TemporaryDirectory() as folder:
        write(folder, scipy.sparse.csr_array(wide), shard_rows=shard_rows, chunk=chunk, dtype=dtype)
        rows, columns = data.draw(slices(dense.shape[0])), data.draw(slices(dense.shape[1]))
        part = storage.read_csr(folder, rows, columns, name="m")
        np.testing.assert_array_equal(part.toarray(), wide[rows, columns])
        assert part.dtype == wide.dtype
        array = zarr.open_array(f"{folder}/m", mode="r")
        assert array.dtype == dtype
        np.testing.assert_array_equal(array[...], dense)


def test_zarr_reads_our_shards_chunk_by_chunk(tmp_path, rng, make_csr):
    matrix = make_csr(rng, 100, 90, 0.1)
    layout = write(tmp_path, matrix, shard_rows=32, chunk=(16, 40))
    array = zarr.open_array(tmp_path / "m", mode="r")
    assert array.chunks == (16, 40)
    assert array.shards == (32, 120)
    dense = matrix.toarray()
    for down, across in itertools.product(range(0, 100, 16), range(0, 90, 40)):
        part = (slice(down, down + 16), slice(across, across + 40))
        np.testing.assert_array_equal(array[part], dense[part])
    np.testing.assert_array_equal(array[37, :], dense[37])
    np.testing.assert_array_equal(array.oindex[[3, 99], [0, 41, 89]], dense[[3, 99]][:, [0, 41, 89]])
    assert layout.grid == (2, 3)


def test_we_read_what_zarr_writes(tmp_path, rng, make_csr):
    matrix = make_csr(rng, 100, 90, 0.05)
    dense = matrix.toarray()
    dense[np.nonzero(dense)[0][:4], np.nonzero(dense)[1][:4]] = [np.nan, np.inf, -np.inf, -0.0]
    storage.create_sparse_array(tmp_path, "m", matrix.shape, "f4", dims=DIMS, shard_rows=32, chunk=(16, 40))
    zarr.open_array(tmp_path / "m", mode="r+")[...] = dense
    back = storage.read_csr(tmp_path, name="m")
    np.testing.assert_array_equal(back.toarray(), dense)
    np.testing.assert_array_equal(back.indices, matrix.indices)
    assert np.signbit(back.data[3])


def test_explicit_zeros_and_nan_are_kept_duplicates_summed(tmp_path):
    matrix = scipy.sparse.csr_array(
        (np.array([0.0, np.nan, 1.0, 2.0, 4.0]), np.array([2, 0, 5, 1, 5]), np.array([0, 2, 2, 5])), shape=(3, 6)
    )
    write(tmp_path, matrix, shard_rows=2, chunk=(2, 4))
    back = storage.read_csr(tmp_path, name="m")
    assert back.indptr.tolist() == [0, 2, 2, 4]
    assert back.indices.tolist() == [0, 2, 1, 5]
    np.testing.assert_array_equal(back.data, [np.nan, 0, 2, 5])


def test_shards_and_chunks_without_entries(tmp_path):
    matrix = scipy.sparse.csr_array(([1.0], ([70], [3])), shape=(100, 50))
    layout = write(tmp_path, matrix, shard_rows=32, chunk=(16, 10))
    assert storage.missing_shards(tmp_path, "m") == []
    assert layout.shard_file(0).stat().st_size == layout.index_bytes
    assert (storage.read_csr(tmp_path, name="m") != matrix).nnz == 0
    np.testing.assert_array_equal(zarr.open_array(tmp_path / "m", mode="r")[...], matrix.toarray())
    assert storage.read_csr(tmp_path, slice(5, 5), slice(9, 2), name="m").shape == (0, 0)


def test_panels_wider_than_uint16_and_many_features(tmp_path, rng):
    columns = 150_000
    ids = np.sort(rng.choice(columns, 300, replace=False))
    matrix = scipy.sparse.csr_array((rng.standard_normal(300), ids, np.array([0, 100, 200, 300])), shape=(3, columns))
    matrix.sort_indices()
    write(tmp_path, matrix, shard_rows=2, chunk=(2, 70_000), name="wide")
    write(tmp_path, matrix, shard_rows=2, chunk=(2, 65_536), name="narrow")
    for name in ("wide", "narrow"):
        assert (storage.read_csr(tmp_path, name=name) != matrix).nnz == 0
        part = storage.read_csr(tmp_path, features=slice(69_000, 140_001), name=name)
        assert (part != matrix[:, 69_000:140_001]).nnz == 0


def test_results_are_canonical_with_int32_ids(tmp_path, rng, make_csr):
    write(tmp_path, make_csr(rng, 60, 70, 0.2), shard_rows=20, chunk=(10, 30))
    back = storage.read_csr(tmp_path, slice(3, 55), slice(5, 66), name="m")
    assert back.indices.dtype == back.indptr.dtype == np.int32
    fresh = scipy.sparse.csr_array((back.data, back.indices, back.indptr), shape=back.shape)
    assert fresh.has_canonical_format


def test_same_input_gives_same_bytes_in_any_order(tmp_path, rng, make_csr):
    matrix = make_csr(rng, 80, 64, 0.2)
    write(tmp_path / "a", matrix, shard_rows=32, chunk=(16, 16))
    shuffled = matrix.copy()
    for row in range(80):
        part = slice(matrix.indptr[row], matrix.indptr[row + 1])
        order = rng.permutation(part.stop - part.start)
        shuffled.indices[part], shuffled.data[part] = matrix.indices[part][order], matrix.data[part][order]
    write(tmp_path / "b", shuffled, shard_rows=32, chunk=(16, 16))
    files = [sorted(p for p in (tmp_path / side).rglob("*") if p.is_file()) for side in "ab"]
    assert [p.relative_to(tmp_path / "a") for p in files[0]] == [p.relative_to(tmp_path / "b") for p in files[1]]
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(*files, strict=True))


def test_neither_writing_nor_reading_makes_anything_dense(tmp_path, rng, make_csr, no_dense):
    matrix = make_csr(rng, 100, 300, 0.05)
    write(tmp_path, matrix, shard_rows=32, chunk=(16, 64))
    assert (storage.read_csr(tmp_path, slice(None, None, 3), slice(7, 200), name="m") != matrix[::3, 7:200]).nnz == 0


def test_only_the_chunks_of_the_panel_are_read(tmp_path, rng, make_csr):
    matrix = make_csr(rng, 64, 100, 0.3)
    layout = write(tmp_path, matrix, shard_rows=32, chunk=(16, 25))
    index = np.frombuffer(layout.shard_file(0).read_bytes()[-layout.index_bytes : -4], "<u8").reshape(2, 4, 2)
    damage(layout.shard_file(0), int(index[1, 2, 0]) + 5)
    for columns in (slice(0, 50), slice(75, 100)):
        assert (storage.read_csr(tmp_path, features=columns, name="m") != matrix[:, columns]).nnz == 0
    assert (storage.read_csr(tmp_path, slice(0, 16), name="m") != matrix[:16]).nnz == 0
    with pytest.raises(CorruptError):
        storage.read_csr(tmp_path, features=slice(50, 51), name="m")


def damage(file, at):
    data = bytearray(file.read_bytes())
    data[at] ^= 0x10
    file.write_bytes(data)


def test_a_flipped_bit_anywhere_is_noticed_by_us_and_by_zarr(tmp_path, rng, make_csr):
    layout = write(tmp_path, make_csr(rng, 16, 30, 0.2), shard_rows=16, chunk=(8, 15))
    file = layout.shard_file(0)
    good = file.read_bytes()
    for at in range(0, len(good), 3):
        damage(file, at)
        with pytest.raises(CorruptError, match="damaged: delete it"):
            storage.read_csr(tmp_path, name="m")
        if at % 36 == 0:
            with pytest.raises(ValueError, match="checksum"):
                zarr.open_array(tmp_path / "m", mode="r")[...]
        file.write_bytes(good)


@pytest.mark.parametrize("keep", [0, 10, 60, -1])
def test_a_truncated_shard_is_noticed(tmp_path, rng, make_csr, keep):
    layout = write(tmp_path, make_csr(rng, 16, 30, 0.2), shard_rows=16, chunk=(8, 15))
    file = layout.shard_file(0)
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(CorruptError):
        storage.read_csr(tmp_path, name="m")


def test_an_index_that_points_outside_is_noticed_without_checksum(tmp_path, rng, make_csr):
    layout = write(tmp_path, make_csr(rng, 16, 30, 0.2), shard_rows=16, chunk=(8, 15))
    edit_metadata(tmp_path, lambda m: m["codecs"][0]["configuration"]["index_codecs"].pop())
    file = layout.shard_file(0)
    content = file.read_bytes()[:-4]
    file.write_bytes(content)
    assert storage.read_csr(tmp_path, name="m").nnz > 0
    file.write_bytes(content[:-16] + np.array([2**40, 5], "<u8").tobytes())
    with pytest.raises(CorruptError, match="points outside"):
        storage.read_csr(tmp_path, name="m")


def edit_metadata(folder, edit, name="m"):
    file = Path(folder) / name / "zarr.json"
    metadata = json.loads(file.read_text())
    edit(metadata)
    file.write_text(json.dumps(metadata))


def test_arrays_of_other_kinds_are_refused(tmp_path, rng, make_csr):
    write(tmp_path, make_csr(rng, 16, 30, 0.2), shard_rows=16, chunk=(8, 15))
    edit_metadata(tmp_path, lambda m: m.update(fill_value="NaN"))
    with pytest.raises(FormatError, match="not a sharded csr array"):
        storage.read_csr(tmp_path, name="m")
    zarr.create_array(tmp_path / "dense", data=np.eye(3))
    with pytest.raises(FormatError, match=r"xarray\.open_zarr"):
        storage.read_csr(tmp_path, name="dense")
    with pytest.raises(MissingInputError, match="no Zarr array"):
        storage.read_csr(tmp_path, name="nothing")
    (tmp_path / "m" / "zarr.json").write_text("{")
    with pytest.raises(CorruptError, match="not valid JSON"):
        storage.read_csr(tmp_path, name="m")


def test_a_missing_shard_is_an_error_not_zeros(tmp_path, rng, make_csr):
    layout = write(tmp_path, make_csr(rng, 40, 30, 0.2), shard_rows=16, chunk=(8, 15))
    layout.shard_file(1).unlink()
    assert storage.missing_shards(tmp_path, "m") == [1]
    assert storage.read_csr(tmp_path, slice(0, 16), name="m").shape == (16, 30)
    with pytest.raises(CorruptError, match="missing"):
        storage.read_csr(tmp_path, name="m")


def test_wrong_shards_are_refused_and_leave_nothing(tmp_path):
    storage.create_sparse_array(tmp_path, "m", (40, 30), "float16", dims=DIMS, shard_rows=16, chunk=(8, 15))
    with pytest.raises(InputError, match=r"shape \(8, 30\), not csr_array of shape \(16, 30\)"):
        storage.write_sparse_shard(tmp_path, "m", 2, scipy.sparse.csr_array((16, 30)))
    with pytest.raises(InputError, match="not ndarray"):
        storage.write_sparse_shard(tmp_path, "m", 2, np.zeros((8, 30)))
    with pytest.raises(InputError, match="shards 0 to 2"):
        storage.write_sparse_shard(tmp_path, "m", 3, scipy.sparse.csr_array((8, 30)))
    with pytest.raises(InputError, match="does not fit float16"):
        storage.write_sparse_shard(tmp_path, "m", 0, scipy.sparse.csr_array(([1e5], ([0], [0])), shape=(16, 30)))
    assert storage.missing_shards(tmp_path, "m") == [0, 1, 2]
    assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.parametrize(
    ("shape", "dtype", "shard_rows", "message"),
    [
        ((10, 10), "int32", 5, "float16, float32 or float64"),
        ((0, 10), "f4", 5, "holds nothing"),
        ((10, 10), "f4", 0, "not possible"),
        ((20_000, 10), "f4", 5003, "take 4096 rows"),
    ],
)
def test_arrays_that_cannot_be_are_refused(tmp_path, shape, dtype, shard_rows, message):
    with pytest.raises(InputError, match=message):
        storage.create_sparse_array(tmp_path, "m", shape, dtype, dims=DIMS, shard_rows=shard_rows)


@given(st.integers(1, 3000), st.integers(1, 50), st.integers(1, 600), st.integers(1, 100))
def test_shards_are_always_whole_chunks(n_rows, n_columns, shard_rows, chunk_rows):
    try:
        rows, chunk = storage.sparse_array.fit_shards(n_rows, n_columns, shard_rows, (chunk_rows, 16))
    except InputError:
        return
    assert rows % chunk[0] == 0
    assert chunk[0] <= chunk_rows
    assert rows == shard_rows or rows >= n_rows


def test_another_process_and_threads_write_different_shards_at_once(tmp_path, rng, make_csr):
    matrix = make_csr(rng, 96, 70, 0.2)
    storage.create_sparse_array(tmp_path, "m", matrix.shape, "f4", dims=DIMS, shard_rows=8, chunk=(4, 32))
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as processes, ThreadPoolExecutor(4) as threads:
        pending = [
            pool.submit(storage.write_sparse_shard, tmp_path, "m", i, matrix[i * 8 : i * 8 + 8])
            for i, pool in zip(range(12), itertools.cycle([processes, threads]), strict=False)
        ]
        for future in pending:
            future.result()
    assert (storage.read_csr(tmp_path, name="m") != matrix).nnz == 0


def test_many_threads_read_at_once(tmp_path, rng, make_csr):
    matrix = make_csr(rng, 200, 70, 0.2)
    write(tmp_path, matrix, shard_rows=32, chunk=(16, 32))
    with ThreadPoolExecutor(8) as pool:
        parts = list(pool.map(lambda c: storage.read_csr(tmp_path, features=slice(c, c + 9), name="m"), range(60)))
    assert all((part != matrix[:, c : c + 9]).nnz == 0 for c, part in enumerate(parts))


def test_memory_is_that_of_the_result_not_of_a_dense_slab(tmp_path, rng):
    """16,384 × 32,768 with 32 active a row is 2 GB dense, 4.2 MB as float32 CSR."""
    rows, columns, active = 16_384, 32_768, 32
    ids = (rng.integers(0, columns // active, (rows, active)) + np.arange(active) * (columns // active)).astype("i4")
    values = rng.standard_normal(rows * active).astype("f4")
    matrix = scipy.sparse.csr_array(
        (values, ids.ravel(), np.arange(0, rows * active + 1, active, dtype="i4")), shape=(rows, columns)
    )
    layout = write(tmp_path, matrix, shard_rows=rows, chunk=(4096, 4096))
    result = matrix.nnz * 8 + rows * 4
    row_of_chunks = result // 4  # and as much again for the positions of its rows

    def peak(function):
        tracemalloc.start()
        function()
        top = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return top

    assert peak(lambda: storage.read_csr(tmp_path, name="m")) < 1.1 * result + 2 * row_of_chunks
    encoded = layout.shard_file(0).stat().st_size
    assert encoded < 5.8 * matrix.nnz
    assert peak(lambda: storage.write_sparse_shard(tmp_path, "m", 0, matrix)) < encoded + 3 * row_of_chunks
