"""What a file may ask for: refused before memory is asked for or anything is waited for, with the file's name."""

from __future__ import annotations

import bz2
import json
import lzma
import os
import re
import struct
import tracemalloc
import zipfile
import zlib

import anndata
import google_crc32c
import h5py
import numcodecs
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import zarr

import storage
from pipeline.settings.experiment import load_experiment, stored_experiment
from storage import readers
from storage.bounds import check_file
from storage.errors import CorruptError, FormatError, InputError, shown
from storage.exchange import export_activations, import_activations
from storage.json_files import read_json_object
from storage.rundir import RunDirectory
from storage.token_tables import read_tokens
from storage.verify import verify
from storage.yaml_files import read_yaml

SUFFIXES = [".npy", ".npz", ".safetensors", ".h5ad"]
ROWS, FEATURES = 30, 8


@pytest.fixture
def matrix():
    return np.random.default_rng(0).random((ROWS, FEATURES)).astype("f4")


def laughs(levels):
    return "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, levels))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (laughs(12), "stands for more than 500,000 values"),
        ("a: &a [*a]", "inside of what it stands for"),
        ("[" * 100_000, "nests deeper than 50 levels"),
        ("{a: " * 3000, "nests deeper than 50 levels"),
        ("a: " + "9" * 6000, "a value cannot be read"),
        ("a: 0x" + "f" * 40_000, "a value cannot be read .*a whole number of 160,000 bits, line 1"),
        ("a:\n- 0b1" + "0" * 64, "a value cannot be read .*a whole number of 65 bits, line 2"),
        ("a: 2024-99-99", "a value cannot be read"),
        ("a: !!bool 7", "a value cannot be read"),
        ("a: !!python/object/apply:os.system [id]", "is not valid YAML"),
        ("a: \x07", "is not valid YAML"),
    ],
)
def test_yaml_that_asks_for_too_much(tmp_path, text, said):
    file = tmp_path / "x.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(FormatError, match=said) as caught:
        read_yaml(file, "nothing there")
    assert str(file) in str(caught.value)
    assert len(str(caught.value)) < 3000


def test_aliases_within_reason_are_read(tmp_path):
    (tmp_path / "x.yaml").write_text("a: &a [1, 2]\nb: *a\nc: {<<: {d: 3}}")
    assert read_yaml(tmp_path / "x.yaml", "") == {"a": [1, 2], "b": [1, 2], "c": {"d": 3}}


def test_integers_of_yaml(tmp_path):
    (tmp_path / "x.yaml").write_text("[0xffffffffffffffff, -9223372036854775808, 0o17, 1_000]")
    assert read_yaml(tmp_path / "x.yaml", "") == [2**64 - 1, -(2**63), "0o17", 1000]


def test_yaml_of_another_encoding_or_size(tmp_path):
    (tmp_path / "x.yaml").write_bytes(b"a: caf\xe9")
    with pytest.raises(FormatError, match=r"x.yaml is not text in UTF-8 \(.* at byte 6\)"):
        read_yaml(tmp_path / "x.yaml", "")
    (tmp_path / "x.yaml").write_bytes(b"#" * 5_000_000)
    with pytest.raises(InputError, match=r"x.yaml has 5.0 MB; .* at most 4 MB"):
        read_yaml(tmp_path / "x.yaml", "")


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero"), lambda path: path.mkdir()])
def test_only_regular_files_are_opened(tmp_path, make):
    make(path := tmp_path / "x.yaml")
    with pytest.raises(InputError, match=r"x.yaml is a (named pipe|device|folder); give a regular file"):
        check_file(path, "nothing there")
    with pytest.raises(InputError, match=r"regular file"):
        load_experiment(path)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_pipe_is_not_waited_for(tmp_path, suffix):
    os.mkfifo(path := tmp_path / f"x{suffix}")
    with pytest.raises(InputError, match=r"is a named pipe"):
        import_activations(path, tmp_path / "a.zarr")


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "[1]", "7", '{"name": 5}', '{"a": null}', "\xff"])
def test_a_damaged_experiment_of_a_run(tmp_path, text):
    (tmp_path / "experiment.json").write_text(text, encoding="latin-1")
    with pytest.raises(FormatError, match=r"experiment.json|experiment kept in"):
        stored_experiment(RunDirectory(tmp_path))


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_a_shard_that_is_no_file(tmp_path, matrix, make):
    storage.write_activations(tmp_path / "a.zarr", scipy.sparse.csr_array(matrix))
    (shard := tmp_path / "a.zarr" / "activation" / "c" / "0" / "0").unlink()
    make(shard)
    with pytest.raises(CorruptError, match="activation/c/0/0 is not a file"):
        storage.read_csr(tmp_path / "a.zarr")


