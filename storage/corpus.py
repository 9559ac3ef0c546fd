"""The text that both models read: all documents as UTF-8 bytes, and where each begins.

>>> import tempfile
>>> corpus = write_corpus(tempfile.mkdtemp() + "/corpus.zarr", ["one", "zwei €", ""])
>>> len(corpus), corpus.text(1), corpus.texts(0, 3), corpus.name(2)
(3, 'zwei €', ['one', 'zwei €', ''], '2')
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import zarr
import zarr.codecs
from numpy.typing import NDArray

from storage.errors import FormatError, InputError
from storage.files import local_path
from storage.manifest import CONTENT_HASH, Manifest, json_values, new_manifest
from storage.results import read_finished_attrs
from storage.rows import group_number
from storage.targets import CORPUS, claim

SCHEMA_VERSION = 1
CHUNK_BYTES = 4 * 2**20
CHUNK_OFFSETS = 262_144

#: Of what a corpus has for each document, the array that says where each one's bytes begin.
OFFSETS = {"text": "offsets", "name": "name_offsets", "group": "group_offsets"}

#: Documents that are read at a time, where texts are wanted one after the other.
BLOCK_DOCUMENTS = 256


@dataclass(frozen=True)
class Corpus:
    """Documents on disk, read by number. Can be pickled and used from several threads.

    Attributes
    ----------
    path
        Where it is.
    hash
        SHA-256 of the texts and groups (names are not part of it).
    attrs
        Attributes that were given when it was written, and those that were added.
    """

    path: Path
    hash: str
    attrs: dict[str, Any] = field(compare=False, repr=False)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @cached_property
    def offsets(self) -> NDArray[np.int64]:
        """Where each document's bytes begin, and the end of the last; (document + 1,)."""
        return np.asarray(zarr.open_array(str(self.path / "offsets"), mode="r")[...])

    def text(self, i: int) -> str:
        """Return document `i`."""
        return self.texts(i, i + 1)[0]

    def texts(self, start: int, stop: int) -> list[str]:
        """Return documents `start` to `stop`, in one read."""
        if not 0 <= start <= stop <= len(self):
            raise InputError(f"{self.path} has documents 0 to {len(self) - 1}; {start} to {stop - 1} were asked for")
        return _read_strings(self.path, "text", self.offsets[start : stop + 1])

    def iter_texts(self, documents: Iterable[int]) -> Iterator[str]:
        """Yield the text of each of some documents, which ascend; one may come several times in a row.

        :data:`BLOCK_DOCUMENTS` documents are read, and held, at a time.
        """
        first, block = 0, list[str]()
        for number in documents:
            if not first <= number < first + len(block):
                first, block = number, self.texts(number, min(number + BLOCK_DOCUMENTS, len(self)))
            yield block[number - first]

    def name(self, i: int) -> str:
        """Return the name of document `i`; its number, if it was given none."""
        if not 0 <= i < len(self):
            raise InputError(f"{self.path} has documents 0 to {len(self) - 1}; {i} was asked for")
        if not (self.path / "name_offsets").exists():
            return str(i)
        offsets = zarr.open_array(str(self.path / "name_offsets"), mode="r")[i : i + 2]
        return _read_strings(self.path, "name", np.asarray(offsets))[0]

    @property
    def has_groups(self) -> bool:
        """Whether documents are in groups."""
        return (self.path / "group_offsets").exists()

    def groups(self, start: int, stop: int) -> list[str]:
        """Return the groups of documents `start` to `stop`, if they are in groups."""
        offsets = zarr.open_array(str(self.path / "group_offsets"), mode="r")[start : stop + 1]
        return _read_strings(self.path, "group", np.asarray(offsets))

    def group_numbers(self) -> NDArray[np.int64]:
        """Return the number of each document's group (:func:`storage.rows.group_number`); (document,)."""
        starts = range(0, len(self), BLOCK_DOCUMENTS)
        names = (name for start in starts for name in self.groups(start, min(start + BLOCK_DOCUMENTS, len(self))))
        return np.fromiter(map(group_number, names), np.int64, len(self))

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "offsets"}


