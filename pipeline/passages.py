"""What features fire on, as text: contexts looked up in store and corpus, each token with its activation.

Nothing of the text is kept in results: a context is the number of a row, and what stands around it is read when it is
asked for. Only the chunks of the store and the documents that hold such rows are read.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr
from numpy.typing import NDArray

from storage import Corpus, is_sparse, open_activations, open_corpus, open_result, read_csr, read_dense
from storage.errors import InputError, RowMismatchError

#: Features whose contexts are held at a time.
BLOCK_FEATURES = 256
#: Rows shown on either side of a row.
REACH = 10


@dataclass(frozen=True)
class Piece:
    """A stretch of text, and how active the feature is there; `peak` marks the token the context is listed for."""

    text: str
    activation: float
    peak: bool = False


@dataclass(frozen=True)
class Context:
    """One place where a feature fires.

    Attributes
    ----------
    row, document
        Where it is.
    activation
        Of the feature in this row.
    pieces
        The text around it, cut at tokens.
    quantile
        At which quantile of its activations the row was sampled; None for a top row.
    starts, ends
        Whether the text begins and ends where the document does.
    """

    row: int
    document: int
    activation: float
    pieces: tuple[Piece, ...]
    quantile: float | None
    starts: bool
    ends: bool

    @property
    def text(self) -> str:
        """The whole passage."""
        return "".join(piece.text for piece in self.pieces)

    @property
    def token(self) -> str:
        """The token that the context is listed for."""
        return "".join(piece.text for piece in self.pieces if piece.peak)


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
        Contexts from the strongest down, and those at quantiles of its activations.
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
    top: tuple[Context, ...]
    sampled: tuple[Context, ...]
    tokens: tuple[tuple[str, int], ...]
    token_missed: int
    histogram: tuple[int, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain values, for JSON."""
        return asdict(self)