@pytest.mark.parametrize("kind", ["huge", "empty", "deep", "list", "no shape", "negative", "no chunks", "attributes"])
def test_damaged_metadata_of_an_array(tmp_path, matrix, kind):
    storage.write_activations(tmp_path / "a.zarr", matrix)
    file = tmp_path / "a.zarr" / "activation" / "zarr.json"
    content = json.loads(file.read_bytes())
    changes = {
        "no shape": {"shape": None},
        "negative": {"shape": [-1, 8]},
        "huge": {"shape": [2**40, 2**40]},
        "no chunks": {"chunk_grid": 7},
        "attributes": {"attributes": []},
    }
    texts = {"empty": "", "deep": "[" * 100_000, "list": "[]"}
    file.write_text(texts[kind] if kind in texts else json.dumps({**content, **changes[kind]}))
    with pytest.raises(CorruptError, match=r"activation/zarr.json"):
        storage.read_dense(tmp_path / "a.zarr")


def bomb(path, member, shape):
    """Write an archive of half a megabyte that unpacks to half a gigabyte."""
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open(f"{member}.npy", "w") as file:
        file.write(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode())
        for _ in range(32):
            file.write(bytes(2**24))


@pytest.mark.parametrize("member", ["acts", "decoder"])
def test_an_archive_that_unpacks_to_gigabytes(tmp_path, member):
    bomb(tmp_path / "x.npz", member, "(16384, 8192)")
    with pytest.raises(FormatError, match=r"declares 0.5369 GB, and .* bytes of it are stored"):
        import_activations(tmp_path / "x.npz", tmp_path / "a.zarr")


def test_a_member_that_is_not_as_large_as_it_says(tmp_path, matrix):
    np.savez(tmp_path / "good.npz", acts=matrix)
    with zipfile.ZipFile(tmp_path / "good.npz") as good, zipfile.ZipFile(tmp_path / "x.npz", "w") as bad:
        bad.writestr("acts.npy", good.read("acts.npy").replace(b"(30, 8)", b"(1099511627776, 8)")[:-11])
    with pytest.raises(CorruptError, match=r"acts in .*x.npz"):
        import_activations(tmp_path / "x.npz", tmp_path / "a.zarr")


PARTS = {
    "indptr": lambda indptr: indptr[::-1].copy(),
    "indices": lambda ids: ids[:-3],
    "shape": lambda _: np.array([2**40, FEATURES]),
    "data": lambda values: values[:-2],
    "format": lambda _: np.array([b"csr", b"coo"]),
}


@pytest.mark.parametrize("part", PARTS)
def test_parts_of_a_sparse_matrix_that_do_not_fit(tmp_path, matrix, part):
    csr = scipy.sparse.csr_array(matrix)
    parts = {"format": np.array(b"csr"), "shape": np.array(csr.shape), "indptr": csr.indptr}
    parts |= {"indices": csr.indices, "data": csr.data}
    np.savez(tmp_path / "x.npz", **{**parts, part: PARTS[part](parts[part])})
    with pytest.raises(InputError, match=r"x.npz"):
        import_activations(tmp_path / "x.npz", tmp_path / "a.zarr")
    assert list(tmp_path.iterdir()) == [tmp_path / "x.npz"]


