"""The measures of association, all from the sums of products that the kernels make.

=========  ========================================================  =======================  ==================
measure    what it is                                                not defined for          kernels work on
=========  ========================================================  =======================  ==================
pearson    covariance ÷ both standard deviations                     a feature of one value   values
cosine     Σxy ÷ √(Σx²·Σy²): nothing is subtracted                   a feature of zeros       values
spearman   Pearson's of the average ranks in the half, zeros and     a feature of one value   ranks less the
           all: ties share the mean of their places                                           rank of zero
phi        Pearson's of firing, which is 1 where a value is not 0    never or always firing   firing, 0 or 1
jaccard    rows where both fire ÷ rows where at least one does       never firing             firing, 0 or 1
=========  ========================================================  =======================  ==================

Pearson's formula in the kernels is ``(product − total_a · total_b · inverse_n) / √(variance_a · variance_b)``. For
cosine nothing is subtracted, and sums of squares stand for the variances. Jaccard's has a formula of its own, chosen
once for a block of values. The dense kernel multiplies *standardised* values; their scales cancel.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.correlate.kernels.reduce import Half, Side, make_side
from pipeline.correlate.moments import Moments
from pipeline.settings.correlate import Measure

#: Steps of an offset between 0 and 1: few digits, so that sums of products of equal offsets stay exact.
OFFSET_STEPS = 256


@dataclass(frozen=True)
class Rule:
    """How a measure is made.

    Attributes
    ----------
    centred
        Whether means are subtracted: a feature that never varies has no value then, else only one of zeros.
    firing
        Whether it is of firing (0 or 1) in place of the values.
    ranked
        Whether it is of ranks in place of the values.
    overlap
        Whether sums of products are counts of rows where both fire, put into Jaccard's formula.
    """

    centred: bool = True
    firing: bool = False
    ranked: bool = False
    overlap: bool = False


RULES: Mapping[Measure, Rule] = {
    "pearson": Rule(),
    "cosine": Rule(centred=False),
    "spearman": Rule(ranked=True),
    "phi": Rule(firing=True),
    "jaccard": Rule(centred=False, firing=True, overlap=True),
}


def make_half(measure: Measure, a: tuple[Moments, int, slice], b: Side) -> Half:
    """Return all that makes values of a measure of sums of products.

    `a` says whose: statistics of a panel, the half, and which of its features; `b` is the other side in the same half.
    """
    rule, (moments, half, _) = RULES[measure], a
    return Half(1.0 / float(moments.n[half]) if rule.centred else 0.0, make_side_of(measure, *a), b, 0.0, rule.overlap)


def make_side_of(measure: Measure, moments: Moments, half: int, features: NDArray[np.integer] | slice) -> Side:
    """Return what the kernels need of some features in one half, for a measure."""
    rule = RULES[measure]
    return moments.side(half, features) if rule.centred else uncentred_side(moments, half, features, rule)


@dataclass(frozen=True)
class Scaling:
    """How dense values are standardised: ``value · scale − offset``, for each half.

    Attributes
    ----------
    scale, offset
        (halves, feature), of the working type. Both are 0 where there is no value of the measure.
    """

    scale: NDArray[Any]
    offset: NDArray[Any]

    def of(self, features: slice) -> Scaling:
        """Return that of some features."""
        return Scaling(self.scale[:, features], self.offset[:, features])


def scaling_of(measure: Measure, moments: Moments, working: type[np.float32 | np.float64]) -> Scaling:
    """Return what brings every feature near standard deviation 1, and near mean 0 unless most of its values are 0.

    The scale is a power of two; its exponent is held to ±120, which float32 has. Zeros stay zeros where they are the
    most, or where the measure subtracts no mean, and become numbers of few digits elsewhere: sums of their products
    are not rounded. Firing that is counted is not scaled.
    """
    rule, std = RULES[measure], moments.std if RULES[measure].centred else _size(moments)
    usable = std > 0
    exponent = np.clip(np.frexp(np.where(usable, std, 1.0))[1], -120, 120) * (not rule.overlap)
    scale = np.where(usable, np.ldexp(1.0, -exponent), 0.0)
    full = (moments.active > moments.n[:, None] / 2) & rule.centred
    offset = np.where(full, np.round(moments.mean * scale * OFFSET_STEPS) / OFFSET_STEPS, 0.0)
    return Scaling(scale.astype(working), offset.astype(working))


def _size(moments: Moments) -> NDArray[np.float64]:
    """Return the root of the mean square of each feature, 0 where it is all zero; (halves, feature)."""
    square = moments.square + moments.pivot * (2 * moments.total + moments.n[:, None] * moments.pivot)
    return np.where(moments.defined, np.sqrt(np.maximum(square, 0.0) / moments.n[:, None]), 0.0)


def make_standardised_half(
    measure: Measure,
    sides: tuple[Moments, Moments],
    scalings: tuple[Scaling, Scaling],
    half: int,
    features_b: NDArray[np.integer],
) -> Half:
    """Return the same as :func:`make_half` for sums of products of standardised values."""
    rule = RULES[measure]
    a = _standardised_side(measure, sides[0], scalings[0], half, slice(None))
    b = _standardised_side(measure, sides[1], scalings[1], half, features_b)
    return Half(1.0 / float(sides[0].n[half]) if rule.centred else 0.0, a, b, 0.0, rule.overlap)


def _standardised_side(
    measure: Measure, moments: Moments, scaling: Scaling, half: int, features: NDArray[np.integer] | slice
) -> Side:
    rule = RULES[measure]
    raw = make_side_of(measure, moments, half, features)
    scale = scaling.scale[half, features].astype(np.float64)
    # What offsets, which have few digits, leave of the means
    total = moments.n[half] * (moments.mean[half, features] * scale - scaling.offset[half, features])
    inverse = np.divide(raw.scale, scale, out=np.zeros_like(scale), where=scale > 0)
    inverse_n = 1.0 / float(moments.n[half]) if rule.centred else 0.0
    return make_side(np.rint(total) if rule.overlap else total, raw.variance * scale * scale, inverse, inverse_n)


def uncentred_side(moments: Moments, half: int, features: NDArray[np.integer] | slice, rule: Rule) -> Side:
    """Return what the kernels need of some features in one half, for a measure that subtracts no means.

    With pivots of 0 the sums of squares are taken over bit by bit, so that a feature's product with itself is equal to
    them.
    """
    n, pivot, total = moments.n[half], moments.pivot[half, features], moments.total[half, features]
    whole = total + n * pivot
    size = moments.square[half, features] + pivot * (2 * total + n * pivot)
    if rule.overlap:  # counts of rows, whatever rounding did to their mean
        whole = size = np.rint(whole)
    usable = moments.defined[half, features] & (size > 0)
    scale = np.zeros_like(size)
    scale[usable] = 1.0 / np.sqrt(size[usable])
    return make_side(whole, size, scale, 0.0)