def read_contexts(
    contexts: str | Path | xr.Dataset,
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
        Result of ``contexts`` for the store, or its path.
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
        One for each feature. Held in memory: the coordinates of all rows, the contexts of :data:`BLOCK_FEATURES`
        features, one chunk of the store, and the documents of these contexts.

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
    >>> found.top[0].token, found.top[0].pieces[2]
    (' saw', Piece(text=' it', activation=1.0, peak=False))
    """
    source = _Source.open(contexts, store, corpus, reach)
    wanted = np.arange(source.tops.sizes["feature"]) if features is None else np.asarray(features, np.int64)
    outside = wanted[(wanted < 0) | (wanted >= source.tops.sizes["feature"])]
    if outside.size:
        raise InputError(f"{store} has features 0 to {source.tops.sizes['feature'] - 1}, not {outside[0]}")
    for start in range(0, len(wanted), BLOCK_FEATURES):
        yield from _read_block(source, wanted[start : start + BLOCK_FEATURES], top_n)


def check_same_text(contexts: xr.Dataset, store: xr.Dataset, corpus: Corpus) -> None:
    """Raise unless contexts, store and corpus are of the same rows of the same text.

    Raises
    ------
    InputError
        If the store has no token coordinates.
    RowMismatchError
        If the contexts are of other rows, or the store of another corpus.
    """
    path, where = store.encoding["source"], contexts.encoding.get("source")
    if "document" not in store.variables:
        raise InputError(f"{path} has no token coordinates, so its rows have no text; harvest it again")
    if contexts.attrs.get("row_hash") != store.attrs["row_hash"]:
        found = f"The contexts at {where} are" if where else "The contexts are"
        raise RowMismatchError(f"{found} of other rows than {path}; make them from that store")
    if store.attrs.get("corpus_hash", corpus.hash) != corpus.hash:
        raise RowMismatchError(f"{path} was not harvested from the corpus {corpus.path}; give the one that was")


@dataclass(frozen=True)
class _Source:
    """What contexts are looked up in."""

    path: str
    tops: xr.Dataset
    store: xr.Dataset
    corpus: Corpus
    document: NDArray[np.int64]
    start: NDArray[np.int64]
    end: NDArray[np.int64]
    reach: int

    @classmethod
    def open(cls, contexts: str | Path | xr.Dataset, store: str | Path, corpus: str | Path, reach: int) -> _Source:
        tops = contexts if isinstance(contexts, xr.Dataset) else open_result(contexts, "contexts")
        rows, text = open_activations(store), open_corpus(corpus)
        check_same_text(tops, rows, text)
        document, start, end = (rows[name].values.astype(np.int64) for name in ("document", "char_start", "char_end"))
        return cls(str(store), tops, rows, text, document, start, end, reach)

    def window(self, row: int) -> slice:
        """Return the rows around one, of the same document."""
        around = np.arange(max(0, row - self.reach), min(len(self.document), row + self.reach + 1))
        same = around[self.document[around] == self.document[row]]
        return slice(int(same[0]), int(same[-1]) + 1)

    def texts(self, rows: Sequence[int]) -> dict[int, str]:
        """Return the documents of some rows, by number."""
        numbers = np.unique(self.document[np.array(rows, np.int64)]).tolist()
        return dict(zip(numbers, self.corpus.iter_texts(numbers), strict=True))


def _read_block(source: _Source, features: NDArray[np.int64], top_n: int | None) -> Iterator[FeatureContexts]:
    tops = source.tops.isel(feature=features).load()
    rows = tops["row"].values[:, :top_n]
    sampled = tops["quantile_row"].values if "quantile_row" in tops else np.zeros((len(features), 0), np.int64)
    tokens = tops["token_row"].values if "token_row" in tops else np.zeros((len(features), 0), np.int64)
    needed = np.concatenate([each.ravel() for each in (rows, sampled, tokens)])
    texts = source.texts(needed[needed >= 0].tolist())
    both = np.concatenate([rows, sampled], axis=1)
    listed = [(feature, row) for feature, own in zip(features.tolist(), both.tolist(), strict=True) for row in own]
    listed = [each for each in listed if each[1] >= 0]
    activity = {key: values for key, _, values in read_activity(source.path, listed, source.window)}
    for i, feature in enumerate(features.tolist()):
        quantiles: list[float | None] = [None] * rows.shape[1]
        quantiles += tops["quantile"].values.tolist() if sampled.shape[1] else []
        found = [
            _context(source, texts, row, activity[feature, row], quantile)
            for row, quantile in zip(both[i].tolist(), quantiles, strict=True)
            if row >= 0
        ]
        yield FeatureContexts(
            feature=feature,
            firing_rate=float(tops["firing_rate"].values[i]),
            maximum=float(source.store["max"].values[feature]),
            top=tuple(each for each in found if each.quantile is None),
            sampled=tuple(each for each in found if each.quantile is not None),
            tokens=tuple(_tokens(source, texts, tops, i)),
            token_missed=int(tops["token_missed"].values[i]) if "token_missed" in tops else 0,
            histogram=tuple(tops["histogram"].values[i].tolist()) if "histogram" in tops else (),
        )


def _tokens(source: _Source, texts: dict[int, str], tops: xr.Dataset, i: int) -> Iterator[tuple[str, int]]:
    if "token_row" not in tops:
        return
    for row, count in zip(tops["token_row"].values[i].tolist(), tops["token_count"].values[i].tolist(), strict=True):
        if row >= 0:
            yield texts[int(source.document[row])][source.start[row] : source.end[row]], count


def _context(
    source: _Source, texts: dict[int, str], row: int, activity: NDArray[np.float32], quantile: float | None
) -> Context:
    rows = source.window(row)
    document = int(source.document[row])
    text = texts[document]
    pieces: list[Piece] = []
    cursor = int(source.start[rows][0])
    for number, value in zip(range(rows.start, rows.stop), activity.tolist(), strict=True):
        start, end = max(cursor, int(source.start[number])), int(source.end[number])
        if start > cursor:
            pieces.append(Piece(text[cursor:start], 0.0))
        if end > start or number == row:
            pieces.append(Piece(text[start:end], value, peak=number == row))
        cursor = max(cursor, end)
    first = int(source.start[rows][0])
    own = float(activity[row - rows.start])
    return Context(row, document, own, tuple(pieces), quantile, starts=first == 0, ends=cursor >= len(text))


def read_activity(
    path: str | Path, listed: Sequence[tuple[int, int]], window: Callable[[int], slice]
) -> Iterator[tuple[tuple[int, int], slice, NDArray[np.float32]]]:
    """Yield what features do on the rows around some of theirs.

    Parameters
    ----------
    path
        The activation store.
    listed
        Feature and row of each context.
    window
        Returns the rows around a row.

    Yields
    ------
    tuple
        The feature and row, the rows around it, and the feature's activations on them. Contexts come by the chunk of
        the store that holds their row; every chunk is read once, and one is held at a time.
    """
    array = zarr.open_array(f"{path}/activation", mode="r")
    chunk_rows, width = array.chunks
    groups: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
    for feature, row in listed:
        groups[row // chunk_rows, feature // width].append((feature, row))
    for (_, panel), members in sorted(groups.items()):
        windows = [window(row) for _, row in members]
        rows = slice(min(each.start for each in windows), max(each.stop for each in windows))
        columns = slice(panel * width, min((panel + 1) * width, array.shape[1]))
        slab = _columns(path, rows, columns, sorted({feature for feature, _ in members}))
        for (feature, row), own in zip(members, windows, strict=True):
            yield (feature, row), own, slab[feature][own.start - rows.start : own.stop - rows.start]


def _columns(path: str | Path, rows: slice, panel: slice, features: list[int]) -> dict[int, NDArray[np.float32]]:
    """Return some features on some rows, one dense column each; they are few, the chunk's features many."""
    local = np.array(features) - panel.start
    if is_sparse(path):
        dense = read_csr(path, rows, panel).tocsc()[:, local].toarray()
    else:
        dense = read_dense(path, rows, panel)[:, local]
    return dict(zip(features, dense.T.astype(np.float32), strict=True))
