"""Files to import, with damage of every kind, or made to do harm."""

from __future__ import annotations

import functools
import io
import json
import os
import random
import shutil
import socket
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse

from benchmarks.hostile.cases import Case, Prepare

N_TOKENS, N_FEATURES = 60, 24
TOKENS: dict[str, np.ndarray] = {
    "document": np.repeat(np.arange(6, dtype=np.int32), 10),
    "position": np.tile(np.arange(10, dtype=np.int32), 6),
    "char_start": np.tile(np.arange(10, dtype=np.int64) * 4, 6),
    "char_end": np.tile(np.arange(10, dtype=np.int64) * 4 + 3, 6),
}


def matrix(seed: int = 0, rows: int = N_TOKENS, columns: int = N_FEATURES) -> np.ndarray:
    """Return activations, a quarter of them not zero."""
    rng = np.random.default_rng(seed)
    found: np.ndarray = (rng.random((rows, columns)) * (rng.random((rows, columns)) < 0.25)).astype(np.float32)
    return found


def _anndata(path: Path, x: Any) -> None:
    import anndata  # noqa: PLC0415
    import pandas as pd  # noqa: PLC0415

    index = pd.RangeIndex(N_TOKENS).astype(str)
    frame = anndata.AnnData(X=x, obs=pd.DataFrame({**TOKENS, "sink": np.zeros(N_TOKENS, bool)}, index=index))
    frame.write_h5ad(path) if path.suffix == ".h5ad" else frame.write_zarr(path)


def _saelens(path: Path) -> None:
    import datasets  # noqa: PLC0415

    rows = {"hook": matrix().reshape(6, 10, N_FEATURES), "token_ids": np.arange(60, dtype=np.int32).reshape(6, 10)}
    features = {
        "hook": datasets.Array2D((10, N_FEATURES), "float32"),
        "token_ids": datasets.Sequence(datasets.Value("int32")),
    }
    made = datasets.Dataset.from_dict(
        {name: list(values) for name, values in rows.items()}, datasets.Features(features)
    )
    made.save_to_disk(str(path))


def make_imports(folder: Path) -> None:
    """Write one good file of every format that is imported."""
    import pandas as pd  # noqa: PLC0415
    import safetensors.numpy  # noqa: PLC0415

    folder.mkdir()
    x = matrix()
    sparse = scipy.sparse.csr_array(x)
    np.save(folder / "x.npy", x)
    np.savez_compressed(folder / "dense.npz", acts=x)
    np.savez(folder / "plain.npz", acts=x, decoder=np.ones((N_FEATURES, 4), np.float32))
    for kind in ("csr", "csc", "coo"):
        scipy.sparse.save_npz(folder / f"{kind}.npz", sparse.asformat(kind))
    safetensors.numpy.save_file({"acts": x}, folder / "x.safetensors")
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        for suffix in ("h5ad", "zarr"):
            _anndata(folder / f"dense.{suffix}", x)
            _anndata(folder / f"sparse.{suffix}", scipy.sparse.csr_matrix(x))
        _saelens(folder / "cached")
    decoder = np.random.default_rng(1).standard_normal((N_FEATURES, 5)).astype(np.float32)
    np.save(folder / "decoder.npy", decoder)
    np.savez(folder / "decoder.npz", W_dec=decoder, other=np.ones(3))
    safetensors.numpy.save_file({"decoder": decoder, "b": np.ones(2, np.float32)}, folder / "decoder.safetensors")
    np.savez(folder / "tokens.npz", **TOKENS)  # type: ignore[arg-type]
    table = pd.DataFrame(TOKENS)
    table.to_csv(folder / "tokens.csv", index=False)
    table.to_parquet(folder / "tokens.parquet")


SOURCES = (
    "x.npy", "dense.npz", "plain.npz", "csr.npz", "csc.npz", "coo.npz", "x.safetensors", "dense.h5ad", "sparse.h5ad",
    "dense.zarr", "sparse.zarr", "cached",
)  # fmt: skip
EXTRAS = ("decoder.npy", "decoder.npz", "decoder.safetensors", "tokens.npz", "tokens.csv", "tokens.parquet")


