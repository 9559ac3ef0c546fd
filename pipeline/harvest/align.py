"""Rows that two tokenizers agree on: pure functions over character offsets.

A tokenizer gives every token a span ``[start, end)`` of characters of the *original* text (lower-casing and other
normalisation notwithstanding). A *row* is a character offset at which both tokenizers end a token::

    text       u n a f f a b l e   w o r d s
    A          [una][ffable      ][ words   ]
    B          [una][ff  ][able  ]   [words ]
    rows            ^            ^          ^        3, 9, 15

The *segment* of a row is what lies between the boundary before it and its own: here ``una``, ``ffable`` (one token of
A, two of B) and ``words``. The value of a row is the activation at the last token of its segment, on either side, or,
if so configured, the maximum or mean over all of them (:func:`pooled_tokens` says which). Where both sides have the
same tokenizer, the rows are its tokens. Byte-level tokenizers may cut inside a character; such tokens share their end,
and are one segment. Tokens without characters, and special tokens written out in the text, are no rows and are never
pooled.

Windows are slices of the document's tokens, cut at rows, so that both models read exactly the same characters, no
matter how their tokenizers would treat the piece alone.

A tokenizer whose offsets run backwards would make every later step wrong, so it is refused.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from storage.errors import InputError

Ints = NDArray[np.int64]


class Tokens(NamedTuple):
    """A document's tokens on one side: ids, and the characters they stand for; int64 arrays (tokens,)."""

    ids: Ints
    starts: Ints
    ends: Ints

    @classmethod
    def of(cls, ids: ArrayLike, offsets: ArrayLike) -> Tokens:
        """Make from ids and an array-like (tokens, 2) of offsets; InputError if these run backwards.

        >>> Tokens.of([5, 6], [(0, 1), (1, 3)]).ends
        array([1, 3])
        """
        spans = np.asarray(offsets, np.int64).reshape(-1, 2)
        # A token without characters reports (0, 0) in some tokenizers, wherever it stands.
        real = spans[:, 1] > spans[:, 0]
        if np.any(np.diff(spans[real, 1]) < 0) or np.any(spans[:, 1] < spans[:, 0]):
            raise InputError("A tokenizer's character offsets run backwards: rows cannot be aligned with it")
        return cls(np.asarray(ids, np.int64).reshape(-1), spans[:, 0], spans[:, 1])


class Boundaries(NamedTuple):
    """Character offsets at which both sides end a token; int64 arrays (boundaries,).

    ``last_a`` and ``last_b`` are the indices of the tokens that end there.
    """

    ends: Ints
    last_a: Ints
    last_b: Ints


def last_tokens(tokens: Tokens) -> tuple[Ints, Ints]:
    """Return the distinct ends of tokens that have characters, and the last token at each.

    The second and third token are two bytes of one character:

    >>> last_tokens(Tokens.of([1, 2, 3], [(0, 1), (1, 2), (1, 2)]))
    (array([1, 2]), array([0, 2]))
    """
    real = np.flatnonzero(tokens.ends > tokens.starts)
    ends = tokens.ends[real]
    is_last = np.ones(len(ends), bool)
    is_last[:-1] = ends[1:] != ends[:-1]
    return ends[is_last], real[is_last]


def shared_boundaries(a: Tokens, b: Tokens) -> Boundaries:
    """Return the offsets at which both sides end a token of a document.

    >>> a = Tokens.of([1, 2, 3], [(0, 3), (3, 9), (9, 15)])
    >>> b = Tokens.of([4, 5, 6, 7], [(0, 3), (3, 5), (5, 9), (10, 15)])
    >>> shared_boundaries(a, b).ends
    array([ 3,  9, 15])
    """
    (ends_a, index_a), (ends_b, index_b) = last_tokens(a), last_tokens(b)
    ends, where_a, where_b = np.intersect1d(ends_a, ends_b, assume_unique=True, return_indices=True)
    return Boundaries(ends, index_a[where_a], index_b[where_b])


