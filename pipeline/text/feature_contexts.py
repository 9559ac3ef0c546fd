"""What features fire on: their contexts as passages, each token with its activation.

Nothing of the text is kept in results: a context is the number of a row, and what stands around it is read when it is
asked for. Only the chunks of the store and the documents that hold such rows are read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr
from numpy.typing import NDArray

from pipeline.text.passages import REACH, Passage, gather_passages
from pipeline.text.spans import iter_documents, open_text, read_spans
from storage import Corpus, is_sparse, open_result, read_csr, read_dense
from storage.errors import InputError

#: Features whose contexts are held at a time.
BLOCK_FEATURES = 256


@dataclass(frozen=True)
class FeatureContexts:
    """All that is known of what one feature fires on.

    Attributes
    ----------
    feature
        Its id.
    firing_rate, maximum
        Share of rows on which it is not 0, and its largest activation.
    top, sampled
        Passages from the strongest down, and those at quantiles of its activations.
    tokens
        Its commonest tokens with the least number of firing rows of each.
    token_missed
        How many more rows a token may have at most.
    histogram
        Firing rows by activation, from 0 to the maximum.
    """

    feature: int
    firing_rate: float
    maximum: float
    top: tuple[Passage, ...]
    sampled: tuple[Passage, ...]
    tokens: tuple[tuple[str, int], ...]
    token_missed: int
    histogram: tuple[int, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain values, for JSON."""
        return asdict(self)


def read_contexts(
    contexts: str | Path,
    store: str | Path,
    corpus: str | Path,
    features: Sequence[int] | NDArray[np.integer] | None = None,
    *,
    top_n: int | None = None,
    reach: int = REACH,
) -> Iterator[FeatureContexts]:
    """Look up what features fire on.

    Parameters
    ----------
    contexts
        Result of ``contexts`` for the store.
    store
        The activation store, with token coordinates.
    corpus
        The text.
    features
        Feature ids, in the order in which they are wanted; all by default.
    top_n
        Top rows looked up for each feature; all that are kept by default.
    reach
        Rows shown on either side.

    Yields
    ------
    FeatureContexts
        One for each feature. Held in memory: the passages of :data:`BLOCK_FEATURES` features, a block of documents, and
        one chunk of the store.

    Raises
    ------
    InputError
        If a feature is not there, or the store has no token coordinates.
    RowMismatchError
        If contexts, store and corpus are not of the same rows.

    Examples
    --------
    >>> import tempfile, storage
    >>> from pipeline.harvest.contexts import contexts
    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = storage.write_corpus(folder / "corpus.zarr", ["she saw it"])
    >>> tokens = {"document": [0] * 3, "char_start": [0, 3, 7], "char_end": [3, 7, 10]}
    >>> storage.write_activations(folder / "a.zarr", np.array([[0], [2], [1]]), tokens=tokens)
    >>> _ = contexts(folder / "a.zarr", folder / "contexts.zarr", top_n=1)
    >>> (found,) = read_contexts(folder / "contexts.zarr", folder / "a.zarr", folder / "corpus.zarr")
    >>> found.top[0].token, found.top[0].pieces[-1]
    ('saw', Piece(text='it', activation=1.0, peak=False))
    """
    tops, rows, text = open_text(contexts, store, corpus)
    wanted = np.arange(tops.sizes["feature"]) if features is None else np.asarray(features, np.int64)
    outside = wanted[(wanted < 0) | (wanted >= tops.sizes["feature"])]
    if outside.size:
        raise InputError(f"{store} has features 0 to {tops.sizes['feature'] - 1}, not {outside[0]}")
    for start in range(0, len(wanted), BLOCK_FEATURES):
        block = tops.isel(feature=wanted[start : start + BLOCK_FEATURES]).load()
        yield from _read_block(block, rows, text, wanted[start : start + BLOCK_FEATURES], (top_n, reach))