def h5ad(path, make):
    with h5py.File(path, "w") as file:
        file.attrs["encoding-type"] = "anndata"
        file.create_group("obs")
        make(file)
        file["X"].attrs["encoding-type"] = "array"


def test_values_that_are_in_another_file_are_not_read(tmp_path):
    (tmp_path / "secret").write_bytes(b"secret" * 200)
    h5ad(tmp_path / "x.h5ad", lambda file: file.create_dataset("X", (30, 8), "f4", external=[("secret", 0, 960)]))
    with pytest.raises(InputError, match=r"x.h5ad, /X is stored in another file"):
        import_activations(tmp_path / "x.h5ad", tmp_path / "a.zarr")


def test_a_link_to_another_file_is_not_followed(tmp_path, matrix):
    h5ad(tmp_path / "other.h5ad", lambda file: file.create_dataset("X", data=matrix))
    with h5py.File(tmp_path / "x.h5ad", "w") as file:
        file.attrs["encoding-type"] = "anndata"
        file["X"] = h5py.ExternalLink("other.h5ad", "/X")
    with pytest.raises(InputError, match=r"x.h5ad, /X is a link"):
        import_activations(tmp_path / "x.h5ad", tmp_path / "a.zarr")


def test_an_hdf5_array_of_very_many_chunks(tmp_path):
    """HDF5 takes some kilobytes of memory for each."""
    h5ad(tmp_path / "x.h5ad", lambda file: file.create_dataset("X", data=np.ones((500, 50), "f4"), chunks=(1, 1)))
    with pytest.raises(InputError, match=r"x.h5ad, /X is cut into 25,000 chunks of 4 bytes: save it in larger ones"):
        import_activations(tmp_path / "x.h5ad", tmp_path / "a.zarr")


def test_an_hdf5_array_that_nothing_is_stored_of(tmp_path):
    h5ad(tmp_path / "x.h5ad", lambda file: file.create_dataset("X", (2**40, 2**10), "f4", chunks=(1024, 1024)))
    with pytest.raises(FormatError, match=r"x.h5ad, /X declares .* GB, and 0 bytes of it are stored"):
        import_activations(tmp_path / "x.h5ad", tmp_path / "a.zarr")


@pytest.mark.parametrize("suffix", [*SUFFIXES, ".zarr"])
@pytest.mark.parametrize("content", [b"", b"hello", bytes(1000)])
def test_what_is_no_file_of_its_format(tmp_path, suffix, content):
    (tmp_path / f"x{suffix}").write_bytes(content)
    with pytest.raises(InputError, match=f"x{suffix}"):
        import_activations(tmp_path / f"x{suffix}", tmp_path / "a.zarr")


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".safetensors"])
def test_a_decoder_that_is_none(tmp_path, suffix):
    (tmp_path / f"d{suffix}").write_bytes(b"hello")
    with pytest.raises(InputError, match=f"d{suffix}"):
        readers.read_decoder(tmp_path / f"d{suffix}", FEATURES)


