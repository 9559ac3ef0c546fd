"""The demo's text: cleaned, split, and held out in a fixed way."""

from __future__ import annotations

import json

import pytest

from jobs.demo.text import MIN_CHARACTERS, clean, documents, held_out, sections, text

pytest.importorskip("gensim", reason="the demo's text comes with gensim")


@pytest.fixture(scope="module")
def every():
    return list(documents())


def test_documents_are_many_named_once_and_long_enough(every):
    assert len(every) > 1500
    assert len({document.name for document in every}) == len(every)
    assert min(len(document.text) for document in every) >= MIN_CHARACTERS


def test_sections_name_their_article(every):
    """Those that the demo reads: 196 documents of 114 articles; a news item is an article of its own."""
    read = [document for document in every if held_out(document.name)]
    assert (len(read), len({document.article for document in read})) == (196, 114)
    assert all(document.name.startswith(document.article) for document in read)
    records = [json.loads(line) for line in text().splitlines()]
    assert [record["article"] for record in records] == [document.article for document in read]


def test_a_tenth_is_held_out(every):
    held = [document for document in every if held_out(document.name)]
    assert 0.08 < len(held) / len(every) < 0.12
    assert 250_000 < sum(len(document.text) for document in held) < 400_000


def test_news_and_wikipedia_are_both_there(every):
    held = {document.name for document in every if held_out(document.name)}
    assert any(name.startswith("lee") for name in held)
    assert any(not name.startswith("lee") for name in held)


def test_little_markup_is_left(every):
    text = "\n".join(document.text for document in every)
    for mark in ("{{", "}}", "[[", "]]", "'''", "<ref", "\n* ", "\n==", "http://"):
        assert mark not in text, mark


def test_lists_of_links_are_no_documents():
    article = "Intro " * 60 + "\n== References ==\n" + "A book. " * 60 + "\n=== Art ===\n" + "A picture. " * 60
    assert [document.name for document in sections("Title", article)] == ["Title", "Title: Art"]


def test_repeated_headings_get_names_of_their_own():
    article = "x\n" + "== Life ==\n" + "One. " * 60 + "\n== Life ==\n" + "Two. " * 60
    names = [document.name for document in sections("Title", article)]
    assert len(set(names)) == 2


def test_markup_lines_go_and_prose_stays():
    assert clean("; Term\n| style=left | cell\nPlain ''slanted'' text.\n\n\n") == "Term\nPlain slanted text."