def arguments(name: str) -> tuple[str, ...]:
    """Return the command that reads a file of :func:`make_imports`."""
    if name in EXTRAS:
        return ("import", "x.npy", f"--{name.split('.', maxsplit=1)[0]}", name, "--out", "out/a.zarr", "--json")
    return ("import", name, "--out", "out/a.zarr", "--json")


def import_cases(seed: int, count: int, good: Path) -> list[Case]:
    """Return cases of imports: what is made to do harm, and random damage of every format."""
    rng = random.Random(seed)  # noqa: S311 - no secret
    hostile = [
        Case(
            "imports",
            f"{name}: {what}",
            arguments(name),
            functools.partial(_with_hostile, good, name, make),
            refuse,
        )
        for name, what, make, refuse in _hostile_imports(good)
    ]
    names = (*SOURCES, *EXTRAS)
    damaged = []
    for i in range(max(0, count - len(hostile))):
        name, draw = names[i % len(names)], rng.randrange(2**32)
        kind = KINDS[i // len(names) % len(KINDS)]
        prepare = functools.partial(_with_damaged, good, name, kind, draw)
        damaged.append(Case("imports", f"{name}: {kind} {draw}", arguments(name), prepare))
    return hostile + damaged


#: Kinds of damage of a file.
KINDS = ("cut", "gap", "header", "zeros", "lost", "other", "empty", "garbage", "noise")


def _put(good: Path, name: str, folder: Path) -> Path:
    """Copy a good file or folder, and the matrix that goes with a decoder or a table of tokens."""
    for one in {name, "x.npy"}:
        source, target = good / one, folder / one
        shutil.copytree(source, target) if source.is_dir() else shutil.copyfile(source, target)
    return folder / name


def _with_hostile(good: Path, name: str, make: Prepare, folder: Path) -> None:
    path = _put(good, name, folder)
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    make(path)


def _with_damaged(good: Path, name: str, kind: str, draw: int, folder: Path) -> None:
    rng = random.Random(draw)  # noqa: S311 - no secret
    path = _put(good, name, folder)
    if path.is_dir():
        path = rng.choice(sorted(file for file in path.rglob("*") if file.is_file()))
    damage_file(path, kind, rng, others=[good / other for other in (*SOURCES, *EXTRAS) if (good / other).is_file()])


def damage_file(path: Path, kind: str, rng: random.Random, others: Sequence[Path]) -> None:
    """Damage one file in one way."""
    data = path.read_bytes()
    other = rng.choice(list(others)).read_bytes()
    path.unlink()  # it may be a link to a file of other cases
    if kind == "folder":
        path.mkdir()
    elif kind == "other":
        path.write_bytes(other)
    elif kind != "lost":
        path.write_bytes(DAMAGES[kind](data, rng))


def _overwritten(data: bytes, rng: random.Random, places: int, within: int) -> bytes:
    changed = bytearray(data)
    for _ in range(places if data else 0):
        changed[rng.randrange(min(len(data), within))] = rng.randrange(256)
    return bytes(changed)


def _zeros(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(max(1, len(data)))
    return data[:at] + bytes(len(data[at : at + 64])) + data[at + 64 :]


def _bit(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(max(1, len(data)))
    return data[:at] + bytes(byte ^ 1 << rng.randrange(8) for byte in data[at : at + 1]) + data[at + 1 :]


DAMAGES: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "cut": lambda data, rng: data[: rng.randrange(max(1, len(data)))],
    "gap": lambda data, rng: data[: rng.randrange(max(1, len(data)))] + data[rng.randrange(max(1, len(data))) :],
    "header": lambda data, rng: _overwritten(data, rng, rng.randint(1, 3), 200),
    "noise": lambda data, rng: _overwritten(data, rng, rng.randint(1, 30), len(data)),
    "zeros": _zeros,
    "bit": _bit,
    "empty": lambda _, __: b"",
    "garbage": lambda data, rng: rng.randbytes(len(data)),
}


def _npy(shape: str, dtype: str = "<f4", data: bytes = b"", header: str | None = None) -> bytes:
    text = header or f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}"
    padded = text.ljust((len(text) + 11) // 64 * 64 + 53) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(padded)) + padded.encode("latin-1") + data


def _zip(**members: bytes) -> Prepare:
    def write(path: Path) -> None:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in members.items():
                archive.writestr(f"{name}.npy", data)

    return write


def _npz(**members: Any) -> Prepare:
    def write(path: Path) -> None:
        np.savez(path, **members)

    return write


def _bomb(name: str, shape: str, dtype: str = "<f4") -> Prepare:
    """Write two megabytes that unpack to two gigabytes of zeros, as an archive with one member."""

    def write(path: Path) -> None:
        packer = zlib.compressobj(9, zlib.DEFLATED, -15)
        head, zeros, n = _npy(shape, dtype), bytes(2**24), 2**7
        packed = packer.compress(head) + packer.flush(zlib.Z_FULL_FLUSH)
        # after a full flush the same bytes give the same bytes
        packed += (packer.compress(zeros) + packer.flush(zlib.Z_FULL_FLUSH)) * n + packer.flush(zlib.Z_FINISH)
        crc, size = zlib.crc32(head), len(head) + n * len(zeros)
        for _ in range(n):
            crc = zlib.crc32(zeros, crc)
        file = f"{name}.npy".encode()
        common = struct.pack("<5H3L2H", 20, 0, 8, 0, 33, crc, len(packed), size, len(file), 0)
        local = b"PK\3\4" + common + file + packed
        entry = b"PK\1\2" + struct.pack("<H", 20) + common + struct.pack("<3H2L", 0, 0, 0, 0, 0) + file
        path.write_bytes(local + entry + b"PK\5\6" + struct.pack("<4H2LH", 0, 0, 1, 1, len(entry), len(local), 0))

    return write


def _bytes(data: bytes) -> Prepare:
    def write(path: Path) -> None:
        path.write_bytes(data)

    return write


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(path.name)


def _h5(change: Callable[[Any, Path], None], good: str = "dense.h5ad") -> Callable[[Path], Prepare]:
    """Return what makes a good file of AnnData, and changes it through h5py."""

    def of(folder: Path) -> Prepare:
        def write(path: Path) -> None:
            import h5py  # noqa: PLC0415

            shutil.copyfile(folder / good, path)
            with h5py.File(path, "r+") as file:
                change(file, path)

        return write

    return of


def _external(file: Any, path: Path) -> None:
    del file["X"]
    secret = path.with_name("x.npy")
    data = file.create_dataset(
        "X", (N_TOKENS, N_FEATURES), "f4", external=[(str(secret.name), 0, 4 * N_TOKENS * N_FEATURES)]
    )
    data.attrs["encoding-type"], data.attrs["encoding-version"] = "array", "0.2.0"


def _external_link(file: Any, _: Path) -> None:
    import h5py  # noqa: PLC0415

    del file["X"]
    file["X"] = h5py.ExternalLink("other.h5ad", "/X")


def _soft_cycle(file: Any, _: Path) -> None:
    import h5py  # noqa: PLC0415

    del file["X"]
    file["X"] = h5py.SoftLink("/X")


def _huge(file: Any, _: Path) -> None:
    del file["X"]
    data = file.create_dataset("X", (2**40, 2**10), "f4", chunks=(1024, 1024))
    data.attrs["encoding-type"], data.attrs["encoding-version"] = "array", "0.2.0"


def _virtual(file: Any, path: Path) -> None:
    import h5py  # noqa: PLC0415

    del file["X"]
    layout = h5py.VirtualLayout((N_TOKENS, N_FEATURES), "f4")
    layout[...] = h5py.VirtualSource(str(path.with_name("dense.h5ad")), "X", (N_TOKENS, N_FEATURES))
    file.create_virtual_dataset("X", layout).attrs["encoding-type"] = "array"


def _loop(file: Any, _: Path) -> None:
    file["obs/self"] = file["obs"]
    file["obs/up"] = file["/"]


def _h5_part(part: str, name: str, values: Any) -> Callable[[Any, Path], None]:
    def change(file: Any, _: Path) -> None:
        if name in file[part]:
            del file[part][name]
        made = file[part].create_dataset(name, data=values)
        made.attrs["encoding-type"], made.attrs["encoding-version"] = "array", "0.2.0"

    return change


def _h5_without(part: str, name: str) -> Callable[[Any, Path], None]:
    def change(file: Any, _: Path) -> None:
        del file[part][name]

    return change


def _no_encoding(file: Any, _: Path) -> None:
    del file.attrs["encoding-type"]


def _h5_group(file: Any, _: Path) -> None:
    del file["X"]
    file.create_group("X")


def _h5_values(name: str, change: Callable[[Any], Any]) -> Callable[[Any, Path], None]:
    def changed(file: Any, _: Path) -> None:
        file[name][...] = change(file[name][...])

    return changed


def _h5_attribute(part: str, name: str, value: Any) -> Callable[[Any, Path], None]:
    def change(file: Any, _: Path) -> None:
        file[part].attrs[name] = value

    return change


def _zarr_json(part: str, **values: Any) -> Callable[[Path], Prepare]:
    """Return what makes a good Zarr store of AnnData, and edits the metadata of a part."""

    def of(folder: Path) -> Prepare:
        def write(path: Path) -> None:
            shutil.copytree(folder / "dense.zarr", path)
            for file in (path / part / "zarr.json", path / part / ".zarray"):
                if file.is_file():
                    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | values), encoding="utf-8")
            (path / ".zmetadata").unlink(missing_ok=True)

        return write

    return of


