"""What the explorer is given, taken apart again and held against the stores themselves."""

from __future__ import annotations

import base64
import gzip
import importlib
import importlib.resources
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import zarr
from sklearn.decomposition import PCA

import storage
from pipeline.report import neuronpedia
from pipeline.report.explorer import CONTEXTS, LEVELS
from pipeline.report.explorer_data import ENDS, NEIGHBOURS, STARTS, explorer_data
from pipeline.report.maps import map_pairs
from pipeline.report.pack import UNDEFINED, fixed_point, pack
from pipeline.report.results import open_run
from pipeline.text.passages import REACH
from pipeline.text.spans import readable
from pipeline.text.words import word_around

VENDOR = importlib.resources.files("pipeline.report") / "vendor"


def take_apart(text: str) -> dict[str, Any]:
    """Read a pack by its description alone."""
    raw = gzip.decompress(base64.b64decode(text))
    length = int.from_bytes(raw[:4], "little")
    head = json.loads(raw[4 : 4 + length])
    arrays = head.pop("arrays")
    return head | {
        name: np.frombuffer(raw, np.dtype(dtype).newbyteorder("<"), size, 4 + length + offset)
        for name, (dtype, offset, size) in arrays.items()
    }


@pytest.fixture(scope="module")
def run(write_run, tmp_path_factory):
    return open_run(write_run(tmp_path_factory.mktemp("explorer") / "run").root)


@pytest.fixture(scope="module")
def data(run):
    return explorer_data(run, run.site_pairs)


@pytest.fixture(scope="module")
def packs(data) -> dict[str, dict[str, Any]]:
    return {name: take_apart(text) for name, text in data.packs.items()}


def test_a_pack_gives_back_what_was_put_in() -> None:
    arrays = {
        "one": np.arange(5, dtype=np.uint8),
        "two": np.array([[1.5, np.nan]], dtype=np.float32),
        "three": np.array([-7], dtype=np.int32),
    }
    result = take_apart(pack(arrays, name="é"))
    assert result.pop("name") == "é"
    for name, array in arrays.items():
        np.testing.assert_array_equal(result[name], array.ravel())
    with pytest.raises(TypeError, match="four is int64"):
        pack({"four": np.zeros(1, dtype=np.int64)})


def test_fixed_point() -> None:
    np.testing.assert_array_equal(fixed_point(np.array([0.12345, -1, np.nan, 99])), [1234, -10000, UNDEFINED, 32767])


def test_the_same_run_gives_the_same_packs(run, data) -> None:
    assert explorer_data(run, run.site_pairs) == data


def test_pairs_and_neighbours_are_the_stored_ones(run, data, packs) -> None:
    for entry, pair in zip(data.index["site_pairs"], run.site_pairs, strict=True):
        result = packs[entry["pack"]]
        sites = {side: packs[entry["packs"][side]]["feature"] for side in "ab"}
        for side in "ab":
            np.testing.assert_array_equal(sites[side][result[side]], pair.pairs[f"feature_{side}"])
        np.testing.assert_allclose(result["r"], pair.pairs["r"], rtol=1e-6)
        np.testing.assert_allclose(result["heldout"], pair.pairs["r_heldout"], rtol=1e-6)
        width = result["neighbours"]
        assert width == min(NEIGHBOURS, pair.correlation.sizes["rank"])
        for side, other in ("ab", "ba"):
            near = result[f"near_{other}"].reshape(-1, width)
            stored = pair.correlation.sel({f"feature_{side}": pair.pairs[f"feature_{side}"]}).isel(rank=slice(width))
            there = np.isfinite(stored[f"r_{other}"].values)
            np.testing.assert_array_equal(near >= 0, there)
            np.testing.assert_array_equal(sites[other][near[there]], stored[f"best_{other}"].values[there])
            r = result[f"near_r_{other}"].reshape(-1, width)
            np.testing.assert_allclose(r[there] * 1e-4, stored[f"r_{other}"].values[there], atol=6e-5)


