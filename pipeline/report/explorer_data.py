"""What the explorer in the page searches and shows, packed: text, features, pairs, neighbours and maps.

==================  ================================================================================================
``text``            the text of all contexts, every row of it once, and the words that their tokens are part of
``site-SIDE-I``     one for each site: its features with their top contexts, shading and activation histogram
``pair-I``          one for each pair of sites: the pairs, both r, the neighbours, the map, concepts, one-word flags
==================  ================================================================================================

A browser takes a pack apart when it is first looked at, so that a page opens quickly whatever is in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.report.explorer import CONTEXTS, LEVELS, same_form, shade_levels, single_forms
from pipeline.report.maps import map_pairs
from pipeline.report.neuronpedia import feature_page
from pipeline.report.pack import fixed_point, pack, short_floats
from pipeline.report.results import Run, Site, SitePair
from pipeline.report.tables import short_name
from pipeline.text.feature_contexts import read_activity
from pipeline.text.passages import REACH, Passages, gather_passages
from pipeline.text.spans import Spans, iter_documents, readable
from pipeline.text.words import word_around
from storage import open_result
from storage.rundir import SIDES, Side

#: Neighbours kept for each feature: the partners it could have had, best first.
NEIGHBOURS = 6
#: Flags of a row of text: the document begins with it, ends with it.
STARTS, ENDS = 1, 2


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

    Reads each chunk of the sites' activations once, if a context stands in it. Holds, beside what it returns, of the
    features shown their contexts with shades and histograms (about 1.5 kB a feature, for one site 1 kB more), the text
    around their contexts, the decoder rows of one pair of sites, and what :func:`read_activity` holds of a chunk.
    """
    views = {(side, name): _view(site, site_pairs) for side in SIDES for name, site in _sites(site_pairs, side).items()}
    wanted = np.concatenate([view.rows.ravel() for view in views.values()])
    passages = gather_passages(run.corpus, run.rows, wanted)
    packs = {"text": _pack_text(run, passages, passages.places(np.unique(wanted[wanted >= 0])))}
    forms = {key: single_forms(view.rows, passages) for key, view in views.items()}
    names: dict[tuple[Side, str], str] = {}
    for i, (key, view) in enumerate(views.items()):
        names[key] = f"site-{key[0]}-{i}"
        packs[names[key]] = _pack_site(view, passages)
    entries = []
    for i, pair in enumerate(site_pairs):
        sides = views["a", pair.a.name], views["b", pair.b.name]
        a, b = (
            forms[side, pair.site(side).name][view.index(pair.pairs[f"feature_{side}"].values)]
            for side, view in zip(SIDES, sides, strict=True)
        )
        packs[f"pair-{i}"] = _pack_pair(pair, *sides, read_concepts(run, pair), same_form(a, b))
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
    }


def _entry(pair: SitePair, name: str, names: dict[tuple[Side, str], str]) -> dict[str, Any]:
    return {
        "pack": name,
        "sites": {side: pair.site(side).name for side in SIDES},
        "packs": {side: names[side, pair.site(side).name] for side in SIDES},
        "pages": {side: feature_page(str(pair.site(side).store.attrs.get("dictionary", ""))) for side in SIDES},
        "pairs": int(pair.pairs.sizes["pair"]),
        "heldout": bool(np.isfinite(pair.pairs["r_heldout"].values).any()),
        "heldout_in_choice": pair.heldout_in_choice,
    }


def _view(site: Site, site_pairs: Sequence[SitePair]) -> _SiteView:
    pairs_here = [pair for pair in site_pairs if pair.site(site.side).name == site.name]
    ids = [pair.pairs[f"feature_{site.side}"].values.astype(np.int64) for pair in pairs_here]
    ids += [_neighbours(pair, site.side)[0].ravel() for pair in pairs_here]
    features = np.unique(np.concatenate(ids))
    features = features[features >= 0]
    best = {"feature": features, "rank": slice(CONTEXTS)}
    contexts = site.contexts[["row", "value"]].isel(best)
    return _SiteView(site, features, contexts["row"].values, contexts["value"].values)


def _neighbours(pair: SitePair, side: Side) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return, for every pair, the features of `side` that its other feature correlates with most, and both r.

    Each has the shape (pairs, :data:`NEIGHBOURS`): −1 where there are fewer, NaN where r is undefined.
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
        if peak_word := word_around(text, start, end):
            word[peaks[place]] = words.setdefault(peak_word, len(words) + 1)
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
    largest, bars = view.site.store["max"].values[features], _histograms(view)
    activity = read_activity(view.site.path, features, view.rows)
    arrays = {
        "feature": features.astype(np.uint32),
        "row": row,
        "value": np.nan_to_num(view.values).astype(np.float32),
        "before": np.append(passages.before, np.uint8(0))[row],
        "after": np.append(passages.after, np.uint8(0))[row],
        "level": shade_levels(activity, largest[:, None, None]),
        "bars": bars,
        "n_active": view.site.store["n_active"].values[features].astype(np.uint32),
        "largest": largest.astype(np.float32),
    }
    return pack(arrays, rows=int(view.site.store.sizes["token"]), width=view.rows.shape[1], n_bars=bars.shape[1])


def _histograms(view: _SiteView) -> np.ndarray:
    """Return the rows with an activation in each bin, uint32, shape (features, bin); no bins where none were kept."""
    if "histogram" not in view.site.contexts:
        return np.zeros((len(view.features), 0), np.uint32)
    counts: np.ndarray = view.site.contexts["histogram"].isel({"feature": view.features}).values
    return counts.astype(np.uint32)


@dataclass(frozen=True)
class PairConcepts:
    """Concepts of pairs: the `names` of all, each pair's places among them in `ids`, from its `start` to the next."""

    names: list[str]
    ids: np.ndarray  # uint16
    start: np.ndarray  # uint32, one more than pairs


def read_concepts(run: Run, pair: SitePair) -> PairConcepts:
    """Return the concepts to which both features of a pair belong; none where the run did not look for any."""
    n = int(pair.pairs.sizes["pair"])
    paths = [run.directory.concepts(side, pair.site(side).name) for side in SIDES]
    if not all(path.exists() for path in paths):
        return PairConcepts([], np.zeros(0, dtype=np.uint16), np.zeros(n + 1, dtype=np.uint32))
    member = [open_result(path, "concepts")["member"].transpose("feature", "concept").load() for path in paths]
    shared = [name for name in member[0]["concept"].values if name in member[1]["concept"].values]
    on_a, on_b = (
        is_member.sel(concept=shared).values[pair.pairs[f"feature_{side}"].values]
        for side, is_member in zip(SIDES, member, strict=True)
    )
    both = on_a & on_b
    used = np.flatnonzero(both.any(0))
    start = np.concatenate([[0], both.sum(1).cumsum()])
    return PairConcepts(
        [str(shared[i]) for i in used], np.nonzero(both[:, used])[1].astype(np.uint16), start.astype(np.uint32)
    )


def _pack_pair(pair: SitePair, a: _SiteView, b: _SiteView, concepts: PairConcepts, one_word: np.ndarray) -> str:
    arrays = {
        "one_word": one_word.astype(np.uint8),
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