def _cached(change: Callable[[Path], None]) -> Callable[[Path], Prepare]:
    def of(folder: Path) -> Prepare:
        def write(path: Path) -> None:
            shutil.copytree(folder / "cached", path)
            change(path)

        return write

    return of


def _state(**values: Any) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        file = path / "state.json"
        file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | values), encoding="utf-8")

    return change


def _text(name: str, text: str) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        (path / name).write_text(text, encoding="utf-8")

    return change


def _fifo_inside(path: Path) -> None:
    for file in path.glob("*.arrow"):
        file.unlink()
        os.mkfifo(file)


def _table(suffix: str, **columns: Any) -> Prepare:
    def write(path: Path) -> None:
        import pandas as pd  # noqa: PLC0415

        table = pd.DataFrame({**TOKENS, **columns})
        table.to_csv(path, index=False) if suffix == "csv" else table.to_parquet(path)

    return write


def _csr(**parts: Any) -> dict[str, Any]:
    good = scipy.sparse.csr_array(matrix())
    whole = {
        "format": np.array(b"csr"),
        "shape": np.array(good.shape),
        "indptr": good.indptr,
        "indices": good.indices,
        "data": good.data,
    }
    return {name: value for name, value in (whole | parts).items() if value is not None}


def _hostile_imports(good: Path) -> Iterator[tuple[str, str, Prepare, bool]]:
    """Yield file, what is wrong with it, how it is made, and whether it must be refused."""
    for name in (
        "x.npy",
        "csr.npz",
        "x.safetensors",
        "dense.h5ad",
        "decoder.npy",
        "tokens.csv",
        "tokens.parquet",
        "decoder.safetensors",
        "tokens.npz",
    ):
        yield name, "a named pipe", os.mkfifo, True
        yield name, "a socket", _socket, True
        yield name, "a device", lambda path: path.symlink_to("/dev/zero"), True
        yield name, "a folder", Path.mkdir, True
        yield name, "a link to itself", lambda path: path.symlink_to(path.name), True
    for name in ("dense.zarr", "cached"):
        yield name, "a named pipe", os.mkfifo, True
        yield name, "a file", _bytes(b"hello"), True
        yield name, "an empty folder", Path.mkdir, True
    yield from ((name, what, _bytes(data), True) for name, what, data in _hostile_npy())
    yield from (("csr.npz", what, make, True) for what, make in _hostile_npz())
    yield from (("dense.h5ad", what, make(good), True) for what, make in _hostile_h5ad())
    yield from (("dense.zarr", what, make(good), True) for what, make in _hostile_zarr())
    # what there are features of is in the data too
    yield from (("cached", what, make(good), what != "no features") for what, make in _hostile_cached())
    yield from _hostile_safetensors()
    yield from _hostile_extras()


