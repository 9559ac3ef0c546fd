"""Writing an activation store shard by shard.

A store is written in three steps, by any number of processes::

    writer = ActivationWriter.create(path, n_tokens=…, n_features=…)     once; works in PATH.partial
    writer.write_shard(i, rows_of_shard_i)                               every shard, anywhere, in any order
    writer.finalise()                                                    once; statistics, hash, rename to PATH

A shard exists whole or not at all, so whoever dies on the way loses only the shard at hand: :meth:`missing` tells
what is left to do. :func:`storage.write_activations` does the three steps for data at hand.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import zarr
import zarr.codecs
from numpy.typing import ArrayLike, DTypeLike, NDArray

from storage.codec import CODEC_NAME, canonical, is_sparse_matrix
from storage.errors import BusyError, FormatError, InputError, MissingInputError
from storage.files import partial_path
from storage.inventory import is_closed
from storage.kinds import KINDS
from storage.locks import Hold
from storage.manifest import (
    CONTENT_HASH,
    MANIFEST,
    Manifest,
    json_values,
    library_versions,
    new_manifest,
    read_attrs,
    read_manifest,
)
from storage.moments import FeatureMoments
from storage.rows import IDENTITY, ROW_HASH, TOKEN_COORDINATES, TOKEN_HASH, check_tokens, row_hash, token_hash
from storage.shards import Shards
from storage.slabs import plain_array
from storage.sparse_array import (
    DEFAULT_CHUNK,
    DENSE_CHUNK,
    KEEP_ENCODING,
    create_sparse_array,
    fit_shards,
    inner_chunk,
    read_csr,
    read_metadata,
    read_shards,
    write_sparse_shard,
)
from storage.targets import DATA_STAGE, STORE, Target, claim, same_work
from storage.variables import update_attrs

logger = logging.getLogger(__name__)

Layout = Literal["csr", "dense"]

SCHEMA_VERSION = 1
ACTIVATION = "activation"
STATISTICS = ("mean", "std", "n_active", "max")
DIMS = ("token", "feature")
DEFAULT_SHARD_ROWS = 16_384
#: Attribute of an unfinished store: which writer began it, and what it may replace.
UNFINISHED = "unfinished"


@dataclass(frozen=True)
class ActivationWriter:
    """Writes an activation store shard by shard. Make one with :meth:`create` or :meth:`open`; it can be pickled.

    Attributes
    ----------
    path
        Where the store is to be; until :meth:`finalise`, everything is in ``PATH.partial``.
    n_tokens, n_features
        Shape of the store.
    shard_rows
        Rows of a shard; the last may be short.
    dtype
        Type of the values on disk.
    layout
        ``csr`` or ``dense``.
    session
        Names the unfinished work: a writer whose work another one has replaced writes no more.
    overwrite
        Whether a store that came from other inputs may be replaced.

    Examples
    --------
    >>> import tempfile, scipy.sparse, storage
    >>> path = tempfile.mkdtemp() + "/a.zarr"
    >>> writer = ActivationWriter.create(path, n_tokens=5, n_features=4, shard_rows=3)
    >>> writer.write_shard(1, scipy.sparse.csr_array(np.eye(2, 4)))
    >>> writer.missing()
    [0]
    >>> writer.write_shard(0, np.eye(3, 4), sink=np.array([True, False, False]))
    >>> writer.finalise()
    >>> storage.open_activations(path)["n_active"].values
    array([1, 2, 1, 0])
    """

    path: Path
    n_tokens: int
    n_features: int
    shard_rows: int
    dtype: np.dtype[Any]
    layout: Layout
    session: str = field(default="", compare=False)
    overwrite: bool = field(default=False, compare=False)
    _hold: Hold | None = field(default=None, compare=False, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        """Return what is pickled: a copy in another process writes shards, and holds nothing."""
        return {**self.__dict__, "_hold": None}

    @classmethod
    def create(
        cls,
        path: str | Path,
        *,
        n_tokens: int,
        n_features: int,
        tokens: Mapping[str, ArrayLike] | None = None,
        decoder: ArrayLike | None = None,
        attrs: Mapping[str, Any] | None = None,
        dtype: DTypeLike = "float32",
        layout: Layout = "csr",
        shard_rows: int = DEFAULT_SHARD_ROWS,
        chunk: tuple[int, int] | None = None,
        manifest: Manifest | None = None,
        overwrite: bool = False,
    ) -> ActivationWriter:
        """Begin a store, or go on with one that was begun with the same manifest and shape.

        The writer holds ``PATH.partial.lock`` until it is finished, discarded, or no longer referred to: nobody begins
        the store again in the meantime. Other processes may :meth:`open` it and write shards.

        Parameters
        ----------
        path
            Where the store is to be. A finished store there stays until :meth:`finalise`.
        n_tokens, n_features
            Shape of the store.
        tokens
            Coordinates of the rows, each (token,): ``document``, and optionally ``char_start`` with ``char_end``,
            ``position``, ``token_id`` and ``group``.
        decoder
            (feature, d_model), the dictionary's decoder rows; kept as float32.
        attrs
            Further attributes: model, model_revision, site, dictionary, corpus_hash, kind (post, pre_topk or raw).
        dtype
            float32, float16 or float64.
        layout
            ``csr`` for sparse features, ``dense`` for raw units.
        shard_rows
            Rows that one :meth:`write_shard` takes; best a multiple of the rows of a chunk, or fewer.
        chunk
            Rows and columns of the chunks inside a shard; shrunk where the store is smaller. By default 4,096 × 4,096,
            and 1,024 × 2,048 of dense layout, whose chunks are decoded whole.
        manifest
            What the store is made from. Without one, unfinished work is never resumed but replaced.
        overwrite
            Whether a store that came from other inputs may be replaced. Without a manifest, any store is of that kind.

        Raises
        ------
        InputError
            If an argument is wrong, or something else stands at the path (:mod:`storage.targets`). Nothing is written
            then.
        BusyError
            If another writer is at work there.
        """
        columns = None if tokens is None else check_tokens(tokens, n_tokens)
        rows = None if decoder is None else _check_decoder(decoder, n_features)
        stored_as = _check_dtype(dtype)
        kept_attrs = _check_attrs(attrs or {})
        _check_layout(layout)
        default = DEFAULT_CHUNK if layout == "csr" else DENSE_CHUNK
        shard_rows, chunk = fit_shards(n_tokens, n_features, shard_rows, chunk or default)
        with claim(path, manifest, kind=STORE, overwrite=overwrite) as target:
            writer = cls(target.path, n_tokens, n_features, shard_rows, stored_as, layout, uuid.uuid4().hex, overwrite)
            if writer._resumable(manifest):
                with contextlib.suppress(BusyError):  # it works together with another one of the same manifest
                    return replace(cls.open(target.path), _hold=Hold(target.partial))
                return cls.open(target.path)
            with target.beginning() as folder:
                _create_arrays(writer, folder, chunk, str(kept_attrs.get("kind", "raw")))
                if rows is not None:
                    _put(folder, {"decoder": rows}, ("feature", "d_model"), chunk[1])
                format_attrs = {"schema_version": SCHEMA_VERSION, "layout": layout, "versions": library_versions()}
                begun = {UNFINISHED: {"session": writer.session, "overwrite": overwrite}}
                update_attrs(
                    folder, {**kept_attrs, **format_attrs, **begun, **(manifest.to_attrs() if manifest else {})}
                )
                if columns is not None:
                    write_coordinates(folder, columns)
            return replace(writer, _hold=Hold(target.partial))

    @classmethod
    def open(cls, path: str | Path) -> ActivationWriter:
        """Return the writer of a store that was begun and is not finished.

        Raises
        ------
        MissingInputError
            If there is no unfinished store for `path`.
        """
        partial = partial_path(path)
        if not (partial / "zarr.json").is_file() or "layout" not in read_attrs(partial):
            raise MissingInputError(
                f"There is no unfinished store at {partial}; begin one with ActivationWriter.create"
            )
        return cls.from_disk(Path(path), partial)

    @classmethod
    def from_disk(cls, path: Path, folder: Path) -> ActivationWriter:
        """Return what describes the store of `path` that is in `folder`, finished or not."""
        attrs = read_attrs(folder)
        check_encoding(folder, attrs["layout"])
        shards = read_shards(folder, ACTIVATION)
        dtype = np.dtype(read_metadata(folder / ACTIVATION)["data_type"])
        begun: dict[str, Any] = attrs.get(UNFINISHED, {})
        return cls(path, *shards.shape, shards.shard_rows, dtype, attrs["layout"], **begun)

    @property
    def partial(self) -> Path:
        """Where the work is until it is finished."""
        return partial_path(self.path)

    @property
    def n_shards(self) -> int:
        """How many shards there are."""
        return self._shards.n_shards

    def shard_slice(self, i: int) -> slice:
        """Return the rows of shard `i`."""
        return self._shards.shard_slice(i)

    def missing(self) -> list[int]:
        """Return the numbers of the shards that are still to be written."""
        return self._shards.missing()

    @property
    def _shards(self) -> Shards:
        return Shards(self.partial / ACTIVATION, (self.n_tokens, self.n_features), self.shard_rows)

    def write_shard(self, i: int, data: Any, sink: NDArray[np.bool_] | None = None) -> None:
        """Write shard `i`, whole.

        Parameters
        ----------
        i
            Number of the shard.
        data
            (rows of the shard, feature): SciPy sparse matrix or dense array. It is stored in the layout of the store,
            whichever it is.
        sink
            (rows,) bool, the rows that are attention sinks: they stay out of statistics and correlation.

        Raises
        ------
        InputError
            If the shape is wrong, or a value is masked, NaN, infinite, larger than the store's type or float32 can
            hold, or an integer that the store's type would change; the message names the row and the feature. Nothing
            is written then.
        BusyError
            If another writer has restarted the store.
        """
        self._check_session()
        rows = self.shard_slice(i)
        data = self._checked(data, rows)
        marked = _check_sink(sink, rows.stop - rows.start)
        # The shard comes last: once it is there, the slab counts as done
        zarr.open_array(self.partial / "sink", mode="r+")[rows] = marked
        if self.layout == "csr":
            write_sparse_shard(self.partial, ACTIVATION, i, data)
        else:
            # A shard of zeros must exist too, else it would count as missing
            array = zarr.open_array(self.partial / ACTIVATION, mode="r+")
            array.with_config({"write_empty_chunks": True})[rows] = data

    def _check_session(self) -> None:
        """Raise if the unfinished work is no longer this writer's: rows of two writers must not be mixed."""
        if not (self.partial / ACTIVATION).is_dir():
            if self._hold is not None:
                self._hold.check()  # whoever took its place may have finished by now
            raise MissingInputError(f"There is no unfinished store at {self.partial}")
        if not self._is_mine():
            raise BusyError(f"Another process has restarted {self.path}: this one's rows are not written")

    def _is_mine(self) -> bool:
        return bool(read_attrs(self.partial).get(UNFINISHED, {}).get("session") == self.session)

    def _checked(self, data: Any, rows: slice) -> Any:
        """Return `data` in the store's layout, after checking its shape and every value."""
        expected = (rows.stop - rows.start, self.n_features)
        if not is_sparse_matrix(data):
            data = plain_array(data)
        if data.shape != expected or data.dtype.kind not in "fiub":
            raise InputError(
                f"Rows {rows.start} to {rows.stop} of {self.path} need real numbers of shape {expected}, "
                f"not {data.dtype} of shape {data.shape}"
            )
        if self.layout == "csr":
            csr = canonical(data)
            self._check_values(csr, rows.start)
            return csr
        dense = _dense(data)
        self._check_values(dense, rows.start)
        return dense.astype(self.dtype, copy=False)

    def _check_values(self, data: Any, first_row: int) -> None:
        values = data.data if self.layout == "csr" else data
        if not (bad := ~_fits(values, self.dtype)).any():
            return
        if self.layout == "csr":
            at = int(np.flatnonzero(bad)[0])
            row, feature = int(np.searchsorted(data.indptr, at, side="right")) - 1, int(data.indices[at])
            value = values[at]
        else:
            row, feature = (int(number) for number in np.argwhere(bad)[0])
            value = values[row, feature]
        what = _why_not(value, self.dtype)
        raise InputError(f"Row {first_row + row}, feature {feature} of {self.path} is {value}, which {what}")

    def finalise(self) -> None:
        """Finish the store: statistics and content hash, from one shard at a time, then rename to its path.

        Raises
        ------
        InputError
            If shards are missing; the message lists them.
        """
        manifest = read_manifest(self.partial)
        with claim(self.path, manifest, kind=STORE, overwrite=self.overwrite) as target:
            # A process that died between closing and renaming has left it whole: the claim has finished it
            if target.partial.is_dir() or not target.is_current():
                self._finish(target)
        self._release()

    def _release(self) -> None:
        if self._hold is not None:
            self._hold.release()

    def _finish(self, target: Target) -> None:
        self._check_session()
        if missing := self.missing():
            raise InputError(f"{self.path} cannot be finished: {len(missing)} shards are missing: {_listed(missing)}")
        shards = (read_shard(self, self.partial, i) for i in range(self.n_shards))
        moments, content_hash = survey(self, self.partial, shards)
        _put(self.partial, statistics(moments), DIMS[1:], chunk_shape(self.partial)[1])
        attrs = {CONTENT_HASH: content_hash, "n_sinks": self.n_tokens - moments.n}
        if MANIFEST not in read_attrs(self.partial):
            attrs |= new_manifest(DATA_STAGE, {"data": content_hash}, {}).to_attrs()
        target.finish(attrs, drop=[UNFINISHED])

    def discard(self) -> None:
        """Delete the unfinished work, unless it is another writer's by now."""
        with claim(self.path, read_manifest(self.partial), kind=STORE, overwrite=self.overwrite) as target:
            if target.partial.is_dir() and (is_closed(target.partial) or self._is_mine()):
                target.discard()
        self._release()

    def _resumable(self, manifest: Manifest | None) -> bool:
        if manifest is None or not same_work(self.partial, manifest):
            return False
        return self.from_disk(self.path, self.partial) == self

    def resized(self, n_tokens: int) -> ActivationWriter:
        """Return the writer of the same store with another number of rows, for data of unknown length."""
        for name in (ACTIVATION, "sink"):
            array = zarr.open_array(self.partial / name, mode="r+")
            array.resize((n_tokens, *array.shape[1:]))
        return replace(self, n_tokens=n_tokens)


