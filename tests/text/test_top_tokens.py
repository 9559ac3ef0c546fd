"""Top tokens and top words against the text, read by other means."""

from __future__ import annotations

import re

import numpy as np
import pytest

import storage
from pipeline.harvest.contexts import contexts
from pipeline.text.top_tokens import top_tokens, top_words
from storage.errors import InputError, RowMismatchError

DOCUMENTS = ("The cat didn't sit. A dog, Zoe\u0308\u2019s, ran in_side!", "the cat.\n\nwell-known DOGS")


@pytest.fixture
def case(text_of, client):
    """Two stores over the same text, one of whose features fires on every row, and their contexts."""
    text = text_of(*DOCUMENTS, pattern=r"\s?\w|[^\w\s]|\s")
    n = len(text.pieces)
    stores = [text.store(active, name) for name, active in (("a", np.ones((n, 2))), ("b", np.eye(n, 3)))]
    results = [text.folder / f"contexts-{store.stem}.zarr" for store in stores]
    for store, result in zip(stores, results, strict=True):
        contexts(store, result, top_n=n, client=client)
    return text, stores[0], results


def test_top_tokens_are_the_text_of_the_rows(case) -> None:
    text, store, results = case
    a, b = top_tokens(results, store, text.corpus)
    assert a.texts(1) == [piece.strip().casefold() for piece in text.pieces]
    assert [b.texts(feature) for feature in range(3)] == [[piece.strip().casefold()] for piece in text.pieces[:3]]
    np.testing.assert_array_equal(a.positions[0], text.tokens["position"])
    np.testing.assert_array_equal(b.n, [1, 1, 1])
    assert a.vocabulary == b.vocabulary == list(dict.fromkeys(a.texts(0)))


def test_top_words_are_whole_words(case) -> None:
    text, store, results = case
    a, b = top_words(results, store, text.corpus)
    expected = []
    for document, start, end in zip(*(text.tokens[n] for n in ("document", "char_start", "char_end")), strict=True):
        words = re.finditer(r"[A-Za-z\u0308]+(?:['\u2019-][A-Za-z\u0308]+)*", DOCUMENTS[document])
        overlapping = [w.group().casefold() for w in words if w.start() < end and w.end() > start]
        expected += overlapping[:1]
    assert a.texts(0) == expected
    assert {"didn't", "zoe\u0308\u2019s", "in", "side", "well-known", "dogs"} < set(a.vocabulary)
    assert [b.texts(feature) for feature in range(3)] == [["the"]] * 3


def test_stores_without_positions_have_none(text_of, client) -> None:
    text = text_of("one two")
    del text.tokens["position"]
    store = text.store(np.ones((2, 1), np.float32))
    contexts(store, text.folder / "c.zarr", client=client)
    (result,) = top_tokens([text.folder / "c.zarr"], store, text.corpus)
    assert (result.positions == -1).all()
    assert result.texts(0) == ["one", "two"]


def test_contexts_of_other_rows_or_text_are_refused(case, tmp_path) -> None:
    text, store, results = case
    storage.write_activations(tmp_path / "x.zarr", np.eye(9), overwrite=True)
    tokens = {name: np.arange(9) for name in ("document", "char_start", "char_end")}
    storage.write_activations(tmp_path / "y.zarr", np.eye(9), tokens=tokens, overwrite=True)
    storage.write_corpus(tmp_path / "other.zarr", ["other"], overwrite=True)
    for read in (top_tokens, top_words):
        with pytest.raises(InputError, match="no token coordinates"):
            read(results, tmp_path / "x.zarr", text.corpus)
        with pytest.raises(RowMismatchError, match="other rows than"):
            read(results, tmp_path / "y.zarr", text.corpus)
        with pytest.raises(RowMismatchError, match="was not harvested from the corpus"):
            read(results, store, tmp_path / "other.zarr")
