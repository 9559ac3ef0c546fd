"""What a harvest needs is known before it starts: pooled values, disk, places of bad values, on the tiny experiment."""

from __future__ import annotations

import importlib
import logging
import shutil

import numpy as np
import pytest
import torch
import zarr
from transformers import AutoModel

from pipeline.harvest.corpus import build_corpus
from pipeline.harvest.dictionaries import load_dictionary
from pipeline.harvest.plan import SiteNeed, check_disk, predicted_bytes
from pipeline.settings.experiment import load_experiment
from pipeline.settings.harvest import StoreSettings
from storage import BudgetError, InputError, check_same_rows, open_activations, read_csr, read_dense, write_activations
from storage.listing import size_on_disk

run = importlib.import_module("pipeline.harvest.run")
STORE = StoreSettings(shard_rows=128)
RAW = {"dictionary": "identity", "sites": ["layers.1"]}


@pytest.fixture(scope="module")
def experiment(tiny_inputs):
    return load_experiment(tiny_inputs / "experiment.yaml")


@pytest.fixture(scope="module")
def corpus(experiment, tmp_path_factory):
    twenty = experiment.corpus.model_copy(update={"documents": 20})
    return build_corpus(twenty, tmp_path_factory.mktemp("corpus") / "corpus.zarr").path


@pytest.fixture
def harvest(experiment, corpus, tmp_path, client):
    """Return a function that harvests one side, changed as told, and returns its stores and the table of rows."""

    def go(side="a", pool="last", store=STORE, **changes):
        rows = run.make_rows(corpus, experiment.a, experiment.b, 40, tmp_path / "rows.zarr", pool=pool, client=client)
        model = getattr(experiment, side).model_copy(update=changes)
        return run.harvest(corpus, rows, model, side, store, tmp_path / side, client=client), rows

    return go


@pytest.mark.parametrize(("side", "pool"), [("a", "max"), ("b", "mean")])
def test_pooled_values_are_those_of_a_loop_over_windows(harvest, experiment, pool, side):
    """One window at a time, every token of a row by its own; shards of 128 rows cut windows apart."""
    stores, rows = harvest(side, pool)
    model = getattr(experiment, side)
    site = model.sites[1]
    table = {name: array[...] for name, array in zarr.open_group(str(rows), mode="r").arrays()}
    network = AutoModel.from_pretrained(model.model).eval()
    dictionary = load_dictionary(model.dictionary_of(site), network.config.hidden_size, site)
    expected = np.zeros((len(table["document"]), dictionary.n_features))
    pooled = 0
    for window in range(len(table["window_document"])):
        lo, hi = table[f"first_{side}"][window], table[f"stop_{side}"][window]
        ids = torch.from_numpy(table[f"input_{side}"][lo:hi].astype(np.int64))[None]
        with torch.no_grad():
            states = network(input_ids=ids, output_hidden_states=True).hidden_states[2][0].numpy()
        encoded, behind = dictionary.encode(states).toarray(), 0
        for row in np.flatnonzero(table["window_of_row"] == window):
            last = table[f"position_{side}"][row]
            mine = [i for i in range(behind, last + 1) if table[f"pooled_{side}"][lo + i]]
            pooled += len(mine)
            expected[row] = encoded[mine].max(axis=0) if pool == "max" else encoded[mine].mean(axis=0)
            behind = last + 1
    assert pooled > 1.05 * len(expected), "some rows have several tokens"
    np.testing.assert_allclose(read_csr(stores[site]).toarray(), expected, atol=1e-5)
    assert open_activations(stores[site]).attrs["pool"] == pool


def test_pooling_changes_what_depends_on_it_and_no_row(harvest, tmp_path):
    last, _ = harvest(**RAW)
    before = read_dense(last["layers.1"])
    shutil.copytree(last["layers.1"], tmp_path / "before.zarr")
    pooled, rows = harvest(pool="mean", **RAW)
    check_same_rows(pooled["layers.1"], tmp_path / "before.zarr")
    assert not np.array_equal(read_dense(pooled["layers.1"]), before)
    attrs = zarr.open_group(str(rows), mode="r").attrs
    assert attrs["n_pooled_a"] > attrs["n_rows"]
    assert 0 < attrs["share_a"] <= 1
    assert attrs["n_documents"] == 20
    assert attrs["n_documents_cut"] > 0


