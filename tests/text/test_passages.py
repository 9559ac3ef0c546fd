"""Passages against the documents that they are cut from, by the one rule that every page and table follows."""

from __future__ import annotations

import itertools
import tempfile

import numpy as np
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

import storage
from pipeline.text.passages import REACH, WIDTH, Passages, gather_passages
from pipeline.text.spans import readable

#: Combining marks, signs beyond the basic plane, joined emoji, line ends and controls, beside any other character.
AWKWARD = ["e\u0301", "क्षि", "👩\u200d🚀", "𝔘", "\n", "\r\n", "\t", " ", "  ", "\x00", "\u202e", "a", "Zürich"]
TEXT = st.lists(st.sampled_from(AWKWARD) | st.characters(exclude_categories=["Cs"]), max_size=60).map("".join)


@st.composite
def documents(draw) -> tuple[list[str], xr.Dataset]:
    """Draw documents and ascending spans in them: with gaps, of no characters, and sharing characters, in windows."""
    texts = draw(st.lists(TEXT, min_size=1, max_size=4).filter(any))
    rows = []
    for number, text in enumerate(texts):
        cuts = sorted(draw(st.lists(st.integers(0, len(text)), min_size=2, max_size=16)))
        spans = [(number, start, end) for start, end in itertools.pairwise(cuts) if draw(st.integers(0, 5))]
        if spans and draw(st.booleans()):
            spans.insert(0, spans[0])
        rows += spans
    columns = np.array(rows, np.int64).reshape(-1, 3).T
    window = np.cumsum(draw(st.lists(st.booleans(), min_size=len(rows), max_size=len(rows))), dtype=np.int64)
    names = ("document", "char_start", "char_end", "window_of_row")
    return texts, xr.Dataset({name: ("token", values) for name, values in zip(names, (*columns, window), strict=True)})


def gather(texts: list[str], rows: xr.Dataset, wanted: np.ndarray, **limits: int) -> Passages:
    with tempfile.TemporaryDirectory() as folder:
        return gather_passages(
            storage.write_corpus(f"{folder}/corpus.zarr", texts, overwrite=True), rows, wanted, **limits
        )


def window_of(passages: Passages, row: int) -> slice:
    place = passages.places(np.array(row))
    return slice(row - int(passages.before[place]), row + int(passages.after[place]) + 1)


def table(*spans: tuple[int, int, int], **columns: list[int]) -> xr.Dataset:
    """Return a table of rows (document, start, end)."""
    named = dict(zip(("document", "char_start", "char_end"), np.array(spans).T, strict=True))
    return xr.Dataset({name: ("token", values) for name, values in (named | columns).items()})


@given(case=documents(), reach=st.integers(0, 12), width=st.integers(1, 30), data=st.data())
def test_a_passage_is_the_text_around_its_token(case, reach, width, data) -> None:
    texts, rows = case
    n_rows = rows.sizes["token"]
    wanted = np.array(data.draw(st.lists(st.integers(-1, n_rows - 1), max_size=8)), np.int64)
    passages = gather(texts, rows, wanted, reach=reach, width=width)
    document, start, end, window = (
        rows[name].values.tolist() for name in ("document", "char_start", "char_end", "window_of_row")
    )
    pool = list(passages.cut_rows())
    for row in set(wanted[wanted >= 0].tolist()):
        passage, shown = passages.passage(row), window_of(passages, row)
        text, token = texts[document[row]], texts[document[row]][start[row] : end[row]]
        # the row's own text stands at the marked place, whole but for white space around it and beyond the width
        token = token.strip() or token
        assert passage.token == (token if len(token) <= width else token[: width - 1] + "…")
        assert sum(piece.peak for piece in passage.pieces) == 1
        # it takes in as many rows as it may, of what the models read together with it
        inside = [
            item
            for item in range(row - reach, row + reach + 1)
            if 0 <= item < n_rows and (document[item], window[item]) == (document[row], window[row])
            if start[row] - start[item] <= width and end[item] - end[row] <= width
        ]
        assert range(shown.start, shown.stop) == range(inside[0], inside[-1] + 1)
        # the rest is the document's, unchanged and in one stretch, and no longer than asked for
        place = next(i for i, piece in enumerate(passage.pieces) if piece.peak)
        before, after = (
            "".join(p.text for p in part) for part in (passage.pieces[:place], passage.pieces[place + 1 :])
        )
        assert max(len(before), len(after)) <= width
        if len(token) <= width:
            assert passage.text in text[start[shown][0] : max(end[shown])]
        assert (passage.starts, passage.ends) == (start[shown][0] == 0, end[shown][-1] == len(text))
        assert passage.quoted == readable(passage.quoted)
        # what the page joins out of rows is the same text, unless rows share characters
        if not ((np.diff(document) == 0) & (np.array(start[1:]) < end[:-1])).any():
            here = pool[passages.places(np.array([shown.start]))[0] :][: shown.stop - shown.start]
            assert "".join(gap + own for gap, own in here)[len(here[0][0]) :] == passage.text


