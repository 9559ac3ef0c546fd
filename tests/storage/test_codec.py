"""The csr codec as a pure function: exact for every sparsity, shape and float type; broken payloads are refused."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import scipy.sparse
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from storage.codec import Panel, decode_csr, dense_to_panel, encode_csr, pack, panel_to_dense, unpack
from storage.errors import CorruptError, InputError

FLOATS = ["float16", "float32", "float64"]


@st.composite
def dense_chunks(draw):
    """Dense chunks of any float bits, NaN, infinities and -0.0 among them, from all zero to all filled."""
    shape = draw(st.tuples(st.integers(1, 7), st.integers(1, 9)))
    dtype = np.dtype(draw(st.sampled_from(FLOATS)))
    values = draw(hnp.arrays(dtype, shape, elements=st.floats(width=8 * dtype.itemsize)))
    return np.where(draw(hnp.arrays(bool, shape)), values, dtype.type(0))


@given(dense_chunks())
def test_dense_round_trip_keeps_every_bit(chunk):
    payload = pack(dense_to_panel(chunk))
    back = panel_to_dense(unpack(payload, chunk.shape, chunk.dtype), chunk.shape, chunk.dtype)
    assert back.tobytes() == chunk.tobytes()


@given(dense_chunks(), st.randoms(use_true_random=False))
def test_sparse_round_trip_agrees_with_dense_and_keeps_explicit_zeros(chunk, random):
    wide = chunk.astype("float32") if chunk.dtype == np.float16 else chunk
    mask = (chunk != 0) | (np.array([random.random() < 0.2 for _ in range(chunk.size)]).reshape(chunk.shape))
    rows, columns = np.nonzero(mask)
    order = np.array(random.sample(range(len(rows)), len(rows)), int)
    # COO in random order: column ids inside a row come unsorted
    matrix = scipy.sparse.coo_array((wide[mask][order], (rows[order], columns[order])), shape=chunk.shape)
    back = decode_csr(encode_csr(matrix, chunk.dtype), chunk.shape, chunk.dtype)
    assert back.nnz == mask.sum()
    np.testing.assert_array_equal(back.toarray(), wide)
    assert back.dtype == wide.dtype


def test_duplicates_are_summed_and_the_input_is_untouched():
    matrix = scipy.sparse.csr_array((np.array([1.0, 2.0, 4.0]), np.array([3, 1, 3]), np.array([0, 3])), shape=(1, 5))
    back = decode_csr(encode_csr(matrix), (1, 5), "f8")
    assert back.indices.tolist() == [1, 3]
    assert back.data.tolist() == [2.0, 5.0]
    assert matrix.indices.tolist() == [3, 1, 3]


@pytest.mark.parametrize(("columns", "id_bytes"), [(65_535, 2), (65_536, 2), (65_537, 4), (200_000, 4)])
def test_ids_are_uint16_up_to_65536_columns_and_uint32_above(columns, id_bytes):
    matrix = scipy.sparse.csr_array(([1.5, -2.5], ([0, 1], [columns - 1, 0])), shape=(2, columns))
    payload = encode_csr(matrix)
    assert payload[4] == id_bytes
    back = decode_csr(payload, (2, columns), "f8")
    assert (back != matrix).nnz == 0
    assert back.indices.max() == columns - 1


def test_payload_is_laid_out_as_documented():
    matrix = scipy.sparse.csr_array(np.array([[0, 2.5, 0], [0, 0, 0], [1, 0, -3]], "f4"))
    header = b"CSR\x01" + bytes([2, 4]) + b"\0\0" + struct.pack("<Q", 3)
    lengths = struct.pack("<3I", 1, 0, 2)
    ids = struct.pack("<3H", 1, 0, 2)
    padding = bytes(-(16 + 12 + 6) % 8)
    assert encode_csr(matrix) == header + lengths + ids + padding + struct.pack("<3f", 2.5, 1, -3)


def test_a_full_chunk_and_an_empty_one(rng):
    full = rng.standard_normal((50, 60))
    np.testing.assert_array_equal(decode_csr(encode_csr(full), full.shape, "f8").toarray(), full)
    empty = decode_csr(encode_csr(scipy.sparse.csr_array((4, 6))), (4, 6), "f8")
    assert empty.nnz == 0
    assert empty.shape == (4, 6)


@pytest.mark.parametrize("cut", [0, 3, 15, 16, 20, -1])
def test_truncated_payloads_are_refused(cut):
    payload = encode_csr(np.eye(3))
    with pytest.raises(CorruptError):
        unpack(payload[:cut], (3, 3), "f8")


def _changed(payload, at, byte):
    return payload[:at] + bytes([byte]) + payload[at + 1 :]


@pytest.mark.parametrize(
    ("at", "byte", "message"),
    [
        (0, 0, "begins with"),
        (3, 2, "later version"),
        (4, 4, "ids of 4"),
        (5, 4, "values of 4"),
        (8, 200, "cannot be"),
        (16, 9, "do not fit"),
        (28, 77, "do not fit"),
    ],
)
def test_payloads_that_contradict_themselves_are_refused(at, byte, message):
    with pytest.raises(CorruptError, match=message):
        unpack(_changed(encode_csr(np.eye(3)), at, byte), (3, 3), "f8")


def test_wrong_shape_or_type_is_refused():
    payload = encode_csr(np.eye(3))
    with pytest.raises(CorruptError):
        unpack(payload, (4, 3), "f8")
    with pytest.raises(CorruptError):
        unpack(payload, (3, 3), "f4")


def test_column_ids_out_of_range_are_refused():
    matrix = scipy.sparse.csr_array((2, 3))
    matrix.data, matrix.indices = np.ones(1), np.array([3], np.int32)
    matrix.indptr = np.array([0, 1, 1], np.int32)
    with pytest.raises(InputError, match=r"outside of 0\.\.2"):
        encode_csr(matrix)


def test_panel_views_share_the_payload():
    payload = encode_csr(np.eye(3))
    panel = unpack(payload, (3, 3), "f8")
    assert isinstance(panel, Panel)
    assert all(not part.flags.owndata and part.flags.aligned for part in panel)
