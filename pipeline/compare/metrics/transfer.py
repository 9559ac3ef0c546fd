"""Stable transfer: whether a map fitted on half of the pairs carries the other directions of A to their partners in B.

A random half of the pairs, the same in every run, fits a map from A to B: any linear one (least squares, of least
norm), or a rotation (orthogonal Procrustes; Schönemann, Psychometrika 31, 1966). Every direction of A in the other
half is carried over, and the rows of B in that half are ranked by cosine with it. The score is the share of directions
whose partner ranks first (``rank1``; among m held-out pairs, chance is 1/m), or the mean reciprocal rank (``mrr``;
chance is the m-th harmonic number over m, about (ln m + 0.58)/m). This is retrieval as bilingual dictionaries are
judged by (Mikolov, Le, Sutskever, arXiv 1309.4168, 2013; with rotations, Smith, Turban, Hamblin, Hammerla, arXiv
1702.03859, 2017). Partners that tie share their ranks, so that copies win nothing.

It asks for more than CCA: what fits the first half must hold on the second, so that few pairs do not inflate it.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import ClassVar, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic.dataclasses import dataclass

from pipeline.compare.base import Metric, Pairing, Rows
from pipeline.compare.linear import decompose
from pipeline.compare.similarities import scaled
from pipeline.settings.registries import METRICS

#: Cosines are told apart to this, so that copies tie in spite of rounding.
TOLERANCE = 1e-6
#: Fewer fitted pairs than this many for each dimension of A leave a linear map largely undetermined.
PAIRS_PER_DIMENSION = 2

Judged = Literal["rank1", "mrr"]


class Halves(NamedTuple):
    """A's rows in a form that any pairing can be fitted with.

    Attributes
    ----------
    fitted, held
        Which pairs fit the map, and which are held out.
    scores_fitted
        Orthonormal scores of A's fitted rows, shape (fitted, r): its columns span what a map can use.
    maps_held
        A's held-out rows so that their least-squares image is ``maps_held @ scores_fitted.T @ y``; (held, r).
    rows_fitted, rows_held
        A's rows, centred by the mean of the fitted ones, for rotations.
    rows_b
        B's rows as given; centred by the fitted ones of a pairing.
    """

    fitted: NDArray[np.int64]
    held: NDArray[np.int64]
    scores_fitted: NDArray[np.floating]
    maps_held: NDArray[np.floating]
    rows_fitted: NDArray[np.floating]
    rows_held: NDArray[np.floating]
    rows_b: NDArray[np.floating]


@METRICS.register
@dataclass(frozen=True)
class TransferLinear(Metric):
    """Held-out directions of A that a linear map carries to their partners in B.

    Attributes
    ----------
    judged
        ``rank1``: the share whose partner ranks first; ``mrr``: the mean reciprocal rank.
    seed
        Which half of the pairs fits.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> x = rng.normal(size=(60, 4))
    >>> TransferLinear()(x, x @ rng.normal(size=(4, 6)))
    1.0
    >>> TransferRotation()(x, 3 * x @ np.linalg.qr(rng.normal(size=(4, 4)))[0])
    1.0
    """

    name: ClassVar[str] = "transfer_linear"
    judged: Judged = "rank1"
    seed: int = 0

    @property
    def family(self) -> Hashable:
        """Metrics of one kind of map and one half share everything but what they count."""
        return self.name, self.seed

    @staticmethod
    def prepare(metrics: Sequence[TransferLinear], x: Rows, y: Rows) -> Halves:
        """Draw the half that fits, and decompose A's rows in it."""
        order = np.random.default_rng(np.random.SeedSequence(metrics[0].seed)).permutation(len(x))
        fitted, held = np.sort(order[: len(x) // 2]), np.sort(order[len(x) // 2 :])
        mean = x[fitted].mean(axis=0)
        side = decompose(x[fitted])
        # the rows are u @ loadings, and loadings = s vᵀ: the image of a row x is x v s⁻¹ uᵀ y
        maps = (x[held] - mean) @ side.loadings.T / side.s**2
        return Halves(fitted, held, side.u, maps, x[fitted] - mean, x[held] - mean, y)

    @staticmethod
    def compact(state: Halves) -> Halves:
        """Return the rows in float32: products then take half the time."""
        return Halves(*state[:2], *(rows.astype(np.float32) for rows in state[2:]))

    def arrange(self, state: Halves, pairing: Pairing) -> NDArray[np.float64]:
        """Return the rank of every held-out direction's partner, and how many tie with it; shape (2, held)."""
        targets, partners = state.rows_b[pairing[state.fitted]], state.rows_b[pairing[state.held]]
        mean = targets.mean(axis=0)
        if not state.scores_fitted.shape[1] or not np.ptp(targets, axis=0).any():
            return np.full((2, len(state.held)), np.nan)
        return partner_ranks(self.carry(state, targets - mean), partners - mean)

    def carry(self, state: Halves, targets: NDArray[np.floating]) -> NDArray[np.floating]:
        """Return the images of A's held-out rows under the map that fits the targets best."""
        return state.maps_held @ (state.scores_fitted.T @ targets)

    def score(self, arranged: NDArray[np.float64]) -> float:
        """Return the share of partners that rank first, or the mean reciprocal rank."""
        ahead, ties = arranged
        if self.judged == "mrr":
            return float(np.mean(1.0 / (1.0 + ahead + ties / 2)))
        return float(np.mean(np.where(ahead > 0, 0.0 * ahead, 1.0 / (1.0 + ties))))

    def warning(self, state: Halves) -> str:
        """Say where the map has more unknowns than the fitted pairs decide."""
        m, (n, r) = len(state.held), state.scores_fitted.shape
        chance = f"chance 1/{m}" if self.judged == "rank1" else f"chance {sum(1 / np.arange(1, m + 1)) / m:.2g}"
        if n >= PAIRS_PER_DIMENSION * r:
            return ""
        return f"under-determined: {n} pairs fit a map of {r} dimensions ({chance} over {m} held-out pairs)"

    def memory(self, n: int, d_a: int, d_b: int) -> int:
        """Return the bytes of both sides, of their halves, and of the cosines between held-out rows."""
        return 4 * 8 * n * (d_a + d_b) + 3 * 8 * (n - n // 2) ** 2


@METRICS.register
@dataclass(frozen=True)
class TransferRotation(TransferLinear):
    """Held-out directions of A that a rotation carries to their partners in B."""

    name: ClassVar[str] = "transfer_rotation"

    def carry(self, state: Halves, targets: NDArray[np.floating]) -> NDArray[np.floating]:
        """Return A's held-out rows, rotated as fits the targets best; a reflection is allowed.

        Directions that the fitted pairs say nothing about could be rotated anyhow, and are left out.
        """
        u, s, vt = np.linalg.svd(state.rows_fitted.T @ targets, full_matrices=False)
        known = s > TOLERANCE * s[0]
        return (state.rows_held @ u[:, known]) @ vt[known]


def partner_ranks(images: NDArray[np.floating], partners: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return, for every image, how many rows of B are nearer by cosine than its partner, and how many as near.

    Row i of `partners` (m, d) is the partner of image i; float64, shape (2, m). One without direction ties with all.

    Examples
    --------
    >>> partner_ranks(np.eye(3), np.array([[1.0, 0, 0], [1, 0, 0], [0, 0, 1]])).tolist()
    [[0.0, 0.0, 0.0], [1.0, 2.0, 0.0]]
    """
    unit = [np.nan_to_num(scaled(np.asarray(side, np.float64), "cosine")) for side in (images, partners)]
    cosines = unit[0] @ unit[1].T
    own = np.diagonal(cosines)[:, None]
    ahead = np.count_nonzero(cosines > own + TOLERANCE, axis=1)
    level = np.count_nonzero(np.abs(cosines - own) <= TOLERANCE, axis=1) - 1
    return np.array([ahead, level], np.float64)