def _hostile_npy() -> Iterator[tuple[str, str, bytes]]:
    x = matrix().tobytes()
    for name in ("x.npy", "decoder.npy"):
        yield name, "a shape of exabytes", _npy("(1099511627776, 1048576)", data=x)
        yield name, "a negative shape", _npy("(-60, -24)", data=x)
        yield name, "objects", _npy("(60, 24)", "|O", x)
        yield name, "a long header", _npy("(60, 24)", header="{" + " " * 60_000 + "}")
        yield name, "a nested header", _npy("", header="(" * 5000 + ")" * 5000)
        yield name, "no bytes a value", _npy("(60, 24)", "|S0")
        yield name, "one dimension", _npy("(1440,)", data=x)
        yield name, "no dimension", _npy("()", data=x[:4])
        yield name, "complex", _npy("(60, 12)", "<c8", x)
        yield name, "text", _npy("(60, 24)", "<U1", x)
        yield name, "dates", _npy("(60, 12)", "<M8[s]", x)
        yield (
            name,
            "records",
            _npy("", data=x, header="{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (60, 24), }"),
        )
        yield name, "not a number", _npy("(60, 24)", data=np.full(1440, np.nan, "f4").tobytes())
        yield name, "infinite", _npy("(60, 24)", data=np.full(1440, np.inf, "f4").tobytes())
    yield "x.npy", "a zip", b"PK\x03\x04" + bytes(100)


