"""The corpus: every character back, in any order, from one pass over the input."""

from __future__ import annotations

import hashlib
import pickle
import tempfile

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

import storage
from storage import corpus as module
from storage.errors import FormatError, InputError, MissingInputError

ENCODABLE = st.text(st.characters(exclude_categories=["Cs"]))


@settings(max_examples=15)
@given(st.lists(ENCODABLE, min_size=1, max_size=9), st.integers(8, 40), st.integers(2, 5), st.booleans())
def test_any_unicode_comes_back(texts, chunk_bytes, chunk_offsets, named):
    texts = [*texts, "x"]
    names = [f"{text[:3]}{i}" for i, text in enumerate(texts)] if named else None
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setattr(module, "CHUNK_BYTES", chunk_bytes)
        patch.setattr(module, "CHUNK_OFFSETS", chunk_offsets)
        corpus = storage.write_corpus(f"{folder}/c.zarr", iter(texts), names=names and iter(names))
        assert len(corpus) == len(texts)
        assert corpus.texts(0, len(texts)) == texts
        i = len(texts) // 2
        assert corpus.text(i) == texts[i]
        assert corpus.name(i) == (names or [str(i) for i in range(len(texts))])[i]
        digest = hashlib.sha256(b"".join(len(t.encode()).to_bytes(8, "little") + t.encode() for t in texts))
        assert corpus.hash == storage.fingerprint(f"{folder}/c.zarr") == digest.hexdigest()


@settings(max_examples=15)
@given(st.lists(st.tuples(ENCODABLE, ENCODABLE), min_size=1, max_size=9), st.data())
def test_groups_come_back_and_are_part_of_the_hash(documents, data):
    texts, groups = zip(("x", "y"), *documents, strict=True)
    other = data.draw(st.permutations(groups).map(tuple))
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setattr(module, "BLOCK_DOCUMENTS", 2)
        one = storage.write_corpus(f"{folder}/c.zarr", texts, groups=groups)
        two = storage.write_corpus(f"{folder}/d.zarr", texts, groups=other)
        none = storage.write_corpus(f"{folder}/e.zarr", texts)
        assert (one.has_groups, none.has_groups) == (True, False)
        assert one.groups(0, len(texts)) == list(groups)
        numbers = [int.from_bytes(hashlib.sha256(group.encode()).digest()[:8], "big") // 2 for group in groups]
        assert one.group_numbers().tolist() == numbers
        assert (one.hash == two.hash) == (groups == other)
        assert one.hash != none.hash
        for corpus in (one, none):
            assert module.hash_of_text(corpus.path) == corpus.hash


def test_reopened_and_pickled(tmp_path):
    manifest = storage.new_manifest("corpus", {}, {"path": "x.txt"})
    written = storage.write_corpus(tmp_path / "c.zarr", ["a", "bb"], attrs={"source": "x.txt"}, manifest=manifest)
    for corpus in (storage.open_corpus(tmp_path / "c.zarr"), pickle.loads(pickle.dumps(written))):
        assert corpus == written
        assert corpus.texts(1, 2) == ["bb"]
        assert corpus.texts(1, 1) == []
        assert corpus.attrs["source"] == "x.txt"
    assert storage.is_current(tmp_path / "c.zarr", manifest)
    ds = xr.open_zarr(tmp_path / "c.zarr")
    assert ds.text.values.tobytes() == b"abb"
    np.testing.assert_array_equal(ds.offsets.values, [0, 1, 3])


@pytest.mark.parametrize(
    ("texts", "names", "message"),
    [
        ([], None, "0 documents"),
        (["", ""], None, "2 documents, no characters"),
        (["ok", "lone \ud800"], None, "text 1 cannot be written as UTF-8"),
        (["ok", b"bytes"], None, "text 1 is bytes, not a string"),
        (["ok", "b"], ["one"], "one name for every text"),
        (["ok"], ["one", "two"], "one name for every text"),
        ("hello", None, "texts must hold a string for every document, and is one string: give a list"),
        (["ok", "b"], "xy", "names must hold a string for every document"),
    ],
)
def test_bad_input_is_refused_and_leaves_the_old_corpus(tmp_path, texts, names, message):
    storage.write_corpus(tmp_path / "c.zarr", ["old"])
    with pytest.raises(InputError, match=message):
        storage.write_corpus(tmp_path / "c.zarr", texts, names=names, overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["c.zarr"]
    assert storage.open_corpus(tmp_path / "c.zarr").text(0) == "old"


def test_each_text_needs_a_group_if_there_are_groups(tmp_path):
    with pytest.raises(InputError, match="one group if there are groups"):
        storage.write_corpus(tmp_path / "c.zarr", ["one", "two"], groups=["x"])
    assert not list(tmp_path.iterdir())


def test_an_error_of_the_source_passes_through(tmp_path):
    def source():
        yield "one"
        raise ValueError("the source broke")

    with pytest.raises(ValueError, match="the source broke"):
        storage.write_corpus(tmp_path / "c.zarr", source())
    assert list(tmp_path.iterdir()) == []


def test_documents_out_of_range_and_other_formats(tmp_path):
    corpus = storage.write_corpus(tmp_path / "c.zarr", ["a", "bb"])
    for wrong in (lambda: corpus.text(2), lambda: corpus.text(-1), lambda: corpus.texts(1, 3), lambda: corpus.name(2)):
        with pytest.raises(InputError, match="documents 0 to 1"):
            wrong()
    storage.write_activations(tmp_path / "a.zarr", np.eye(3))
    with pytest.raises(FormatError, match="not a corpus"):
        storage.open_corpus(tmp_path / "a.zarr")
    with pytest.raises(MissingInputError):
        storage.open_corpus(tmp_path / "none.zarr")
