"""What the explorer in the page searches and shows, packed: text, features, pairs, neighbours and maps.

==================  ================================================================================================
``text``            the text of all contexts, every row of it once, and the words that their tokens are part of
``site-SIDE-I``     one for each site: its features with their top contexts, shading and activation histogram
``pair-I``          one for each pair of sites: the pairs, both r, the neighbours, the map, the concepts
==================  ================================================================================================

A browser takes a pack apart when it is first looked at, so that a page opens quickly whatever is in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from pipeline.report.explorer import LEVELS, shade_levels
from pipeline.report.maps import map_pairs
from pipeline.report.neuronpedia import feature_page
from pipeline.report.pack import fixed_point, pack, short_floats
from pipeline.report.results import SIDES, Run, Side, Site, SitePair
from pipeline.report.tables import short_name
from pipeline.text.passages import REACH, Passages, gather_passages
from pipeline.text.spans import Spans, iter_documents, readable
from pipeline.text.words import word_around
from storage import is_sparse, open_result, read_csr, read_dense

#: Neighbours kept for each feature: the partners it could have had, best first.
NEIGHBOURS = 6
#: Contexts kept for each feature.
CONTEXTS = 8
#: Bars of an activation histogram, from 0 to the feature's largest activation.
BARS = 24
#: Flags of a row of text: the document begins with it, ends with it.
STARTS, ENDS = 1, 2
#: Values are searched for this many at once, which bounds what a lookup holds beside the rows of a chunk.
LOOKED_UP = 1 << 22


@dataclass(frozen=True)
class ExplorerData:
    """Everything that one explorer page holds: what it opens with, and base64 packs by name."""

    index: dict[str, Any]
    packs: dict[str, str]

    @property
    def size(self) -> int:
        """Bytes of all packs as they stand in the page."""
        return sum(map(len, self.packs.values()))


@dataclass(frozen=True)
class _SiteView:
    """One site's features in the explorer: those of any pair, and their neighbours, ascending."""

    site: Site
    features: np.ndarray
    rows: np.ndarray
    values: np.ndarray

    def index(self, features: np.ndarray) -> np.ndarray:
        """Return where features stand among these, int32."""
        return np.searchsorted(self.features, features).astype(np.int32)


def explorer_data(run: Run, site_pairs: Sequence[SitePair]) -> ExplorerData:
    """Gather what the explorer shows of some pairs of sites.

    Parameters
    ----------
    run
        An open run.
    site_pairs
        Some of its pairs of sites.

    Returns
    -------
    ExplorerData

    Notes
    -----
    Reads every chunk of each site's activations once. Holds, beside what it returns, of the features shown their
    contexts, shades and histograms (about 450 bytes a feature), the text around their contexts, the decoder rows of one
    pair of sites, and the active values of one chunk (about 80 bytes each): with the usual 4,096 rows × 4,096 features
    at 32 active of 32,768, a megabyte, and never more than 1.4 GB, were every value of it active.
    """
    views = {(side, name): _view(site, site_pairs) for side in SIDES for name, site in _sites(site_pairs, side).items()}
    wanted = np.concatenate([view.rows.ravel() for view in views.values()])
    passages = gather_passages(run.corpus, run.rows, wanted)
    packs = {"text": _pack_text(run, passages, passages.places(np.unique(wanted[wanted >= 0])))}
    names: dict[tuple[Side, str], str] = {}
    for i, (key, view) in enumerate(views.items()):
        names[key] = f"site-{key[0]}-{i}"
        packs[names[key]] = _pack_site(view, passages)
    entries = []
    for i, pair in enumerate(site_pairs):
        sides = views["a", pair.a.name], views["b", pair.b.name]
        packs[f"pair-{i}"] = _pack_pair(pair, *sides, read_concepts(run, pair))
        entries.append(_entry(pair, f"pair-{i}", names))
    return ExplorerData(_index(run, entries), packs)


def _sites(site_pairs: Sequence[SitePair], side: Side) -> dict[str, Site]:
    return {pair.site(side).name: pair.site(side) for pair in site_pairs}


def _index(run: Run, entries: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "models": {side: short_name(run.model(side)) for side in SIDES},
        "site_pairs": entries,
        "reach": REACH,
        "levels": LEVELS,
        "contexts": CONTEXTS,
        "bars": BARS,
    }