def _read_strings(path: Path, name: str, offsets: NDArray[np.int64]) -> list[str]:
    """Return the strings between consecutive offsets."""
    if len(offsets) < 2:
        return []
    first = int(offsets[0])
    data = np.asarray(zarr.open_array(str(path / name), mode="r")[first : int(offsets[-1])]).tobytes()
    bounds = (offsets - first).tolist()
    return [data[a:b].decode() for a, b in itertools.pairwise(bounds)]


def write_corpus(
    path: str | Path,
    texts: Iterable[str],
    *,
    names: Iterable[str] | None = None,
    groups: Iterable[str] | None = None,
    attrs: Mapping[str, Any] | None = None,
    manifest: Manifest | None = None,
    overwrite: bool = False,
) -> Corpus:
    """Write documents as they come, a few megabytes in memory at a time.

    Parameters
    ----------
    path
        Where the corpus is to be.
    texts
        The documents, kept to the last character. A document may be empty, but not all.
    names
        A name for every document.
    groups
        The group of every document: documents of one group are never split between the halves of a correlation.
    attrs
        Further attributes.
    manifest
        What it was made from.
    overwrite
        Whether a corpus that came from other inputs may be replaced; without a manifest, any is of that kind.

    Returns
    -------
    Corpus

    Raises
    ------
    InputError
        If there is no text at all, a document is no string or cannot be encoded as UTF-8, or the numbers of texts,
        names and groups differ, or something else stands at the path (:mod:`storage.targets`). Nothing is left behind
        then.
    BusyError
        If another process is writing there.
    """
    for name, strings in {"texts": texts, "names": names, "groups": groups}.items():
        if isinstance(strings, str):  # which is an iterable of its letters
            raise InputError(f"{name} must hold a string for every document, and is one string: give a list")
    with claim(path, manifest, kind=CORPUS, overwrite=overwrite) as target, target.building() as folder:
        group = zarr.create_group(str(folder), zarr_format=3, attributes=json_values(dict(attrs or {})))
        content_hash = _write_documents(group, path, {"text": texts, "name": names, "group": groups})
        manifest = manifest or new_manifest(CORPUS, {"text": content_hash}, {})
        own_attrs = {"format": CORPUS, "schema_version": SCHEMA_VERSION, CONTENT_HASH: content_hash}
        target.replace(folder, {**own_attrs, **manifest.to_attrs()})
    return open_corpus(path)


def _write_documents(group: zarr.Group, path: str | Path, columns: Mapping[str, Iterable[str] | None]) -> str:
    """Write the columns that are given; return the content hash."""
    given = {name: column for name, column in columns.items() if column is not None}
    writers = {name: _StringWriter(group, name, OFFSETS[name]) for name in given}
    try:
        for document in zip(*given.values(), strict=True):
            for writer, string in zip(writers.values(), document, strict=True):
                writer.add(string)
    except ValueError as error:
        if isinstance(error, InputError) or "zip()" not in str(error):
            raise
        raise InputError(
            f"{path} needs one name for every text, and one group if there are groups; their numbers differ ({error})"
        ) from error
    if not writers["text"].n_bytes:
        n_documents = writers["text"].n_strings
        raise InputError(f"There is no text to write to {path}: {n_documents} documents, no characters")
    hashes = {name: writer.close() for name, writer in writers.items()}
    return _content_hash(hashes["text"], hashes.get("group"))


def _content_hash(text: str, group: str | None) -> str:
    """Return the hash of a corpus from those of its texts and its groups."""
    return text if group is None else hashlib.sha256(f"{text} {group}".encode()).hexdigest()


