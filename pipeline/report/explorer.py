"""Pairs of features side by side: what each fires on, in the text."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd

from pipeline.report.results import Run, Site, SitePair
from pipeline.text.feature_contexts import read_activity, read_labels
from pipeline.text.passages import Passage, Passages, gather_passages
from pipeline.text.spans import readable
from pipeline.text.words import base_form
from storage.rundir import SIDES, RunDirectory, Side

#: Pairs shown over the whole grid, so that a large sweep still opens; the tables hold all of them.
MAX_SHOWN = 600
#: One-word pairs of each pair of sites whose contexts are shown, folded.
MAX_ONE_WORD = 10
#: Contexts from which a feature's tokens are taken, in the explorer and in the tables.
CONTEXTS = 8
#: The one word that a feature fires on that fires on signs and blanks alone.
SIGNS = "."
#: Tokens that represent a feature in the tables.
N_TOKENS = 5
#: Steps of shading: 0 is inactive, LEVELS is the feature's largest activation.
LEVELS = 5


class Segment(NamedTuple):
    """A stretch of a passage with one shade; `peak` marks the token that the context is listed for."""

    text: str
    level: int
    peak: bool


@dataclass(frozen=True)
class ContextView:
    """One top activating context: the activation, the shaded passage, and whether the partner lists it too."""

    row: int
    document: int
    value: float
    segments: list[Segment]
    shared: bool


@dataclass(frozen=True)
class FeatureView:
    """One feature of a pair."""

    side: Side
    feature: int
    tokens: list[str]
    contexts: list[ContextView]
    label: str = ""


@dataclass(frozen=True)
class PairView:
    """One matched pair as it is shown."""

    rank: int
    r: float
    r_heldout: float
    a: FeatureView
    b: FeatureView
    one_word: bool = False

    @property
    def n_shared(self) -> int:
        """How many of A's top contexts are also among B's."""
        return sum(context.shared for context in self.a.contexts)


class Explorer:
    """Looks up the text of a run's features, all of it at once.

    The passages of the features shown stay in memory, each stretch of text once.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self._shown = min(run.experiment.report.pairs, max(1, MAX_SHOWN // len(run.site_pairs)))
        self._matched = {(site.side, site.name): _matched(run, site) for side in SIDES for site in run.sites[side]}
        self._rows = {key: run.site(*key).contexts["row"].values[ids] for key, ids in self._matched.items()}
        first = {key: rows[:, :CONTEXTS] for key, rows in self._rows.items()}
        passages = gather_passages(run.corpus, run.rows, np.unique(np.concatenate([*map(np.ravel, first.values())])))
        self._texts = {key: feature_texts(self._matched[key], rows, passages) for key, rows in first.items()}
        self._forms = {key: single_forms(rows, passages) for key, rows in first.items()}
        self._passages = gather_passages(run.corpus, run.rows, self._wanted())

    def _wanted(self) -> np.ndarray:
        """Return all top rows of the features that are shown."""
        rows = [
            self._rows_of(pair.site(side), self.shown(pair, side)).ravel()
            for pair in self.run.site_pairs
            for side in SIDES
        ]
        return np.unique(np.concatenate(rows))

    def shown(self, pair: SitePair, side: Side) -> np.ndarray:
        """Return one side's features of the pairs that are shown, best first."""
        features: np.ndarray = pair.pairs[f"feature_{side}"].values[self._order(pair)]
        return features

    def _order(self, pair: SitePair) -> np.ndarray:
        """Return the positions of the pairs that are shown, in :func:`reading_order`; few of them one-word pairs."""
        one_word = self.one_word(pair)
        order = reading_order(pair.pairs["r"].values, pair.pairs["r_heldout"].values, one_word)
        n_varied = int((~one_word).sum())
        return np.concatenate([order[: min(self._shown, n_varied)], order[n_varied:][:MAX_ONE_WORD]])

    def one_word(self, pair: SitePair) -> np.ndarray:
        """Return which pairs are one-word pairs, bool: all top contexts of both features are on forms of one word."""
        a, b = (self._of(self._forms, pair.site(side), pair.pairs[f"feature_{side}"].values) for side in SIDES)
        return same_form(a, b)

    def _rows_of(self, site: Site, features: np.ndarray) -> np.ndarray:
        return self._of(self._rows, site, features)

    def _of(self, known: dict[tuple[Side, str], np.ndarray], site: Site, features: np.ndarray) -> np.ndarray:
        """Return what is known of some matched features of a site."""
        key = (site.side, site.name)
        values: np.ndarray = known[key][np.searchsorted(self._matched[key], features)]
        return values

    def texts(self) -> dict[tuple[Side, str], pd.DataFrame]:
        """Return, by side and site, what every matched feature fires on, as :func:`feature_texts` says it."""
        return self._texts

    def pairs(self, pair: SitePair) -> list[PairView]:
        """Return the first pairs of one pair of sites in :func:`reading_order`, with their contexts.

        As many as the experiment asks for; fewer where the grid is large (:data:`MAX_SHOWN` over all of it). After them
        :data:`MAX_ONE_WORD` one-word pairs.
        """
        sides, order = {side: self._features(pair, side) for side in SIDES}, self._order(pair)
        r, heldout = (pair.pairs[name].values[order].tolist() for name in ("r", "r_heldout"))
        one_word = self.one_word(pair)[order].tolist()
        return [
            PairView(rank + 1, r[rank], heldout[rank], a, b, one_word[rank])
            for rank, (a, b) in enumerate(zip(sides["a"], sides["b"], strict=True))
        ]

    def _features(self, pair: SitePair, side: Side) -> list[FeatureView]:
        site, other = pair.site(side), pair.site("b" if side == "a" else "a")
        features = self.shown(pair, side)
        rows, partners = self._rows_of(site, features), self._rows_of(other, self.shown(pair, other.side))
        return feature_views(site, features, (rows, partners), self._passages)


def single_forms(top_rows: np.ndarray, passages: Passages) -> np.ndarray:
    """Return the one word that each feature fires on, of which inflected forms count as one; empty where it is not one.

    All that has no letter and no digit counts as one word, too. `top_rows` are top activating rows, shape (feature,
    rank), −1 where none; the result is an object array of str.
    """
    forms = {row: base_form(passages.token(row)) or SIGNS for row in np.unique(top_rows).tolist() if row >= 0}
    found = [{forms[row] for row in rows if row >= 0} for rows in top_rows.tolist()]
    return np.array([next(iter(some)) if len(some) == 1 else "" for some in found], dtype=object)


def same_form(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return which pairs of features fire on one and the same word, from the :func:`single_forms` of both sides.

    >>> same_form(np.array(["you", "the", ""], object), np.array(["you", "a", ""], object)).tolist()
    [True, False, False]
    """
    return np.asarray((a == b) & (a != ""), dtype=bool)


def reading_order(r: np.ndarray, heldout: np.ndarray, one_word: np.ndarray) -> np.ndarray:
    """Return the order in which pairs are worth reading: by :func:`lower_r` downwards, one-word pairs last.

    >>> reading_order(np.array([0.9, 0.8, 0.7]), np.array([0.3, 0.6, 0.7]), np.array([False, False, True])).tolist()
    [1, 0, 2]
    """
    return np.lexsort((-lower_r(r, heldout), one_word))


def feature_texts(features: np.ndarray, top_rows: np.ndarray, passages: Passages) -> pd.DataFrame:
    """Return short strings that say what features fire on, for tables, indexed by feature.

    `top_rows` are their top activating rows, shape (feature, rank), −1 where none. ``tokens`` are the first
    :data:`N_TOKENS` distinct top tokens as a JSON list; ``context`` is the first passage in quotation marks with its
    token in ⟦brackets⟧. Neither begins with a character that a spreadsheet would take for a formula.
    """
    # many features fire on the same rows: each is cut once
    tokens = {row: passages.token(row) for row in np.unique(top_rows).tolist() if row >= 0}
    quoted = {row: passages.passage(row).quoted for row in np.unique(top_rows[:, :1]).tolist() if row >= 0}
    listed = [[row for row in rows if row >= 0] for rows in top_rows.tolist()]
    return pd.DataFrame(
        {
            "tokens": [
                json.dumps(distinct(tokens[row] for row in rows)[:N_TOKENS], ensure_ascii=False) for rows in listed
            ],
            "context": [quoted[rows[0]] if rows else "" for rows in listed],
        },
        index=pd.Index(features, name="feature"),
    )


def distinct(tokens: Iterable[str]) -> list[str]:
    """Return each of some tokens once, in order."""
    return list(dict.fromkeys(tokens))


def feature_views(
    site: Site, features: np.ndarray, top_rows: tuple[np.ndarray, np.ndarray], passages: Passages
) -> list[FeatureView]:
    """Return features of a site with their contexts, ready to be shown.

    `top_rows` are their top rows and those of their partners, shapes (feature, rank), −1 where none.
    """
    rows, partners = top_rows
    values = site.contexts["value"].values[features]
    activity = read_activity(site.path, features, rows)
    largest = site.store["max"].values[features].tolist()
    labels = read_labels(RunDirectory.around(site.path)[0].labels(site.side, site.name))
    views = []
    for i, feature in enumerate(features.tolist()):
        contexts = [
            _context_view(passages.passage(row, around), value, largest[i], shared=row in partners[i])
            for row, value, around in zip(rows[i].tolist(), values[i].tolist(), activity[i], strict=True)
            if row >= 0
        ]
        tokens = distinct(passages.token(context.row) for context in contexts)
        views.append(FeatureView(site.side, feature, tokens, contexts, labels.get(feature, "")))
    return views


def _context_view(passage: Passage, activation: float, largest: float, *, shared: bool) -> ContextView:
    return ContextView(passage.row, passage.document, activation, list(shade(passage, largest)), shared)


def shade(passage: Passage, largest: float) -> Iterator[Segment]:
    """Yield a passage as it is shown, each token shaded by its activation relative to the feature's largest."""
    yield Segment(passage.before, 0, peak=False)
    levels = shade_levels(np.array([piece.activation for piece in passage.pieces]), largest)
    for piece, level in zip(passage.pieces, levels.tolist(), strict=True):
        yield Segment(readable(piece.text), level, piece.peak)
    yield Segment(passage.after, 0, peak=False)


def shade_levels(activation: np.ndarray, largest: float | np.ndarray) -> np.ndarray:
    """Return the shade of each activation, 0 to :data:`LEVELS`, where `largest` is the feature's largest one.

    >>> shade_levels(np.array([-1, 0, 0.1, 4]), 4)
    array([0, 0, 1, 5], dtype=uint8)
    """
    share = activation / np.where(largest > 0, largest, 1)
    levels: np.ndarray = np.clip(np.ceil(share * LEVELS), 0, LEVELS).astype(np.uint8)
    return levels


def lower_r(r: np.ndarray, heldout: np.ndarray) -> np.ndarray:
    """Return the lower of each pair's r where it was chosen and on held-out documents.

    A pair that holds by accident on one half does not on the other. Where a pair has no held-out r it is −1, unless no
    pair has one; then all keep the r that chose them.
    """
    if np.isnan(heldout).all():
        return r
    return np.minimum(r, np.where(np.isnan(heldout), -1.0, heldout))


def _matched(run: Run, site: Site) -> np.ndarray:
    """Return the ids of a site's features that are in any pair, ascending."""
    features = [
        pair.pairs[f"feature_{site.side}"].values for pair in run.site_pairs if pair.site(site.side).name == site.name
    ]
    return np.unique(np.concatenate(features)) if features else np.zeros(0, dtype=np.int64)