def _hostile_npz() -> Iterator[tuple[str, Prepare]]:
    yield "2 GB in 2 MB", _bomb("acts", "(32768, 16384)")
    yield "decoder of 2 GB in 2 MB", _bomb("decoder", "(32768, 16384)")
    yield "indptr of 2 GB in 2 MB", _bomb("indptr", "(268435456,)", "<i8")
    yield "a shape that its bytes are not", _zip(acts=_npy("(1099511627776, 1024)", data=bytes(64)))
    yield "objects", _zip(acts=_npy("(60, 24)", "|O", bytes(400)))
    yield "no member", _zip()
    yield "two members", _npz(a=matrix(), b=matrix())
    yield "a member that is none", _zip(acts=b"hello")
    yield "a shape of rows", _npz(**_csr(shape=np.array([2**40, 24])))
    yield "a shape of features", _npz(**_csr(shape=np.array([60, 2**40])))
    yield "a shape of one", _npz(**_csr(shape=np.array([60])))
    yield "a negative shape", _npz(**_csr(shape=np.array([-60, 24])))
    yield "a shape of fractions", _npz(**_csr(shape=np.array([60.5, np.nan])))
    yield "ids outside", _npz(**_csr(indices=_csr()["indices"] + 1000))
    yield "negative ids", _npz(**_csr(indices=_csr()["indices"] - 5))
    yield "ids of floats", _npz(**_csr(indices=_csr()["indices"].astype("f4")))
    yield "falling indptr", _npz(**_csr(indptr=_csr()["indptr"][::-1].copy()))
    yield "short indptr", _npz(**_csr(indptr=_csr()["indptr"][:-4]))
    yield "indptr beyond", _npz(**_csr(indptr=_csr()["indptr"] * 1000))
    yield "data of another length", _npz(**_csr(data=_csr()["data"][:-7]))
    yield "no indptr", _npz(**_csr(indptr=None))
    yield "no indices", _npz(**_csr(indices=None))
    yield "another format", _npz(**_csr(format=np.array(b"nosuch")))
    yield "format as a list", _npz(**_csr(format=np.array([b"csr", b"csc"])))
    yield (
        "rows of bsr without end",
        _npz(
            format=np.array(b"bsr"),
            shape=np.array([2**40, 24]),
            indptr=np.arange(3),
            indices=np.arange(2),
            data=np.ones((2, 2, 2)),
        ),
    )
    yield (
        "coo outside",
        _npz(format=np.array(b"coo"), shape=np.array([60, 24]), row=np.array([90]), col=np.array([3]), data=np.ones(1)),
    )
    yield (
        "coo of a shape of rows",
        _npz(
            format=np.array(b"coo"), shape=np.array([2**33, 24]), row=np.array([9]), col=np.array([3]), data=np.ones(1)
        ),
    )
    yield "attributes of no JSON", _npz(**_csr(subspace_attrs=np.array("{")))
    yield "attributes without end", _npz(**_csr(subspace_attrs=np.array("[" * 100_000)))
    yield "attributes as a list", _npz(**_csr(subspace_attrs=np.array("[1]")))
    yield "a kind that is none", _npz(**_csr(subspace_attrs=np.array('{"kind": {"a": 1}}')))
    yield "a dtype that is none", _npz(**_csr(subspace_attrs=np.array('{"dtype": "nosuch"}')))
    yield "a dtype of objects", _npz(**_csr(subspace_attrs=np.array('{"dtype": "O"}')))
    yield "sinks of another length", _npz(**_csr(sink=np.ones(7, bool)))
    yield "a decoder of another length", _npz(**_csr(decoder=np.ones((3, 3), "f4")))
    yield "a decoder of text", _npz(**_csr(decoder=np.full((24, 3), "x")))
    yield (
        "coordinates of another length",
        _npz(**_csr(**{f"token_coordinate_{name}": values[:9] for name, values in TOKENS.items()})),
    )


