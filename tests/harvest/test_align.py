"""Rows from offsets: against sets, on random cuts of random text, and on real tokenizers over random Unicode."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.harvest.align import (
    Boundaries,
    Tokens,
    cut_windows,
    last_tokens,
    segment_starts,
    shared_boundaries,
)
from storage.errors import InputError


@st.composite
def readings(draw):
    """Two tokenisations of one text: gaps (dropped blanks), shared ends (bytes of a character), empty tokens."""
    length = draw(st.integers(0, 60))

    def one():
        offsets, at = [], 0
        while at < length:
            at += draw(st.sampled_from([0, 0, 1]))
            width = draw(st.integers(0, 4))
            end = min(at + width, length)
            copies = draw(st.sampled_from([1, 1, 1, 2, 3])) if end > at else 1
            offsets += [(at, end) if end > at else (0, 0)] * copies
            at = max(end, at + (width == 0))
        return Tokens.of(range(len(offsets)), offsets)

    return one(), one()


def ends_of(tokens):
    return {int(end) for start, end in zip(tokens.starts, tokens.ends, strict=True) if end > start}


@given(readings())
def test_boundaries_are_the_ends_that_both_sides_have(both):
    a, b = both
    boundaries = shared_boundaries(a, b)
    assert boundaries.ends.tolist() == sorted(ends_of(a) & ends_of(b))
    for tokens, last in ((a, boundaries.last_a), (b, boundaries.last_b)):
        for end, token in zip(boundaries.ends, last, strict=True):
            same = [i for i in range(len(tokens.ids)) if tokens.ends[i] == end and tokens.starts[i] < end]
            assert token == same[-1]


@given(readings())
def test_one_reading_against_itself_gives_its_tokens(both):
    tokens, _ = both
    ends, last = last_tokens(tokens)
    boundaries = shared_boundaries(tokens, tokens)
    assert boundaries.ends.tolist() == ends.tolist() == sorted(ends_of(tokens))
    assert boundaries.last_a.tolist() == boundaries.last_b.tolist() == last.tolist()


@given(readings(), st.integers(1, 9), st.integers(1, 9))
def test_windows_hold_every_row_that_can_be_held_once(both, capacity_a, capacity_b):
    a, b = both
    boundaries = shared_boundaries(a, b)
    windows = cut_windows(boundaries, capacity_a, capacity_b)
    assert (windows.stop_a - windows.first_a <= capacity_a).all()
    assert (windows.stop_b - windows.first_b <= capacity_b).all()
    held = [row for i, j in zip(windows.first_row, windows.last_row, strict=True) for row in range(i, j + 1)]
    assert held == sorted(set(held))
    before = (
        np.concatenate([[-1], boundaries.last_a[:-1]])[: len(boundaries.ends)],
        np.concatenate([[-1], boundaries.last_b[:-1]])[: len(boundaries.ends)],
    )
    for row in set(range(len(boundaries.ends))) - set(held):
        too_long_a = boundaries.last_a[row] - before[0][row] > capacity_a
        too_long_b = boundaries.last_b[row] - before[1][row] > capacity_b
        assert too_long_a or too_long_b
    for i, row in enumerate(windows.first_row):
        assert windows.first_a[i] == before[0][row] + 1
        assert windows.first_b[i] == before[1][row] + 1


@given(readings())
def test_segments_are_not_empty_and_do_not_overlap(both):
    a, b = both
    boundaries = shared_boundaries(a, b)
    starts = segment_starts(boundaries, a, b)
    assert (starts < boundaries.ends).all()
    assert (starts[1:] >= boundaries.ends[:-1]).all()


def test_bytes_of_one_character_share_a_row():
    a = Tokens.of([10, 11, 12, 13], [(0, 1), (1, 2), (1, 2), (2, 3)])
    boundaries = shared_boundaries(a, Tokens.of([7, 8], [(0, 2), (2, 3)]))
    assert boundaries.ends.tolist() == [2, 3]
    assert boundaries.last_a.tolist() == [2, 3]


def test_offsets_that_run_backwards_are_refused():
    with pytest.raises(InputError, match="run backwards"):
        Tokens.of([1, 2], [(3, 5), (0, 2)])


def test_no_shared_end_gives_no_window():
    empty = Boundaries(*(np.zeros(0, np.int64) for _ in range(3)))
    assert all(len(part) == 0 for part in cut_windows(empty, 4, 4))


UNICODE = st.text(
    st.one_of(
        st.characters(codec="utf-8"),
        st.sampled_from("aZé\u0301ßİǅ東🐦👩\u200d🔬\u00a0\u2028\t\n .,'\u0000\ufeff"),
    ),
    max_size=40,
)


@pytest.fixture(scope="module")
def tokenizers(make_model):
    from pipeline.harvest.models import describe
    from pipeline.settings.harvest import ModelSettings

    sites = {"llama": "layers.0", "bert": "encoder.layer.0"}
    return [
        describe(ModelSettings(model=str(make_model(kind)), dictionary="identity", sites=[site])).tokenizer
        for kind, site in sites.items()
    ]


@given(text=UNICODE)
def test_rows_of_real_tokenizers_lie_in_the_original_text(tokenizers, text):
    from pipeline.harvest.rows import tokenize

    a, b = (tokenize(tokenizer, [text])[0] for tokenizer in tokenizers)
    boundaries = shared_boundaries(a, b)
    starts = segment_starts(boundaries, a, b)
    assert (boundaries.ends <= len(text)).all()
    assert (starts < boundaries.ends).all()
    # Byte-level BPE loses nothing: its last token ends where the text ends.
    assert not len(text) or a.ends.max() == len(text)
    alone = shared_boundaries(a, a)
    assert alone.ends.tolist() == sorted(ends_of(a))
