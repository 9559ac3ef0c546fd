"""What is written is what docs/store-format.md says: read here by its words alone, without our code or Zarr's."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path

import google_crc32c
import numcodecs
import numpy as np
import pytest

import storage


def without_checksum(data):
    assert google_crc32c.value(data[:-4]) == struct.unpack("<I", data[-4:])[0]
    return data[:-4]


def read_chunk(data, rows, columns, value):
    payload = bytes(numcodecs.Zstd().decode(without_checksum(data)))
    magic, id_bytes, value_bytes, zero, n = struct.unpack_from("<4sBBHQ", payload)
    assert (magic, id_bytes, value_bytes, zero) == (
        b"CSR\x01",
        2 if columns <= 65_536 else 4,
        np.dtype(value).itemsize,
        0,
    )
    lengths = struct.unpack_from(f"<{rows}I", payload, 16)
    at = 16 + 4 * rows
    ids = np.frombuffer(payload, f"<u{id_bytes}", n, at)
    at += id_bytes * n
    at += -at % 8
    values = np.frombuffer(payload, np.dtype(value).newbyteorder("<"), n, at)
    assert at + values.nbytes == len(payload)
    dense = np.zeros((rows, columns), value)
    dense[np.repeat(np.arange(rows), lengths), ids] = values
    return dense


def read_shard(file, shape, chunk, value):
    grid = shape[0] // chunk[0], -(-shape[1] // chunk[1])
    data = file.read_bytes()
    index = without_checksum(data[-16 * grid[0] * grid[1] - 4 :])
    dense = np.zeros((shape[0], grid[1] * chunk[1]), value)
    for i, (offset, length) in enumerate(struct.iter_unpack("<QQ", index)):
        if (offset, length) != (2**64 - 1, 2**64 - 1):
            down, across = divmod(i, grid[1])
            at = np.s_[down * chunk[0] : (down + 1) * chunk[0], across * chunk[1] : (across + 1) * chunk[1]]
            dense[at] = read_chunk(data[offset : offset + length], *chunk, value)
    assert not dense[:, shape[1] :].any()
    return dense[:, : shape[1]]


@pytest.fixture
def store(tmp_path, rng, make_csr, tokens):
    matrix = make_csr(rng, 100, 50, 0.05)
    decoder = rng.standard_normal((50, 6)).astype("f4")
    path = tmp_path / "a.zarr"
    storage.write_activations(path, matrix, tokens=tokens(100), decoder=decoder, shard_rows=32, chunk=(16, 20))
    return path, matrix, decoder


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_shards_read_by_the_letter(tmp_path, rng, make_csr, dtype):
    matrix = make_csr(rng, 100, 50, 0.05)
    storage.write_activations(tmp_path / "a.zarr", matrix, dtype=dtype, shard_rows=32, chunk=(16, 20))
    shards = [read_shard(tmp_path / f"a.zarr/activation/c/{i}/0", (32, 50), (16, 20), dtype) for i in range(4)]
    whole = np.concatenate(shards)
    np.testing.assert_array_equal(whole[:100], matrix.toarray().astype(dtype))
    assert not whole[100:].any()


def test_hashes_by_the_letter(store, tokens):
    path, matrix, decoder = store
    attrs = json.loads((path / "zarr.json").read_text())["attributes"]
    rows = np.stack([tokens(100)[name] for name in ("document", "char_start", "char_end")], axis=1)
    assert attrs["row_hash"] == hashlib.sha256(rows.astype("<i8").tobytes()).hexdigest()
    parts = [
        matrix.indices.astype("<u4"),
        np.diff(matrix.indptr).astype("<u4"),
        np.zeros(100, "u1"),
        matrix.data.astype("<f4"),
    ]
    more = np.stack([tokens(100)[name] for name in ("position", "token_id", "group")], axis=1)
    assert attrs["token_hash"] == hashlib.sha256(more.astype("<i8").tobytes()).hexdigest()
    whole = b"('csr', 'float32', 100, 50)" + attrs["row_hash"].encode()
    whole += tokens(100)["group"].astype("<i8").tobytes() + decoder.astype("<f4").tobytes()
    whole += b"".join(hashlib.sha256(part.tobytes()).digest() for part in parts)
    assert attrs["content_hash"] == hashlib.sha256(whole).hexdigest()


def test_manifest_fingerprint_by_the_letter():
    manifest = storage.new_manifest("match", {"b": "2", "a": "1"}, {"method": "é", "n": [1, 0.5, None, True]})
    text = r'["match",{"a":"1","b":"2"},{"method":"\u00e9","n":[1,0.5,null,true]},1]'
    assert manifest.fingerprint == hashlib.sha256(text.encode()).hexdigest()


def test_every_array_has_names_of_dimensions_and_checksums(store):
    path, *_ = store
    arrays = {file.parent.name: json.loads(file.read_text()) for file in path.glob("*/zarr.json")}
    assert arrays.keys() == {
        *("activation", "sink", "document", "position", "token_id", "char_start", "char_end", "group"),
        *("mean", "std", "max", "n_active", "decoder"),
    }
    for metadata in arrays.values():
        assert len(metadata["dimension_names"]) == len(metadata["shape"])
        (sharding,) = metadata["codecs"]
        assert sharding["configuration"]["codecs"][-1] == {"name": "crc32c"}
        assert sharding["configuration"]["index_codecs"][-1] == {"name": "crc32c"}
    inner = [codec["name"] for codec in arrays["activation"]["codecs"][0]["configuration"]["codecs"]]
    assert inner == ["csr", "zstd", "crc32c"]
    assert arrays["activation"]["attributes"] == {"every_shard_has_a_file": True}


def test_the_page_has_the_version_that_is_written():
    page = (Path(__file__).parents[2] / "docs" / "store-format.md").read_text(encoding="utf-8")
    assert f"version {storage.writer.SCHEMA_VERSION}" in page.splitlines()[0]
