"""The stage: from a correlation result on disk to matched pairs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from pipeline.config import MEASURE_NAMES
from pipeline.match.assignment import optimal
from pipeline.match.edges import Edges, lookup, ranks, read_edges
from pipeline.match.filters import FATE_MEANINGS, Fate, count_fates, fates
from pipeline.match.greedy import best, best_of_b, greedy, mutual, unique
from storage import check_same_kind, fingerprint, is_current, new_manifest, open_result, read_manifest, write_result
from storage.errors import InputError

logger = logging.getLogger(__name__)

STAGE = "match"

#: What chooses pairs: edges in, positions of the chosen ones out, highest r first.
Method = Callable[[Edges], NDArray[np.int64]]

METHODS: Mapping[str, Method] = {
    "best": best,
    "best_of_b": best_of_b,
    "mutual": mutual,
    "unique": unique,
    "greedy": greedy,
    "optimal": optimal,
}

#: Attributes of the correlation result that its pairs keep.
INHERITED = (
    *(f"{name}_{side}" for name in ("model", "site", "dictionary", "kind") for side in "ab"),
    "row_hash",
    "select",
    "measure",
    "keep_above",
    "n_rows_select",
    "n_rows_heldout",
)


def match(
    cor: xr.Dataset | str | Path,
    method: str = "greedy",
    min_correlation: float = 0.1,
    out: str | Path | None = None,
) -> xr.Dataset:
    """Choose pairs of features from a correlation result.

    Exact without the correlation matrix: a pair below the minimum r may not be matched, so the kept pairs are the
    whole problem.

    Parameters
    ----------
    cor
        The correlation result, or its path.
    method
        ``best``: each A feature's best B feature, which may serve many (many to one); ``best_of_b``: the other way
        round; ``mutual``: each other's best; ``unique``: of ``best``, each B feature's best pair only; ``greedy``:
        one to one, globally best-first; ``optimal``: one to one with the highest total r.
    min_correlation
        Lowest r of a pair, inclusive; not below the ``keep_above`` of the correlation.
    out
        Where the result is written; a current one is left as it is. In memory only if absent.

    Returns
    -------
    xarray.Dataset
        Over ``pair``, from the highest r down and then by ids: ``feature_a``, ``feature_b`` int32; ``r`` float64 on
        the rows that chose; ``r_heldout`` float64 on the others, NaN if there are none; ``rank_b`` int32, the place
        of the B feature in the A feature's list, best 0; ``rank_a`` the other way round. ``fate_a(id_a)`` and
        ``fate_b(id_b)`` int8 say of every feature, dead ones included, why it is or is not in a pair.

    Raises
    ------
    InputError
        If the method is unknown, the minimum is below what was kept, or `cor` is a dataset without a path.
    MissingInputError
        If there is no finished result at the path.
    FormatError
        If it is the result of another stage.

    Examples
    --------
    >>> import tempfile, storage
    >>> from pipeline.correlate.run import correlate
    >>> folder = Path(tempfile.mkdtemp())
    >>> rng = np.random.default_rng(0)
    >>> x = rng.exponential(size=(300, 4)) * (rng.random((300, 4)) < 0.3)
    >>> storage.write_activations(folder / "a.zarr", x)
    >>> storage.write_activations(folder / "b.zarr", x[:, [2, 0, 3, 1]])
    >>> correlation = correlate(folder / "a.zarr", folder / "b.zarr", out=folder / "correlation.zarr")
    >>> pairs = match(correlation, "greedy", 0.2)
    >>> dict(zip(pairs.feature_a.values.tolist(), pairs.feature_b.values.tolist()))
    {0: 1, 1: 3, 2: 0, 3: 2}
    """
    path = _path_of(cor)
    correlation = open_result(path, "correlate")
    _check(method, min_correlation, correlation)
    check_same_kind(correlation.attrs.get("kind_a"), correlation.attrs.get("kind_b"))
    settings = {"method": method, "min_correlation": float(min_correlation)}
    manifest = new_manifest(STAGE, {"correlation": fingerprint(path)}, settings)
    if out is not None and is_current(out, manifest):
        logger.info("%s is up to date", out)
        return open_result(out, STAGE)
    pairs = _match(path, correlation, method, float(min_correlation))
    logger.info("%d pairs by %s with r ≥ %g, mean r %s", pairs.n_pairs, method, min_correlation, pairs.mean_r)
    if out is None:
        return pairs.assign_attrs(manifest.to_attrs())
    write_result(pairs, out, manifest)
    return open_result(out, STAGE)


def _path_of(cor: xr.Dataset | str | Path) -> str:
    if not isinstance(cor, xr.Dataset):
        return str(cor)
    if "source" not in cor.encoding:
        raise InputError("This correlation dataset does not know its path on disk; give the path of the result instead")
    return str(cor.encoding["source"])


def _check(method: str, minimum: float, correlation: xr.Dataset) -> None:
    if method not in METHODS:
        raise InputError(f"No matching method {method!r}; there are {', '.join(METHODS)}")
    kept = float(correlation.attrs["keep_above"])
    if not minimum <= 1:  # also true of NaN
        raise InputError(f"min_correlation is {minimum}, but no r exceeds 1; give a value from {kept} to 1")
    if minimum < kept:
        raise InputError(
            f"min_correlation is {minimum}, but only pairs with r ≥ {kept} were kept; correlate again with "
            f"keep_above={minimum} (subspace correlate … --keep-above {minimum}), or raise min_correlation"
        )


def _match(path: str, correlation: xr.Dataset, method: str, minimum: float) -> xr.Dataset:
    edges = read_edges(path, correlation, minimum)
    chosen = METHODS[method](edges)
    pairs = xr.Dataset({**_columns(path, correlation, edges, chosen), **_fates(correlation, edges, chosen)})
    settings = {"method": method, "min_correlation": minimum, "n_candidates": len(edges)}
    return pairs.assign_attrs({**_inherited(path, correlation), **settings, **_summary(pairs)})


def _inherited(path: str, correlation: xr.Dataset) -> dict[str, Any]:
    """Return what the pairs keep of where they come from; ``stores`` are the fingerprints of both stores."""
    manifest = read_manifest(path)
    stores = {"stores": manifest.inputs} if manifest is not None else {}
    return stores | {name: correlation.attrs[name] for name in INHERITED if name in correlation.attrs}


def _columns(path: str, correlation: xr.Dataset, edges: Edges, chosen: NDArray[np.int64]) -> dict[str, xr.Variable]:
    ids_a, ids_b = edges.ids_a[chosen], edges.ids_b[chosen]
    columns: dict[str, NDArray[Any]] = {
        "feature_a": ids_a,
        "feature_b": ids_b,
        "r": edges.r[chosen],
        "r_heldout": _heldout(path, correlation, ids_a, ids_b),
        "rank_b": ranks(edges, "a")[chosen],
        "rank_a": ranks(edges, "b")[chosen],
    }
    measure = MEASURE_NAMES[correlation.attrs.get("measure", "pearson")]
    return {
        name: xr.Variable("pair", column, {"long_name": LONG_NAMES[name].format(measure=measure)})
        for name, column in columns.items()
    }


def _fates(correlation: xr.Dataset, edges: Edges, chosen: NDArray[np.int64]) -> dict[str, xr.Variable]:
    defined = {side: correlation[f"defined_{side}"].values.astype(bool) for side in "ab"}
    of_side = {side: fates(edges, chosen, defined[side], side) for side in "ab"}
    return {f"fate_{side}": xr.Variable(f"id_{side}", fate, _flag_attrs()) for side, fate in of_side.items()}


def _heldout(
    path: str, correlation: xr.Dataset, ids_a: NDArray[np.int32], ids_b: NDArray[np.int32]
) -> NDArray[np.float64]:
    if "r_heldout" not in correlation:
        return np.full(len(ids_a), np.nan)
    return lookup(path, "r_heldout", ids_a, ids_b, correlation.sizes["feature_a"])


LONG_NAMES = {
    "feature_a": "feature of side A",
    "feature_b": "feature of side B",
    "r": "{measure} on the rows that chose the pair",
    "r_heldout": "{measure} on the other rows",
    "rank_b": "place of feature_b among the partners of feature_a, best 0",
    "rank_a": "place of feature_a among the partners of feature_b, best 0",
}


def _flag_attrs() -> dict[str, Any]:
    """Return the attributes of a flag variable after the CF conventions."""
    return {
        "long_name": "what became of the feature",
        "flag_values": [int(fate) for fate in Fate],
        "flag_meanings": " ".join(fate.name for fate in Fate),
        "flag_descriptions": "; ".join(f"{fate.name}: {meaning}" for fate, meaning in FATE_MEANINGS.items()),
    }


def _summary(pairs: xr.Dataset) -> dict[str, Any]:
    return {
        "n_pairs": pairs.sizes["pair"],
        "mean_r": _mean(pairs["r"].values),
        "mean_r_heldout": _mean(pairs["r_heldout"].values),
        **{f"fates_{side}": count_fates(pairs[f"fate_{side}"].values) for side in "ab"},
    }


def _mean(values: NDArray[np.float64]) -> float | None:
    """Return the mean of what is defined; None, which unlike NaN is valid JSON, if nothing is."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else None
