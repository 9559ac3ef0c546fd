"""What a word is: letters and digits with the marks that combine with them."""

from __future__ import annotations

import itertools
import re
import sys
import unicodedata
from functools import cache


@cache
def word_pattern(*, whole: bool = False) -> re.Pattern[str]:
    r"""Return the pattern of a word.

    ``\w`` alone ends a word at a combining accent, and at the vowel signs of Indic scripts.

    Parameters
    ----------
    whole
        Take apostrophes and hyphens inside of a word along, and leave underscores out. Otherwise a word ends there,
        as it has to where expressions are compared word by word.

    Examples
    --------
    >>> [len(word) for word in word_pattern().findall("The cafe\u0301's in-laws, 1990s")]
    [3, 5, 1, 2, 4, 5]
    >>> [len(word) for word in word_pattern(whole=True).findall("The cafe\u0301's in-laws, 1990s")]
    [3, 7, 7, 5]
    """
    codes = [code for code in range(sys.maxunicode + 1) if unicodedata.category(chr(code)).startswith("M")]
    runs = itertools.groupby(enumerate(codes), key=lambda pair: pair[1] - pair[0])
    bounds = [(run[0][1], run[-1][1]) for run in (list(group) for _, group in runs)]
    marks = "".join(f"{chr(first)}-{chr(last)}" for first, last in bounds)
    if not whole:
        return re.compile(rf"\w[\w{marks}]*")
    part = rf"[^\W_](?:[^\W_]|[{marks}])*"
    return re.compile(rf"{part}(?:['’-]{part})*")


def word_around(text: str, start: int, end: int) -> str | None:
    """Return the first whole word that overlaps ``text[start:end]``; None if none does.

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
    for match in word_pattern(whole=True).finditer(text, left, right):
        if match.start() < end and match.end() > start:
            return match.group()
    return None
