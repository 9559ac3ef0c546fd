"""Features that a sparse linear probe uses to tell a concept's rows from others.

A logistic regression with an L1 penalty [1]_ on a seeded sample of rows: up to so many rows of each concept, and so
many of all others. Features are scaled by their maximum, so that weights can be compared. Documents, or groups of them
where the store has groups, are split: three quarters train the probe, the others say how good it is (area under the ROC
curve).

.. [1] R. Tibshirani, "Regression shrinkage and selection via the lasso", J. R. Stat. Soc. B 58 (1996).
"""

from __future__ import annotations

import logging

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from pipeline.settings.semantics import ProbeRule
from storage import is_sparse, open_activations, read_csr, read_dense
from storage.extras import need

logger = logging.getLogger(__name__)

#: Rows read at a time.
SLAB_ROWS = 16_384
#: A probe needs at least so many rows of a concept on either side of the split.
FEWEST_ROWS = 5
TRAINING_SHARE = 0.75


def probe_concepts(
    store: str, keywords: scipy.sparse.csr_array, rule: ProbeRule
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Fit one probe for each concept; return its weights and the area under the ROC curve on held-out documents.

    ``weight`` is (feature, concept) float32, NaN where a concept has too few rows for a probe; ``auc`` (concept,)
    float64. Memory: the sampled rows (at most ``rows`` and ``rows_of_concept`` for each concept) with their active
    features, and one slab of :data:`SLAB_ROWS` rows. Needs scikit-learn.
    """
    opened = open_activations(store)
    rows = sample_rows(keywords, opened["sink"].values, rule)
    active = _read_rows(store, rows, opened["max"].values)
    documents = opened["group" if "group" in opened.variables else "document"].values[rows]
    rng = np.random.default_rng(rule.seed)
    distinct = np.unique(documents)
    training = np.isin(documents, distinct[rng.random(len(distinct)) < TRAINING_SHARE])
    weight = np.full((active.shape[1], keywords.shape[1]), np.nan, np.float32)
    auc = np.full(keywords.shape[1], np.nan)
    labels = keywords[rows].toarray()
    for concept in range(keywords.shape[1]):
        label = labels[:, concept]
        fewest = min(np.count_nonzero(label[part]) for part in (training, ~training))
        if fewest < FEWEST_ROWS:
            logger.warning("Concept %d occurs in too few rows for a probe; it gets no features", concept)
            continue
        weight[:, concept], auc[concept] = _fit(active, label, training, rule)
    return weight, auc


def sample_rows(keywords: scipy.sparse.csr_array, sink: NDArray[np.bool_], rule: ProbeRule) -> NDArray[np.int64]:
    """Return sampled rows, ascending: some of each concept, and some without any keyword; no attention sinks.

    >>> keywords = scipy.sparse.csr_array(np.eye(4, 2, dtype=bool))
    >>> sample_rows(keywords, np.array([False, False, False, True]), ProbeRule())
    array([0, 1, 2])
    """
    rng = np.random.default_rng(rule.seed)
    by_concept = keywords.tocsc()
    plain = np.flatnonzero((np.diff(keywords.indptr) == 0) & ~sink)
    parts = [_some(rng, plain, rule.rows)]
    for concept in range(keywords.shape[1]):
        rows_of_concept = by_concept.indices[by_concept.indptr[concept] : by_concept.indptr[concept + 1]]
        parts.append(_some(rng, np.sort(rows_of_concept), rule.rows_of_concept))
    return np.unique(np.concatenate(parts)).astype(np.int64)


def _some(rng: np.random.Generator, rows: NDArray[np.integer], n: int) -> NDArray[np.integer]:
    return rows if len(rows) <= n else rng.choice(rows, n, replace=False)


def _read_rows(store: str, rows: NDArray[np.int64], largest: NDArray[np.float64]) -> scipy.sparse.csr_array:
    """Return the wanted rows, each feature divided by its maximum, float64 CSR."""
    sparse = is_sparse(store)
    parts = []
    for block in np.split(rows, np.searchsorted(rows, np.arange(SLAB_ROWS, rows[-1] + 1, SLAB_ROWS))):
        if len(block):
            whole = slice(int(block[0]), int(block[-1]) + 1)
            slab = read_csr(store, whole) if sparse else read_dense(store, whole)
            parts.append(scipy.sparse.csr_array(slab[block - block[0]], dtype=np.float64))
    active = scipy.sparse.csr_array(scipy.sparse.vstack(parts, format="csr"))
    scale = np.divide(1.0, largest, out=np.zeros_like(largest), where=largest > 0)
    active.data *= scale[active.indices]
    return active


def _fit(
    active: scipy.sparse.csr_array, label: NDArray[np.bool_], training: NDArray[np.bool_], rule: ProbeRule
) -> tuple[NDArray[np.float64], float]:
    """Fit one probe; return its weights and the area under its ROC curve on the rows that did not train it."""
    models, metrics = (need(f"sklearn.{name}", "semantic", "The rule probe") for name in ("linear_model", "metrics"))
    probe = models.LogisticRegression(
        l1_ratio=1.0, C=rule.strength, solver="liblinear", class_weight="balanced", max_iter=300, random_state=rule.seed
    )
    probe.fit(active[training], label[training])
    return probe.coef_[0], float(metrics.roc_auc_score(label[~training], probe.decision_function(active[~training])))