TOKENS = {"document": np.zeros(ROWS, int), "char_start": np.arange(ROWS), "char_end": np.arange(ROWS) + 1}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"document": np.full(ROWS, -1)}, r"tokens\['document'\] is -1 in row 0"),
        ({"char_start": np.full(ROWS, -3)}, r"tokens\['char_start'\] is -3 in row 0"),
        ({"char_end": np.arange(ROWS) - 1 + 2 * (np.arange(ROWS) < 5)}, "end before they begin in row 5"),
    ],
)
def test_tokens_that_cannot_be(tmp_path, matrix, changed, said):
    np.save(tmp_path / "x.npy", matrix)
    pd.DataFrame({**TOKENS, **changed}).to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(InputError, match=f"t.csv: .*{said}"):
        import_activations(tmp_path / "x.npy", tmp_path / "a.zarr", tokens=tmp_path / "t.csv")
    with pytest.raises(InputError, match=said):
        storage.write_activations(tmp_path / "a.zarr", matrix, tokens={**TOKENS, **changed})


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".npz", ".npy", ".jsonl"])
@pytest.mark.parametrize("content", [b"", b"hello", bytes(range(256)) * 9])
def test_a_table_of_tokens_that_is_none(tmp_path, suffix, content):
    (tmp_path / f"t{suffix}").write_bytes(content)
    with pytest.raises(InputError, match=f"t{suffix}"):
        read_tokens(tmp_path / f"t{suffix}", ROWS)


def test_values_in_messages_are_short():
    assert len(shown({"a": ["x" * 100_000] * 100_000})) < 300
    deep = value = []
    for _ in range(100_000):
        value.append(value := [])
    assert len(shown(deep)) < 300


def test_a_json_file_that_is_no_object(tmp_path):
    (tmp_path / "x.json").write_text("[1]")
    with pytest.raises(CorruptError, match=r"x.json must hold a JSON object, not \[1\]; make it again"):
        read_json_object(tmp_path / "x.json", "nothing", "make it again")


def anndata_zarr(path, matrix):
    with anndata.settings.override(zarr_write_format=3, auto_shard_zarr_v3=False):
        anndata.AnnData(X=matrix).write_zarr(path)


def change(file, **members):
    file.write_text(json.dumps({**json.loads(file.read_bytes()), **members}))


def foreign_store(path, matrix):
    """A store without an inventory, as another program leaves it."""
    storage.write_activations(path, matrix)
    change(path / "zarr.json", consolidated_metadata=None)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("place", ["X/c/0/0", "X/zarr.json", "obs/pipe"])
def test_a_pipe_in_a_zarr_folder_is_not_waited_for(tmp_path, matrix, place):
    anndata_zarr(tmp_path / "x.zarr", matrix)
    (pipe := tmp_path / "x.zarr" / place).unlink(missing_ok=True)
    os.mkfifo(pipe)
    with pytest.raises(InputError, match=f"{place} is a named pipe"):
        import_activations(tmp_path / "x.zarr", tmp_path / "a.zarr")


@pytest.mark.timeout(60)
@pytest.mark.parametrize("make", [storage.write_activations, foreign_store])
@pytest.mark.parametrize("place", ["mean/c/0", "activation/c/0/0"])
def test_a_pipe_in_a_store_is_not_waited_for(tmp_path, matrix, place, make):
    make(tmp_path / "a.zarr", matrix)
    (pipe := tmp_path / "a.zarr" / place).unlink()
    os.mkfifo(pipe)
    assert f"{place} is a named pipe" in str(verify(tmp_path / "a.zarr").faults[0])
    with pytest.raises(InputError, match=place):
        storage.open_activations(tmp_path / "a.zarr")


@pytest.mark.timeout(60)
@pytest.mark.parametrize("suffix", [".npy", ".npz", ".h5ad"])
def test_a_pipe_in_the_place_of_an_export(tmp_path, matrix, suffix):
    storage.write_activations(tmp_path / "a.zarr", matrix)
    os.mkfifo(tmp_path / f"x{suffix}")
    with pytest.raises(InputError, match="not written by this command"):
        export_activations(tmp_path / "a.zarr", tmp_path / f"x{suffix}", suffix[1:].replace("h5ad", "anndata"))


def test_a_linked_folder_in_a_zarr_folder(tmp_path, matrix):
    anndata_zarr(tmp_path / "x.zarr", matrix)
    (tmp_path / "x.zarr" / "X").rename(tmp_path / "X")
    (tmp_path / "x.zarr" / "X").symlink_to(tmp_path / "X")
    with pytest.raises(InputError, match=r"x.zarr/X is a link"):
        import_activations(tmp_path / "x.zarr", tmp_path / "a.zarr")


