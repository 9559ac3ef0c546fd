"""Passages and their shading, against the documents and the activations they come from."""

from __future__ import annotations

import itertools
import tempfile

import numpy as np
import scipy.sparse as sp
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

import storage
from pipeline.report.results import Site
from pipeline.report.snippets import LEVELS, MARGIN, cut_passages, feature_texts, readable, shade_passages

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=200)


@st.composite
def documents(draw) -> tuple[list[str], dict[str, np.ndarray]]:
    """Draw documents, and non-overlapping ascending spans in them."""
    texts = draw(st.lists(TEXT, min_size=1, max_size=4))
    spans = []
    for number, text in enumerate(texts):
        cuts = sorted(draw(st.sets(st.integers(0, len(text)), min_size=2, max_size=12)))
        spans += [(number, start, end) for start, end in itertools.pairwise(cuts)]
    columns = np.array(spans).reshape(-1, 3).T if spans else np.zeros((3, 0), int)
    return texts, dict(zip(("document", "char_start", "char_end"), columns, strict=True))


def write_site(folder: str, spans: dict[str, np.ndarray], active: np.ndarray, layout: str) -> Site:
    """Write one small store of many chunks."""
    data = sp.csr_array(active) if layout == "csr" else active
    path = f"{folder}/{layout}.zarr"
    storage.write_activations(path, data, tokens=spans, layout=layout, shard_rows=8, chunk=(4, 2))
    return Site("a", "x", path, path, storage.open_activations(path), xr.Dataset())


@settings(max_examples=15)
@given(case=documents(), data=st.data())
def test_passages_and_shades(case: tuple[list[str], dict[str, np.ndarray]], data: st.DataObject) -> None:
    texts, spans = case
    n_rows = len(spans["document"])
    if not n_rows:
        return
    seed = data.draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    active = np.where(rng.random((n_rows, 5)) < 0.6, rng.uniform(0.1, 4, (n_rows, 5)), 0).astype(np.float32)
    active[rng.integers(n_rows), 0] = 5
    layout = data.draw(st.sampled_from(["csr", "dense"]))
    features = np.arange(5)
    top = np.argsort(-active, axis=0, kind="stable")[:3].T
    top = np.where(np.take_along_axis(active.T, top, 1) > 0, top, -1)
    rows = xr.Dataset({name: ("token", values) for name, values in spans.items()})
    with tempfile.TemporaryDirectory() as folder:
        corpus = storage.write_corpus(f"{folder}/corpus.zarr", texts)
        site = write_site(folder, spans, active, layout)
        passages = cut_passages(corpus, rows, top)
        shaded = shade_passages(site, rows, features, top, passages)
    assert set(passages) == set(top[top >= 0].tolist())
    for row, passage in passages.items():
        text = texts[spans["document"][row]]
        start, end = spans["char_start"][row], spans["char_end"][row]
        assert passage.text[passage.start : passage.end] == text[start:end]
        assert text[passage.offset : passage.offset + len(passage.text)] == passage.text
        assert passage.start <= MARGIN
        assert len(passage.text) - passage.end <= MARGIN
        assert bool(passage.before) == (passage.offset > 0)
    for (feature, row), segments in shaded.items():
        passage = passages[row]
        assert "".join(s.text for s in segments) == passage.before + readable(passage.text) + passage.after
        assert sum(segment.peak for segment in segments) == 1
        (peak,) = [segment for segment in segments if segment.peak]
        assert peak.level == int(np.ceil(LEVELS * np.float64(active[row, feature]) / active[:, feature].max()))
        assert all(0 <= segment.level <= LEVELS for segment in segments)


def test_windows_bound_what_is_shown(tmp_path) -> None:
    """Text that the models did not read together with a token is not shown as its context."""
    text = "left out before | seen token seen | left out after"
    start = text.index("token")
    rows = xr.Dataset(
        {
            "document": ("token", [0]),
            "char_start": ("token", [start]),
            "char_end": ("token", [start + 5]),
            "window_of_row": ("token", [1]),
            "window_start": ("window", [0, text.index("seen")]),
            "window_end": ("window", [3, text.index(" | left out after")]),
        }
    )
    corpus = storage.write_corpus(tmp_path / "corpus.zarr", [text])
    passage = cut_passages(corpus, rows, np.array([0, -1]))[0]
    assert passage.text == "seen token seen"
    assert (passage.before, passage.after) == ("… ", " …")


def test_many_documents_are_read_in_blocks(tmp_path) -> None:
    texts = [f"word{i} end" for i in range(700)]
    rows = xr.Dataset(
        {
            "document": ("token", np.arange(700)),
            "char_start": ("token", np.zeros(700, int)),
            "char_end": ("token", [len(text) - 4 for text in texts]),
        }
    )
    corpus = storage.write_corpus(tmp_path / "corpus.zarr", texts)
    passages = cut_passages(corpus, rows, np.array([[5, 699], [-1, 256]]))
    assert {row: passage.token for row, passage in passages.items()} == {5: "word5", 256: "word256", 699: "word699"}


def test_short_texts_for_tables(tmp_path) -> None:
    text = "=1+1 is\ta =formula\n\n"
    spans = [(0, 4), (5, 7), (8, 9), (10, 11), (11, 18), (18, 20)]
    rows = xr.Dataset(
        {
            "document": ("token", [0] * 6),
            "char_start": ("token", [start for start, _ in spans]),
            "char_end": ("token", [end for _, end in spans]),
        }
    )
    corpus = storage.write_corpus(tmp_path / "corpus.zarr", [text])
    top = np.array([[0, 1, 1], [5, -1, -1], [-1, -1, -1]])
    table = feature_texts(np.array([3, 4, 9]), top, cut_passages(corpus, rows, top))
    assert table.loc[3, "tokens"] == '["=1+1", "is"]'
    assert table.loc[3, "context"] == "“⟦=1+1⟧ is a =formula↵↵”"
    assert table.loc[4, "tokens"] == '["↵↵"]'
    assert table.loc[9].tolist() == ["[]", ""]
