"""The words on which features fire: for each top context, the whole word of the text that the token is part of."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from storage import Corpus, open_activations, open_corpus, open_result
from storage.errors import InputError, RowMismatchError

#: A word: letters and digits, with apostrophes and hyphens inside.
WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
NONE = -1


@dataclass(frozen=True)
class TopWords:
    """The words of the top contexts of one store's features.

    Attributes
    ----------
    words
        Numbers into `vocabulary`, int64, shape (feature, rank); −1 where a feature has fewer contexts, or the token is
        no part of a word (punctuation, blanks).
    vocabulary
        The words, in small letters.
    """

    words: NDArray[np.int64]
    vocabulary: list[str]

    def of(self, feature: int) -> list[int]:
        """Return the words of a feature, best first, as often as they occur."""
        return [word for word in self.words[feature].tolist() if word != NONE]

    def renumbered(self, vocabulary: dict[str, int]) -> NDArray[np.int64]:
        """Return `words` as numbers of another vocabulary, to which words that it lacks are added.

        Examples
        --------
        >>> top = TopWords(np.array([[1, -1]]), ["cat", "dog"])
        >>> top.renumbered({"ant": 0}).tolist()
        [[2, -1]]
        """
        numbers = np.array([vocabulary.setdefault(word, len(vocabulary)) for word in self.vocabulary], np.int64)
        return np.where(self.words == NONE, NONE, numbers[self.words] if len(numbers) else NONE)


def top_words(contexts: str | Path, store: str | Path, corpus: str | Path) -> TopWords:
    """Read the words of the top contexts of every feature of a store.

    Parameters
    ----------
    contexts
        Result of ``contexts``.
    store
        The activation store that it was made from; only its token coordinates are read.
    corpus
        The text.

    Returns
    -------
    TopWords
        Memory: the contexts, the coordinates of the rows, and the words.

    Raises
    ------
    RowMismatchError
        If contexts and store are not of the same rows.
    InputError
        If the store has no token coordinates.
    """
    rows = _checked_rows(contexts, store)
    used = np.unique(rows[rows >= 0])
    vocabulary: dict[str, int] = {}
    with open_activations(store) as coordinates:
        found = list(words_at(open_corpus(corpus), coordinates, used))
    numbers = np.array([NONE if word is None else vocabulary.setdefault(word, len(vocabulary)) for word in found])
    words = np.full(rows.shape, NONE)
    here = rows >= 0
    words[here] = numbers[np.searchsorted(used, rows[here])]
    return TopWords(words, list(vocabulary))


def _checked_rows(contexts: str | Path, store: str | Path) -> NDArray[np.int64]:
    with open_activations(store) as coordinates, open_result(contexts, "contexts") as result:
        if "document" not in coordinates.variables:
            raise InputError(f"{store} has no token coordinates, so its words are not known; harvest it again")
        if result.attrs.get("row_hash") != coordinates.attrs["row_hash"]:
            raise RowMismatchError(f"The contexts at {contexts} are of other rows than {store}; make them from it")
        return np.asarray(result["row"].values, np.int64)


def words_at(corpus: Corpus, coordinates: xr.Dataset, rows: NDArray[np.int64]) -> Iterator[str | None]:
    """Yield, for each row, the word that it is part of, in small letters; None where it is part of none.

    Parameters
    ----------
    corpus
        The text.
    coordinates
        ``document``, ``char_start`` and ``char_end`` over ``token``.
    rows
        Row numbers, ascending, so that documents are read once.
    """
    names = ("document", "char_start", "char_end")
    document, start, end = (np.asarray(coordinates[name].values)[rows].tolist() for name in names)
    for text, left, right in zip(corpus.iter_texts(document), start, end, strict=True):
        yield word_around(text, left, right)


def word_around(text: str, start: int, end: int) -> str | None:
    """Return the first whole word that overlaps ``text[start:end]``, in small letters; None if none does.

    Examples
    --------
    >>> word_around("She didn't see Paris.", 4, 7), word_around("She didn't see Paris.", 20, 21)
    ("didn't", None)
    """
    while start < end and text[start].isspace():
        start += 1
    left = start
    while left > 0 and not text[left - 1].isspace():
        left -= 1
    right = end
    while right < len(text) and not text[right].isspace():
        right += 1
    for found in WORD.finditer(text, left, right):
        if found.start() < end and found.end() > start:
            return found.group().casefold()
    return None