def _entry(pair: SitePair, name: str, names: dict[tuple[Side, str], str]) -> dict[str, Any]:
    return {
        "pack": name,
        "sites": {side: pair.site(side).name for side in SIDES},
        "packs": {side: names[side, pair.site(side).name] for side in SIDES},
        "pages": {side: feature_page(str(pair.site(side).store.attrs.get("dictionary", ""))) for side in SIDES},
        "pairs": int(pair.pairs.sizes["pair"]),
        "heldout": bool(np.isfinite(pair.pairs["r_heldout"].values).any()),
    }


def _view(site: Site, site_pairs: Sequence[SitePair]) -> _SiteView:
    own = [pair for pair in site_pairs if pair.site(site.side).name == site.name]
    found = [pair.pairs[f"feature_{site.side}"].values.astype(np.int64) for pair in own]
    found += [_neighbours(pair, site.side)[0].ravel() for pair in own]
    features = np.unique(np.concatenate(found))
    features = features[features >= 0]
    best = {"feature": features, "rank": slice(CONTEXTS)}
    contexts = site.contexts[["row", "value"]].isel(best)
    return _SiteView(site, features, contexts["row"].values, contexts["value"].values)


def _neighbours(pair: SitePair, side: Side) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return, for every pair, the features of `side` that its other feature correlates with most.

    Returns
    -------
    tuple of ndarray
        Feature ids int64 (−1 where there are fewer), r where chosen and r held out (NaN where undefined), each of
        shape (pairs, :data:`NEIGHBOURS`).
    """
    other = "b" if side == "a" else "a"
    features = pair.pairs[f"feature_{other}"].values
    names = [f"best_{side}", f"r_{side}", f"r_heldout_{side}"]
    best = {f"feature_{other}": features, "rank": slice(NEIGHBOURS)}
    ids, r, heldout = (
        pair.correlation[name].isel(best).values if name in pair.correlation else np.array(np.nan) for name in names
    )
    ids = np.where(np.isfinite(r), ids, -1).astype(np.int64)
    return ids, r, np.broadcast_to(heldout, r.shape)


def _pack_text(run: Run, passages: Passages, peaks: np.ndarray) -> str:
    """Pack the rows of all passages, and for those at `peaks` the words that they are part of.

    ``gap`` and ``length`` are the UTF-16 units before each row's token and of the token; ``flags`` are of
    :data:`STARTS` and :data:`ENDS`; ``word`` is a place among ``words``, from 1 on, 0 where there is none.
    """
    starts, ends = passages.document_ends()
    texts = [(readable(gap), readable(token)) for gap, token in passages.cut_rows()]
    word, words = np.zeros(len(passages.rows), np.uint32), dict[str, int]()
    peak_spans = Spans(*(bound[peaks] for bound in passages.spans))
    for place, text, start, end in iter_documents(run.corpus, peak_spans):
        if found := word_around(text, start, end):
            word[peaks[place]] = words.setdefault(found, len(words) + 1)
    arrays: dict[str, np.ndarray] = {
        "gap": np.array([_units(gap) for gap, _ in texts], np.uint16),
        "length": np.array([_units(token) for _, token in texts], np.uint16),
        "flags": (STARTS * starts + ENDS * ends).astype(np.uint8),
        "document": passages.spans.document.astype(np.uint32),
        "text": np.frombuffer("".join(gap + token for gap, token in texts).encode(), np.uint8),
        "word": word,
    }
    return pack(arrays, words=list(words))


def _units(text: str) -> int:
    """Return the length as JavaScript counts it."""
    return len(text.encode("utf-16-le")) // 2


def _pack_site(view: _SiteView, passages: Passages) -> str:
    features, row = view.features, passages.places(view.rows)
    largest = view.site.store["max"].values[features]
    levels, bars = _read_activations(view, largest)
    arrays = {
        "feature": features.astype(np.uint32),
        "row": row,
        "value": np.nan_to_num(view.values).astype(np.float32),
        "before": np.append(passages.before, np.uint8(0))[row],
        "after": np.append(passages.after, np.uint8(0))[row],
        "level": levels,
        "bars": bars,
        "n_active": view.site.store["n_active"].values[features].astype(np.uint32),
        "largest": largest.astype(np.float32),
    }
    return pack(arrays, rows=int(view.site.store.sizes["token"]), width=view.rows.shape[1])


def _read_activations(view: _SiteView, largest: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the shade of every token of every context, and every feature's histogram of activations.

    Every chunk of the store is read once. Beside the result, the active values of one chunk are held at a time.

    Returns
    -------
    levels
        0 to :data:`LEVELS`, uint8, shape (features, contexts, 2 · REACH + 1).
    bars
        Rows with an activation in each bar, uint32, shape (features, :data:`BARS`).
    """
    levels = np.zeros((*view.rows.shape, 2 * REACH + 1), dtype=np.uint8)
    bars = np.zeros((len(view.features), BARS), dtype=np.uint32)
    # attention sinks count in none of a store's statistics
    counted = ~view.site.store["sink"].values
    for own, columns in _panels(view):
        rows, scale = view.rows[own].ravel(), np.where(largest[own] > 0, largest[own], 1)
        shown = np.flatnonzero(rows >= 0)
        shown = shown[np.argsort(rows[shown], kind="stable")]
        shades = levels[own].reshape(-1, 2 * REACH + 1)
        for slab in _slabs(view.site.path, view.features[own] - columns.start, columns):
            slab.count(bars[own], scale, counted)
            for part in _parts(*np.searchsorted(rows[shown], [slab.first, slab.last])):
                place = shown[part]
                column = place // max(1, view.rows.shape[1])
                shades[place] = shade_levels(slab.around(rows[place], column), scale[column][:, None])
    return levels, bars