def _fits(values: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[np.bool_]:
    """Say which values a store of some type can hold: finite, no larger than float32 has them, integers unchanged."""
    if values.dtype.kind in "iu":
        with np.errstate(over="ignore", invalid="ignore"):
            stored = values.astype(dtype)
            return np.isfinite(stored) & (stored.astype(values.dtype) == values)
    if values.dtype.kind == "b":
        return np.ones(values.shape, bool)
    # squares and products of larger ones overflow even as float64
    largest = min(float(np.finfo(kind).max) for kind in (dtype, values.dtype, np.dtype(np.float32)))
    fits: NDArray[np.bool_] = np.abs(values) <= largest
    return fits


def _why_not(value: Any, dtype: np.dtype[Any]) -> str:
    """Say why a value cannot be kept as some type, and what can be done."""
    if not np.isfinite(value):
        return "is not a finite number: leave the row out, or put a number there"
    if abs(float(value)) > float(np.finfo(dtype).max):
        return f"is more than {dtype} can hold: keep it as a larger type (--dtype), or rescale the activations"
    if abs(float(value)) > float(np.finfo(np.float32).max):
        return "is more than float32 can hold, and statistics would overflow: rescale the activations"
    wider = (
        "divide the activations by a power of two" if dtype == np.float64 else "keep it as float64 (--dtype float64)"
    )
    return f"{dtype} would change to {int(dtype.type(value))}: {wider}"


def _listed(numbers: list[int]) -> str:
    shown = ", ".join(str(number) for number in numbers[:20])
    return shown + (", …" if len(numbers) > 20 else "")


def _check_dtype(dtype: DTypeLike) -> np.dtype[Any]:
    stored_as = np.dtype(dtype)
    if stored_as not in (np.float16, np.float32, np.float64):
        raise InputError(f"Activations are kept as float16, float32 or float64, not {stored_as}")
    return stored_as


def _check_layout(layout: str) -> None:
    if layout not in ("csr", "dense"):
        raise InputError(f"The layout of a store is 'csr' or 'dense', not {layout!r}")


def _check_attrs(attrs: Mapping[str, Any]) -> dict[str, Any]:
    if attrs.get("kind", KINDS[0]) not in KINDS:
        raise InputError(f"The kind of activations is one of {', '.join(KINDS)}, not {attrs['kind']!r}")
    plain: dict[str, Any] = json_values(dict(attrs))
    return plain


def _check_decoder(decoder: ArrayLike, n_features: int) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):  # what is too large becomes infinite, and is refused
        rows = np.asarray(decoder, np.float32)
    if rows.ndim != 2 or rows.shape[0] != n_features:
        turned = "; transpose it" if rows.ndim == 2 and rows.shape[1] == n_features else ""
        raise InputError(f"The decoder must have shape ({n_features}, d_model), not {rows.shape}{turned}")
    if not np.isfinite(rows).all():
        raise InputError("The decoder has values that are not finite numbers")
    return rows


