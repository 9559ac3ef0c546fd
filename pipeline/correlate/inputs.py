"""The two stores of a correlation: opened, checked, and described as the plan and the result need them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from pipeline.correlate.job import Store
from pipeline.correlate.measures import RULES
from pipeline.correlate.plan import StoreSize
from pipeline.correlate.ranks import measured_sizes
from pipeline.settings.correlate import Measure
from storage import InputError, check_same_kind, check_same_rows, open_activations

#: Attributes of a store that say what it is; the result carries them with ``_a`` and ``_b``.
DESCRIPTION = ("model", "site", "dictionary", "kind")


@dataclass(frozen=True)
class Inputs:
    """The two stores, and what of their metadata matters here."""

    stores: tuple[Store, Store]
    sizes: tuple[StoreSize, StoreSize]
    n_rows: int
    attrs: Mapping[str, Any]

    @classmethod
    def open(cls, path_a: Path, path_b: Path) -> Inputs:
        """Open both stores and check that they hold the same rows."""
        opened = [open_activations(path) for path in (path_a, path_b)]
        check_same_rows(path_a, path_b)
        described = {
            f"{name}_{side}": ds.attrs[name]
            for side, ds in zip("ab", opened, strict=True)
            for name in DESCRIPTION
            if name in ds.attrs
        }
        check_same_kind(described.get("kind_a"), described.get("kind_b"))
        if "row_hash" in opened[0].attrs:
            described["row_hash"] = opened[0].attrs["row_hash"]
        described["inputs"] = {"a": str(path_a), "b": str(path_b)}
        a, b = (measure_store(path, ds) for path, ds in zip((path_a, path_b), opened, strict=True))
        return cls((a[0], b[0]), (a[1], b[1]), opened[0].sizes["token"], described)

    def measured_by(self, measure: Measure) -> Inputs:
        """Return the inputs as a measure reads them.

        Raises
        ------
        InputError
            If the measure is of firing, and every feature of a store fires in every row.
        """
        sizes = measured_sizes(self.sizes, measure, self.n_rows)
        if not RULES[measure].firing:
            return replace(self, sizes=sizes)
        for store, size in zip(self.stores, self.sizes, strict=True):
            if (size.entries >= self.n_rows).all():
                raise InputError(
                    f"measure={measure!r} compares where features fire, but {store.path} has no zeros: all features "
                    "fire in all rows. Use measure='pearson', 'cosine' or 'spearman'"
                )
        stores = (replace(self.stores[0], firing=True), replace(self.stores[1], firing=True))
        return replace(self, stores=stores, sizes=sizes)


def measure_store(path: Path, ds: xr.Dataset) -> tuple[Store, StoreSize]:
    """Return a store and its size; sinks are in no statistics, so their entries are counted as typical ones."""
    store, share_of_sinks = Store.of(path, ds), ds.attrs.get("n_sinks", 0) / ds.sizes["token"]
    entries = np.ceil(ds["n_active"].values / max(1e-6, 1 - share_of_sinks)).astype(np.int64)
    return store, StoreSize(store.sparse, store.value_bytes, entries, store.piece_rows, store.piece_features)
