"""At which site of the other model does each feature find its best partner? From the results of a grid of sites.

Layers of two models do not correspond by number. For every feature of every site of one model, this takes the best
partner from the result of each site of the other, and keeps the best of these beside the best at another site, the
*runner-up*: where both are alike, the feature has no layer of its own.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from pipeline.settings.correlate import MEASURE_NAMES
from storage import InputError, Manifest, fingerprint, make_result, new_manifest, open_result
from storage.derived import write_derived
from storage.targets import starts_with

logger = logging.getLogger(__name__)

STAGE = "best_layer"
#: Sites of both models, A's first.
SitePair = tuple[str, str]
OTHER = {"a": "b", "b": "a"}
COLUMNS = {
    "site": "site of the other model with the best partner; empty if the feature has none",
    "best": "that partner's id; -1 if there is none",
    "r": "{measure} on the rows used for selection",
    "r_heldout": "{measure} on held-out rows",
    "runner_up_site": "other site with the next best partner; empty if there is none",
    "runner_up_r": "{measure} with that partner, on the rows used for selection",
}


def best_layer(
    correlations: Mapping[SitePair, str | Path], out: str | Path | None = None, *, overwrite: bool = False
) -> xr.Dataset:
    """Find each feature's best site of the other model.

    r on the selection half decides; r on held-out rows is next to it and tells whether it holds. Equal r go to
    the site that comes first. Memory: about 60 bytes a feature of all sites, and the first partners of one result.

    Parameters
    ----------
    correlations
        (site of A, site of B) → path of their correlation result. A pair that was not correlated may be left out.
    out
        Where the result is written, with ``NAME_a.csv`` and ``NAME_b.csv`` beside it; in memory only if absent. A
        current one is left as it is.
    overwrite
        Whether a result at `out` that came from other inputs may be replaced.

    Returns
    -------
    xarray.Dataset
        Over ``unit_a``, every feature of every site of A: ``site_a`` str and ``feature_a`` int32 (which feature),
        ``best_site_b`` str, ``best_b`` int32, ``best_r_a``, ``best_r_heldout_a`` float64, ``runner_up_site_b`` str,
        ``runner_up_r_a`` float64. Over ``unit_b`` the same with the sides exchanged. Undefined features have -1, NaN
        and an empty site.

    Raises
    ------
    InputError
        If there are no results, or they differ in measure, or in the number of features of one site.
    MissingInputError
        If a result is missing.

    Examples
    --------
    >>> import tempfile, storage
    >>> from pipeline.correlate.run import correlate
    >>> folder = tempfile.mkdtemp()
    >>> x = np.random.default_rng(0).random((60, 3), dtype="f4")
    >>> y = {"early": x[::-1], "late": x[:, [2, 0, 1]]}
    >>> storage.write_activations(f"{folder}/a.zarr", x)
    >>> for site, values in y.items():
    ...     storage.write_activations(f"{folder}/{site}.zarr", np.ascontiguousarray(values))
    ...     _ = correlate(f"{folder}/a.zarr", f"{folder}/{site}.zarr", out=f"{folder}/a--{site}.zarr")
    >>> best = best_layer({("a", site): f"{folder}/a--{site}.zarr" for site in y})
    >>> best.best_site_b.values.tolist(), best.best_b.values.tolist()
    (['late', 'late', 'late'], [1, 2, 0])
    """
    if not correlations:
        raise InputError("There are no correlation results to find best sites in; give at least one pair of sites")
    manifest = best_layer_manifest(correlations)

    def make() -> xr.Dataset:
        ds = _best_layer({sites: open_result(path, "correlate") for sites, path in correlations.items()})
        if out is not None:  # before the result, since that says that all of it is there
            for side, file in table_paths(Path(out)).items():
                _write_csv(ds, side, file)
        return ds

    result = make_result(out, manifest, make, overwrite=overwrite)
    for side, file in table_paths(Path(out)).items() if out is not None else ():
        if not file.exists():  # somebody has deleted it
            _write_csv(result, side, file)
    return result


def table_paths(out: Path) -> dict[str, Path]:
    """Return where the tables of A and B are that belong to the result at `out`."""
    return {side: out.with_name(f"{out.stem}_{side}.csv") for side in "ab"}


def best_layer_manifest(
    correlations: Mapping[SitePair, str | Path], identify: Callable[[str | Path], str] = fingerprint
) -> Manifest:
    """Return what the best layers depend on; `identify` returns the fingerprint of what is, or will be, at a path."""
    hashes = {f"{a}--{b}": identify(path) for (a, b), path in correlations.items()}
    return new_manifest(STAGE, hashes, {"sites": [list(sites) for sites in correlations]})


def _best_layer(results: Mapping[SitePair, xr.Dataset]) -> xr.Dataset:
    measures = {str(ds.attrs.get("measure", "pearson")) for ds in results.values()}
    if len(measures) > 1:
        raise InputError(
            f"The results are of different measures ({', '.join(sorted(measures))}); compare like with like"
        )
    measure: Any = measures.pop()
    variables: dict[str, Any] = {}
    for side in "ab":
        parts = [_of_site(results, side, site) for site in dict.fromkeys(sites["ab".index(side)] for sites in results)]
        for name in parts[0]:
            values = np.concatenate([part[name] for part in parts])
            label = COLUMNS.get(_key(name), "").format(measure=MEASURE_NAMES[measure])
            variables[name] = xr.Variable(f"unit_{side}", values, {"long_name": label} if label else {})
    return xr.Dataset(variables, attrs={"measure": measure, "sites": [list(sites) for sites in results]})


def _key(name: str) -> str:
    """Return the entry of ``COLUMNS`` that a variable has.

    >>> _key("best_r_heldout_a"), _key("best_site_b"), _key("best_b"), _key("site_a")
    ('r_heldout', 'site', 'best', '')
    """
    stem = name.rpartition("_")[0]
    return stem if stem in ("best", "runner_up_site", "runner_up_r") else stem.removeprefix("best_") * ("best_" in stem)


def _of_site(results: Mapping[SitePair, xr.Dataset], side: str, site: str) -> dict[str, NDArray[Any]]:
    """Return what is known of the features of one site, by the names of the variables."""
    other, place = OTHER[side], "ab".index(side)
    columns = {sites[1 - place]: _first_partners(ds, other) for sites, ds in results.items() if sites[place] == site}
    lengths = {len(ids) for ids, _, _ in columns.values()}
    if len(lengths) > 1:
        raise InputError(
            f"The results of site {site!r} of {side.upper()} have {sorted(lengths)} features; all must agree"
        )
    ids, r, held_out = (np.stack(part) for part in zip(*columns.values(), strict=True))
    sites = np.array([*columns, ""], dtype=object)
    first = np.argmax(r, axis=0)
    rest = r.copy()
    units = np.arange(r.shape[1])
    rest[first, units] = -np.inf
    second = np.argmax(rest, axis=0)
    best, next_best = r[first, units], rest[second, units]
    has_best, has_next = np.isfinite(best), np.isfinite(next_best)
    return {
        f"site_{side}": np.full(len(units), site, dtype=object),
        f"feature_{side}": units.astype(np.int32),
        f"best_site_{other}": sites[np.where(has_best, first, -1)],
        f"best_{other}": np.where(has_best, ids[first, units], -1).astype(np.int32),
        f"best_r_{side}": np.where(has_best, best, np.nan),
        f"best_r_heldout_{side}": np.where(has_best, held_out[first, units], np.nan),
        f"runner_up_site_{other}": sites[np.where(has_next, second, -1)],
        f"runner_up_r_{side}": np.where(has_next, next_best, np.nan),
    }


def _first_partners(ds: xr.Dataset, other: str) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Return id, r (-inf where there is none) and held-out r of each feature's best partner in one result."""
    names = (f"best_{other}", f"r_{other}", f"r_heldout_{other}")
    ids, r = (ds[name].isel(rank=0).values for name in names[:2])
    held_out = ds[names[2]].isel(rank=0).values if names[2] in ds else np.full(len(r), np.nan)
    return ids, np.where(ids >= 0, r, -np.inf), held_out


def _write_csv(ds: xr.Dataset, side: str, file: Path) -> None:
    """Write one side's table."""
    other = OTHER[side]
    names = [f"site_{side}", f"feature_{side}", f"best_site_{other}", f"best_{other}", f"best_r_{side}"]
    names += [f"best_r_heldout_{side}", f"runner_up_site_{other}", f"runner_up_r_{side}"]
    text = pd.DataFrame({name: ds[name].values for name in names}).to_csv(index=False)
    write_derived(file, text, starts_with(",".join(names)))