def pooled_tokens(last: Ints, boundaries: Ints, usable: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return which tokens of one side lie in the segment of a row; bool (tokens,).

    `last` is the last token of each boundary's segment, `kept` are the boundaries that are rows, ascending, and
    `usable` says of each token whether it may be pooled (it has characters and is not special). Going through the
    tokens in order, each marked one belongs to the next row at or behind it.

    Boundaries behind the tokens 1, 2 and 5; the second is no row, and token 3 is special:

    >>> pooled_tokens(np.array([1, 2, 5]), np.array([0, 2]), np.array([1, 1, 1, 0, 1, 1, 1], bool)).astype(int)
    array([1, 1, 0, 0, 1, 1, 0])
    """
    segment = np.searchsorted(last, np.arange(len(usable)))
    is_row = np.zeros(len(last) + 1, bool)
    is_row[boundaries] = True
    return usable & is_row[segment]


def segment_starts(boundaries: Boundaries, a: Tokens, b: Tokens) -> Ints:
    """Return the first character of each segment: where both sides' first token of it has begun.

    A byte-level token counts the space before a word as its own, a word-piece token does not; the later of the two is
    taken, so that a row's text has no blank in front when one side says so.

    >>> a, b = Tokens.of([1, 2], [(0, 2), (2, 5)]), Tokens.of([1, 2], [(0, 2), (3, 5)])
    >>> segment_starts(shared_boundaries(a, b), a, b)
    array([0, 3])
    """
    previous = np.concatenate([[0], boundaries.ends[:-1]])[: len(boundaries.ends)]
    starts = np.maximum(_first_starts(boundaries.last_a, a), _first_starts(boundaries.last_b, b))
    return np.where(starts < boundaries.ends, np.maximum(starts, previous), previous)


def _first_starts(last: Ints, tokens: Tokens) -> Ints:
    """Return the start of the first token with characters after each previous boundary."""
    first = np.concatenate([[0], last[:-1] + 1])[: len(last)]
    # The next token with characters: tokens without any report (0, 0).
    real = np.flatnonzero(tokens.ends > tokens.starts)
    return tokens.starts[real[np.searchsorted(real, first)]] if len(last) else first


class Windows(NamedTuple):
    """Slices of a document that both models can read at once; int64 arrays (windows,).

    Boundaries ``first_row`` to ``last_row`` (inclusive) lie in the window; its tokens are
    ``first_a:stop_a`` and ``first_b:stop_b``.
    """

    first_row: Ints
    last_row: Ints
    first_a: Ints
    stop_a: Ints
    first_b: Ints
    stop_b: Ints


def cut_windows(boundaries: Boundaries, capacity_a: int, capacity_b: int) -> Windows:
    """Cut a document into windows at shared boundaries, each as long as both capacities (tokens of text) allow.

    Windows are in order and do not overlap. A segment that alone outgrows a capacity is in no window.

    >>> boundaries = Boundaries(*(np.arange(5) + shift for shift in (1, 0, 0)))
    >>> cut_windows(boundaries, 2, 9).stop_a
    array([2, 4, 5])
    """
    cuts: list[tuple[int, int]] = []
    row, n = 0, len(boundaries.ends)
    while row < n:
        before_a, before_b = _before(boundaries, row)
        fits_a = np.searchsorted(boundaries.last_a, before_a + capacity_a, side="right")
        fits_b = np.searchsorted(boundaries.last_b, before_b + capacity_b, side="right")
        stop = int(min(fits_a, fits_b))
        if stop > row:
            cuts.append((row, stop - 1))
        row = max(stop, row + 1)
    first, last = np.array(cuts, np.int64).reshape(-1, 2).T
    before = np.array([_before(boundaries, int(row)) for row in first], np.int64).reshape(-1, 2)
    return Windows(
        first, last, before[:, 0] + 1, boundaries.last_a[last] + 1, before[:, 1] + 1, boundaries.last_b[last] + 1
    )


def _before(boundaries: Boundaries, row: int) -> tuple[int, int]:
    """Return the last tokens of the boundary before `row`; −1 at the document's start."""
    return (int(boundaries.last_a[row - 1]), int(boundaries.last_b[row - 1])) if row else (-1, -1)
