"""Many small sets of rows prepared at once, for nulls that draw thousands of them.

For n rows of d > n dimensions, the singular value decomposition that linear metrics start from is that of the n × n
Gram matrix of the centred rows: ``X Xᵀ = U S² Uᵀ``. Decomposing a stack of Gram matrices takes a fifth of the time of
one decomposition of the rows after the other, and it releases the interpreter lock once for all of them.

Squaring halves the digits: singular values below 1e-6 of the largest are taken for rounding here. Scores differ by less
than 1e-8 from those of :func:`pipeline.compare.linear.decompose` where no row is a copy of another.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.compare.base import Family
from pipeline.compare.linear import Components, LinearMetric, LinearState

#: Singular values below this share of the largest are rounding.
RELATIVE_NOISE = 1e-6
#: Bytes of the rows of one stack.
STACK_BYTES = 8 * 2**20

Stack = NDArray[np.float64]


def scores_of_stack(groups: Sequence[Family], x: Stack, y: Stack) -> list[list[float]]:
    """Return, of each set of paired rows, the scores of all metrics in the order of the families.

    The finite rows have shapes (run, n, d_x) and (run, n, d_y).

    Examples
    --------
    >>> from pipeline.compare.base import families
    >>> from pipeline.settings.compare import parse_metrics
    >>> x = np.random.default_rng(0).normal(size=(2, 9, 20))
    >>> groups = tuple(families(parse_metrics(["svcca:k=2", "rsa"]).values()))
    >>> [[round(score, 6) for score in run] for run in scores_of_stack(groups, x, x[:, :, ::-1])]
    [[1.0, 1.0], [1.0, 1.0]]
    """
    pairing = np.arange(x.shape[1])
    columns = [[family.scores(state, pairing) for state in _states(family, x, y)] for family in groups]
    return [[score for part in run for score in part] for run in zip(*columns, strict=True)]


def runs_at_once(n: int, d_a: int, d_b: int) -> int:
    """Return how many sets of rows fit one stack, at least 1.

    Examples
    --------
    >>> runs_at_once(30, 576, 384)
    36
    """
    return max(1, STACK_BYTES // (8 * n * (d_a + d_b)))


def _states(family: Family, x: Stack, y: Stack) -> Iterator[object]:
    """Yield what a family prepares of each set of rows."""
    first = family.metrics[0]
    # tall rows have a Gram matrix that is larger than they are
    if isinstance(first, LinearMetric) and x.shape[1] <= min(x.shape[2], y.shape[2]):
        metrics = [metric for metric in family.metrics if isinstance(metric, LinearMetric)]
        for a, b in zip(_components(metrics, x), _components(metrics, y), strict=True):
            yield LinearState(a, b)
    else:
        for rows_x, rows_y in zip(x, y, strict=True):
            yield family.compact(family.prepare(rows_x, rows_y))


def _components(metrics: list[LinearMetric], rows: Stack) -> Iterator[Components]:
    """Yield the principal components of each set of rows; see :class:`pipeline.compare.linear.Components`."""
    centred = rows - rows.mean(axis=1, keepdims=True)
    gram = centred @ centred.transpose(0, 2, 1)
    values, vectors = np.linalg.eigh(gram)
    lengths = np.sqrt(np.maximum(values[:, ::-1], 0.0))
    for s, u, own, product in zip(lengths, vectors[:, :, ::-1], centred, gram, strict=True):
        kept = s[s > RELATIVE_NOISE * s[0]]
        k = max(metric.kept(kept) for metric in metrics)
        scores = np.ascontiguousarray(u[:, :k])
        yield Components(scores, kept, scores.T @ own, np.diagonal(product).copy())
