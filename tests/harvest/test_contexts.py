"""Top activating rows: against a plain sort in NumPy, over several panels of features and slabs of rows."""

from __future__ import annotations

import importlib
import tempfile
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from typer.testing import CliRunner

import storage
from jobs.cli import app
from pipeline.harvest.contexts import contexts
from storage.errors import InputError, MissingInputError

CHUNK = (7, 5)
SHARD_ROWS = 14


def write(path: Path, data: np.ndarray, sink: np.ndarray, layout: str = "csr", tokens=None, **attrs: str) -> Path:
    """Write a store of many small shards and panels."""
    writer = storage.ActivationWriter.create(
        path,
        n_tokens=len(data),
        n_features=data.shape[1],
        layout=layout,
        shard_rows=SHARD_ROWS,
        chunk=CHUNK,
        attrs=attrs,
        tokens=tokens,
    )
    for i in range(writer.n_shards):
        rows = writer.shard_slice(i)
        writer.write_shard(i, data[rows] if layout == "dense" else sp.csr_array(data[rows]), sink[rows])
    writer.finalise()
    return path


def expected(data: np.ndarray, sink: np.ndarray, top_n: int) -> tuple[np.ndarray, np.ndarray]:
    """Sort every feature's active rows that are no sinks by descending activation, then by row."""
    rows = np.full((data.shape[1], top_n), -1)
    values = np.full(rows.shape, np.nan, dtype=np.float32)
    for feature, column in enumerate(data.T):
        order = [row for row in np.lexsort((np.arange(len(data)), -column)) if column[row] != 0 and not sink[row]]
        rows[feature, : len(order)] = order[:top_n]
        values[feature, : len(order)] = column[order[:top_n]]
    return rows, values


# few distinct values, so that ties are the rule
LEVELS = st.sampled_from([0.0, 0.0, 0.5, 1.0, 2.0])
MATRICES = hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=40).flatmap(
    lambda shape: st.tuples(hnp.arrays(np.float32, shape, elements=LEVELS), hnp.arrays(bool, shape[0]))
)


@settings(max_examples=15)
@given(case=MATRICES, top_n=st.integers(1, 9), layout=st.sampled_from(["csr", "dense"]))
def test_equals_a_sort(client, case: tuple[np.ndarray, np.ndarray], top_n: int, layout: str) -> None:
    data, sink = case
    with tempfile.TemporaryDirectory() as folder:
        result = contexts(write(Path(folder) / "s.zarr", data, sink, layout), top_n=top_n, client=client)
    rows, values = expected(data, sink, top_n)
    assert result["row"].dims == result["value"].dims == ("feature", "rank")
    np.testing.assert_array_equal(result["row"], rows)
    np.testing.assert_array_equal(result["value"], values)


@pytest.mark.parametrize("slab_bytes", [1, 2_000, 64 * 2**20])
def test_several_panels_and_slabs(client, tmp_path, monkeypatch, slab_bytes) -> None:
    rng = np.random.default_rng(0)
    data = np.where(rng.random((100, 23)) < 0.3, rng.integers(1, 4, (100, 23)), 0).astype(np.float32)
    sink = rng.random(100) < 0.1
    path = write(tmp_path / "s.zarr", data, sink)
    monkeypatch.setattr(importlib.import_module("pipeline.harvest.contexts"), "SLAB_BYTES", slab_bytes)
    result = contexts(path, client=client)
    rows, values = expected(data, sink, 8)
    np.testing.assert_array_equal(result["row"], rows)
    np.testing.assert_array_equal(result["value"], values)


def test_negative_activations_of_raw_units_are_listed_after_positive_ones(client, tmp_path) -> None:
    data = np.array([[-2.0], [0.0], [3.0], [-1.0]], dtype=np.float32)
    path = write(tmp_path / "s.zarr", data, np.zeros(4, bool), "dense")
    assert contexts(path, top_n=4, client=client)["row"].values.tolist() == [[2, 3, 0, -1]]


def test_float16_stores(client, tmp_path) -> None:
    storage.write_activations(
        tmp_path / "s.zarr", sp.csr_array(np.eye(4, dtype=np.float32)), dtype="float16", overwrite=True
    )
    assert contexts(tmp_path / "s.zarr", top_n=1, client=client)["row"].values.ravel().tolist() == [0, 1, 2, 3]


