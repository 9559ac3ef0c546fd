"""Values that are no numbers, or too large to be stored: refused with the place in the text that they come from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from pipeline.settings.harvest import ModelSettings
from storage.codec import is_sparse_matrix
from storage.errors import InputError
from storage.rundir import Side


@dataclass(frozen=True)
class Origin:
    """Where activations come from: the table of rows, the side, and its model."""

    rows_path: str
    side: Side
    model: ModelSettings


def require_finite(tokens: NDArray[np.float32], rows: NDArray[np.int64], site: str, origin: Origin) -> None:
    """Refuse the model's own activations where they are no numbers, as soon as they leave the network.

    `tokens` is float32 (tokens, d_model), `rows` the row of the table that each token belongs to. The message of the
    InputError names site, document and position.
    """
    bad = ~np.isfinite(tokens).all(axis=1)
    if bad.any():
        remedy = (
            "float16 ends at 65,504: set 'dtype: bfloat16' or float32"
            if origin.model.dtype == "float16"
            else ("are the model's weights damaged, or is its dtype too narrow?")
        )
        raise InputError(
            f"{origin.model.id} computes values that are not finite in {origin.model.dtype} at {site}, "
            f"{_place(origin, int(rows[bad][0]))}, and at {int(bad.sum()) - 1} other tokens of the batch; {remedy}"
        )


def require_storable(encoded: Any, rows: NDArray[np.int64], site: str, origin: Origin, dtype: np.dtype[Any]) -> None:
    """Refuse feature activations that the store's type cannot hold: NaN, infinite or too large.

    The message of the InputError names site, document and position.
    """
    sparse = is_sparse_matrix(encoded)
    fits = np.abs(encoded.data if sparse else encoded) <= np.finfo(dtype).max
    if fits.all():
        return
    at = int(np.flatnonzero(~fits.ravel())[0])
    row = int(np.searchsorted(encoded.indptr, at, side="right")) - 1 if sparse else at // encoded.shape[1]
    feature = int(encoded.indices[at]) if sparse else at % encoded.shape[1]
    value = float(encoded.data[at] if sparse else encoded.ravel()[at])
    remedy = "set 'store: {dtype: float32}'" if np.isfinite(value) else "is this the dictionary of another model?"
    where = _place(origin, int(rows[row]))
    raise InputError(f"Feature {feature} of {site} is {value:g} at {where}, which {dtype} cannot hold; {remedy}")


def _place(origin: Origin, row: int) -> str:
    """Say where in the text a row is."""
    table = zarr.open_group(origin.rows_path, mode="r")
    document, start, end, position = (
        int(table[name][row]) for name in ("document", "char_start", "char_end", f"position_{origin.side}")
    )
    return f"document {document}, characters {start} to {end}, position {position} of its window"