def _parts(first: int, last: int) -> Iterator[slice]:
    step = LOOKED_UP // (2 * REACH + 1)
    for start in range(first, last, step):
        yield slice(start, min(start + step, last))


def _panels(view: _SiteView) -> Iterator[tuple[slice, slice]]:
    """Yield the features shown that a column of chunks holds, as places among them, and the store's columns in it."""
    array = zarr.open_array(f"{view.site.path}/activation", mode="r")
    for left in range(0, array.shape[1], array.chunks[1]):
        columns = slice(left, min(left + array.chunks[1], array.shape[1]))
        first, last = np.searchsorted(view.features, [columns.start, columns.stop])
        if first < last:
            yield slice(first, last), columns


def _slabs(path: Path, features: np.ndarray, columns: slice) -> Iterator[_Slab]:
    """Yield the active values of some columns chunk by chunk, each with the last rows of the one before.

    So a context is looked up when all of its rows are there, and no chunk is read for its neighbour's sake.

    Parameters
    ----------
    path
        The store.
    features
        The features wanted, counted from the first of the columns.
    columns
        The columns of one chunk.
    """
    array = zarr.open_array(f"{path}/activation", mode="r")
    n_rows, step, sparse = array.shape[0], array.chunks[0], is_sparse(path)
    place = np.full(columns.stop - columns.start, -1, dtype=np.int64)
    place[features] = np.arange(len(features))
    carried: list[np.ndarray] = [
        np.zeros(0, dtype=np.int64),
        np.zeros(0, dtype=np.int64),
        np.zeros(0, dtype=np.float32),
    ]
    for start in range(0, n_rows, step):
        stop = min(start + step, n_rows)
        row, stored, value = _entries(path, slice(start, stop), columns, sparse=sparse)
        column = place[stored]
        ours = column >= 0
        fresh = [row[ours].astype(np.int64) + start, column[ours], value[ours]]
        entries = [np.concatenate([before, new]) for before, new in zip(carried, fresh, strict=True)]
        yield _Slab((start, stop), n_rows, entries, len(features))
        near = entries[0] >= stop - 2 * REACH
        carried = [entry[near] for entry in entries]