def test_a_current_result_is_kept_and_another_setting_replaces_it(client, tmp_path) -> None:
    path = write(tmp_path / "s.zarr", np.eye(30, dtype=np.float32), np.zeros(30, bool), site="layers.3", model="toy")
    out = tmp_path / "contexts" / "s.zarr"
    first = contexts(path, out, top_n=2, client=client)
    created = storage.read_manifest(out).created
    assert first.attrs["site"] == "layers.3"
    assert first.attrs["model"] == "toy"
    modified = (out / "zarr.json").stat().st_mtime_ns
    contexts(path, out, top_n=2, client=client)
    assert (out / "zarr.json").stat().st_mtime_ns == modified
    assert contexts(path, out, top_n=3, client=client).sizes["rank"] == 3
    assert storage.read_manifest(out).created >= created
    assert storage.open_result(out, "contexts")["row"].sizes == {"feature": 30, "rank": 3}


def test_sparse_stores_are_never_made_dense(client, tmp_path, monkeypatch) -> None:
    path = write(tmp_path / "s.zarr", np.eye(30, dtype=np.float32), np.zeros(30, bool))

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("made dense")

    for method in ("toarray", "todense"):
        monkeypatch.setattr(sp.csr_array, method, refuse)
    assert contexts(path, client=client)["row"].values[:, 0].tolist() == list(range(30))


def test_bad_input(client, tmp_path) -> None:
    with pytest.raises(MissingInputError, match=r"none\.zarr"):
        contexts(tmp_path / "none.zarr", client=client)
    path = write(tmp_path / "s.zarr", np.eye(3, dtype=np.float32), np.zeros(3, bool))
    with pytest.raises(InputError, match="top_n is 0"):
        contexts(path, top_n=0, client=client)


