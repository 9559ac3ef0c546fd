"""Across a grid of sites: at which layer of B does each feature of A find its match.

If features mean the same at any depth, an A feature should find the same kind of partner at neighbouring B layers, and
the best one at a comparable depth.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from pipeline.settings.experiment import stored_experiment
from storage.errors import InputError
from storage.provenance import RunInputs
from storage.results import open_result
from storage.rundir import RunDirectory, Side

Grid = Mapping[tuple[str, str], xr.Dataset]


def read_grid(run: str | Path) -> dict[tuple[str, str], xr.Dataset]:
    """Open the pairs of all pairs of sites of a run, in the order of the experiment.

    Raises
    ------
    MissingInputError
        If it is not a run directory, or not all pairs are matched yet.
    InputError
        If pairs were made from other results than are there now.
    """
    directory = RunDirectory(Path(run))
    site_pairs = stored_experiment(directory).site_pairs
    inputs = RunInputs(directory, site_pairs)
    if reason := next(filter(None, (inputs.why_not(directory.pairs(*pair)) for pair in site_pairs)), ""):
        raise InputError(f"{directory.root}: {reason}; `subspace run` makes it again")
    return {pair: open_result(directory.pairs(*pair), "match") for pair in site_pairs}


def layer_consistency(grid: Grid, side: Side = "a") -> xr.Dataset:
    """Set the matches of each feature at all sites of the other model side by side.

    Parameters
    ----------
    grid
        (site of A, site of B) → the result of ``match``; every combination must be there.
    side
        Which side's features to follow.

    Returns
    -------
    xarray.Dataset
        Over ``feature`` (coordinates ``site`` and ``id``: all features of all sites of this side) and ``other_site``:
        ``partner`` int32, the matched feature there, −1 if none; ``r`` float64, NaN if none. Of several partners at a
        site it is the one with the highest r, then the lowest id. Over ``feature``: ``best_site`` int32, the position
        in ``other_site`` of the highest r, ties to the first, −1 if unmatched; ``n_sites`` int32, at how many sites it
        is matched.

    Raises
    ------
    InputError
        If a combination is missing.

    Examples
    --------
    >>> pairs = xr.Dataset({"feature_a": ("pair", [1]), "feature_b": ("pair", [4]), "r": ("pair", [0.5])})
    >>> pairs["fate_a"] = "id_a", np.zeros(3, np.int8)
    >>> layer_consistency({("x", "y"): pairs}).partner.values.ravel()
    array([-1,  4, -1], dtype=int32)
    """
    if not grid:
        raise InputError("There are no pairs of sites; give the matched pairs of at least one")
    own, others = (list(dict.fromkeys(key[i] for key in grid)) for i in ((0, 1) if side == "a" else (1, 0)))
    missing = [(one, other) for one in own for other in others if _key(one, other, side) not in grid]
    if missing:
        raise InputError(f"The grid has no pairs for {missing[:5]}; match them too")
    partners, r, site, ids = [], [], [], []
    for one in own:
        found = [best_partners(grid[_key(one, other, side)], side) for other in others]
        partners.append(np.stack([each[0] for each in found], axis=1))
        r.append(np.stack([each[1] for each in found], axis=1))
        site += [one] * len(partners[-1])
        ids.append(np.arange(len(partners[-1]), dtype=np.int32))
    return _dataset(np.concatenate(partners), np.concatenate(r), (site, np.concatenate(ids)), others, side)


def _key(one: str, other: str, side: Side) -> tuple[str, str]:
    return (one, other) if side == "a" else (other, one)


def best_partners(pairs: xr.Dataset, side: Side) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    """Return each feature's partner, −1 if none, and r; of several the one with the highest r, then the lowest id."""
    n = pairs.sizes[f"id_{side}"]
    own, other = (pairs[f"feature_{each}"].values for each in (side, "b" if side == "a" else "a"))
    values = pairs["r"].values
    partner, r = np.full(n, -1, np.int32), np.full(n, np.nan)
    worst_first = np.lexsort((other, -values))[::-1]  # what is written last stays
    partner[own[worst_first]], r[own[worst_first]] = other[worst_first], values[worst_first]
    return partner, r


def _dataset(
    partner: NDArray[np.int32],
    r: NDArray[np.float64],
    rows: tuple[list[str], NDArray[np.int32]],
    others: list[str],
    side: Side,
) -> xr.Dataset:
    matched = partner >= 0
    best = np.where(matched.any(axis=1), np.argmax(np.where(matched, r, -np.inf), axis=1), -1)
    return xr.Dataset(
        {
            "partner": (("feature", "other_site"), partner),
            "r": (("feature", "other_site"), r),
            "best_site": ("feature", best.astype(np.int32)),
            "n_sites": ("feature", np.count_nonzero(matched, axis=1).astype(np.int32)),
        },
        coords={"site": ("feature", rows[0]), "id": ("feature", rows[1]), "other_site": others},
        attrs={"side": side},
    )


def layer_table(consistency: xr.Dataset) -> pd.DataFrame:
    """Return one row for each pair of sites: how many features match there, how many best there, and their mean r.

    Returns
    -------
    pandas.DataFrame
        ``site``, ``other_site``, ``matched``, ``best_here``, ``share_best_here`` (of the site's features that are
        matched anywhere), ``mean_r``.
    """
    sites = consistency["site"].values
    lines: list[dict[str, Any]] = []
    for site in dict.fromkeys(sites.tolist()):
        part = consistency.isel({"feature": np.flatnonzero(sites == site)})
        anywhere = int((part["best_site"].values >= 0).sum())
        for i, other in enumerate(part["other_site"].values.tolist()):
            r = part["r"].values[:, i]
            best = int((part["best_site"].values == i).sum())
            lines.append(
                {
                    "site": site,
                    "other_site": other,
                    "matched": int((~np.isnan(r)).sum()),
                    "best_here": best,
                    "share_best_here": best / anywhere if anywhere else np.nan,
                    "mean_r": float(np.nanmean(r)) if (~np.isnan(r)).any() else np.nan,
                }
            )
    return pd.DataFrame.from_records(lines)