def test_contexts_are_the_text_shaded_by_activation(run, data, packs) -> None:
    entry, pair = data.index["site_pairs"][3], run.site_pairs[3]
    site, text = packs[entry["packs"]["b"]], packs["text"]
    dense = storage.read_dense(pair.b.path).astype(np.float64)
    rows = {name: run.rows[name].values for name in ("document", "char_start", "char_end")}
    units = text["text"].tobytes().decode().encode("utf-16-le")
    starts = np.concatenate([[0], (text["gap"].astype(int) + text["length"]).cumsum()])
    stored = pair.b.contexts.load()
    shape = (len(site["feature"]), site["width"])
    level = site["level"].reshape(*shape, -1)
    checked = 0
    for i, feature in enumerate(site["feature"].tolist()):
        for j in range(min(CONTEXTS, shape[1])):
            row, peak = int(stored["row"][feature, j]), int(site["row"].reshape(shape)[i, j])
            assert (peak < 0) == (row < 0)
            if row < 0:
                continue
            before, after = (int(site[name].reshape(shape)[i, j]) for name in ("before", "after"))
            around = [k for k in range(row - REACH, row + REACH + 1) if 0 <= k < len(rows["document"])]
            inside = [k for k in around if rows["document"][k] == rows["document"][row]]
            assert (before, after) == (row - inside[0], inside[-1] - row)
            share = dense[np.arange(row - before, row + after + 1), feature] / dense[:, feature].max()
            expected = np.ceil(share.clip(0) * LEVELS - 1e-9)
            np.testing.assert_array_equal(level[i, j, REACH - before : REACH + after + 1], expected)
            shown = units[2 * starts[peak - before] : 2 * starts[peak + after + 1]].decode("utf-16-le")
            document = storage.open_corpus(run.directory.corpus).text(int(rows["document"][row]))
            said = document[rows["char_start"][row - before] : rows["char_end"][row + after]]
            # the text before the first row's token is not shown, and stands before it here
            assert shown[int(text["gap"][peak - before]) :] == readable(said)
            assert bool(text["flags"][peak - before] & STARTS) == (rows["char_start"][row - before] == 0)
            assert bool(text["flags"][peak + after] & ENDS) == (rows["char_end"][row + after] == len(document))
            whole = word_around(document, int(rows["char_start"][row]), int(rows["char_end"][row]))
            assert whole == (text["words"][text["word"][peak] - 1] if text["word"][peak] else None)
            checked += 1
    assert checked > 200
    assert (text["flags"] & ENDS).any()
    assert (text["word"] == 0).any()


def test_histograms_count_every_activation(run, data, packs) -> None:
    entry, pair = data.index["site_pairs"][0], run.site_pairs[0]
    site = packs[entry["packs"]["a"]]
    dense = storage.read_dense(pair.a.path).astype(np.float64)
    n_bars = pair.a.contexts.sizes["bin"]
    bars = site["bars"].reshape(-1, n_bars)
    assert site["n_bars"] == n_bars > 10
    sink = pair.a.store["sink"].values
    assert sink.any(), "attention sinks count nowhere"
    for i, feature in enumerate(site["feature"].tolist()):
        own = dense[~sink, feature]
        positive = own[own > 0]
        assert bars[i].sum() == len(positive) == site["n_active"][i]
        if len(positive):
            expected = np.histogram(positive, n_bars, (0, positive.max()))[0]
            assert np.abs(np.cumsum(bars[i].astype(int)) - np.cumsum(expected)).max() <= 1, (
                "but for rounding at an edge"
            )