def test_an_array_of_a_store_may_be_a_link(tmp_path, matrix):
    foreign_store(tmp_path / "a.zarr", matrix)
    (tmp_path / "a.zarr" / "mean").rename(tmp_path / "mean")
    (tmp_path / "a.zarr" / "mean").symlink_to(tmp_path / "mean")
    assert verify(tmp_path / "a.zarr").ok
    assert storage.open_activations(tmp_path / "a.zarr").sizes["feature"] == FEATURES


@pytest.fixture
def peak():
    """Have a block fail that allocates more than 100 MB."""
    tracemalloc.start()
    yield
    assert tracemalloc.get_traced_memory()[1] < 100e6
    tracemalloc.stop()


SMALL_MATRIX_IN_A_LARGE_CHUNK = "A chunk of .*X declares 4.295 GB, and .* bytes of it are stored"


@pytest.mark.usefixtures("peak")
def test_a_chunk_of_gigabytes_in_zarr(tmp_path, matrix):
    anndata_zarr(tmp_path / "x.zarr", matrix)
    grid = {"name": "regular", "configuration": {"chunk_shape": [32768, 32768]}}
    change(tmp_path / "x.zarr" / "X" / "zarr.json", chunk_grid=grid)
    change(tmp_path / "x.zarr" / "zarr.json", consolidated_metadata=None)
    with pytest.raises(FormatError, match=SMALL_MATRIX_IN_A_LARGE_CHUNK):
        import_activations(tmp_path / "x.zarr", tmp_path / "a.zarr")


@pytest.mark.usefixtures("peak")
def test_a_chunk_of_gigabytes_in_hdf5(tmp_path):
    options = {"maxshape": (None, None), "chunks": (32768, 32767), "compression": "gzip"}
    h5ad(tmp_path / "x.h5ad", lambda file: file.create_dataset("X", (30, 8), "f4", **options))
    with pytest.raises(FormatError, match=SMALL_MATRIX_IN_A_LARGE_CHUNK):
        import_activations(tmp_path / "x.h5ad", tmp_path / "a.zarr")


@pytest.mark.usefixtures("peak")
def test_a_small_chunk_of_hdf5_that_unpacks_to_gigabytes(tmp_path, matrix):
    anndata.AnnData(X=matrix).write_h5ad(tmp_path / "x.h5ad")
    with h5py.File(tmp_path / "x.h5ad", "r+") as file:
        attrs = dict(file["X"].attrs)
        del file["X"]
        dataset = file.create_dataset("X", matrix.shape, "f4", chunks=matrix.shape, compression="gzip", shuffle=True)
        dataset.attrs.update(attrs)
        stream = zlib.compressobj()
        bomb = b"".join([*(stream.compress(bytes(2**20)) for _ in range(256)), stream.flush()])
        dataset.id.write_direct_chunk((0, 0), bomb)
    with pytest.raises(CorruptError, match=r"X holds a chunk that unpacks to 6[78],[0-9,]+ bytes or more"):
        import_activations(tmp_path / "x.h5ad", tmp_path / "a.zarr")


def zstd_bomb(*, says_its_size):
    """Return a frame of Zstandard of 8 kB that unpacks to a quarter of a gigabyte of zeros."""
    header = bytes([3 << 6 if says_its_size else 0, 7 << 3]) + (2**28).to_bytes(8, "little") * says_its_size
    # blocks of 128 KiB, each one byte that is repeated
    blocks = [(2**17 << 3 | 1 << 1 | last).to_bytes(3, "little") + bytes(1) for last in [*[0] * 2047, 1]]
    return b"\x28\xb5\x2f\xfd" + header + b"".join(blocks)


