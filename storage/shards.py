"""Where arrays are cut: into shards, which are files, and into slices that fit in memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from storage.errors import InputError


def iter_slices(n: int, step: int, start: int = 0) -> Iterator[slice]:
    """Yield slices of `step` items that cover `start` to `n`; the last may be short.

    >>> list(iter_slices(5, 2))
    [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    return (slice(i, min(i + step, n)) for i in range(start, n, step))


@dataclass(frozen=True)
class Shards:
    """The shards of a two-dimensional array: each is one file of some rows and all columns.

    Attributes
    ----------
    folder
        The array's folder.
    shape
        Of the whole array.
    shard_rows
        Rows of a shard; the last may have fewer.
    """

    folder: Path
    shape: tuple[int, int]
    shard_rows: int

    @property
    def n_shards(self) -> int:
        """How many shards the array has."""
        return -(-self.shape[0] // self.shard_rows)

    def shard_slice(self, i: int) -> slice:
        """Return the rows of shard `i`."""
        if not 0 <= i < self.n_shards:
            raise InputError(f"{self.folder} has shards 0 to {self.n_shards - 1}; shard {i} was asked for")
        return slice(i * self.shard_rows, min((i + 1) * self.shard_rows, self.shape[0]))

    def shard_file(self, i: int) -> Path:
        """Return the file of shard `i`."""
        return self.folder / "c" / str(i) / "0"

    def missing(self) -> list[int]:
        """Return the numbers of the shards that have not been written."""
        return [i for i in range(self.n_shards) if not self.shard_file(i).is_file()]
