"""What is shown of characters that could act on a page or a terminal, and words against another way to find them."""

from __future__ import annotations

import unicodedata

import numpy as np
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from pipeline.text.spans import first_in_window, readable, readable_token
from pipeline.text.words import word_around

TEXT = st.text(st.sampled_from("ab\u0301\u0915\u093f\u0663_'’- .\n") | st.characters(exclude_categories=["Cs"]))


@given(TEXT)
def test_nothing_shown_can_act_on_a_page_or_a_terminal(text: str) -> None:
    shown = readable(text)
    assert not [c for c in shown if unicodedata.category(c) in {"Cc", "Zl", "Zp"}]
    assert not [c for c in shown if unicodedata.bidirectional(c) in {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI"}]
    assert readable(shown) == shown
    token = readable_token(text)
    assert token == token.strip() != ""


def test_what_joins_signs_is_left_alone() -> None:
    for text in ("👩\u200d🚀", "می\u200cخواهم", "e\u0301", "\u200f", "\u00a0"):
        assert readable(text) == text


@given(TEXT, st.data())
def test_a_word_is_whole(text: str, data: st.DataObject) -> None:
    start, end = sorted(data.draw(st.tuples(*[st.integers(0, len(text))] * 2)))
    word = word_around(text, start, end)
    kinds = [unicodedata.category(c)[0] for c in text]
    if word is None:
        assert not any(kind in "LN" and text[i].isalnum() for i, kind in enumerate(kinds[start:end], start))
        return
    assert word[0].isalnum()
    assert all(c.isalnum() or c in "'’-" or unicodedata.category(c)[0] == "M" for c in word)
    first = next(i for i in range(len(text)) if text.startswith(word, i) and i < end and i + len(word) > start)
    around = text[max(0, first - 1) : first], text[first + len(word) : first + len(word) + 1]
    assert not any(c.isalnum() for c in around)
    assert unicodedata.category(around[1] or " ")[0] != "M"


def test_windows_of_a_table_of_rows_and_of_a_store() -> None:
    rows = xr.Dataset({"document": ("token", [0, 0, 0, 0, 1]), "window_of_row": ("token", [0, 0, 1, 1, 2])})
    np.testing.assert_array_equal(first_in_window(rows), [1, 0, 1, 0, 1])
    np.testing.assert_array_equal(first_in_window(rows, np.array([0, 1, 3])), [1, 0, 1])
    store = xr.Dataset({"document": ("token", [0, 0, 0, 0, 1]), "position": ("token", [0, 5, 0, 3, 4])})
    np.testing.assert_array_equal(first_in_window(store), [1, 0, 1, 0, 1])