def shard_of(chunk, n_chunks):
    """Return a shard whose first chunk holds these bytes, followed by their checksum, and no other."""
    chunk += google_crc32c.value(chunk).to_bytes(4, "little")
    index = np.full((n_chunks, 2), 2**64 - 1, "<u8")
    index[0] = 0, len(chunk)
    return chunk + index.tobytes() + google_crc32c.value(index.tobytes()).to_bytes(4, "little")


@pytest.mark.usefixtures("peak")
@pytest.mark.parametrize("says_its_size", [False, True])
@pytest.mark.parametrize("kind", ["csr", "dense", "mean", "unsharded", "text"])
def test_a_small_chunk_that_unpacks_to_gigabytes(tmp_path, matrix, kind, says_its_size):
    chunk = zstd_bomb(says_its_size=says_its_size)
    options = {"n_chunks": 1}
    if kind == "text":
        storage.write_corpus(tmp_path / "a.zarr", ["one", "two"])
        change(tmp_path / "a.zarr/zarr.json", consolidated_metadata=None)
        array = next(path.parent for path in (tmp_path / "a.zarr").glob("*/zarr.json") if "text" in path.parent.name)
    else:
        foreign_store(tmp_path / "a.zarr", scipy.sparse.csr_array(matrix) if kind == "csr" else matrix)
        array = tmp_path / "a.zarr" / ("mean" if kind in ("mean", "unsharded") else "activation")
    content = json.loads((array / "zarr.json").read_bytes())
    names = [codec["name"] for codec in content["codecs"]]
    sharding = content["codecs"][0] if names == ["sharding_indexed"] else None
    codecs = content["codecs"] if sharding is None else sharding["configuration"]["codecs"]
    codecs[1:] = [{"name": "zstd", "configuration": {"level": 3, "checksum": False}}, {"name": "crc32c"}]
    if kind == "unsharded" and sharding is not None:
        content["codecs"], sharding = codecs, None
    (array / "zarr.json").write_text(json.dumps(content))
    file = next(path for path in (array / "c").rglob("*") if path.is_file())
    file.write_bytes(shard_of(chunk, **options) if sharding is not None else chunk + bytes(4))
    said = "unpacks to 268,435,456 bytes"
    assert [said in str(fault) for fault in verify(tmp_path / "a.zarr").faults] == [True]
    with pytest.raises(CorruptError, match=said):
        storage.open_activations(tmp_path / "a.zarr")
    if kind == "csr":
        with pytest.raises(CorruptError, match=said):
            storage.read_csr(tmp_path / "a.zarr")


@pytest.mark.usefixtures("peak")
@pytest.mark.filterwarnings("ignore:Writing zarr v2 data", "ignore:Consolidated metadata is currently not part")
@pytest.mark.parametrize(
    ("zarr_format", "codec"),
    [
        *[(n, codec) for n in (2, 3) for codec in ("zstd", "blosc", "gzip")],
        (2, "zlib"),
        (2, "bz2"),
        (2, "lzma"),
        (2, "lz4"),
    ],
)
def test_a_small_chunk_of_anndata_that_unpacks_to_gigabytes(tmp_path, matrix, zarr_format, codec):
    name = codec.replace("second frame", "zstd")
    settings = {"level": 5} if name == "gzip" else {}
    compressor = numcodecs.get_codec({"id": name}) if zarr_format == 2 else {"name": name, "configuration": settings}
    with anndata.settings.override(zarr_write_format=zarr_format, auto_shard_zarr_v3=False):
        anndata.AnnData(X=matrix).write_zarr(tmp_path / "x.zarr")
    group = zarr.open_group(tmp_path / "x.zarr", mode="r+", use_consolidated=False)
    group.create_array("X", data=matrix, compressors=[compressor], overwrite=True, attributes={**group["X"].attrs})
    zarr.consolidate_metadata(tmp_path / "x.zarr")
    import_activations(tmp_path / "x.zarr", tmp_path / "good.zarr")
    chunk = tmp_path / "x.zarr/X" / ("c/0/0" if zarr_format == 3 else "0.0")
    stream = zlib.compressobj()
    bombs = {
        "blosc": lambda: chunk.read_bytes()[:4] + (2**28).to_bytes(4, "little") + chunk.read_bytes()[8:],
        "zstd": lambda: zstd_bomb(says_its_size=True),
        "lz4": lambda: (2**28).to_bytes(4, "little") + chunk.read_bytes()[4:],
        "second frame": lambda: numcodecs.zstd.compress(bytes(9)) + zstd_bomb(says_its_size=False),
        # of many members, and one stream
        "gzip": lambda: zlib.compress(bytes(2**20), wbits=31) * 256,
        "bz2": lambda: bz2.compress(bytes(2**20), 1) * 256,
        "lzma": lambda: lzma.compress(bytes(2**20), preset=0) * 256,
        "zlib": lambda: b"".join([*(stream.compress(bytes(2**20)) for _ in range(256)), stream.flush()]),
    }
    chunk.write_bytes(bombs[codec]())
    said = r"x.zarr/X/(c/0/|0\.)0 holds a chunk that unpacks to (268,435,4|6[78],).* bytes or more"
    with pytest.raises(CorruptError, match=said):
        import_activations(tmp_path / "x.zarr", tmp_path / "a.zarr")


