"""Pairs of features, which users may have changed by hand before a stage reads them."""

from __future__ import annotations

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from storage.errors import InputError


def feature_ids(pairs: xr.Dataset, side: str) -> NDArray[np.int32]:
    """Return the features of one side of pairs, int32 (pair,), after checking that they are numbers of features.

    Raises
    ------
    InputError
        If one is negative, missing or no whole number, as in a dataset that was changed by hand.

    Examples
    --------
    >>> feature_ids(xr.Dataset({"feature_a": ("pair", [3.0, 1.0])}), "a")
    array([3, 1], dtype=int32)
    """
    values = pairs[f"feature_{side}"].values
    if values.dtype.kind in "iuf":
        wrong = np.flatnonzero(~((values >= 0) & (values < 2**31) & (np.floor(values) == values)))
        if not len(wrong):
            return values.astype(np.int32)
    else:
        wrong = np.zeros(1, int)
    shown = f"{values[wrong[0]]!s} in pair {wrong[0]}" if len(values) else f"none, of type {values.dtype}"
    raise InputError(
        f"{pairs.encoding.get('source', 'The pairs')}: feature_{side} must be numbers of features, not {shown}: "
        "take the pairs as `match` wrote them"
    )