def _hostile_h5ad() -> Iterator[tuple[str, Callable[[Path], Prepare]]]:
    yield "values in another file", _h5(_external)
    yield "a link to another file", _h5(_external_link)
    yield "a link to itself", _h5(_soft_cycle)
    yield "2⁵⁰ values of which none is stored", _h5(_huge)
    yield "a virtual dataset", _h5(_virtual)
    yield "groups inside of themselves", _h5(_loop)
    yield "X of text", _h5(_h5_part("/", "X", np.full((60, 24), b"x")))
    yield "X of one dimension", _h5(_h5_part("/", "X", np.ones(60)))
    yield "X as a group", _h5(_h5_group)
    yield "no X", _h5(_h5_without("/", "X"))
    yield "no obs", _h5(_h5_without("/", "obs"))
    yield "no encoding", _h5(_no_encoding)
    yield "encoding as a list", _h5(_h5_attribute("/", "encoding-type", np.arange(3)))
    yield "encoding of X unknown", _h5(_h5_attribute("X", "encoding-type", "csr_matrix"))
    yield "negative documents", _h5(_h5_part("obs", "document", np.full(60, -1)))
    yield "documents of another length", _h5(_h5_part("obs", "document", np.arange(7)))
    yield "documents of text", _h5(_h5_part("obs", "document", np.full(60, b"x")))
    yield (
        "ids outside",
        _h5(_h5_values("X/indices", lambda ids: ids + 999), "sparse.h5ad"),
    )
    yield (
        "falling indptr",
        _h5(_h5_values("X/indptr", lambda indptr: indptr[::-1]), "sparse.h5ad"),
    )
    yield (
        "indptr beyond",
        _h5(_h5_values("X/indptr", lambda indptr: indptr * 1000), "sparse.h5ad"),
    )
    yield "a shape of exabytes", _h5(_h5_attribute("X", "shape", np.array([2**40, 2**40])), "sparse.h5ad")
    yield "a shape of one", _h5(_h5_attribute("X", "shape", np.array([60])), "sparse.h5ad")
    yield "no data", _h5(_h5_without("X", "data"), "sparse.h5ad")


def _hostile_zarr() -> Iterator[tuple[str, Callable[[Path], Prepare]]]:
    yield "a shape of exabytes", _zarr_json("X", shape=[2**40, 2**10])
    yield "a negative shape", _zarr_json("X", shape=[-60, 24])
    yield "a shape of text", _zarr_json("X", shape="many")
    yield "one dimension", _zarr_json("X", shape=[1440])
    yield "a type that is none", _zarr_json("X", data_type="nosuch", dtype="nosuch")
    yield "a codec that is none", _zarr_json("X", codecs=[{"name": "nosuch"}], compressor={"id": "nosuch"})
    yield "a format of the future", _zarr_json("X", zarr_format=9)