@pytest.mark.filterwarnings("ignore:Consolidated metadata is currently not part")
def test_a_chunk_that_is_compressed_twice(tmp_path, matrix):
    """The outer codec is harmless: what it makes is for the inner one to unpack."""
    with anndata.settings.override(zarr_write_format=3, auto_shard_zarr_v3=False):
        anndata.AnnData(X=matrix).write_zarr(tmp_path / "x.zarr")
    group = zarr.open_group(tmp_path / "x.zarr", mode="r+", use_consolidated=False)
    compressors = [{"name": "zstd", "configuration": {"level": 3}}, {"name": "gzip", "configuration": {"level": 5}}]
    group.create_array("X", data=matrix, compressors=compressors, overwrite=True, attributes={**group["X"].attrs})
    zarr.consolidate_metadata(tmp_path / "x.zarr")
    with pytest.raises(CorruptError, match=r"X is compressed or sharded twice \(bytes, zstd, gzip\)"):
        import_activations(tmp_path / "x.zarr", tmp_path / "a.zarr")


def test_a_store_of_large_chunks_with_next_to_nothing_in_them(tmp_path):
    """They compress by more than what is believed of a foreign array."""
    matrix = np.zeros((4096, 4200), "f4")
    matrix[::7, ::9] = 1
    attrs = {"kind": "post"}  # of raw units, nothing is compressed
    storage.write_activations(tmp_path / "a.zarr", matrix, chunk=(4096, 4200), layout="dense", attrs=attrs)
    assert verify(tmp_path / "a.zarr").faults == []


@pytest.mark.usefixtures("peak")
@pytest.mark.parametrize("inner", [False, True])
def test_a_chunk_of_gigabytes_in_a_store(tmp_path, matrix, inner):
    foreign_store(tmp_path / "a.zarr", matrix)
    file = tmp_path / "a.zarr" / "mean" / "zarr.json"
    content = json.loads(file.read_bytes())
    content["chunk_grid"]["configuration"]["chunk_shape"] = [2**28]
    content["codecs"][0]["configuration"]["chunk_shape"] = [2**28]
    if not inner:
        content["codecs"] = content["codecs"][0]["configuration"]["codecs"]
    file.write_text(json.dumps(content))
    said = "A chunk of .*mean declares 2.147 GB"
    assert [bool(re.search(said, str(fault))) for fault in verify(tmp_path / "a.zarr").faults] == [True]
    with pytest.raises(FormatError, match=said):
        storage.open_activations(tmp_path / "a.zarr")
