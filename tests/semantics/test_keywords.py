"""Keywords are whole words of the text around a token, never pieces of words."""

from __future__ import annotations

import random
import re
import unicodedata

import numpy as np
import pytest

import storage
from pipeline.semantics import keywords
from pipeline.semantics.concepts import Concept, load_concepts
from pipeline.semantics.keywords import Matcher, keyword_rows


def found(text: str, *words: str, **more) -> list[str]:
    """Return the stretches of a text that match."""
    return [text[start:end] for start, end, _ in Matcher([Concept("c", words, **more)]).occurrences(text)]


@pytest.mark.parametrize(
    ("text", "keyword", "expected"),
    [
        ("The sheen of ashes; Sheila's shed", "she", []),
        ("She said; SHE, she's", "she", ["She", "SHE", "she"]),
        ("in New York, new york, New\n York", "New York", ["New York", "new york", "New\n York"]),
        ("the New-York press", "New York", ["New-York"]),
        ("Newer York, New Yorkers, Anew York, new. York, New, York", "New York", []),
        ("prime ministers and the Prime Minister", "prime minister", ["Prime Minister"]),
        ("her mother-in-law, mother in law, mother’in-law", "mother-in-law", ["mother-in-law", "mother in law"]),
        ("New Year’s Eve", "New Year's Eve", ["New Year’s Eve"]),
        ("in the U.S. and u.s., not us", "U.S.", ["U.S", "u.s"]),
        ("a cafe\u0301 and a café, no cafe", "café", ["cafe\u0301", "café"]),
        ("STRASSE, Straße", "straße", ["STRASSE", "Straße"]),
        ("нашла Она она-то", "она", ["Она", "она"]),
        ("हिन्दी में", "हिन", []),
        ("1990s", "1990", []),
        ("she", "she saw", []),
    ],
)  # fmt: skip
def test_whole_words(text: str, keyword: str, expected: list[str]) -> None:
    assert found(text, keyword) == expected


def test_exact_case_and_patterns() -> None:
    assert found("They march in March; it may rain in May", exact_case=("March", "May")) == ["March", "May"]
    assert found("in 1995, 12 of 1,000 and 3rd", patterns=("[0-9]+",)) == ["1995", "12", "1", "000"]


def test_expressions_that_begin_alike() -> None:
    places = [Concept("city", ("New York", "York")), Concept("paper", ("New York Times",))]
    text = "the New York Times"
    assert [(text[a:b], c) for a, b, c in Matcher(places).occurrences(text)] == [
        ("New York", 0), ("New York Times", 1), ("York", 0),
    ]  # fmt: skip


def rows(text, *concepts: Concept) -> list[list[str]]:
    """Return, of each concept, the pieces of text of its rows."""
    coordinates = storage.open_activations(text.store(np.eye(len(text.pieces), dtype=np.float32)))
    given = {concept.name: concept for concept in concepts}
    hits = keyword_rows(storage.open_corpus(text.corpus), coordinates, given).toarray()
    return [[text.pieces[row] for row in np.flatnonzero(column)] for column in hits.T]


def test_both_words_of_an_expression_and_the_pieces_of_a_word(text_of) -> None:
    # two characters a token, as a tokenizer may cut: "Fe" "br" "ua" "ry"
    text = text_of("in. February", "New York!", "sheen", pattern=r"..?")
    concepts = (Concept("months", ("february",)), Concept("places", ("New York",)), Concept("women", ("she",)))
    assert rows(text, *concepts) == [["Fe", "br", "ua", "ry"], ["Ne", "w ", "Yo", "rk"], []]


def test_a_token_with_its_blank_touches_its_own_word_only(text_of) -> None:
    text = text_of("she is she", "is she? is")
    assert rows(text, Concept("women", ("she",))) == [["she", " she", " she"]]


def brute_force(documents: list[str], tokens: dict[str, np.ndarray], keyword: str) -> np.ndarray:
    """Say of every row whether it overlaps a keyword, by a regular expression over its document."""
    pattern = re.compile(rf"(?<!\w){re.escape(keyword)}(?!\w)", re.IGNORECASE)
    spans = [[match.span() for match in pattern.finditer(text)] for text in documents]
    return np.array(
        [
            any(a < end and start < b for a, b in spans[document])
            for document, start, end in zip(tokens["document"], tokens["char_start"], tokens["char_end"], strict=True)
        ]
    )


def test_equals_a_regular_expression(text_of, monkeypatch) -> None:
    draw = random.Random(0)
    words = ["she", "sheen", "ash", "New", "York", "new", "yorker", "Newt", "prime", "minister", "primes", "mini"]
    documents = [" ".join(draw.choices(words, k=draw.randint(0, 30))) for _ in range(40)]
    text = text_of(*documents, pattern=r".{1,3}")
    given = {word: Concept(word, (word,)) for word in ("she", "new york", "prime minister", "york")}
    coordinates = storage.open_activations(text.store(np.ones((len(text.pieces), 1), np.float32)))
    corpus = storage.open_corpus(text.corpus)
    expected = np.stack([brute_force(documents, text.tokens, word) for word in given], axis=1)
    assert expected.sum(axis=0).min() > 10
    for block in (1, 7, 256):
        monkeypatch.setattr(keywords, "BLOCK_DOCUMENTS", block)
        np.testing.assert_array_equal(keyword_rows(corpus, coordinates, given).toarray(), expected)
    some = np.array([3, 4, 50, len(expected) - 1])
    np.testing.assert_array_equal(keyword_rows(corpus, coordinates, given, some).toarray(), expected[some])


def test_rows_in_any_order(text_of) -> None:
    text = text_of("she and he", "he or she")
    order = np.random.default_rng(0).permutation(len(text.pieces))
    for name, values in text.tokens.items():
        text.tokens[name] = values[order]
    text.pieces[:] = [text.pieces[i] for i in order]
    assert sorted(rows(text, Concept("women", ("she",)))[0]) == [" she", "she"]


def test_the_words_of_the_package_are_found_in_plain_text() -> None:
    concepts = load_concepts()
    matcher = Matcher(list(concepts.values()))
    text = (
        "On Monday the prime minister of France ate bread with her mother-in-law in New York; wolves howled in March."
    )
    hits = {(list(concepts)[c], text[a:b]) for a, b, c in matcher.occurrences(text)}
    assert {
        ("calendar", "Monday"), ("roles_and_titles", "prime minister"), ("politics", "prime minister"),
        ("countries", "France"), ("food", "bread"), ("kinship", "mother-in-law"), ("cities_and_regions", "New York"),
        ("animals", "wolves"), ("months", "March"),
    } <= hits  # fmt: skip
    assert ("motion", "March") in hits  # "march" is a motion too, whatever its case
    assert not {("modality", "March"), ("body", "ate")} & hits


def test_composed_and_decomposed_keywords_are_the_same() -> None:
    for text in (unicodedata.normalize(form, "São Paulo") for form in ("NFC", "NFD")):
        assert found(text, "São Paulo") == [text]
