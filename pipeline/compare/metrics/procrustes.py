"""Orthogonal Procrustes: how well a rotation (or reflection) and a scaling carry one side onto the other.

Both sides' columns are centred, and each side is divided by its Frobenius norm. The score is the nuclear norm
``‖XᵀY‖_*`` of these, 1 where a rotation carries one side onto the other exactly: the cosine of the angular Procrustes
distance (Williams, Kunz, Kornblith, Linderman: Generalized shape metrics on neural representations, arXiv 2110.14739,
2021), and ``1 - d²/2`` of the least distance d after rotation (Schönemann, Psychometrika 31, 1966; Ding, Denain,
Steinhardt, arXiv 2108.01661, 2021, who use the same normalisation). ``scipy.spatial.procrustes`` gives 1 - score².
A side with fewer dimensions is padded with zeros, which changes nothing in the formula.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from pydantic.dataclasses import dataclass

from pipeline.compare.linear import LinearMetric, LinearState, Product, saturation, singular_values
from pipeline.settings.registries import METRICS


@METRICS.register
@dataclass(frozen=True)
class Procrustes(LinearMetric):
    """Nuclear norm of the cross-product of centred sides of Frobenius norm 1.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> x = rng.normal(size=(20, 3))
    >>> round(Procrustes()(x, 2 * x @ np.linalg.qr(rng.normal(size=(3, 3)))[0] + 7), 6)
    1.0
    """

    name: ClassVar[str] = "procrustes"

    def score(self, arranged: Product) -> float:
        """Return the sum of the cross-product's singular values over both sides' Frobenius norms."""
        a, b = arranged.state
        if arranged.state.empty:
            return float("nan")
        norm = float(np.linalg.norm(a.s) * np.linalg.norm(b.s))
        return min(float(singular_values(arranged.cross).sum()) / norm, 1.0)

    def warning(self, state: LinearState) -> str:
        """Say where there are so few pairs that a rotation fits any pairing well."""
        return saturation(state.n, len(state.a.s), len(state.b.s))