def _read_block(
    tops: xr.Dataset, rows: xr.Dataset, corpus: Corpus, features: NDArray[np.int64], limits: tuple[int | None, int]
) -> Iterator[FeatureContexts]:
    top_n, reach = limits
    top = tops["row"].values[:, :top_n]
    sampled = tops["quantile_row"].values if "quantile_row" in tops else np.zeros((len(features), 0), np.int64)
    quantiles = [*[None] * top.shape[1], *(tops["quantile"].values.tolist() if sampled.shape[1] else ())]
    both = np.concatenate([top, sampled], axis=1)
    passages = gather_passages(corpus, rows, both, reach=reach)
    activity = read_activity(rows.encoding["source"], features, both, reach)
    tokens, maximum = list(_commonest_tokens(tops, rows, corpus)), rows["max"].values
    for i, feature in enumerate(features.tolist()):
        shown = [
            passages.passage(row, around, quantile)
            for row, around, quantile in zip(both[i].tolist(), activity[i], quantiles, strict=True)
            if row >= 0
        ]
        yield FeatureContexts(
            feature=feature,
            firing_rate=float(tops["firing_rate"].values[i]),
            maximum=float(maximum[feature]),
            top=tuple(passage for passage in shown if passage.quantile is None),
            sampled=tuple(passage for passage in shown if passage.quantile is not None),
            tokens=tokens[i] if tokens else (),
            token_missed=int(tops["token_missed"].values[i]) if "token_missed" in tops else 0,
            histogram=tuple(tops["histogram"].values[i].tolist()) if "histogram" in tops else (),
        )


def _commonest_tokens(tops: xr.Dataset, rows: xr.Dataset, corpus: Corpus) -> Iterator[tuple[tuple[str, int], ...]]:
    """Yield the commonest tokens of each feature with their counts; nothing where the contexts have none."""
    if "token_row" not in tops:
        return
    used = np.unique(tops["token_row"].values)
    used = used[used >= 0]
    spans = read_spans(rows, used)
    texts = {int(used[place]): text[start:end] for place, text, start, end in iter_documents(corpus, spans)}
    for firing, counts in zip(tops["token_row"].values.tolist(), tops["token_count"].values.tolist(), strict=True):
        yield tuple((texts[row], count) for row, count in zip(firing, counts, strict=True) if row >= 0)


def read_activity(
    path: str | Path, features: NDArray[np.integer], rows: NDArray[np.int64], reach: int = REACH
) -> NDArray[np.float32]:
    """Return what features (n,) do on the rows around some of theirs (n, m): float32, shape (n, m, 2 · reach + 1).

    0 where there are none, as for −1. Every chunk of the store that holds such a row is read once. Beside the result
    one chunk is held at a time, with about 50 bytes for each of these rows that are in it.
    """
    array = zarr.open_array(f"{path}/activation", mode="r")
    (height, width), (n_rows, n_features) = array.chunks, array.shape
    read = read_csr if is_sparse(path) else read_dense
    listed = rows >= 0
    row, feature = rows[listed], np.broadcast_to(features[:, None], rows.shape)[listed]
    order = np.lexsort((row, feature // width))
    around = np.zeros((len(row), 2 * reach + 1), np.float32)
    for panel in np.unique(feature // width).tolist():
        in_panel = order[slice(*np.searchsorted(feature[order] // width, [panel, panel + 1]))]
        for start in range(0, n_rows, height):
            stop = min(start + height, n_rows)
            here = in_panel[slice(*np.searchsorted(row[in_panel], [start - reach, stop + reach]))]
            if not len(here):
                continue
            chunk = read(path, slice(start, stop), slice(panel * width, min((panel + 1) * width, n_features)))
            place = row[here, None] + np.arange(-reach, reach + 1) - start
            column = np.broadcast_to(feature[here, None] - panel * width, place.shape)
            inside = (place >= 0) & (place < stop - start)
            values = chunk[place.clip(0, stop - start - 1), column]
            around[here] += np.where(inside, values if isinstance(values, np.ndarray) else values.toarray(), 0)
    activity = np.zeros((*rows.shape, 2 * reach + 1), np.float32)
    activity[listed] = around
    return activity


def read_labels(path: Path) -> dict[int, str]:
    """Return the labels of features by id; none if there is no such result of ``subspace labels`` or ``label``."""
    if not path.exists():
        return {}
    labels = open_result(path, "labels")
    return dict(zip(labels["feature"].values.tolist(), labels["label"].values.tolist(), strict=True))
