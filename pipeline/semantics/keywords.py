"""Which rows of text stand at a keyword: whole words and expressions of several words, at their place in the text.

A token is often a piece of a word, so it is not the token that is compared but the words of the decoded text around it:
a row belongs to a concept if its characters overlap those of one of the concept's keywords. "feb" of "february" does;
"she" of "sheen" does not; both "New" and "York" of "New York" do.

A text is cut into words once. Every distinct word is looked up once, in a dictionary that also knows which expressions
begin with it, so that the time does not depend on the number of keywords.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import scipy.sparse
import xarray as xr
from numpy.typing import NDArray

from pipeline.semantics.concepts import Concept
from pipeline.text.spans import read_spans
from pipeline.text.words import word_pattern
from storage import Corpus

#: Documents that are read and searched at a time.
BLOCK_DOCUMENTS = 256
#: Bits of a character offset in a key of (document, character).
CHARACTER_BITS = 40


class Occurrence(NamedTuple):
    """A keyword in a text: its characters from `start` to before `end`, and the number of its concept."""

    start: int
    end: int
    concept: int


class _Phrase(NamedTuple):
    """An expression of several words: what follows its first word."""

    words: tuple[str, ...]
    gaps: tuple[str, ...]
    exact: bool
    concept: int


class _Entry(NamedTuple):
    """What a word is: a keyword of these concepts, and the first word of these expressions."""

    concepts: tuple[int, ...]
    phrases: tuple[_Phrase, ...]


class Matcher:
    """Finds the keywords of concepts in texts; the numbers of concepts are their places here.

    >>> matcher = Matcher([Concept("places", ("New York",)), Concept("people", ("she",))])
    >>> matcher.occurrences("She saw the sheen of new york.")
    [Occurrence(start=0, end=3, concept=1), Occurrence(start=21, end=29, concept=0)]
    """

    def __init__(self, concepts: Sequence[Concept]) -> None:
        self._words: dict[tuple[str, bool], set[int]] = defaultdict(set)
        self._phrases: dict[tuple[str, bool], list[_Phrase]] = defaultdict(list)
        self._patterns = [
            (re.compile(pattern), i) for i, meaning in enumerate(concepts) for pattern in meaning.patterns
        ]
        self._seen: dict[str, _Entry | None] = {}
        for i, concept in enumerate(concepts):
            for keyword in concept.keywords:
                self._add(keyword, i, exact=False)
            for keyword in concept.exact_case:
                self._add(keyword, i, exact=True)

    def _add(self, keyword: str, concept: int, *, exact: bool) -> None:
        spans = [match.span() for match in word_pattern().finditer(keyword)]
        words = [_form(keyword[start:end], exact=exact) for start, end in spans]
        gaps = tuple(_gap(keyword[a[1] : b[0]]) for a, b in itertools.pairwise(spans))
        if gaps:
            self._phrases[words[0], exact].append(_Phrase(tuple(words[1:]), gaps, exact, concept))
        else:
            self._words[words[0], exact].add(concept)

    def occurrences(self, text: str) -> list[Occurrence]:
        """Return every keyword in a text, by where it begins; keywords inside of others are among them."""
        result: list[Occurrence] = []
        spans = [match.span() for match in word_pattern().finditer(text)]
        seen = self._seen
        for i, (start, end) in enumerate(spans):
            word = text[start:end]
            entry = seen[word] if word in seen else self._look_up(word)
            if entry is not None:
                result += [Occurrence(start, end, concept) for concept in entry.concepts]
                result += self._expressions(entry.phrases, text, spans, i)
        return result

    def _look_up(self, word: str) -> _Entry | None:
        """Find out what a word is, and remember it."""
        keys = [(_form(word, exact=exact), exact) for exact in (False, True)]
        concepts = {concept for key in keys for concept in self._words.get(key, ())}
        concepts |= {concept for pattern, concept in self._patterns if pattern.fullmatch(word)}
        phrases = tuple(phrase for key in keys for phrase in self._phrases.get(key, ()))
        entry = _Entry(tuple(sorted(concepts)), phrases) if concepts or phrases else None
        self._seen[word] = entry
        return entry

    @staticmethod
    def _expressions(
        phrases: Iterable[_Phrase], text: str, spans: list[tuple[int, int]], first: int
    ) -> Iterator[Occurrence]:
        for phrase in phrases:
            here = spans[first : first + 1 + len(phrase.words)]
            if len(here) > len(phrase.words) and _follows(phrase, text, here):
                yield Occurrence(here[0][0], here[-1][1], phrase.concept)


def _follows(phrase: _Phrase, text: str, spans: list[tuple[int, int]]) -> bool:
    """Return whether the words of a text from the second span on are those of the expression, separators included."""
    for (_, end), (start, stop), word, gap in zip(spans, spans[1:], phrase.words, phrase.gaps, strict=False):
        between = text[end:start]
        if between != " " and _gap(between) not in {" ", "-", gap}:
            return False
        if _form(text[start:stop], exact=phrase.exact) != word:
            return False
    return True


def _form(word: str, *, exact: bool) -> str:
    """Return the form in which words are compared: the same for composed and decomposed accents."""
    plain = unicodedata.normalize("NFKC", word)
    return plain if exact else plain.casefold()


def _gap(between: str) -> str:
    """Return what parts two words in one spelling: any white space is one space, a hyphen and an apostrophe plain."""
    return re.sub(r"\s+", " ", between.translate(_PLAIN))


_PLAIN = str.maketrans({"‐": "-", "‑": "-", "–": "-", "’": "'", "ʼ": "'"})


def keyword_rows(
    corpus: Corpus, coordinates: xr.Dataset, concepts: Mapping[str, Concept], rows: NDArray[np.int64] | None = None
) -> scipy.sparse.csr_array:
    """Return which rows stand at keywords of which concepts: (row, concept) bool, in their order.

    `coordinates` is a store, or its variables ``document``, ``char_start`` and ``char_end``; `rows` are ascending, all
    by default. Memory: the coordinates of the rows, the texts of :data:`BLOCK_DOCUMENTS` documents, and an entry for
    each distinct word of the texts.
    """
    document, start, end = read_spans(coordinates, rows)
    order = np.lexsort((start, document))
    matcher = Matcher(list(concepts.values()))
    blocks = _blocks(corpus, matcher, document[order], start[order], end[order])
    parts = [np.stack([order[block][pairs[0]], pairs[1]]) for block, pairs in blocks]
    row, concept = np.concatenate(parts, axis=1) if parts else np.zeros((2, 0), np.int64)
    shape = (len(document), len(concepts))
    return scipy.sparse.csr_array((np.ones(len(row), bool), (row, concept)), shape=shape)


def _blocks(
    corpus: Corpus, matcher: Matcher, document: NDArray[np.int64], start: NDArray[np.int64], end: NDArray[np.int64]
) -> Iterator[tuple[slice, NDArray[np.int64]]]:
    """Yield, for every block of documents, which rows it has, and (row in the block, concept) of its keywords."""
    first_row = 0
    while first_row < len(document):
        first = int(document[first_row])
        block = slice(first_row, int(np.searchsorted(document, first + BLOCK_DOCUMENTS)))
        wanted = np.unique(document[block])
        texts = corpus.texts(first, int(wanted[-1]) + 1)
        base = document[block] - first << CHARACTER_BITS
        hits = [
            (key + hit.start, key + hit.end, hit.concept)
            for number in (wanted - first).tolist()
            for key in (number << CHARACTER_BITS,)
            for hit in matcher.occurrences(texts[number])
        ]
        yield block, _overlaps(base + start[block], base + end[block], np.array(hits, np.int64).reshape(-1, 3))
        first_row = block.stop


def _overlaps(start: NDArray[np.int64], end: NDArray[np.int64], hits: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return (row, concept), shape (2, n), of rows and hits (start, end, concept) that share a character.

    Rows ascend by `start`. Those that begin before a hit ends and after the first that reaches it are looked at.
    """
    first = np.searchsorted(np.maximum.accumulate(end), hits[:, 0], side="right")
    last = np.searchsorted(start, hits[:, 1], side="left")
    counts = np.maximum(last - first, 0)
    hit = np.repeat(np.arange(len(hits)), counts)
    row = np.arange(len(hit)) - np.repeat(np.cumsum(counts) - counts, counts) + np.repeat(first, counts)
    touching = end[row] > hits[hit, 0]
    return np.unique(np.stack([row, hits[hit, 2]])[:, touching], axis=1)