def _entries(path: Path, rows: slice, columns: slice, *, sparse: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the (row, feature, value) of what is not 0 in a part of a store; both count from the first of it."""
    if sparse:
        block = read_csr(path, rows, columns).tocoo()
        return block.row, block.col, block.data
    dense = read_dense(path, rows, columns)
    row, column = np.nonzero(dense)
    return row, column, dense[row, column]


class _Slab:
    """The active values of some features on the rows of a chunk and some before, found by (row, column).

    Contexts of the rows from `first` up to `last` can be looked up.
    """

    def __init__(self, rows: tuple[int, int], n_rows: int, entries: Sequence[np.ndarray], n_columns: int) -> None:
        (self._start, stop), (row, column, value) = rows, entries
        self.first, self.last = self._start - REACH if self._start else 0, stop if stop == n_rows else stop - REACH
        key = row * n_columns + column
        order = np.argsort(key, kind="stable")
        self._key, self._value, self._row, self._column = key[order], value[order], row[order], column[order]
        self._n_columns = n_columns

    def around(self, row: np.ndarray, column: np.ndarray) -> np.ndarray:
        """Return the activation of one column on the rows around each row, shape (n, 2 · REACH + 1), 0 if none."""
        wanted = (row[:, None] + np.arange(-REACH, REACH + 1)) * self._n_columns + column[:, None]
        if not len(self._key):
            return np.zeros(wanted.shape)
        place = np.searchsorted(self._key, wanted).clip(max=len(self._key) - 1)
        found: np.ndarray = np.where(self._key[place] == wanted, self._value[place], 0.0)
        return found

    def count(self, bars: np.ndarray, scale: np.ndarray, counted: np.ndarray) -> None:
        """Add the chunk's rows that are `counted`, a flag a row of the store, to the histograms of what is above 0."""
        own = (self._row >= self._start) & counted[self._row] & (self._value > 0)
        column = self._column[own]
        bar = np.clip((self._value[own] / scale[column] * BARS).astype(np.int64), 0, BARS - 1)
        counts = np.bincount(column * BARS + bar, minlength=bars.size)
        bars += counts.reshape(bars.shape).astype(np.uint32)


@dataclass(frozen=True)
class PairConcepts:
    """Which concepts the pairs of one pair of sites belong to.

    Attributes
    ----------
    names
        Concepts that any pair belongs to.
    ids
        Places among `names`, uint16, pair after pair.
    start
        Where each pair's begin in `ids`, and where the last one's end; uint32.
    """

    names: list[str]
    ids: np.ndarray
    start: np.ndarray


def read_concepts(run: Run, pair: SitePair) -> PairConcepts:
    """Return the concepts to which both features of a pair belong; none where the run did not look for any.

    Parameters
    ----------
    run
        An open run.
    pair
        One of its pairs of sites.

    Returns
    -------
    PairConcepts
    """
    n = int(pair.pairs.sizes["pair"])
    paths = [run.directory.concepts(side, pair.site(side).name) for side in SIDES]
    if not all(path.exists() for path in paths):
        return PairConcepts([], np.zeros(0, dtype=np.uint16), np.zeros(n + 1, dtype=np.uint32))
    member = [open_result(path, "concepts")["member"].transpose("feature", "concept").load() for path in paths]
    shared = [name for name in member[0]["concept"].values if name in member[1]["concept"].values]
    on_a, on_b = (
        one.sel(concept=shared).values[pair.pairs[f"feature_{side}"].values]
        for side, one in zip(SIDES, member, strict=True)
    )
    both = on_a & on_b
    used = np.flatnonzero(both.any(0))
    start = np.concatenate([[0], both.sum(1).cumsum()])
    return PairConcepts(
        [str(shared[i]) for i in used], np.nonzero(both[:, used])[1].astype(np.uint16), start.astype(np.uint32)
    )


def _pack_pair(pair: SitePair, a: _SiteView, b: _SiteView, concepts: PairConcepts) -> str:
    arrays = {
        "concept_id": concepts.ids,
        "concept_start": concepts.start,
        "a": a.index(pair.pairs["feature_a"].values),
        "b": b.index(pair.pairs["feature_b"].values),
        "r": pair.pairs["r"].values.astype(np.float32),
        "heldout": pair.pairs["r_heldout"].values.astype(np.float32),
    }
    for view in (a, b):
        side = view.site.side
        ids, r, heldout = _neighbours(pair, side)
        arrays[f"near_{side}"] = np.where(ids < 0, -1, view.index(ids)).astype(np.int32)
        arrays[f"near_r_{side}"] = fixed_point(r)
        arrays[f"near_heldout_{side}"] = fixed_point(heldout)
    both = map_pairs(*(_decoder(view, pair) for view in (a, b)))
    arrays |= {"map_a": short_floats(both.a), "map_b": short_floats(both.b)}
    explained = {"a": both.explained_a, "b": both.explained_b}
    return pack(
        arrays,
        explained={side: None if np.isnan(share) else round(share, 4) for side, share in explained.items()},
        neighbours=min(NEIGHBOURS, int(pair.correlation.sizes["rank"])),
        concepts=concepts.names,
    )


def _decoder(view: _SiteView, pair: SitePair) -> np.ndarray:
    """Return the decoder rows of one side of the pairs, float32; none where the store has no decoder."""
    features = pair.pairs[f"feature_{view.site.side}"].values
    if "decoder" not in view.site.store:
        return np.zeros((len(features), 0), dtype=np.float32)
    rows: np.ndarray = view.site.store["decoder"].isel({"feature": features}).values
    return rows
