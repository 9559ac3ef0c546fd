"""How much of a pair's r is no more than "both know which token this is".

Every feature is split into its mean on each token, which the token's identity alone predicts, and the rest. The
covariance of two features splits alike (the law of total covariance), so r does too::

    r = token part + rest
    token part = cov(mean of a given the token, mean of b given the token) / (std a · std b)

A pair whose r is all token part may agree on nothing but spelling.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse
import xarray as xr
from numpy.typing import NDArray

from pipeline.match.run import check_stores
from storage import (
    fingerprint,
    is_sparse,
    make_result,
    new_manifest,
    open_activations,
    open_result,
    read_csr,
    read_dense,
)
from storage.codec import is_sparse_matrix
from storage.errors import InputError

STAGE = "token_identity"
#: Pairs whose products are held at a time.
BLOCK_PAIRS = 4096

Sparse = scipy.sparse.csc_array


def token_identity(
    pairs: xr.Dataset | str | Path,
    a: str | Path,
    b: str | Path,
    out: str | Path | None = None,
    *,
    overwrite: bool = False,
) -> xr.Dataset:
    """Split every pair's r into what the token's identity explains and the rest.

    Streams both stores once. Memory: one shard of either, and 12 bytes for each (token, feature) that occurs together
    among the paired features; at most 12 bytes a stored value, for dense stores tokens × paired features.

    Parameters
    ----------
    pairs
        The result of ``match``, or its path.
    a, b
        The stores that were correlated. Tokens are told apart by A's ``token_id``.
    out
        Where the result is written; a current one is left as it is. In memory only if absent.
    overwrite
        Whether a result at `out` that came from other inputs may be replaced.

    Returns
    -------
    xarray.Dataset
        Over ``pair``, float64, on all rows that are not sinks: ``r``; ``token_part``, what is left of r when each
        feature is replaced by its mean on the row's token (``token_part + rest_part = r``); ``rest_part``;
        ``r_of_means``, the correlation of these means; ``r_within``, of what is left without them, NaN where a feature
        is nothing but its token; ``explained_a`` and ``explained_b``, the share of a feature's variance that the token
        explains. Undefined values are NaN.

    Raises
    ------
    InputError
        If a store is not the correlated one, or A's has no token ids.

    Examples
    --------
    >>> import tempfile, storage
    >>> folder = Path(tempfile.mkdtemp())
    >>> token = np.arange(40) % 2
    >>> rows = {name: np.arange(40) for name in ("document", "char_start", "char_end")} | {"token_id": token}
    >>> for name in "ab":
    ...     storage.write_activations(folder / f"{name}.zarr", np.stack([token, np.arange(40)], axis=1), tokens=rows)
    >>> same = xr.Dataset({f"feature_{side}": ("pair", [0, 1]) for side in "ab"})
    >>> token_identity(same, folder / "a.zarr", folder / "b.zarr").token_part.values.round(3)
    array([1.   , 0.002])
    """
    matched = pairs if isinstance(pairs, xr.Dataset) else open_result(pairs, "match")
    if "stores" in matched.attrs:
        check_stores((a, b), matched.attrs["stores"])
    ids = {side: np.asarray(matched[f"feature_{side}"].values, np.int64) for side in "ab"}
    digest = {f"feature_{side}": values.tolist() for side, values in ids.items()} if out is not None else {}
    manifest = new_manifest(STAGE, {"a": fingerprint(a), "b": fingerprint(b)}, digest)

    def make() -> xr.Dataset:
        sums = _Sums(ids["a"], ids["b"], _token_ids(a))
        for rows, sink, shard_a, shard_b in _shards(a, b):
            sums.add(rows, ~sink, shard_a, shard_b)
        return _dataset(matched, sums)

    return make_result(out, manifest, make, overwrite=overwrite)


def _token_ids(path: str | Path) -> NDArray[np.int64]:
    """Return the tokens of a store's rows, numbered from 0."""
    store = open_activations(path)
    if "token_id" not in store.variables:
        raise InputError(f"{path} has no token ids, so tokens cannot be told apart; harvest it again")
    return np.unique(store["token_id"].values, return_inverse=True)[1]


def _shards(a: str | Path, b: str | Path) -> Iterator[tuple[slice, NDArray[np.bool_], Any, Any]]:
    """Yield, shard by shard of A: the rows, which of them are sinks of either side, and both sides' values."""
    stores = open_activations(a), open_activations(b)
    step = stores[0]["activation"].encoding["shards"][0]
    n = stores[0].sizes["token"]
    for start in range(0, n, step):
        rows = slice(start, min(start + step, n))
        sink = stores[0]["sink"].values[rows] | stores[1]["sink"].values[rows]
        yield rows, sink, _read(a, rows), _read(b, rows)


def _read(path: str | Path, rows: slice) -> Any:
    return read_csr(path, rows) if is_sparse(path) else read_dense(path, rows)


