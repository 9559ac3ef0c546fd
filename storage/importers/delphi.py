"""Latents that delphi's ``LatentCache.save_splits`` wrote: the folder of one module, with a file for each split.

A file ``START_END.safetensors`` holds the features START to END: ``locations`` (entry, 3) with sequence, position
and the feature's number within the split, ``activations`` (entry,), and ``tokens`` (sequence, position).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from storage.errors import CorruptError, InputError
from storage.extras import need
from storage.readers import Importer, Source, tensor_in_file, whole_source
from storage.registry import IMPORTERS

#: What the files of a folder are called.
NAMES = r"(\d+)_(\d+)\.safetensors"
#: Entries of a split that are read at once.
BLOCK_ENTRIES = 2**20


def read_delphi(path: Path, key: str | None, drop_tokens: Collection[int]) -> Source:
    """Open all splits of a module; in memory are the tokens, and some entries of each split."""
    if key is not None:
        raise InputError(f"{path} is the folder of one module; leave --key out")
    files = _files(path)
    tokens = _tokens(path, next(iter(files.values())))
    is_row = ~np.isin(tokens.ravel(), list(drop_tokens)) if drop_tokens else np.ones(tokens.size, bool)
    n_features = max(files)[1] + 1
    length = tokens.shape[1]

    def slabs(n_rows: int) -> Iterator[Any]:
        splits = [_Split(file, first, last, tokens.shape) for (first, last), file in files.items()]
        step = max(1, n_rows // length) * length
        for start in range(0, len(is_row), step):
            stop = min(start + step, len(is_row))
            parts = [split.until(stop) for split in splits]
            row, feature, value = (np.concatenate(columns) for columns in zip(*parts, strict=True))
            slab = scipy.sparse.coo_array((value, (row - start, feature)), shape=(stop - start, n_features)).tocsr()
            yield slab[np.flatnonzero(is_row[start:stop])]

    attrs = {"site": path.name, "kind": "post", "context_size": length, "dropped_tokens": sorted(drop_tokens)}
    return Source(int(is_row.sum()), n_features, np.dtype("float32"), slabs, sparse=True, attrs=attrs)


def _files(path: Path) -> dict[tuple[int, int], Path]:
    """Return the files by their first and last feature, which follow each other."""
    found = {file: re.fullmatch(NAMES, file.name) for file in path.iterdir()}
    files = {(int(name[1]), int(name[2])): file for file, name in found.items() if name}
    expected = 0
    for first, last in sorted(files):
        if first != expected or last < first:
            raise InputError(
                f"{path} has no split that begins with feature {expected}; give the folder with all splits"
            )
        expected = last + 1
    return dict(sorted(files.items()))


def _tokens(path: Path, file: Path) -> NDArray[np.integer]:
    with need("safetensors", "models").safe_open(str(file), framework="numpy") as opened:
        if "tokens" not in opened.keys():  # noqa: SIM118 - no mapping
            raise InputError(
                f"{path} does not say how many tokens there are: cache again with save_splits(…, save_tokens=True)"
            )
    return whole_source(file, tensor_in_file(file, "tokens"))


class _Split:
    """The entries of one split, in the order of their rows."""

    def __init__(self, file: Path, first: int, last: int, shape: tuple[int, int]) -> None:
        self.file, self.first, self.n, self.shape = file, first, last - first + 1, shape
        need("safetensors", "models").safe_open(str(file), framework="numpy")  # finds whether it is whole
        locations, values = tensor_in_file(file, "locations"), tensor_in_file(file, "activations", as_column=True)
        if locations.n_features != 3 or locations.n_tokens != values.n_tokens:
            raise CorruptError(
                f"{file} has {locations.n_tokens} locations and {values.n_tokens} activations; cache again"
            )
        self.blocks = zip(locations.slabs(BLOCK_ENTRIES), values.slabs(BLOCK_ENTRIES), strict=True)
        self.waiting = np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32)
        self.last = 0

    def until(self, stop: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
        """Return row, feature and value of the next entries, up to the row `stop`."""
        parts = [self.waiting]
        while not len(parts[-1][0]) or parts[-1][0][-1] < stop:
            block = next(self.blocks, None)
            if block is None:
                break
            parts.append(self._entries(*block))
        row, feature, value = (np.concatenate(column) for column in zip(*parts, strict=True))
        n = int(np.searchsorted(row, stop))
        self.waiting = row[n:], feature[n:], value[n:]
        return row[:n], feature[:n], value[:n]

    def _entries(
        self, locations: NDArray[Any], values: NDArray[Any]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
        sequence, position, feature = locations.astype(np.int64).T
        limits = (*self.shape, self.n)
        largest = [int(column.max(initial=0)) for column in (sequence, position, feature)]
        if any(number >= limit for number, limit in zip(largest, limits, strict=True)):
            raise CorruptError(
                f"{self.file} has sequences, positions and features up to {largest}, of {limits}; cache again"
            )
        row = sequence * self.shape[1] + position
        if (np.diff(row, prepend=self.last) < 0).any():
            raise InputError(f"{self.file} has entries that are not in the order of the text; cache again")
        self.last = int(row[-1]) if len(row) else self.last
        return row, feature + self.first, values[:, 0].astype(np.float32)


IMPORTERS.register(Importer("delphi", read_delphi, names=NAMES, drops_tokens=True))