def test_text_is_gathered_once_and_only_where_it_is_shown() -> None:
    texts = ["abcdefghij" * 5, "never read"]
    rows = table(*((0, i, i + 1) for i in range(50)), (1, 0, 10))
    passages = gather(texts, rows, np.array([[20, 25], [-1, 20]]), reach=3)
    np.testing.assert_array_equal(passages.rows, np.arange(17, 29))
    assert [stretch.text for stretch in passages.stretches] == [texts[0][17:29]]
    assert passages.places(np.array([[20, -1]])).tolist() == [[3, -1]]
    assert not len(gather(texts, rows, np.array([-1])).rows)


def test_windows_bound_what_is_shown() -> None:
    """Text that the models did not read together with a token is not shown as its context."""
    text = "left out before | seen token seen | left out after"
    places = [(text.index(word), word) for word in ("before", "seen", "token", "seen |", "after")]
    rows = table(*((0, start, start + len(word.split()[0])) for start, word in places), window_of_row=[0, 1, 1, 1, 2])
    passage = gather([text], rows, np.array([2, -1])).passage(2)
    assert passage.text == "seen token seen"
    assert (passage.before, passage.after) == ("… ", " …")


def test_positions_that_start_again_begin_a_window() -> None:
    rows = table((0, 0, 3), (0, 3, 7), (0, 7, 11), position=[0, 1, 1])
    assert gather(["one two six"], rows, np.array([1])).passage(1).quoted == "“one ⟦two⟧ six”"
    assert (
        gather(["one two six"], rows.assign(position=("token", [0, 1, 0])), np.array([1])).passage(1).text == "one two"
    )


def test_rows_far_apart_are_not_joined() -> None:
    text = "one" + " " * (WIDTH + 1) + "two three"
    rows = table((0, 0, 3), (0, WIDTH + 4, WIDTH + 7), (0, WIDTH + 8, WIDTH + 13))
    passages = gather([text], rows, np.array([0, 1]))
    assert [passages.passage(row).quoted for row in (0, 1)] == ["“⟦one⟧ …”", "“… ⟦two⟧ three”"]
    assert list(passages.cut_rows()) == [("", "one"), ("", "two"), (" ", "three")]


def test_a_row_as_long_as_a_page_is_cut() -> None:
    passages = gather(["word " * 1000], table((0, 0, 5000)), np.array([0]))
    assert passages.passage(0).text == ("word " * 1000)[: WIDTH - 1] + "…"


def test_bytes_of_one_sign_are_each_shown() -> None:
    rows = table((0, 0, 1), (0, 1, 2), (0, 1, 2), (0, 1, 2), (0, 2, 3))
    passages = gather(["a👩b"], rows, np.arange(5))
    assert [passages.passage(row).quoted for row in (1, 2, 3)] == ["“a⟦👩⟧b”"] * 3
    assert [passages.token(row) for row in range(5)] == ["a", "👩", "👩", "👩", "b"]


def test_many_documents_are_read_in_blocks() -> None:
    texts = [f"word{i} end" for i in range(700)]
    rows = table(*((i, 0, len(text) - 4) for i, text in enumerate(texts)))
    passages = gather(texts, rows, np.array([[5, 699], [-1, 256]]))
    assert {row: passages.token(row) for row in (5, 256, 699)} == {5: "word5", 256: "word256", 699: "word699"}
    assert REACH > 1
    assert passages.passage(256).text == "word256"