class _StringWriter:
    """Appends strings to a byte array and an offset array, in whole chunks."""

    def __init__(self, group: zarr.Group, name: str, offsets_name: str) -> None:
        self.name = name
        self.bytes = _growing(group, name, "uint8", (f"{name}_byte",), CHUNK_BYTES)
        self.offsets = _growing(group, offsets_name, "int64", (f"{name}_bound",), CHUNK_OFFSETS)
        self.hash = hashlib.sha256()
        self.waiting: list[bytes] = []
        self.n_waiting = 0
        self.bounds = [0]
        self.n_bytes = 0
        self.n_strings = 0

    def add(self, string: str) -> None:
        if not isinstance(string, str):
            raise InputError(f"{self.name} {self.n_strings} is {type(string).__name__}, not a string")
        try:
            data = string.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"{self.name} {self.n_strings} cannot be written as UTF-8: {error}") from error
        self.hash.update(len(data).to_bytes(8, "little") + data)
        self.waiting.append(data)
        self.n_waiting += len(data)
        self.n_bytes += len(data)
        self.n_strings += 1
        self.bounds.append(self.n_bytes)
        if self.n_waiting >= CHUNK_BYTES or len(self.bounds) >= CHUNK_OFFSETS:
            self._flush(whole_chunks=True)

    def _flush(self, *, whole_chunks: bool) -> None:
        """Append what waits; only whole chunks while more is to come, so that none is written twice."""
        data = b"".join(self.waiting)
        n_bytes = len(data) - len(data) % CHUNK_BYTES if whole_chunks else len(data)
        n_bounds = len(self.bounds) - len(self.bounds) % CHUNK_OFFSETS if whole_chunks else len(self.bounds)
        _append(self.bytes, np.frombuffer(data, np.uint8, n_bytes))
        _append(self.offsets, np.array(self.bounds[:n_bounds], np.int64))
        self.waiting, self.n_waiting = [data[n_bytes:]], len(data) - n_bytes
        self.bounds = self.bounds[n_bounds:]

    def close(self) -> str:
        self._flush(whole_chunks=False)
        return self.hash.hexdigest()


def _growing(group: zarr.Group, name: str, dtype: str, dims: tuple[str], chunk: int) -> zarr.Array:
    return group.create_array(
        name,
        shape=(0,),
        dtype=dtype,
        chunks=(chunk,),
        compressors=[zarr.codecs.ZstdCodec(level=3), zarr.codecs.Crc32cCodec()],
        fill_value=0,
        dimension_names=dims,
    )


def _append(array: zarr.Array, values: NDArray[Any]) -> None:
    if len(values):
        array.append(values)


def hash_of_text(path: Path) -> str:
    """Return the hash of the text and groups that a corpus holds now; some documents are in memory at a time."""
    corpus = Corpus(path, "", {})
    starts = range(0, len(corpus), BLOCK_DOCUMENTS)
    groups = (corpus.groups(start, min(start + BLOCK_DOCUMENTS, len(corpus))) for start in starts)
    group = _hash_of_strings(itertools.chain.from_iterable(groups)) if corpus.has_groups else None
    return _content_hash(_hash_of_strings(corpus.iter_texts(range(len(corpus)))), group)


def _hash_of_strings(strings: Iterable[str]) -> str:
    sha = hashlib.sha256()
    for string in strings:
        data = string.encode()
        sha.update(len(data).to_bytes(8, "little") + data)
    return sha.hexdigest()


def open_corpus(path: str | Path) -> Corpus:
    """Open a corpus.

    Raises
    ------
    MissingInputError
        If there is none, or only an unfinished one.
    FormatError
        If it is no corpus, or of another version of the format.
    """
    attrs = read_finished_attrs(path)
    if attrs.get("format") != CORPUS or attrs.get("schema_version") != SCHEMA_VERSION:
        raise FormatError(
            f"{path} is not a corpus of version {SCHEMA_VERSION} (format {attrs.get('format')!r}, "
            f"version {attrs.get('schema_version')!r}); build it again"
        )
    return Corpus(local_path(path), attrs[CONTENT_HASH], attrs)
