"""Rows of the same segment, against the text of every row read one by one."""

from __future__ import annotations

import numpy as np
import pytest

import storage
from pipeline.match import segments
from pipeline.match.segments import number_segments
from storage.errors import InputError, RowMismatchError

TEXTS = ["the cat the dog", "dog the Cat", "the"]
#: Every word with the blank before it.
ROWS = [
    (0, 0, 3), (0, 3, 7), (0, 7, 11), (0, 11, 15), (1, 0, 3), (1, 3, 7), (1, 7, 11), (2, 0, 3),
]  # fmt: skip


def write(path, token_id=None, **attrs):
    columns = dict(zip(("document", "char_start", "char_end"), np.array(ROWS).T, strict=True))
    if token_id is not None:
        columns["token_id"] = token_id
    storage.write_activations(path, np.eye(len(ROWS)), tokens=columns, attrs=attrs)
    return path


def groups(numbers):
    return [np.flatnonzero(numbers == i).tolist() for i in range(max(numbers) + 1)]


@pytest.fixture
def corpus(tmp_path):
    return storage.write_corpus(tmp_path / "corpus.zarr", TEXTS)


@pytest.mark.parametrize("block", [2, 1000])
def test_rows_of_the_same_text(tmp_path, corpus, monkeypatch, block):
    monkeypatch.setattr(segments, "BLOCK_ROWS", block)
    a = write(tmp_path / "a.zarr")
    number, known_by = number_segments(a, a, corpus.path)
    texts = [TEXTS[document][start:end] for document, start, end in ROWS]
    assert known_by == "text"
    assert number.dtype == np.int32
    np.testing.assert_array_equal(number[:, None] == number, np.array(texts)[:, None] == np.array(texts))
    pairs = list(zip(texts, [None, *texts[:3], None, *texts[4:6], None], strict=True))
    number = number_segments(a, a, corpus.path, previous=True).number
    assert (number[:, None] == number).tolist() == [[x == y for y in pairs] for x in pairs]


def test_token_ids_of_both_sides_without_a_corpus(tmp_path):
    a = write(tmp_path / "a.zarr", [5, 5, 5, 5, 9, 9, 9, 9])
    b = write(tmp_path / "b.zarr", [0, 1, 0, 1, 0, 1, 0, 0])
    number, known_by = number_segments(a, b)
    assert known_by == "token ids"
    assert groups(number) == [[0, 2], [1, 3], [4, 6, 7], [5]]
    bare = write(tmp_path / "bare.zarr")
    assert groups(number_segments(bare, b).number) == groups(number_segments(b, bare).number)
    number, known_by = number_segments(a, b, previous=True)
    assert groups(number) == [[0], [2], [1, 3], [4, 7], [6], [5]]
    assert known_by == "token ids, previous segment's too"


def test_rows_without_tokens_or_of_another_text(tmp_path, corpus):
    bare = write(tmp_path / "bare.zarr")
    with pytest.raises(InputError, match=r"Neither .*bare.zarr nor .* has token ids, and no corpus"):
        number_segments(bare, bare)
    other = write(tmp_path / "other.zarr", corpus_hash="other")
    with pytest.raises(RowMismatchError, match="was not harvested from the corpus"):
        number_segments(other, other, corpus.path)
    storage.write_activations(tmp_path / "rows.zarr", np.eye(3))
    with pytest.raises(InputError, match="no token coordinates"):
        number_segments(tmp_path / "rows.zarr", tmp_path / "rows.zarr", corpus.path)
