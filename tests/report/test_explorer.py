"""Contexts as the report shows them: shading against the activations, and the short texts of the tables."""

from __future__ import annotations

import itertools
import tempfile

import numpy as np
import scipy.sparse as sp
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

import storage
from pipeline.report.explorer import LEVELS, feature_texts, shade
from pipeline.text.feature_contexts import read_activity
from pipeline.text.passages import REACH, gather_passages
from pipeline.text.spans import readable


@settings(max_examples=15)
@given(text=st.text(min_size=2, max_size=200), layout=st.sampled_from(["csr", "dense"]), data=st.data())
def test_every_token_is_shaded_by_its_activation(text: str, layout: str, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)), min_size=2, max_size=40)))
    start, end = np.array(list(itertools.pairwise(cuts))).T
    n_rows = len(start)
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    active = np.where(rng.random((n_rows, 5)) < 0.6, rng.uniform(0.1, 4, (n_rows, 5)), 0).astype(np.float32)
    active[rng.integers(n_rows), 0] = 5
    features, top = np.arange(5), np.argsort(-active, axis=0, kind="stable")[:3].T
    top = np.where(np.take_along_axis(active.T, top, 1) > 0, top, -1)
    tokens = {"document": np.zeros(n_rows, int), "char_start": start, "char_end": end}
    with tempfile.TemporaryDirectory() as folder:
        corpus = storage.write_corpus(f"{folder}/corpus.zarr", [text], overwrite=True)
        written = sp.csr_array(active) if layout == "csr" else active
        storage.write_activations(
            f"{folder}/a.zarr", written, tokens=tokens, layout=layout, shard_rows=8, chunk=(4, 2), overwrite=True
        )
        passages = gather_passages(corpus, storage.open_activations(f"{folder}/a.zarr"), top)
        activity = read_activity(f"{folder}/a.zarr", features, top)
    assert not activity[top < 0].any()
    padded = np.pad(active, ((REACH, REACH), (0, 0)))
    for feature, rank in np.argwhere(top >= 0).tolist():
        row, values = int(top[feature, rank]), activity[feature, rank]
        np.testing.assert_array_equal(values, padded[row : row + 2 * REACH + 1, feature])
        passage, largest = passages.passage(row, values), active[:, feature].max()
        segments = list(shade(passage, float(largest)))
        assert "".join(s.text for s in segments) == passage.before + readable(passage.text) + passage.after
        (peak,) = [segment for segment in segments if segment.peak]
        assert peak.level == int(np.ceil(LEVELS * np.float64(active[row, feature]) / largest))
        assert all(0 <= segment.level <= LEVELS for segment in segments)


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
    corpus = storage.write_corpus(tmp_path / "corpus.zarr", [text], overwrite=True)
    top = np.array([[0, 1, 1], [5, -1, -1], [-1, -1, -1]])
    table = feature_texts(np.array([3, 4, 9]), top, gather_passages(corpus, rows, top))
    assert table.loc[3, "tokens"] == '["=1+1", "is"]'
    assert table.loc[3, "context"] == "“⟦=1+1⟧ is a =formula↵↵”"
    assert table.loc[4, "tokens"] == '["↵↵"]'
    assert table.loc[9].tolist() == ["[]", ""]
