"""Top tokens and top words: what stands in the text at each feature's top contexts, as numbers.

A *top token* is the piece of text of a row, without white space around it. Both models read the same rows, so it serves
for both, whatever their tokenizers. A *top word* is the whole word of the text that the token is part of. Either is
compared in small letters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from pipeline.text.spans import check_same_text, iter_documents, read_spans
from pipeline.text.words import word_around
from storage import open_activations, open_corpus, open_result

NONE = -1
#: Top contexts of each feature of a pair that are looked at.
CONTEXTS = 5
#: Share of the top contexts from which on a pair fires on a single word.
SINGLE = 0.9


@dataclass(frozen=True)
class TopTokens:
    """The tokens, or the words, of the top contexts of one store's features.

    Attributes
    ----------
    ids
        Numbers into `vocabulary`, int64, shape (feature, rank); −1 where a feature has fewer contexts, or the token is
        no part of a word (punctuation, blanks).
    positions
        Position of each token in its window, in the same shape; −1 where there is none or it is not known.
    vocabulary
        The texts; the same of all results that were read together.
    """

    ids: NDArray[np.int64]
    positions: NDArray[np.int64]
    vocabulary: list[str]

    @property
    def n(self) -> NDArray[np.int64]:
        """How many there are of each feature, (feature,)."""
        return np.count_nonzero(self.ids != NONE, axis=1)

    def share_in(self, wanted: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Return each feature's share of top tokens that are `wanted` (vocabulary,); NaN without contexts.

        Examples
        --------
        >>> top = TopTokens(np.array([[0, 1], [1, -1], [-1, -1]]), np.full((3, 2), -1), ["the", "cat"])
        >>> top.share_in(np.array([True, False]))
        array([0.5, 0. , nan])
        """
        hits = (self.ids != NONE) & wanted[self.ids]
        with np.errstate(invalid="ignore"):
            return np.where(self.n > 0, hits.sum(axis=1) / self.n, np.nan)

    def texts(self, feature: int) -> list[str]:
        """Return the top tokens of a feature, best first, as often as they occur."""
        return [self.vocabulary[number] for number in self.ids[feature] if number != NONE]


def top_tokens(contexts: Sequence[str | Path], store: str | Path, corpus: str | Path) -> list[TopTokens]:
    """Read the top tokens of the features of one store or several, whose `contexts` are all of the same rows.

    `store` is that of any of them; only its token coordinates are read. The results have one vocabulary, in the order
    of the text. Memory: the contexts, and the texts of their tokens.
    """
    return _read(contexts, store, corpus, lambda text, start, end: text[start:end].strip())


def top_words(contexts: Sequence[str | Path], store: str | Path, corpus: str | Path) -> list[TopTokens]:
    """Read the top words of the features of one store or several; see :func:`top_tokens`."""
    return _read(contexts, store, corpus, word_around)


def _read(
    contexts: Sequence[str | Path],
    store: str | Path,
    corpus: str | Path,
    cut: Callable[[str, int, int], str | None],
) -> list[TopTokens]:
    rows, text = open_activations(store), open_corpus(corpus)
    results = [open_result(path, "contexts") for path in contexts]
    for result in results:
        check_same_text(result, rows, text)
    top = [np.asarray(result["row"].values, np.int64) for result in results]
    # the last one stands for "none", so that −1 finds it
    used = np.append(np.unique(np.concatenate([rows_of_side[rows_of_side >= 0] for rows_of_side in top])), NONE)
    ids, vocabulary = np.full(len(used), NONE), dict[str, int]()
    for place, document, start, end in iter_documents(text, read_spans(rows, used[:-1])):
        token = cut(document, start, end)
        if token is not None:
            ids[place] = vocabulary.setdefault(token.casefold(), len(vocabulary))
    positions = _positions(rows, used)
    places = [np.where(rows_of_side < 0, NONE, np.searchsorted(used[:-1], rows_of_side)) for rows_of_side in top]
    return [TopTokens(ids[place], positions[place], list(vocabulary)) for place in places]


def _positions(rows: xr.Dataset, used: NDArray[np.int64]) -> NDArray[np.int64]:
    if "position" not in rows.variables:
        return np.full(len(used), NONE)
    return np.where(used == NONE, NONE, np.asarray(rows["position"].values, np.int64)[used])


class Dominant(NamedTuple):
    """The word on which both features of each pair fire most, and whether it is nearly the only one; (pair,) each."""

    word: NDArray[np.int64]
    single: NDArray[np.bool_]


def dominant_words(top: Sequence[TopTokens], pairs: tuple[NDArray[np.integer], NDArray[np.integer]]) -> Dominant:
    """Return the dominant word of each pair, −1 where its features have no word in their top contexts.

    Examples
    --------
    >>> words = ["sun", "moon"]
    >>> a = TopTokens(np.array([[0, 0, 1]]), np.zeros((1, 3)), words)
    >>> b = TopTokens(np.array([[0, 0, -1]]), np.zeros((1, 3)), words)
    >>> dominant_words([a, b], (np.array([0]), np.array([0])))
    Dominant(word=array([0]), single=array([False]))
    """
    sides = [side.ids[np.asarray(ids, np.int64), :CONTEXTS] for side, ids in zip(top, pairs, strict=True)]
    words = np.sort(np.concatenate(sides, axis=1), axis=1)
    # of each context, how many contexts of the pair stand at the same word; the first word wins a tie
    same = (words[:, :, None] == words[:, None, :]).sum(axis=2)
    same[words == NONE] = 0
    best = same.argmax(axis=1)
    count = np.take_along_axis(same, best[:, None], axis=1)[:, 0]
    word = np.where(count > 0, np.take_along_axis(words, best[:, None], axis=1)[:, 0], NONE)
    return Dominant(word, count >= SINGLE * np.maximum(np.count_nonzero(words != NONE, axis=1), 1))


def effective_pairs(word: NDArray[np.int64]) -> float:
    """Return how many pairs there would be if those of one dominant word were one: (Σ n)² ÷ Σ n² over words (Kish).

    Parameters
    ----------
    word
        (pair,) the dominant word of each; −1, no word, is each its own.

    Examples
    --------
    >>> effective_pairs(np.array([3, 3, 3, 5, -1, -1]))
    3.0
    """
    sizes = np.append(np.unique(word[word != NONE], return_counts=True)[1], np.ones(np.count_nonzero(word == NONE)))
    return float(sizes.sum() ** 2 / np.sum(sizes**2)) if len(sizes) else 0.0