def test_every_chunk_is_read_once_and_one_at_a_time(run, data, monkeypatch) -> None:
    asked: dict[str, list[tuple[slice, slice]]] = {}

    def read(path: Path, rows: slice, columns: slice) -> Any:
        asked.setdefault(str(path), []).append((rows, columns))
        return storage.read_csr(path, rows, columns)

    monkeypatch.setattr(importlib.import_module("pipeline.text.feature_contexts"), "read_csr", read)
    assert explorer_data(run, run.site_pairs) == data
    assert set(asked) == {str(site.path) for sites in run.sites.values() for site in sites}
    for path, parts in asked.items():
        height, width = zarr.open_array(f"{path}/activation", mode="r").chunks
        chunks = {(rows.start // height, columns.start // width) for rows, columns in parts}
        assert len(chunks) == len(parts) > 2 * 2
        assert all(rows.stop - rows.start <= height and rows.start % height == 0 for rows, _ in parts)
        assert all(columns.stop - columns.start <= width and columns.start % width == 0 for _, columns in parts)


def test_concepts_are_those_of_both_features(write_run, tmp_path) -> None:
    directory = write_run(tmp_path / "run", sites={"a": ["x.1"], "b": ["y.1"]}, n_documents=8)
    rng = np.random.default_rng(0)
    names = {"a": ["time", "war", "only a"], "b": ["war", "time", "only b"]}
    member = {}
    for side, width in (("a", 72), ("b", 64)):
        member[side] = xr.DataArray(
            rng.random((width, 3)) < 0.5, dims=("feature", "concept"), coords={"concept": names[side]}
        )
        path = directory.root / "concepts" / side / f"{'x' if side == 'a' else 'y'}.1.zarr"
        storage.write_result(
            xr.Dataset({"member": member[side]}), path, storage.new_manifest("concepts", {}, {}), overwrite=True
        )
    run = open_run(directory.root)
    (pair,) = run.site_pairs
    result = take_apart(explorer_data(run, [pair]).packs["pair-0"])
    for i, (a, b) in enumerate(zip(pair.pairs["feature_a"].values, pair.pairs["feature_b"].values, strict=True)):
        own = {result["concepts"][k] for k in result["concept_id"][slice(*result["concept_start"][i : i + 2])]}
        both = {
            name for name in ("time", "war") if member["a"].sel(concept=name)[a] and member["b"].sel(concept=name)[b]
        }
        assert own == both
    assert len(result["concept_id"]) > 5


def test_maps_are_principal_components_turned_onto_each_other() -> None:
    rng = np.random.default_rng(3)
    a = (rng.standard_normal((5000, 12)) * np.linspace(3, 0.5, 12)).astype(np.float32)
    rotation = np.linalg.qr(rng.standard_normal((12, 12)))[0]
    both = map_pairs(a, (a @ rotation).astype(np.float32))
    unit = a / np.linalg.norm(a, axis=1, keepdims=True)
    reference = PCA(2, svd_solver="full").fit(unit.astype(np.float64))
    places = reference.transform(unit)
    places /= np.sqrt(np.mean(places**2) * 2)
    np.testing.assert_allclose(np.abs(both.a), np.abs(places), atol=2e-4)
    np.testing.assert_allclose(both.explained_a, reference.explained_variance_ratio_.sum(), rtol=1e-5)
    np.testing.assert_allclose(both.b, both.a, atol=2e-3), "a rotated space has the same map"


@pytest.mark.parametrize("n", [0, 1, 2])
def test_too_few_pairs_have_no_map(n) -> None:
    rows = np.ones((n, 4), dtype=np.float32)
    assert map_pairs(rows, rows).a.shape == (n, 2)
    assert np.isnan(map_pairs(rows, rows).explained_a)
    assert not map_pairs(np.ones((9, 4), dtype=np.float32), np.ones((9, 4), dtype=np.float32)).b.any()


def test_links_to_neuronpedia_come_from_saelens_own_list(tmp_path, monkeypatch) -> None:
    (tmp_path / "sae_lens").mkdir()
    (tmp_path / "sae_lens" / "__init__.py").write_text("raise AssertionError('never imported')")
    (tmp_path / "sae_lens" / neuronpedia.LIST).write_text(
        "first:\n  saes:\n  - id: x\n    neuronpedia: m/0\n"
        "my-sae:\n  saes:\n  - id: blocks.6\n    neuronpedia: gpt2-small/6-res-jb\n  - id: blocks.7\n"
        "  - id: evil\n    neuronpedia: 'javascript:alert(1)'\nlast:\n  other: 1\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(
        neuronpedia.importlib.util,
        "find_spec",
        lambda name: type("Spec", (), {"submodule_search_locations": [str(tmp_path / name)]}),
    )
    neuronpedia._listed.cache_clear()
    assert neuronpedia.feature_page("my-sae/blocks.6") == "https://www.neuronpedia.org/gpt2-small/6-res-jb"
    for other in ("my-sae/blocks.7", "my-sae/evil", "last/x", "nowhere/x", "layers.5@abc", ""):
        assert neuronpedia.feature_page(other) is None
    neuronpedia._listed.cache_clear()


def test_vendored_libraries_carry_their_licences() -> None:
    lock = json.loads((VENDOR / "package-lock.json").read_text())
    licences = (VENDOR / "LICENSES.txt").read_text()
    bundled = {
        path.removeprefix("node_modules/"): e for path, e in lock["packages"].items() if path and not e.get("dev")
    }
    assert {"minisearch", "@tanstack/virtual-core", "d3-zoom", "d3-quadtree"} <= set(bundled)
    for name, entry in bundled.items():
        assert f"{name} {entry['version']} ({entry['license']})" in licences
        assert entry["license"] in {"MIT", "ISC", "BSD-3-Clause"}
    assert "http://" not in re.sub(r"http://www\.w3\.org/[\w/]+", "", (VENDOR / "libraries.js").read_text())
