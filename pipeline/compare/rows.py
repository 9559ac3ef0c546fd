"""The rows that are compared: decoder rows of the matched features, read from the stores, or arrays."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import xarray as xr
from distributed import Client, Future
from numpy.typing import ArrayLike, NDArray

from pipeline.work.pairs import feature_ids
from storage import open_activations, open_result
from storage.errors import InputError

#: Fewer pairs than this have no correlation worth the name.
MIN_PAIRS = 3


class RowSource(Protocol):
    """Where one side's rows come from."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows, and the length of one."""

    def on(self, client: Client) -> Future:
        """Return the rows as a future on `client`, of shape :attr:`shape`."""


@dataclass(frozen=True)
class DecoderRows:
    """Decoder rows of some features of a store, as a recipe that travels to workers instead of the rows.

    Attributes
    ----------
    path
        The activation store.
    features
        Feature ids, shape (pair,); one may occur several times.
    d_model
        Length of a row.
    """

    path: str
    features: NDArray[np.int32]
    d_model: int

    @classmethod
    def of(cls, path: str | Path) -> DecoderRows:
        """Return the recipe of all decoder rows of a store.

        Raises
        ------
        InputError
            If it has none.
        """
        with open_activations(path) as store:
            if "decoder" in store:
                return cls(str(path), np.arange(store.sizes["feature"], dtype=np.int32), store.sizes["d_model"])
        raise InputError(
            f"{path} has no decoder rows, which the metrics compare. Import or write the store again with them "
            "(subspace import … --decoder W_dec.npy; decoder=…), or harvest it with a dictionary. Without one, "
            "`subspace compare-activations` compares the activations themselves"
        )

    @property
    def shape(self) -> tuple[int, int]:
        """Rows, and the length of one."""
        return len(self.features), self.d_model

    def read(self) -> NDArray[np.floating]:
        """Return the rows as they are stored, shape (pair, d_model); each is read from disk once."""
        ids, places = np.unique(self.features, return_inverse=True)
        with open_activations(self.path) as store:
            return store["decoder"].isel(feature=ids).values[places]

    def on(self, client: Client) -> Future:
        """Have a worker read the rows."""
        return client.submit(self.read, pure=False, key=f"compare-read-{uuid.uuid4().hex}")


@dataclass(frozen=True)
class ArrayRows:
    """Rows that are in memory."""

    rows: NDArray[np.floating]

    @property
    def shape(self) -> tuple[int, int]:
        """Rows, and the length of one."""
        n, d = self.rows.shape
        return n, d

    def on(self, client: Client) -> Future:
        """Send the rows to a worker."""
        return client.scatter(self.rows, hash=False)


def open_pairs(pairs: xr.Dataset | str | Path) -> xr.Dataset:
    """Return matched pairs, which may be given by their path."""
    return pairs if isinstance(pairs, xr.Dataset) else open_result(pairs, "match")


def matched_features(pairs: xr.Dataset, side: str, path: str | Path, n_features: int) -> NDArray[np.int32]:
    """Return the features of one side of the pairs, after checking that a store of so many features is theirs."""
    features = feature_ids(pairs, side)
    n_needed = max(pairs.sizes.get(f"id_{side}", n_features), int(features.max(initial=-1)) + 1)
    if n_needed != n_features:
        raise InputError(
            f"{path} has {n_features} features, but side {side.upper()} of the pairs has {n_needed}: give the stores "
            "that were correlated, A first"
        )
    return features


def paired_rows(x: ArrayLike, y: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the two sides as float64, shapes (n, d_x) and (n, d_y), after checking that they can be compared.

    Raises
    ------
    InputError
        If the two sides differ in rows, have fewer than 3, or hold NaN or infinity.

    Examples
    --------
    >>> paired_rows(np.ones((3, 2)), np.ones((4, 2)))
    Traceback (most recent call last):
    storage.errors.InputError: the two sides must be 2-D with one row a pair, not of shapes (3, 2) and (4, 2)
    """
    sides = checked_sides(x, y)
    if len(sides[0]) < MIN_PAIRS:
        raise InputError(f"{len(sides[0])} pairs cannot be compared; at least {MIN_PAIRS} are needed")
    return sides


def checked_sides(x: ArrayLike, y: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the two sides as float64, however few the pairs are; else as :func:`paired_rows`.

    Examples
    --------
    >>> [side.shape for side in checked_sides(np.ones((1, 2)), np.ones((1, 5)))]
    [(1, 2), (1, 5)]
    """
    sides = np.asarray(x, np.float64), np.asarray(y, np.float64)
    shapes = [side.shape for side in sides]
    if any(side.ndim != 2 for side in sides) or shapes[0][0] != shapes[1][0]:
        raise InputError(f"the two sides must be 2-D with one row a pair, not of shapes {shapes[0]} and {shapes[1]}")
    for name, side in zip("xy", sides, strict=True):
        bad = np.flatnonzero(~np.isfinite(side).all(axis=1))
        if len(bad):
            raise InputError(f"row {bad[0]} of {name} is not finite ({len(bad)} such rows); leave those pairs out")
    return sides