def _check_sink(sink: ArrayLike | None, n_rows: int) -> NDArray[np.bool_]:
    if sink is None:
        return np.zeros(n_rows, bool)
    marked = np.asarray(sink)
    if marked.shape != (n_rows,) or marked.dtype != bool:
        raise InputError(f"sink must be {n_rows} booleans, not {marked.dtype} of shape {marked.shape}")
    return marked


def _dense(data: Any) -> NDArray[Any]:
    return data.toarray() if is_sparse_matrix(data) else np.asarray(data)


def _create_arrays(writer: ActivationWriter, folder: Path, chunk: tuple[int, int], kind: str) -> None:
    """Create a group with empty arrays."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    group = zarr.create_group(str(folder), zarr_format=3)
    shape, rows = (writer.n_tokens, writer.n_features), writer.shard_rows
    if writer.layout == "csr":
        create_sparse_array(folder, ACTIVATION, shape, writer.dtype, dims=DIMS, shard_rows=rows, chunk=chunk)
    else:
        # The digits of raw units are noise: zstd saves 8 % of them, and makes reading four times slower
        compressed = kind != "raw"
        _create(group, ACTIVATION, shape, writer.dtype, dims=DIMS, chunk=chunk, shard_rows=rows, compressed=compressed)
    _create(group, "sink", shape[:1], np.dtype(bool), dims=DIMS[:1], chunk=chunk[:1], shard_rows=rows)


def _create(
    group: zarr.Group,
    name: str,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    *,
    dims: tuple[str, ...],
    chunk: tuple[int, ...],
    shard_rows: int | None = None,
    compressed: bool = True,
) -> zarr.Array:
    """Create a dense array with checksums, in shards of so many rows (all rows, if not given)."""
    shards = tuple(-(-length // step) * step for length, step in zip(shape, chunk, strict=True))
    return group.create_array(
        name,
        shape=shape,
        dtype=dtype,
        chunks=chunk,
        shards=(shard_rows or shards[0], *shards[1:]),
        compressors=[*([zarr.codecs.ZstdCodec(level=3)] if compressed else []), zarr.codecs.Crc32cCodec()],
        fill_value=False if np.issubdtype(dtype, np.bool_) else 0,
        dimension_names=dims,
        overwrite=True,
    )


def write_coordinates(folder: Path, columns: Mapping[str, NDArray[Any]]) -> None:
    """Write token coordinates and their hash into an unfinished store."""
    _put(folder, columns, DIMS[:1], chunk_shape(folder)[0])
    hashes = {ROW_HASH: row_hash(columns), TOKEN_HASH: token_hash(columns)}
    update_attrs(folder, {"coordinates": " ".join(columns), **hashes})


def _put(folder: Path, arrays: Mapping[str, NDArray[Any]], dims: tuple[str, ...], chunk_length: int) -> None:
    """Write whole dense arrays, one file each; chunks are those of the activations, so that Dask can align them."""
    group = zarr.open_group(str(folder), mode="r+")
    for name, values in arrays.items():
        array = _create(group, name, values.shape, values.dtype, dims=dims, chunk=(chunk_length, *values.shape[1:]))
        array[...] = values


def check_encoding(path: Path, layout: str) -> None:
    """Raise a FormatError if a program that does not know the codec saved a store, in chunks that cannot be read."""
    metadata = read_metadata(path / ACTIVATION)
    codecs = metadata.get("codecs") or [{}]
    if codecs[0].get("name") == "sharding_indexed" and (inner_chunk(metadata)[1] == CODEC_NAME) == (layout == "csr"):
        return
    raise FormatError(
        f"{path} was saved without the encoding of its chunks, by xarray, say: {KEEP_ENCODING}. Or write it with "
        "storage.write_activations"
    )


def chunk_shape(folder: Path) -> tuple[int, int]:
    """Return rows and columns of the chunks inside the shards of the activations."""
    sharding = read_metadata(folder / ACTIVATION)["codecs"][0]
    rows, columns = sharding["configuration"]["chunk_shape"]
    return rows, columns


def survey(writer: ActivationWriter, folder: Path, shards: Iterable[Any]) -> tuple[FeatureMoments, str]:
    """Return the statistics over the rows that are not sinks, and the hash of the content of the store in `folder`.

    `shards` are the rows of every shard in order, as :func:`read_shard` returns them; one is in memory at a time.
    """
    moments = FeatureMoments(writer.n_features)
    content = _ContentHash(writer, folder)
    sinks = zarr.open_array(folder / "sink", mode="r")
    for i, data in enumerate(shards):
        sink = sinks[writer.shard_slice(i)]
        content.add(data, sink)
        moments.add(data[~sink] if sink.any() else data)
    return moments, content.hexdigest()


def read_shard(writer: ActivationWriter, folder: Path, i: int) -> Any:
    """Return the rows of shard `i` of the store in `folder`, as it keeps them: SciPy CSR or dense."""
    rows = writer.shard_slice(i)
    if writer.layout == "csr":
        return read_csr(folder, rows)
    return zarr.open_array(folder / ACTIVATION, mode="r")[rows]


def hash_of_content(path: Path) -> str:
    """Return the hash of what a finished store holds now, whatever its attributes say.

    It is the content hash, unless what that leaves out was changed, too: statistics, and coordinates that do not
    identify a row. One shard is in memory at a time.
    """
    writer = ActivationWriter.from_disk(path, path)
    shards = (read_shard(writer, path, i) for i in range(writer.n_shards))
    moments, content_hash = survey(writer, path, shards)
    group = zarr.open_group(str(path), mode="r")
    stored = {name: np.asarray(group[name][...]) for name in statistics(moments) if name in group}
    changed = [name for name, values in statistics(moments).items() if not _same(stored.get(name), values)]
    if changed:
        logger.warning(
            "%s: %s are not those of its values, which another program changed: what is shown of them or estimated by "
            "them is not right. Write the store again with storage.write_activations to have them computed",
            path,
            ", ".join(changed),
        )
    more = [f"{name} {stored[name].tobytes().hex() if name in stored else None}" for name in changed]
    if (tokens := token_hash(coordinates(path))) != read_attrs(path).get(TOKEN_HASH):
        more.append(f"{TOKEN_HASH} {tokens}")
    return hashlib.sha256(" ".join([content_hash, *more]).encode()).hexdigest() if more else content_hash


def _same(stored: NDArray[Any] | None, computed: NDArray[Any]) -> bool:
    return stored is not None and np.array_equal(stored, computed, equal_nan=True)


def coordinates(folder: Path) -> dict[str, Any]:
    """Return the token coordinates of a store, as arrays of Zarr."""
    group = zarr.open_group(str(folder), mode="r")
    return {name: group[name] for name in TOKEN_COORDINATES if name in group}


class _ContentHash:
    """SHA-256 of what a store holds: the same for the same content, however it is sharded or compressed."""

    def __init__(self, writer: ActivationWriter, folder: Path) -> None:
        self.streams = {name: hashlib.sha256() for name in ("lengths", "ids", "values", "sink")}
        self.whole = hashlib.sha256(
            repr((writer.layout, str(writer.dtype), writer.n_tokens, writer.n_features)).encode()
        )
        # Attributes may be those of another store: xarray copies them
        columns = coordinates(folder)
        self.whole.update(str(row_hash(columns) if IDENTITY[0] in columns else None).encode())
        if "group" in columns:  # it decides which rows are held out
            self.whole.update(np.asarray(columns["group"], "<i8").tobytes())
        if (folder / "decoder").exists():
            self.whole.update(zarr.open_array(folder / "decoder", mode="r")[...].astype("<f4").tobytes())

    def add(self, data: Any, sink: NDArray[np.bool_]) -> None:
        values = data
        if is_sparse_matrix(data):
            values = data.data
            self.streams["lengths"].update(np.diff(data.indptr).astype("<u4").data)
            self.streams["ids"].update(data.indices.astype("<u4").data)
        self.streams["values"].update(np.ascontiguousarray(values, values.dtype.newbyteorder("<")).data)
        self.streams["sink"].update(sink.tobytes())

    def hexdigest(self) -> str:
        for name in sorted(self.streams):
            self.whole.update(self.streams[name].digest())
        return self.whole.hexdigest()


def statistics(moments: FeatureMoments) -> dict[str, NDArray[Any]]:
    """Return what a store keeps of the moments of its features, by name."""
    values = moments.mean, moments.std, moments.n_active, moments.maximum
    return dict(zip(STATISTICS, values, strict=True))
