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


#: Forms of the commonest English words that no ending explains.
_IRREGULAR = {
    form: base
    for base, forms in {
        "i": "me my mine myself",
        "you": "your yours yourself yourselves",
        "he": "him his himself",
        "she": "her hers herself",
        "it": "its itself",
        "we": "us our ours ourselves",
        "they": "them their theirs themselves",
        "be": "am is are was were been being",
        "have": "has had having",
        "do": "does did done doing",
        "a": "an",
        "this": "these",
        "that": "those",
        "can": "could",
        "will": "would",
        "say": "said",
        "make": "made",
        "take": "took taken",
        "go": "goes went gone",
        "get": "got gotten",
        "see": "saw seen",
        "come": "came",
        "find": "found",
        "know": "knew known",
        "give": "gave given",
        "think": "thought",
        "tell": "told",
        "become": "became",
        "leave": "left",
        "feel": "felt",
        "keep": "kept",
        "begin": "began begun",
        "write": "wrote written",
    }.items()
    for form in (base, *forms.split())
}
_ENDING = re.compile(r"(?<=\w{3})(?:ing|ed)$|(?<=\w{2}(?:ch|sh|ss)|\w{3}[xz])es$|(?<=\w{2}[^\Wsui])s$")


@cache
def base_form(word: str) -> str:
    """Return what the inflected forms of an English word have in common, in small letters.

    Regular endings and punctuation around it are cut off, and the commonest irregular forms are known. Unlike a
    stemmer's, the result keeps "universe" and "university" apart. It is for comparison and need not be a word; of what
    has no letter and no digit it is empty.

    Examples
    --------
    >>> [base_form(word) for word in ("you", "Your", "stop", "Stopped", "city's", "cities", "took", "taking", "…")]
    ['you', 'you', 'stop', 'stop', 'city', 'city', 'tak', 'tak', '']
    >>> base_form("universe"), base_form("university"), base_form("this"), base_form("class")
    ('univers', 'university', 'this', 'class')
    """
    folded = re.sub(r"^[\W_]+|[\W_]+$", "", word.casefold())
    folded = re.sub(r"(?<=\w)['’]s$", "", folded)
    folded = _IRREGULAR.get(folded, folded)
    stem = re.sub(r"(?<=\w{2})(?:ies|ied)$", "y", folded)
    stem = _ENDING.sub("", stem)
    stem = re.sub(r"([bdgmnprt])\1$", r"\1", stem)
    return re.sub(r"(?<=\w{3})e$", "", stem)
