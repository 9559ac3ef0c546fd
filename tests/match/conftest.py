"""Correlation results made by hand, and the strategy for edges with many ties."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from scipy import sparse

import storage

SHARD_ROWS = 4


def write_correlation(path: Path, r: np.ndarray, r_heldout: np.ndarray | None = None, keep_above: float = 0.1) -> Path:
    """Write what `correlate` would for a dense matrix of r, NaN where it is undefined."""
    r_heldout = None if r_heldout is None else np.asarray(r_heldout, float)
    manifest = storage.new_manifest("correlate", {}, {"keep_above": keep_above, "r": r.tobytes().hex()})
    with storage.claim(path, manifest) as target:
        _write(target.begin(), r, r_heldout, keep_above)
        target.finish()
    return path


def _write(partial: Path, r: np.ndarray, r_heldout: np.ndarray | None, keep_above: float) -> None:
    n_a = len(r)
    defined = xr.Dataset(
        {
            "defined_a": ("feature_a", ~np.isnan(r).all(axis=1)),
            "defined_b": ("feature_b", ~np.isnan(r).all(axis=0)),
            "n_active_a": ("feature_a", 10 * np.arange(1, n_a + 1)),
            "n_active_b": ("feature_b", 10 * np.arange(1, r.shape[1] + 1)),
        },
        attrs={"keep_above": keep_above, "select": "half" if r_heldout is not None else "all"},
    )
    storage.add_variables(defined, partial)
    rows, columns = np.nonzero(r >= keep_above)
    for name, values in {"r": r, "r_heldout": r_heldout}.items():
        if values is None:
            continue
        kept = sparse.csr_array((values[rows, columns], (rows, columns)), shape=r.shape)
        storage.create_sparse_array(
            partial, name, r.shape, "f8", dims=("feature_a", "feature_b"), shard_rows=SHARD_ROWS, chunk=(SHARD_ROWS, 5)
        )
        for i, start in enumerate(range(0, n_a, SHARD_ROWS)):
            storage.write_sparse_shard(partial, name, i, kept[start : start + SHARD_ROWS])


@pytest.fixture
def correlation(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a correlation result and returns its path."""
    return lambda r, **kwargs: write_correlation(tmp_path / "correlation.zarr", np.asarray(r, float), **kwargs)
