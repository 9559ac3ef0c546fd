"""Which features belong to which concept.

Four rules, of which one decides; the figures of all but the last are in the result, whichever it is:

``count``
    `at_least` of the `of` top contexts stand at a keyword: the rule of the literature, with 1 of 5.
``share``
    The keywords' share of the activation in the top contexts.
``pmi``
    Pointwise mutual information between "the feature fires" and "a keyword stands here" over all rows of the store,
    in bits [1]_; unlike the others it looks at all that a feature does, not at its maxima.
``probe``
    The features with the largest positive weights in a logistic regression with an L1 penalty (see
    :mod:`pipeline.semantics.probe`).

.. [1] K. W. Church and P. Hanks, "Word association norms, mutual information, and lexicography", Computational
   Linguistics 16 (1990).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse
import xarray as xr
import zarr
from numpy.typing import NDArray

from pipeline.semantics.concepts import Concept, concepts_hash
from pipeline.semantics.keywords import keyword_rows
from pipeline.settings.semantics import CountRule, PmiRule, ProbeRule, Rule, ShareRule
from pipeline.text.spans import open_text, text_fingerprints
from pipeline.work.workers import ClientSource, ensure_client, run_tasks
from storage import Manifest, fingerprint, is_sparse, make_result, new_manifest, read_csr, read_dense
from storage.errors import InputError

logger = logging.getLogger(__name__)

STAGE = "concepts"
#: Bytes of one slab of one panel, in the worst case that all of it is active.
SLAB_BYTES = 64 * 2**20
#: Attributes of a store that results about its features carry on.
CARRIED = ("model", "model_revision", "site", "dictionary", "kind", "row_hash", "corpus_hash")

Panel = tuple[int, int]
Floats = NDArray[np.float64]


def concept_features(
    contexts: str | Path,
    store: str | Path,
    corpus: str | Path,
    concepts: Mapping[str, Concept],
    rule: Rule | None = None,
    *,
    out: str | Path | None = None,
    overwrite: bool = False,
    client: ClientSource = None,
) -> xr.Dataset:
    """Find the features that belong to each concept.

    Parameters
    ----------
    contexts
        Result of ``contexts`` for the store.
    store
        The activation store, with token coordinates.
    corpus
        The text.
    concepts
        What :func:`pipeline.semantics.concepts.load_concepts` returns.
    rule
        Which rule decides, as in the experiment file: one of ``CountRule``, ``ShareRule``, ``PmiRule``, ``ProbeRule``
        of :mod:`pipeline.settings.semantics`; ``CountRule()`` by default.
    out
        Path of the result; an up-to-date one is left unchanged. Without it, the result is only in memory.
    overwrite
        Whether a result at `out` that came from other inputs may be replaced.
    client
        Where rows are counted; threads of this process by default. A task reads one panel of features, one slab of
        rows at a time (:data:`SLAB_BYTES`). Besides there are the coordinates of all rows in memory, and the result.

    Returns
    -------
    xarray.Dataset
        Over (``feature``, ``concept``): ``hits`` int16, top contexts that stand at a keyword (of the first ``of``, or
        of all that are kept where the rule has no such number); ``share`` float32, the keywords' share of the
        activation in them, NaN without contexts; ``count`` int32, rows of the store on which the feature fires and a
        keyword stands; ``pmi`` float32 in bits, −inf where `count` is 0, NaN where either never happens; ``member``
        bool; with the probe, ``weight`` float32. Over ``concept``: ``rows`` int64, rows that stand at a keyword,
        ``members`` int64; with the probe, ``probe_auc`` float64, the area under the ROC curve on documents held out.
        Attention sinks do not count. The attribute ``rule`` holds the rule.

    Raises
    ------
    InputError
        If there is no concept, the store has no token coordinates, or the rule asks for more contexts than are kept.
    RowMismatchError
        If the contexts are of other rows than the store, or the store of another corpus.

    Examples
    --------
    >>> import tempfile, storage
    >>> from pipeline.harvest.contexts import contexts
    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = storage.write_corpus(folder / "corpus.zarr", ["she saw the sheen"])
    >>> tokens = {"document": [0] * 5, "char_start": [0, 4, 8, 12, 15], "char_end": [3, 7, 11, 15, 17]}
    >>> active = np.array([[1, 0], [0, 0], [0, 0], [0, 1], [0, 0]])
    >>> storage.write_activations(folder / "a.zarr", active, tokens=tokens)
    >>> _ = contexts(folder / "a.zarr", folder / "contexts.zarr")
    >>> paths = (folder / "contexts.zarr", folder / "a.zarr", folder / "corpus.zarr")
    >>> found = concept_features(*paths, {"women": Concept("women", ("she",))}, CountRule(at_least=1, of=1))
    >>> found["member"].values.ravel(), found["pmi"].values.ravel().round(2)
    (array([ True, False]), array([2.32, -inf], dtype=float32))
    """
    rule = rule or CountRule()
    if not concepts:
        raise InputError("There is no concept to look for; load_concepts() returns those of the package")
    tops, rows, text = open_text(contexts, store, corpus)
    _check_rank(rule, tops)
    manifest = concepts_manifest((contexts, store, corpus), concepts, rule)

    def make() -> xr.Dataset:
        keywords = _without_sinks(keyword_rows(text, rows, concepts), rows["sink"].values)
        figures = {
            **_of_contexts(tops, keywords, getattr(rule, "of", tops.sizes["rank"])),
            **_of_rows(str(store), rows, keywords, client),
            "rows": ("concept", np.asarray(keywords.sum(axis=0)).ravel().astype(np.int64)),
        }
        result = xr.Dataset(figures, {"concept": list(concepts)})
        return _decide(result, rule, str(store), keywords).assign_attrs(carried(rows), rule=rule.model_dump())

    result = make_result(out, manifest, make, overwrite=overwrite)
    logger.info("%d of %d features belong to a concept", int(result["member"].any("concept").sum()), len(result.hits))
    return result


def concepts_manifest(
    paths: Sequence[str | Path],
    concepts: Mapping[str, Concept],
    rule: Rule,
    identify: Callable[[str | Path], str] = fingerprint,
) -> Manifest:
    """Return what the members of concepts depend on: contexts, store and corpus, concepts and rule."""
    settings = {"rule": rule.model_dump(), "concepts": concepts_hash(concepts)}
    return new_manifest(STAGE, text_fingerprints(paths, identify), settings)


def _check_rank(rule: Rule, tops: xr.Dataset) -> None:
    wanted, n_kept, contexts = getattr(rule, "of", 1), tops.sizes["rank"], tops.encoding["source"]
    if wanted > n_kept:
        raise InputError(
            f"The rule looks at {wanted} contexts of each feature, and {contexts} keeps {n_kept}; make contexts with "
            f"top_n={wanted} (report.contexts in an experiment file), or lower `of`"
        )


def carried(rows: xr.Dataset) -> dict[str, Any]:
    """Return the attributes of a store that results about its features carry on."""
    return {name: rows.attrs[name] for name in CARRIED if name in rows.attrs}


def _without_sinks(keywords: scipy.sparse.csr_array, sink: NDArray[np.bool_]) -> scipy.sparse.csr_array:
    keywords = keywords.copy()
    keywords.data &= ~np.repeat(sink, np.diff(keywords.indptr))
    keywords.eliminate_zeros()
    return keywords


def _of_contexts(tops: xr.Dataset, keywords: scipy.sparse.csr_array, n: int) -> dict[str, Any]:
    """Return ``hits`` and ``share`` of the first `n` contexts."""
    row = tops["row"].values[:, :n]
    weight = np.where(row >= 0, np.maximum(np.nan_to_num(tops["value"].values[:, :n].astype(np.float64)), 0), 0)
    used = np.unique(row[row >= 0])
    by_concept = keywords[used].tocsc()
    place = np.searchsorted(used, row)
    shape = (len(row), keywords.shape[1])
    hits, share = np.zeros(shape, np.int16), np.full(shape, np.nan, np.float32)
    total = weight.sum(axis=1)
    for concept in range(shape[1]):
        stands = np.zeros(len(used) + 1, bool)
        stands[by_concept.indices[slice(*by_concept.indptr[concept : concept + 2])]] = True
        here = stands[place] & (row >= 0)
        hits[:, concept] = here.sum(axis=1)
        np.divide((weight * here).sum(axis=1), total, out=share[:, concept], where=total > 0, casting="same_kind")
    return {"hits": (("feature", "concept"), hits), "share": (("feature", "concept"), share)}


def _of_rows(path: str, rows: xr.Dataset, keywords: scipy.sparse.csr_array, client: ClientSource) -> dict[str, Any]:
    """Return ``count`` and ``pmi`` over all rows that are no sinks."""
    count = count_rows(path, rows.sizes["feature"], keywords, client)
    n = rows.sizes["token"] - int(rows.attrs["n_sinks"])
    n_active = rows["n_active"].values.astype(np.float64)
    pmi = pointwise_mutual_information(count, n_active, keywords.sum(axis=0), n)
    return {
        "count": (("feature", "concept"), count.astype(np.int32)),
        "pmi": (("feature", "concept"), pmi.astype(np.float32)),
    }


def pointwise_mutual_information(both: NDArray[Any], first: NDArray[Any], second: NDArray[Any], n: int) -> Floats:
    """Return log2 of P(both) / (P(first) P(second)), in bits, from counts of shapes (i, j), (i,) and (j,) out of `n`.

    −inf where they never happen together, NaN where one never happens.

    >>> pointwise_mutual_information(np.array([[2, 0]]), np.array([4]), np.array([4, 4]), 16)
    array([[  1., -inf]])
    """
    chance = np.outer(first, second).astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(chance > 0, np.log2(both * float(n) / chance), np.nan)


def count_rows(path: str, n_features: int, keywords: scipy.sparse.csr_array, client: ClientSource) -> NDArray[np.int64]:
    """Return on how many rows each feature is not 0 where each concept (or kind of row) stands, int64.

    `keywords` is (row, concept) bool, in which sinks have none; the result (feature, concept). A task counts one panel
    of features, and holds a slab of rows, at most :data:`SLAB_BYTES`.
    """
    count = np.zeros((n_features, keywords.shape[1]), np.int64)
    width = zarr.open_array(f"{path}/activation", mode="r").chunks[1]
    panels = [(start, min(start + width, n_features)) for start in range(0, n_features, width)]
    with ensure_client(client) as used:
        # one copy for each worker, not one for each task
        shared = used.scatter(keywords, hash=False)
        label = f"concepts, {Path(path).stem}"
        for (start, stop), part in run_tasks(
            used, _panel_task, panels, name="concepts-panel", label=label, args=(path, shared)
        ):
            count[start:stop] = part
    return count


def _panel_task(panel: Panel, path: str, keywords: scipy.sparse.csr_array) -> NDArray[np.int64]:
    """Count one panel of features, a slab of rows after the other."""
    from pipeline.semantics import membership_kernels as kernels  # noqa: PLC0415 - compiled on use

    counts = np.zeros((panel[1] - panel[0], keywords.shape[1]), np.int64)
    sparse = is_sparse(path)
    chunk_rows = zarr.open_array(f"{path}/activation", mode="r").chunks[0]
    step = chunk_rows * max(1, SLAB_BYTES // (4 * len(counts) * chunk_rows))
    for start in range(0, keywords.shape[0], step):
        rows = slice(start, min(start + step, keywords.shape[0]))
        here = keywords[rows]
        if sparse:
            slab = read_csr(path, rows, slice(*panel))
            kernels.count_csr((slab.indptr, slab.indices, slab.data), (here.indptr, here.indices), counts)
        else:
            is_active = read_dense(path, rows, slice(*panel)) != 0  # also of float16, which Numba does not know
            kernels.count_dense(is_active, (here.indptr, here.indices), counts)
    return counts


def _decide(result: xr.Dataset, rule: Rule, store: str, keywords: scipy.sparse.csr_array) -> xr.Dataset:
    """Add ``member`` and ``members``, and what the probe found."""
    if isinstance(rule, ProbeRule):
        from pipeline.semantics.probe import probe_concepts  # noqa: PLC0415 - scikit-learn is an extra

        weight, auc = probe_concepts(store, keywords, rule)
        result = result.assign(weight=(("feature", "concept"), weight), probe_auc=("concept", auc))
    member = _members(result, rule)
    return result.assign(member=member, members=member.sum("feature"))


def _members(result: xr.Dataset, rule: Rule) -> xr.DataArray:
    if isinstance(rule, CountRule):
        return result["hits"] >= rule.at_least
    if isinstance(rule, ShareRule):
        return result["share"] >= rule.at_least
    if isinstance(rule, PmiRule):
        return (result["pmi"] >= rule.at_least) & (result["count"] >= rule.min_count)
    # from the largest weight down; equal ones by the lowest feature
    place = np.argsort(np.argsort(-result["weight"].values, axis=0, kind="stable"), axis=0, kind="stable")
    return (result["weight"] > 0) & (place < rule.features)