def random_case(n_rows: int = 300, n_features: int = 11) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Return activations with ties, sinks, and the tokens and documents of the rows."""
    rng = np.random.default_rng(1)
    data = np.where(rng.random((n_rows, n_features)) < 0.4, rng.integers(1, 30, (n_rows, n_features)), 0)
    data[:, 3] = 0
    data[:, 5] = -(np.arange(n_rows) % 3)
    document = np.sort(rng.integers(0, 25, n_rows))
    tokens = {name: np.zeros(n_rows, int) for name in ("char_start", "char_end", "position")}
    tokens |= {"document": document, "token_id": np.minimum(rng.zipf(1.6, n_rows), 300)}
    return data.astype(np.float32), rng.random(n_rows) < 0.1, tokens


@pytest.mark.parametrize("layout", ["csr", "dense"])
def test_one_row_of_a_document(client, tmp_path, layout: str) -> None:
    data, sink, tokens = random_case()
    path = write(tmp_path / "s.zarr", data, sink, layout, tokens=tokens)
    result = contexts(path, top_n=5, distinct_documents=True, client=client)
    best = np.where(sink[:, None] | (data == 0), -np.inf, data)
    for feature in range(data.shape[1]):
        # the best row of every document, the lowest where there are several, then the best of these
        rows = [min(np.flatnonzero(tokens["document"] == d), key=lambda r: (-best[r, feature], r)) for d in range(25)
                if (tokens["document"] == d).any()]  # fmt: skip
        expected = sorted((r for r in rows if best[r, feature] > -np.inf), key=lambda r: (-best[r, feature], r))[:5]
        assert result["row"].values[feature].tolist() == expected + [-1] * (5 - len(expected))


@pytest.mark.parametrize("layout", ["csr", "dense"])
def test_histogram_rate_and_tokens(client, tmp_path, layout: str) -> None:
    data, sink, tokens = random_case()
    path = write(tmp_path / "s.zarr", data, sink, layout, tokens=tokens)
    result = contexts(path, bins=7, tokens=5, client=client)
    assert result["bin"].values[-1] == 1
    counted = data[~sink]
    np.testing.assert_allclose(result["firing_rate"], (counted != 0).mean(axis=0))
    for feature, column in enumerate(counted.T):
        positive = column[column > 0]
        edges = np.linspace(0, positive.max(initial=1), 8)
        np.testing.assert_array_equal(result["histogram"][feature], np.histogram(positive, edges)[0])
        ids, counts = np.unique(tokens["token_id"][~sink][column > 0], return_counts=True)
        largest = np.sort(counts)[::-1][:5]
        assert result["token_missed"][feature] == 0  # fewer different tokens than counters
        assert result["token_count"].values[feature].tolist() == [*largest, *[0] * (5 - len(largest))]
        rows = result["token_row"].values[feature, : len(largest)]
        assert (data[rows, feature] > 0).all()
        assert [counts[ids == tokens["token_id"][row]].item() for row in rows] == largest.tolist()


def test_counts_of_tokens_are_bounded_where_there_are_too_many(client, tmp_path) -> None:
    rng = np.random.default_rng(2)
    ids = np.minimum(rng.zipf(1.2, 5000), 100_000)
    data = (rng.random((5000, 3)) < [0.3, 0.9, 0.01]).astype(np.float32)
    tokens = {name: np.zeros(5000, int) for name in ("document", "char_start", "char_end")}
    path = tmp_path / "s.zarr"
    storage.write_activations(
        path, data, tokens={**tokens, "token_id": ids}, chunk=(1000, 2), layout="csr", overwrite=True
    )
    result = contexts(path, tokens=8, client=client)
    for feature in range(3):
        fires = np.flatnonzero(data[:, feature])
        missed = int(result["token_missed"][feature])
        assert missed <= len(fires) / (64 + 1)  # Misra and Gries' bound
        assert (missed > 0) == (len(set(ids[fires])) > 64)
        for row, count in zip(result["token_row"].values[feature], result["token_count"].values[feature], strict=True):
            true = np.count_nonzero(ids[fires] == ids[row])
            assert count <= true <= count + missed
    assert ids[result["token_row"].values[1, 0]] == np.bincount(ids[data[:, 1] > 0]).argmax()


def test_quantiles_of_all_rows_where_few_fire(client, tmp_path) -> None:
    data, sink, _ = random_case(n_rows=120)
    path = write(tmp_path / "s.zarr", data, sink)
    result = contexts(path, quantiles=(0, 0.25, 0.5, 1), client=client)
    for feature, column in enumerate(np.where(sink[:, None], 0, data).T):
        positive = np.sort(column[column > 0])
        if not len(positive):
            assert (result["quantile_row"].values[feature] == -1).all()
            assert np.isnan(result["quantile_value"].values[feature]).all()
            continue
        expected = positive[np.rint((len(positive) - 1) * np.array([0, 0.25, 0.5, 1])).astype(int)]
        np.testing.assert_array_equal(result["quantile_value"][feature], expected)
        np.testing.assert_array_equal(column[result["quantile_row"].values[feature]], expected)


def test_samples_are_seeded_and_fair(client, tmp_path) -> None:
    rng = np.random.default_rng(3)
    data = rng.random((4000, 40)).astype(np.float32)
    path = tmp_path / "s.zarr"
    storage.write_activations(path, data, layout="dense", chunk=(1000, 16), overwrite=True)
    one, same, other = (contexts(path, quantiles=(0.5,), seed=seed, client=client) for seed in (0, 0, 1))
    assert one.equals(same)
    assert (one["quantile_row"] != other["quantile_row"]).mean() > 0.9
    # the median of 64 of a uniform distribution has a standard error of 0.5 / sqrt(64); the mean of 40 of them a sixth
    assert abs(float(one["quantile_value"].mean()) - 0.5) < 4 * 0.0625 / np.sqrt(40)
    assert len(np.unique(one["quantile_row"])) > 30  # features do not share their draws


def test_numbers_out_of_range(client, tmp_path) -> None:
    path = write(tmp_path / "s.zarr", np.eye(3, dtype=np.float32), np.zeros(3, bool))
    for wrong, message in (
        ({"quantiles": [1.5]}, r"quantiles\.0: .* less than or equal to 1 .*1\.5"),
        ({"tokens": 65}, "tokens: .* less than or equal to 64"),
        ({"bins": -1}, "bins: .* greater than or equal to 0 .*-1"),
        ({"distinct_documents": True}, "does not say which document"),
    ):
        with pytest.raises(InputError, match=message):
            contexts(path, client=client, **wrong)
    result = contexts(path, quantiles=np.array([0.5]), bins=np.int64(2), client=client)
    assert (result["quantile"].values.tolist(), result.sizes["bin"]) == ([0.5], 2)
    result = contexts(path, quantiles=(), bins=0, tokens=0, client=client)
    assert set(result.variables) == {"row", "value", "firing_rate"}


def test_settings_are_options(tmp_path) -> None:
    path = write(tmp_path / "s.zarr", np.eye(3, dtype=np.float32), np.zeros(3, bool))
    options = ["contexts", str(path), "--quantile", "0.5", "--quantile", "1", "--bins", "4"]
    refused = CliRunner().invoke(app, options)
    assert refused.exit_code == 2
    assert "quantiles, bins must be made first" in refused.output
    made = CliRunner().invoke(app, [*options, "--out", str(tmp_path / "c.zarr")])
    assert made.exit_code == 0, made.output
    result = storage.open_result(tmp_path / "c.zarr", "contexts")
    assert (result["quantile"].values.tolist(), result.sizes["bin"], result.sizes["rank"]) == ([0.5, 1], 4, 8)
    assert storage.read_manifest(tmp_path / "c.zarr").settings["tokens"] == 16
