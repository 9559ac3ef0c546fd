"""r of matched pairs on other text: whether what one corpus gave holds on another one (domain shift)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from pipeline.correlate.intervals import intervals
from pipeline.settings.correlate import MEASURE_NAMES
from pipeline.work.workers import ClientSource
from storage import open_activations
from storage.errors import InputError
from storage.rows import ROW_HASH

#: What is compared of a store and of the one that was correlated, and what it is called.
SAME = {"site": "site", "dictionary": "dictionary", "kind": "kind of activations", "model": "model"}
#: Columns over pairs: of :func:`pipeline.correlate.intervals.intervals`, and what they are here.
COLUMNS = {"r": "r_check", "r_low": "r_check_low", "r_high": "r_check_high"}


def check_other_text(correlation: xr.Dataset, stores: tuple[Path, Path]) -> None:
    """Refuse stores that are not of the features that were correlated, on other text.

    Parameters
    ----------
    correlation
        The result that the pairs are chosen from.
    stores
        Of A and of B, on the other text.

    Raises
    ------
    InputError
        If a store has other features, another model, site or dictionary, or the text is the same.
    """
    for side, path in zip("ab", stores, strict=True):
        store = open_activations(path)
        n_features = correlation.sizes[f"feature_{side}"]
        if store.sizes["feature"] != n_features:
            raise InputError(
                f"{path} has {store.sizes['feature']} features, and the pairs are of {n_features} on side "
                f"{side.upper()}: check on a store of the same features"
            )
        for name, what in SAME.items():
            here, there = store.attrs.get(name), correlation.attrs.get(f"{name}_{side}")
            # a model's folder may lie elsewhere
            if None not in (here, there) and Path(str(here)).name != Path(str(there)).name:
                raise InputError(
                    f"{path} is of the {what} {here!r}, and the pairs of {there!r} on side {side.upper()}: check on a "
                    "store of the same features"
                )
        # rows without coordinates have no hash: their text is assumed to be another one
        if store.attrs.get(ROW_HASH) is not None and store.attrs[ROW_HASH] == correlation.attrs.get(ROW_HASH):
            raise InputError(
                f"{path} holds the rows that the pairs were chosen on: check on other text, harvested with the same "
                "models and dictionaries"
            )


def r_on_other_text(
    pairs: xr.Dataset, stores: tuple[Path, Path], *, memory: str | int = "auto", client: ClientSource = None
) -> xr.Dataset:
    """Return the pairs with their r on other text, measured on all of its rows.

    Memory is that of :func:`pipeline.correlate.intervals.intervals`: 40 bytes per document and pair, in blocks of pairs
    as wide as the budget allows.

    Parameters
    ----------
    pairs
        A matching, in memory.
    stores
        Of A and of B, which :func:`check_other_text` accepted.
    memory
        The budget.
    client
        Where to run.

    Returns
    -------
    xarray.Dataset
        With ``r_check``, ``r_check_low`` and ``r_check_high`` (pair) float64, the ends of a 95 % interval over
        documents, NaN where a feature does not vary there, or where fewer than two documents carry the pair; and the
        attributes ``mean_r_check``, ``n_rows_check``, ``n_documents_check`` and ``unit_check``, what documents are.
    """
    measure = pairs.attrs.get("measure", "pearson")
    if not pairs.sizes["pair"]:
        columns, attrs = dict.fromkeys(COLUMNS, np.empty(0)), {}
    else:
        ids = pairs["feature_a"].values, pairs["feature_b"].values
        found = intervals(ids, *stores, select="all", measure=measure, memory=memory, client=client)
        columns = {name: found[name].values for name in COLUMNS}
        attrs = {"n_documents_check": int(np.sum(found.attrs["n_documents"])), "unit_check": found.attrs["unit"]}
    names = {"r": "{} on other text", "r_low": "lower end of its 95 % interval", "r_high": "upper end of it"}
    variables: dict[str, Any] = {
        COLUMNS[name]: ("pair", values, {"long_name": names[name].format(MEASURE_NAMES[measure])})
        for name, values in columns.items()
    }
    n_rows = int(open_activations(stores[0]).sizes["token"])
    defined = columns["r"][np.isfinite(columns["r"])]
    mean = float(defined.mean()) if len(defined) else None
    return pairs.assign(variables).assign_attrs(mean_r_check=mean, n_rows_check=n_rows, **attrs)