def _hostile_cached() -> Iterator[tuple[str, Callable[[Path], Prepare]]]:
    yield "data elsewhere", _cached(_state(_data_files=[{"filename": "../../../etc/passwd"}]))
    yield "data of another type", _cached(_state(_data_files=7))
    yield "no data", _cached(_state(_data_files=[]))
    yield "a pipe as data", _cached(_fifo_inside)
    yield "a state without end", _cached(_text("state.json", "[" * 100_000))
    yield "no features", _cached(_text("dataset_info.json", "{}"))
    yield (
        "features of another type",
        _cached(_text("dataset_info.json", '{"features": 7}')),
    )


def _hostile_safetensors() -> Iterator[tuple[str, str, Prepare, bool]]:
    def tensor(kind: str, shape: list[int], end: int = 64) -> Prepare:
        text = json.dumps({"acts": {"dtype": kind, "shape": shape, "data_offsets": [0, end]}}).encode()
        return _bytes(struct.pack("<Q", len(text)) + text + bytes(64))

    for name in ("x.safetensors", "decoder.safetensors"):
        yield name, "a header of exabytes", _bytes(struct.pack("<Q", 2**62) + b"{}"), True
        yield name, "a header of no JSON", _bytes(struct.pack("<Q", 4) + b"{{{{"), True
        yield name, "a header without end", _bytes(struct.pack("<Q", 50_000) + b"[" * 50_000), True
        yield (
            name,
            "a shape of exabytes",
            tensor("F32", [2**40, 2**30], 64),
            True,
        )
        yield (
            name,
            "offsets outside",
            tensor("F32", [4, 4], 2**40),
            True,
        )
        yield (
            name,
            "bfloat16",
            tensor("BF16", [4, 8], 64),
            False,
        )
        yield (
            name,
            "a type that is none",
            tensor("X9", [4, 4], 64),
            True,
        )
        yield name, "no tensor", _bytes(struct.pack("<Q", 2) + b"{}"), True


def _hostile_extras() -> Iterator[tuple[str, str, Prepare, bool]]:
    broken: dict[str, dict[str, Any]] = {
        "negative documents": {"document": np.full(60, -1)},
        "tokens that end before they begin": {"char_start": np.full(60, 9), "char_end": np.full(60, 3)},
        "negative characters": {"char_start": np.full(60, -7)},
        "fractions": {"document": np.linspace(0, 1, 60)},
        "text": {"document": np.full(60, "x")},
        "huge documents": {"document": np.full(60, 2**40)},
        "a column that is none": {"nosuch": np.zeros(60, int)},
        "not a number": {"document": np.full(60, np.nan)},
    }
    for what, columns in broken.items():
        # names of documents are numbered, and columns that nobody asked for are left out with a warning
        refuse = what not in ("text", "a column that is none")
        yield "tokens.csv", what, _table("csv", **columns), refuse
        yield "tokens.parquet", what, _table("parquet", **columns), refuse
        yield "tokens.npz", what, _npz(**{**TOKENS, **columns}), refuse
    yield "tokens.npz", "2 GB in 2 MB", _bomb("document", "(268435456,)", "<i8"), True
    yield "tokens.npz", "two dimensions", _npz(**{**TOKENS, "document": np.zeros((60, 2), int)}), True
    ragged = b"document,char_start,char_end\n" + b"".join(b"1," * i + b"1\n" for i in range(60))
    yield "tokens.csv", "no header", _bytes(b"1,2,3\n" * 60), True
    yield (
        "tokens.csv",
        "rows of many lengths",
        _bytes(ragged),
        True,
    )
    yield "tokens.csv", "not text", _bytes(bytes(range(256)) * 40), True
    yield "tokens.csv", "a quote without end", _bytes(b'document,char_start,char_end\n"' + b"x" * 300_000), True
    yield "decoder.npz", "2 GB in 2 MB", _bomb("decoder", "(32768, 16384)"), True
    yield "decoder.npz", "two unknown names", _npz(p=np.ones((24, 5)), q=np.ones((24, 5))), True
    yield "decoder.npy", "the other way round", lambda path: np.save(path, np.ones((5, 24), "f4")), True
    yield "decoder.npy", "more rows than features", lambda path: np.save(path, np.ones((24_000_0, 5), "f4")), True