def test_the_table_says_how_documents_were_cut(harvest, caplog):
    with caplog.at_level(logging.INFO, "pipeline.harvest"):
        harvest(**RAW)
    assert "of 20 documents are cut into several" in caplog.text
    assert "of A's tokens and" in caplog.text


# --- disk -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["csr", "dense"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_predicted_size_of_a_store_is_near_the_real_one(tmp_path, layout, dtype):
    """Features of very unequal use, as real ones are."""
    rng = np.random.default_rng(1)
    chance = np.minimum(1, 400 / (1 + np.arange(1500)) * rng.random(1500) * 0.2)
    data = np.where(rng.random((6000, 1500)) < chance, np.abs(rng.standard_normal((6000, 1500))), 0).astype("f4")
    decoder = rng.standard_normal((1500, 64)).astype("f4")
    tokens = {name: np.arange(6000) for name in ("document", "char_start", "char_end")}
    write_activations(
        tmp_path / "s.zarr", data, tokens=tokens, decoder=decoder, layout=layout, dtype=dtype, overwrite=True
    )
    real = size_on_disk(tmp_path / "s.zarr")
    need = SiteNeed(1500, float((data != 0).sum(axis=1).mean()), layout, dtype, decoder)
    coordinates = sum(size_on_disk(tmp_path / "s.zarr" / name) for name in tokens)
    assert 0.7 * real < predicted_bytes(need, 6000, coordinates) < 1.3 * real


def test_prediction_for_a_harvest(harvest, monkeypatch):
    seen = {}
    monkeypatch.setattr(run, "check_disk", lambda stores, predicted: seen.update(predicted))
    stores, _ = harvest()
    for site, path in stores.items():
        real = sum(size_on_disk(path / name) for name in ("activation", "decoder", "document", "char_start", "char_end",
                                                          "position", "token_id"))  # fmt: skip
        assert 0.5 * real < seen[site] < 2 * real, "a store of 50 kB is mostly metadata"


def test_a_short_disk_is_refused_before_the_first_shard(harvest, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(BudgetError, match=rf"below {tmp_path}/a need .* more of disk .*0\.001 MB is free.*choose"):
        harvest()
    assert not list((tmp_path / "a").glob("*"))


def test_what_is_written_already_is_not_needed_again(tmp_path, monkeypatch):
    (tmp_path / "s.zarr.partial").mkdir()
    (tmp_path / "s.zarr.partial" / "shard").write_bytes(bytes(800))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=300))
    check_disk({"s": tmp_path / "s.zarr"}, {"s": 1000})
    with pytest.raises(BudgetError):
        check_disk({"s": tmp_path / "s.zarr"}, {"s": 1200})


# --- values that cannot be stored -------------------------------------------------------------------------------------


@pytest.fixture
def poisoned(tiny_inputs, tmp_path):
    """Return a function that copies the tiny Llama with something done to one weight."""
    from transformers import AutoModelForCausalLM

    def make(change):
        shutil.copytree(tiny_inputs / "llama", tmp_path / "poisoned")
        network = AutoModelForCausalLM.from_pretrained(tmp_path / "poisoned")
        with torch.no_grad():
            change(network.get_input_embeddings().weight)
        network.save_pretrained(tmp_path / "poisoned")
        return str(tmp_path / "poisoned")

    return make


def test_values_that_are_not_finite_are_named_with_their_place(harvest, poisoned, tmp_path):
    model = poisoned(lambda weight: weight[100:].fill_(float("nan")))
    with pytest.raises(
        InputError,
        match=r"not finite in float32 at layers\.1, document \d+, characters \d+ to \d+, position \d+ .*damaged",
    ):
        harvest(model=model, **RAW)
    assert not list((tmp_path / "a").glob("*.zarr"))


def test_float16_overflow_says_which_type_to_take(harvest, poisoned):
    model = poisoned(lambda weight: weight[50:].fill_(100_000.0))
    with pytest.raises(InputError, match=r"not finite in float16 at layers\.1, document .*bfloat16"):
        harvest(model=model, dtype="float16", **RAW)


def test_activations_too_large_for_the_store(harvest, poisoned, tmp_path):
    model = poisoned(lambda weight: weight[120:].mul_(1e7))
    with pytest.raises(
        InputError, match=r"Feature \d+ of layers\.1 is -?\d.* at document \d+, characters .*float16 cannot hold; set"
    ):
        harvest(model=model, store=StoreSettings(shard_rows=128, dtype="float16"), **RAW)
    assert not list((tmp_path / "a").glob("*.zarr"))
