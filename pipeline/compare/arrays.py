"""The same comparison of rows that are in memory, without stores."""

from __future__ import annotations

import numpy as np
import xarray as xr
from distributed import Client
from numpy.typing import ArrayLike

from pipeline.compare.engine import Bank, score_pairs
from pipeline.compare.nulls import Null
from pipeline.compare.rows import ArrayRows, checked_sides
from pipeline.settings.base import keywords
from pipeline.settings.compare import CompareSettings
from pipeline.settings.registries import NULLS
from storage.errors import InputError


@keywords(CompareSettings)
def compare_rows(
    x: ArrayLike,
    y: ArrayLike,
    settings: CompareSettings,
    *,
    features: tuple[ArrayLike, ArrayLike] | None = None,
    pool: tuple[ArrayLike, ArrayLike] | None = None,
    control: tuple[ArrayLike | None, ArrayLike | None] | None = None,
    ids: ArrayLike | None = None,
    client: Client | None = None,
) -> xr.Dataset:
    """Score how alike two sides of paired rows are, each score beside its nulls.

    This is :func:`pipeline.compare` for rows of any origin: decoder rows, mean activations, embeddings.

    Parameters
    ----------
    x, y
        Paired rows, shapes (n, d_x) and (n, d_y).
    settings
        Each setting of :class:`~pipeline.settings.compare.CompareSettings` is a keyword; or all of them as one.
    features
        All rows of either side, for the null ``random_features``; shapes (N_x, d_x) and (N_y, d_y).
    pool
        Paired rows of which `x` and `y` are a part, for the null ``random_pairs``; shapes (N, d_x) and (N, d_y).
    control
        Rows that stand for either side's own in the null ``random_dictionary``; None for a side that keeps its rows.
    ids
        A number for each row of `x`, shape (n,), no two the same: what the same numbers are paired with elsewhere is
        shuffled alike in the same run, for ``p_max`` of :func:`pipeline.compare.score_grid.score_grid`.
    client
        Where the tasks run; threads of this process by default.

    Returns
    -------
    xarray.Dataset
        As :func:`pipeline.compare` returns it.

    Raises
    ------
    InputError
        If the sides differ in rows or hold NaN or infinity, a metric or null is unknown, a null lacks what it is drawn
        from, or a metric fails in runs of a null.
    BudgetError
        If the rows are too many for the memory; before anything is computed.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> x = rng.normal(size=(40, 4))
    >>> y = x @ rng.normal(size=(4, 6))
    >>> scores = compare_rows(x, y, metrics=["svcca"], nulls=["shuffled", "random_features"],
    ...                       features=(rng.normal(size=(99, 4)), rng.normal(size=(99, 6))), null_runs=19)
    >>> round(float(scores.score.sel(metric="svcca")), 6), scores.p.sel(metric="svcca").values.tolist()
    (1.0, [0.05, 0.05])
    """
    a, b = map(ArrayRows, checked_sides(x, y))
    given = {"features": features, "pool": pool, "control": control}
    drawing = [null for null in map(NULLS.__getitem__, settings.nulls) if null.source in given]
    banks = {null.name: _bank(null, given[null.source], (a, b)) for null in drawing}
    numbers = None if ids is None else np.asarray(ids, np.int64)
    if numbers is not None and (numbers.shape != (len(a.rows),) or len(np.unique(numbers)) < len(a.rows)):
        raise InputError(f"ids must be {len(a.rows)} different numbers, one for each row of x")
    return score_pairs((a, b), banks, settings, client, ids=numbers)


def _bank(
    null: Null, given: tuple[ArrayLike | None, ArrayLike | None] | None, sides: tuple[ArrayRows, ArrayRows]
) -> Bank:
    """Return what a null is drawn from, after checking that it belongs to the sides."""
    if given is None or (given[0] is None and given[1] is None):
        raise InputError(f"the null {null.name} needs {null.source}=(rows of A, rows of B), or leave it out")
    rows = [None if side is None else ArrayRows(np.asarray(side, np.float64)) for side in given]
    for name, own, side in zip("AB", sides, rows, strict=True):
        if side is not None and (side.rows.ndim != 2 or side.shape[1] != own.shape[1]):
            raise InputError(
                f"{null.source} of side {name} must have rows of {own.shape[1]} dimensions, not shape {side.rows.shape}"
            )
    bank = Bank(*rows)
    if null.source == "pool" and len(set(bank.sizes())) > 1:
        raise InputError(f"pool must hold as many rows of A as of B, not {bank.sizes()}")
    return bank