class _Side:
    """Sums over rows of one side: its paired features by token, and their squares."""

    def __init__(self, ids: NDArray[np.int64], n_tokens: int) -> None:
        # each paired feature once; `place` is where a pair's feature is among them
        self.used, self.place = np.unique(ids, return_inverse=True)
        self.by_token = scipy.sparse.csr_array((n_tokens, len(self.used)))
        self.squares = np.zeros(len(self.used))

    def add(self, shard: Any, kept: NDArray[np.bool_], group: scipy.sparse.csr_array) -> Sparse:
        """Take in some rows, of which `group` says the tokens; return the columns of the paired features."""
        columns = _columns(shard, kept, self.used)
        self.by_token = self.by_token + group @ columns.tocsr()
        self.squares += columns.multiply(columns).sum(axis=0)
        return columns


class _Sums:
    """Sums over rows that everything follows from."""

    def __init__(self, ids_a: NDArray[np.int64], ids_b: NDArray[np.int64], tokens: NDArray[np.int64]) -> None:
        self.tokens, self.n_tokens = tokens, int(tokens.max()) + 1
        self.rows_of_token = np.zeros(self.n_tokens)
        self.a, self.b = _Side(ids_a, self.n_tokens), _Side(ids_b, self.n_tokens)
        self.products = np.zeros(len(ids_a))

    def add(self, rows: slice, kept: NDArray[np.bool_], shard_a: Any, shard_b: Any) -> None:
        tokens = self.tokens[rows][kept]
        self.rows_of_token += np.bincount(tokens, minlength=self.n_tokens)
        shape = (self.n_tokens, len(tokens))
        group = scipy.sparse.csr_array((np.ones(len(tokens)), (tokens, np.arange(len(tokens)))), shape=shape)
        a, b = self.a.add(shard_a, kept, group), self.b.add(shard_b, kept, group)
        self.products += _products(a, b, self.a.place, self.b.place)

    def covariances(self) -> dict[str, NDArray[np.float64]]:
        """Return total and between-token covariance of the pairs, and both variances of either side's features."""
        n = self.rows_of_token.sum()
        weight = np.sqrt(np.divide(1, self.rows_of_token, where=self.rows_of_token > 0, out=np.zeros(self.n_tokens)))
        sides = {"a": self.a, "b": self.b}
        scaled = {name: Sparse(side.by_token.multiply(weight[:, None])) for name, side in sides.items()}
        means = {name: side.by_token.sum(axis=0) / n for name, side in sides.items()}
        both = means["a"][self.a.place] * means["b"][self.b.place]
        covariances = {
            "total": self.products / n - both,
            "between": _products(scaled["a"], scaled["b"], self.a.place, self.b.place) / n - both,
        }
        for name, side in sides.items():
            between: NDArray[np.float64] = scaled[name].multiply(scaled[name]).sum(axis=0)
            covariances[f"total_{name}"] = (side.squares / n - means[name] ** 2)[side.place]
            covariances[f"between_{name}"] = (between / n - means[name] ** 2)[side.place]
        return covariances


def _columns(shard: Any, kept: NDArray[np.bool_], used: NDArray[np.int64]) -> Sparse:
    if is_sparse_matrix(shard):
        return Sparse(shard.tocsc()[:, used].tocsr()[kept].astype(np.float64))
    return Sparse(shard[kept][:, used].astype(np.float64))


def _products(a: Sparse, b: Sparse, place_a: NDArray[np.int64], place_b: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return, of each pair, the sum over rows of the product of its columns."""
    sums = np.zeros(len(place_a))
    for start in range(0, len(place_a), BLOCK_PAIRS):
        block = slice(start, start + BLOCK_PAIRS)
        sums[block] = a[:, place_a[block]].multiply(b[:, place_b[block]]).sum(axis=0)
    return sums


def _dataset(pairs: xr.Dataset, sums: _Sums) -> xr.Dataset:
    cov = sums.covariances()
    total_a, total_b = _positive(cov["total_a"]), _positive(cov["total_b"])
    between_a, between_b = _positive(cov["between_a"], total_a), _positive(cov["between_b"], total_b)
    within_a, within_b = _positive(total_a - between_a, total_a), _positive(total_b - between_b, total_b)
    scale = np.sqrt(total_a * total_b)
    columns = {
        "r": cov["total"] / scale,
        "token_part": cov["between"] / scale,
        "rest_part": (cov["total"] - cov["between"]) / scale,
        "r_of_means": cov["between"] / np.sqrt(between_a * between_b),
        "r_within": (cov["total"] - cov["between"]) / np.sqrt(within_a * within_b),
        "explained_a": np.nan_to_num(between_a) / total_a,
        "explained_b": np.nan_to_num(between_b) / total_b,
    }
    ids = {f"feature_{side}": ("pair", pairs[f"feature_{side}"].values) for side in "ab"}
    result = xr.Dataset({**ids, **{name: ("pair", values) for name, values in columns.items()}})
    means = {f"mean_{name}": float(np.nanmean(columns[name])) for name in ("r", "token_part") if len(scale)}
    return result.assign_attrs(n_rows=int(sums.rows_of_token.sum()), n_tokens=sums.n_tokens, **means)


def _positive(variance: NDArray[np.float64], of: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
    """Return variances; NaN where one is nothing but rounding, against the variance that it is part of."""
    least = 0.0 if of is None else 1e-10 * np.nan_to_num(of)
    return np.where(variance > least, variance, np.nan)
