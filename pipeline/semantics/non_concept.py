"""Features that stand for no meaning: they fire on punctuation, blanks, beginnings, at a position, or everywhere.

They are recognised by what they do on all rows of the store, not by a list of tokens:

================  ===================================================================================================
``punctuation``   share of firing rows whose text has no letter or digit
``blank``         share of firing rows whose text is nothing but white space, newlines above all
``beginning``     share of firing rows that are the first of a document or of a window of the model
``position``      share of the kept contexts (top and sampled) that stand at one and the same position of the window
``frequent``      share of all rows on which the feature fires
``single_token``  share of firing rows that have the feature's commonest token, at least
================  ===================================================================================================

A feature is non-concept if the share of any of the chosen kinds reaches its limit. ``single_token`` is measured but not
among the default kinds: a feature that fires on "Monday" alone is easy to match, but has a meaning.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse
import xarray as xr
from numpy.typing import NDArray

from pipeline.semantics.membership import carried, count_rows
from pipeline.settings.base import keywords
from pipeline.settings.semantics import NON_CONCEPT_LIMITS, NonConceptSettings
from pipeline.text.spans import first_in_window, iter_documents, open_text, read_spans, text_fingerprints
from pipeline.work.workers import ClientSource
from storage import Corpus, Manifest, fingerprint, make_result, new_manifest

logger = logging.getLogger(__name__)

STAGE = "non_concept"
#: Kinds that are properties of rows, in the order of :func:`row_kinds`.
OF_ROWS = ("punctuation", "blank", "beginning")
#: Contexts below which a shared position means nothing.
FEWEST_CONTEXTS = 3
NO_REASON = -1


@keywords(NonConceptSettings)
def non_concept_features(
    contexts: str | Path,
    store: str | Path,
    corpus: str | Path,
    settings: NonConceptSettings,
    *,
    out: str | Path | None = None,
    overwrite: bool = False,
    client: ClientSource = None,
) -> xr.Dataset:
    """Recognise the features that stand for no meaning.

    Parameters
    ----------
    contexts, store, corpus, out, overwrite, client
        As for :func:`pipeline.semantics.membership.concept_features`.
    settings
        Each setting of :class:`~pipeline.settings.semantics.NonConceptSettings` is a keyword; or all of them as one.

    Returns
    -------
    xarray.Dataset
        ``share(feature, kind)`` float32, NaN where it is not defined (a feature that never fires, a store without
        positions); ``non_concept(feature)`` bool; ``reason(feature)`` int8, number of the kind, −1 for none; ``kind``
        are the names. The attributes say which kinds count, and their limits.

    Raises
    ------
    InputError
        If a setting is out of range, or the store has no token coordinates.
    RowMismatchError
        If contexts, store and corpus are not of the same rows.

    Examples
    --------
    >>> import tempfile, storage
    >>> from pipeline.harvest.contexts import contexts
    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = storage.write_corpus(folder / "corpus.zarr", ["she, she."])
    >>> tokens = {"document": [0] * 4, "char_start": [0, 3, 4, 8], "char_end": [3, 4, 8, 9]}
    >>> active = np.array([[0, 0], [1, 0], [0, 2], [2, 0]])
    >>> storage.write_activations(folder / "a.zarr", active, tokens=tokens)
    >>> _ = contexts(folder / "a.zarr", folder / "contexts.zarr")
    >>> paths = (folder / "contexts.zarr", folder / "a.zarr", folder / "corpus.zarr")
    >>> non_concept_features(*paths, kinds=["punctuation"])["non_concept"].values
    array([ True, False])
    """
    tops, rows, text = open_text(contexts, store, corpus)
    manifest = non_concept_manifest((contexts, store, corpus), settings)

    def make() -> xr.Dataset:
        shares = _shares(tops, rows, text, str(store), client)
        names = list(NON_CONCEPT_LIMITS)
        reached = np.stack([shares[name] >= settings.limits[name] for name in names], axis=1)
        result = xr.Dataset(
            {
                "share": (("feature", "kind"), np.stack([shares[name] for name in names], axis=1).astype(np.float32)),
                "reason": ("feature", _reasons(reached, [names.index(kind) for kind in settings.kinds])),
            },
            {"kind": names},
            carried(rows) | settings.model_dump(),
        )
        return result.assign(non_concept=result["reason"] != NO_REASON)

    result = make_result(out, manifest, make, overwrite=overwrite)
    logger.info("%d of %d features stand for no concept", int(result["non_concept"].sum()), result.sizes["feature"])
    return result


def non_concept_manifest(
    paths: Sequence[str | Path], settings: NonConceptSettings, identify: Callable[[str | Path], str] = fingerprint
) -> Manifest:
    """Return what the features without a concept depend on: contexts, store and corpus, and settings."""
    return new_manifest(STAGE, text_fingerprints(paths, identify), settings.model_dump())


def _shares(
    tops: xr.Dataset, rows: xr.Dataset, text: Corpus, store: str, client: ClientSource
) -> dict[str, NDArray[np.float64]]:
    fires = rows["n_active"].values.astype(np.float64)
    counts = count_rows(store, rows.sizes["feature"], row_kinds(text, rows), client)
    of_rows = np.divide(counts, fires[:, None], out=np.full(counts.shape, np.nan), where=fires[:, None] > 0)
    n_rows = max(1, rows.sizes["token"] - int(rows.attrs["n_sinks"]))
    return {
        **dict(zip(OF_ROWS, of_rows.T, strict=True)),
        "position": _same_position(tops, rows),
        "frequent": fires / n_rows,
        "single_token": _one_token(tops, fires),
    }


def row_kinds(corpus: Corpus, rows: xr.Dataset) -> scipy.sparse.csr_array:
    """Return which rows are punctuation, blank, or the beginning of a text, bool (row, kind); sinks are none.

    Memory: the coordinates of all rows, and the texts of a block of documents.
    """
    is_of_kind = np.zeros((rows.sizes["token"], len(OF_ROWS)), bool)
    for row, text, start, end in iter_documents(corpus, read_spans(rows)):
        token = text[start:end]
        if not any(map(str.isalnum, token)):
            is_of_kind[row, :2] = True, token.isspace()
    is_of_kind[:, 2] = first_in_window(rows)
    is_of_kind[rows["sink"].values] = False
    return scipy.sparse.csr_array(is_of_kind)


def _same_position(tops: xr.Dataset, rows: xr.Dataset) -> NDArray[np.float64]:
    """Return the share of each feature's contexts that stand at the commonest position of the window."""
    n_features = tops.sizes["feature"]
    if "position" not in rows.variables:
        return np.full(n_features, np.nan)
    listed = [tops[name].values for name in ("row", "quantile_row") if name in tops]
    position = rows["position"].values.astype(np.int64)
    share = np.full(n_features, np.nan)
    for feature, rows_of_feature in enumerate(np.concatenate(listed, axis=1)):
        distinct = np.unique(rows_of_feature[rows_of_feature >= 0])
        if len(distinct) >= FEWEST_CONTEXTS:
            share[feature] = np.unique(position[distinct], return_counts=True)[1].max() / len(distinct)
    return share


def _one_token(tops: xr.Dataset, fires: NDArray[np.float64]) -> NDArray[np.float64]:
    if "token_count" not in tops:
        return np.full(len(fires), np.nan)
    most = tops["token_count"].values[:, 0]
    return np.divide(most, fires, out=np.full(len(fires), np.nan), where=fires > 0)


def _reasons(reached: NDArray[np.bool_], kinds: Sequence[int]) -> NDArray[Any]:
    reason = np.full(len(reached), NO_REASON, np.int8)
    for kind in reversed(kinds):
        reason[reached[:, kind]] = kind
    return reason
