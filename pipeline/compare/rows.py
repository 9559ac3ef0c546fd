"""The rows that are compared: decoder rows of the matched features, read from the activation stores."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from storage import open_activations
from storage.errors import InputError

#: Fewer pairs than this have no correlation worth the name.
MIN_PAIRS = 3


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

    def read(self) -> NDArray[np.float64]:
        """Return the rows, float64, shape (pair, d_model); each is read from disk once."""
        ids, places = np.unique(self.features, return_inverse=True)
        with open_activations(self.path) as store:
            return store["decoder"].isel(feature=ids).values.astype(np.float64)[places]


def paired_rows(x: ArrayLike, y: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the two sides as float64, after checking that they can be compared.

    Parameters
    ----------
    x, y
        Paired rows, shapes (n, d_x) and (n, d_y).

    Returns
    -------
    tuple of ndarray of float64
        The two sides.

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
    sides = np.asarray(x, np.float64), np.asarray(y, np.float64)
    shapes = [side.shape for side in sides]
    if any(side.ndim != 2 for side in sides) or shapes[0][0] != shapes[1][0]:
        raise InputError(f"the two sides must be 2-D with one row a pair, not of shapes {shapes[0]} and {shapes[1]}")
    if shapes[0][0] < MIN_PAIRS:
        raise InputError(f"{shapes[0][0]} pairs cannot be compared; at least {MIN_PAIRS} are needed")
    for name, side in zip("xy", sides, strict=True):
        bad = np.flatnonzero(~np.isfinite(side).all(axis=1))
        if len(bad):
            raise InputError(f"row {bad[0]} of {name} is not finite ({len(bad)} such rows); leave those pairs out")
    return sides
