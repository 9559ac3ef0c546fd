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
cosine nothing is subtracted, and sums of squares stand for the variances. The dense kernel multiplies *centred*
values, whose products lack ``total_a · total_b / n``: there ``inverse_n`` is negative and puts it back. Jaccard's has
a formula of its own, chosen once for a block of values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.config import Measure
from pipeline.correlate.kernels.reduce import Half, Side
from pipeline.correlate.moments import Moments


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


def make_half(
    measure: Measure,
    a: Moments,
    b: Moments,
    half: int,
    features_b: NDArray[np.integer],
    *,
    products_centred: bool,
    snap: float,
) -> Half:
    """Return all that makes values of a measure of the sums of products in one half of the rows.

    Parameters
    ----------
    measure
        The measure.
    a, b
        Statistics of a panel of A features, and of all B features.
    half
        The half.
    features_b
        The B features that have a place in the kernels' output, in their order.
    products_centred
        Whether products are of values less their means (the dense kernel), or less their pivots.
    snap
        See :class:`~pipeline.correlate.kernels.reduce.Half`.
    """
    rule = RULES[measure]
    inverse_n = 1.0 / float(a.n[half])
    if rule.centred:
        return Half(inverse_n, a.side(half), b.side(half, features_b), snap)
    put_back = -inverse_n if products_centred else 0.0
    sides = (uncentred_side(a, half, slice(None), rule), uncentred_side(b, half, features_b, rule))
    return Half(put_back, *sides, snap, rule.overlap)


def uncentred_side(moments: Moments, half: int, features: NDArray[np.integer] | slice, rule: Rule) -> Side:
    """Return what the kernels need of some features in one half, where no means are subtracted.

    Parameters
    ----------
    moments
        Statistics; with pivots of 0 the sums of squares are taken over bit by bit, so that a feature's product with
        itself is equal to them.
    half, features
        Which.
    rule
        Of a measure that is not centred.
    """
    n, pivot, total = moments.n[half], moments.pivot[half, features], moments.total[half, features]
    whole = total + n * pivot
    size = moments.square[half, features] + pivot * (2 * total + n * pivot)
    if rule.overlap:  # counts of rows, whatever rounding did to their mean
        whole = size = np.rint(whole)
    usable = moments.defined[half, features] & (size > 0)
    scale = np.zeros_like(size)
    scale[usable] = 1.0 / np.sqrt(size[usable])
    return Side(np.ascontiguousarray(whole), np.ascontiguousarray(size), scale)
