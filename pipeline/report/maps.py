"""Two flat maps of the decoder rows of matched features, one for each side, that can be read side by side.

Each side is projected on its own first two principal components. A principal-component map is used rather than t-SNE or
UMAP because it is exact and the same every time, takes one eigendecomposition of a d × d matrix whatever the number of
features, needs no further library, and never pulls neighbours together that are not: a distance on it is at most the
real one. Which way its axes point is arbitrary, so the map of B is turned or mirrored (orthogonal Procrustes in the
plane, Schönemann 1966) until partners lie as near to each other as they can. That has one degree of freedom and a
mirror, far too few to make unlike spaces look alike.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

#: Rows taken at once, so that float64 copies stay small.
BLOCK = 4096


@dataclass(frozen=True)
class PairMap:
    """Places of both features of every pair, float32 of shape (n, 2), and the variance that each plane holds."""

    a: np.ndarray
    b: np.ndarray
    explained_a: float
    explained_b: float


def map_pairs(a: np.ndarray, b: np.ndarray) -> PairMap:
    """Return both maps of matched decoder rows, of shapes (n, d_a) and (n, d_b), of which directions alone count.

    Coordinates are centred and scaled by one factor a side so that the root mean square is 1; all 0 where fewer than 3
    pairs leave nothing to map. Holds a float32 copy of the rows, a block of :data:`BLOCK` rows in float64, and a d × d
    matrix.

    >>> rows = np.random.default_rng(0).standard_normal((50, 4)).astype(np.float32)
    >>> both = map_pairs(rows, -rows)
    >>> bool(np.allclose(both.a, both.b, atol=1e-5))
    True
    """
    (places_a, explained_a), (places_b, explained_b) = _plane(a), _plane(b)
    turn = _turn(places_b, places_a)
    return PairMap(places_a.astype(np.float32), (places_b @ turn).astype(np.float32), explained_a, explained_b)


def _plane(rows: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the places of rows on their first two principal components, and the share of variance on them."""
    if len(rows) < 3 or rows.shape[1] < 2:
        return np.zeros((len(rows), 2)), float("nan")
    unit = _unit_rows(rows)
    mean = unit.mean(0, dtype=np.float64)
    covariance = sum(_outer(unit[i : i + BLOCK], mean) for i in range(0, len(unit), BLOCK))
    values, vectors = np.linalg.eigh(np.asarray(covariance))
    axes = _signed(vectors[:, :-3:-1])
    places = np.concatenate([(unit[i : i + BLOCK] - mean) @ axes for i in range(0, len(unit), BLOCK)])
    spread = np.sqrt(np.mean(places**2) * 2)
    total = values.sum()
    if not spread > 0:
        return np.zeros((len(rows), 2)), float("nan")
    return places / spread, float(values[-2:].sum() / total)


def _unit_rows(rows: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return (rows / np.where(lengths > 0, lengths, 1)).astype(np.float32)


def _outer(rows: np.ndarray, mean: np.ndarray) -> np.ndarray:
    centred = rows - mean
    return centred.T @ centred


def _signed(axes: np.ndarray) -> np.ndarray:
    """Let each axis point to where its largest entry is positive, so that the map does not depend on the solver."""
    largest = np.take_along_axis(axes, np.abs(axes).argmax(0)[None], axis=0)
    return axes * np.where(largest < 0, -1.0, 1.0)


def _turn(from_places: np.ndarray, to_places: np.ndarray) -> np.ndarray:
    """Return the rotation or reflection, shape (2, 2), that brings one set of places nearest to the other."""
    left, _, right = np.linalg.svd(from_places.T @ to_places)
    return left @ right
