"""A dictionary at the wrong site is found before anything is harvested, and the right site is named."""

from __future__ import annotations

import importlib
import json
import re
import shutil

import numpy as np
import pytest
import torch
import xarray as xr
from typer.testing import CliRunner

from jobs.cli import app
from pipeline.experiment.run import run
from pipeline.harvest.corpus import build_corpus
from pipeline.harvest.dictionaries import load_dictionary
from pipeline.harvest.models import describe
from pipeline.harvest.run import harvest, make_rows
from pipeline.harvest.site_check import Calibration, Sample, check_model, judge, refuse_bad_sites
from pipeline.harvest.sites import Site
from pipeline.settings.experiment import load_experiment
from pipeline.settings.harvest import CorpusSettings, ModelSettings, StoreSettings
from storage import open_activations, read_dense
from storage.errors import InputError

D = 16
STORE = StoreSettings(shard_rows=64)
WORDS = [
    ["green", "old", "loud", "quick"] * 6,
    ["river", "bird", "king", "map", "fox"] * 5,
    ["again", "slowly", "at night"] * 8,
    ["Ann", "the man", "a voice", "Bob", "Eve", "no one", "they"] * 4,
]
TEXTS = [
    f"{a} {b} {c}, said {d} in March; nobody knew why the {b} was so {a}." for a, b, c, d in zip(*WORDS, strict=False)
]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "t.jsonl").write_text("".join(json.dumps(text) + "\n" for text in TEXTS), encoding="utf-8")
    build_corpus(CorpusSettings(path=str(folder / "t.jsonl")), folder / "corpus.zarr")
    return folder / "corpus.zarr"


@pytest.fixture(scope="module")
def rows(corpus, make_model, tmp_path_factory, client):
    side = config_of(make_model("llama"), "layers.0")
    return make_rows(corpus, side, side, 32, tmp_path_factory.mktemp("rows") / "rows.zarr", client=client)


@pytest.fixture(scope="module")
def raw(corpus, rows, make_model, tmp_path_factory, client):
    """The raw stores of the three blocks."""
    side = config_of(make_model("llama"), "layers.0", "layers.1", "layers.2")
    return harvest(corpus, rows, side, "a", STORE, tmp_path_factory.mktemp("raw"), client=client)


def config_of(folder, *sites, dictionary="identity", **options):
    return ModelSettings(model=str(folder), dictionary=str(dictionary), sites=list(sites), **options)


@pytest.fixture(scope="module")
def dictionary_of_block_1(raw, tmp_path_factory):
    """Eight principal directions of block 1's output and their negatives: it explains that site, and no other."""
    from sae_lens import TopKSAE, TopKSAEConfig

    values = read_dense(raw["layers.1"]).astype(np.float64)
    directions = np.linalg.svd(values - values.mean(axis=0), full_matrices=False)[2][:8]
    sae = TopKSAE(TopKSAEConfig(d_in=D, d_sae=16, k=16))
    with torch.no_grad():
        sae.W_dec.copy_(torch.from_numpy(np.concatenate([directions, -directions])))
        sae.W_enc.copy_(sae.W_dec.T)
        sae.b_dec.copy_(torch.from_numpy(values.mean(axis=0)))
    folder = tmp_path_factory.mktemp("dictionary") / "sae"
    sae.save_model(folder)
    return folder


def fvu(values, dictionary):
    """The oracle: NumPy in float64, from the dictionary's own files."""
    from sae_lens import SAE

    sae = SAE.load_from_disk(dictionary)
    directions, offset = (getattr(sae, name).detach().numpy().astype(np.float64) for name in ("W_dec", "b_dec"))
    centred = values.astype(np.float64) - offset
    error = centred - (centred @ directions[:8].T) @ directions[:8]
    return (error**2).sum() / ((values - values.mean(axis=0)) ** 2).sum()


@pytest.mark.parametrize("site", ["layers.0", "layers.2", "blocks.1.hook_resid_pre"])
def test_hook_that_is_off_by_one_is_refused(
    corpus, rows, raw, make_model, dictionary_of_block_1, tmp_path, client, site
):
    wrong = config_of(make_model("llama"), site, dictionary=dictionary_of_block_1)
    with pytest.raises(InputError, match=r"unexplained.*layers\.1") as caught:
        harvest(corpus, rows, wrong, "a", STORE, tmp_path / "a", client=client)
    there, here = (
        fvu(read_dense(raw[name]), dictionary_of_block_1)
        for name in ("layers.1", {"blocks.1.hook_resid_pre": "layers.0"}.get(site, site))
    )
    numbers = [float(number) for number in re.findall(r"\b\d\.\d+", str(caught.value))]
    assert numbers[:2] == pytest.approx([here, there], rel=0.25)
    assert here > 1.5 * there
    assert "--allow-bad-site" in str(caught.value)
    assert not (tmp_path / "a").exists()


def test_the_right_site_is_harvested_and_its_figures_are_kept(
    corpus, rows, make_model, dictionary_of_block_1, tmp_path, client
):
    right = config_of(make_model("llama"), "layers.1", dictionary=dictionary_of_block_1)
    stores = harvest(corpus, rows, right, "a", STORE, tmp_path / "a", client=client)
    attrs = open_activations(stores["layers.1"]).attrs
    result = attrs["calibration"]
    assert list(result["neighbours"]) == ["layers.0", "layers.2"]
    assert result["verdict"] == ""
    assert result["fvu"] * 1.5 < min(result["neighbours"].values())
    assert (attrs["module"], attrs["tensor"]) == ("layers.1", "output")
    assert attrs["dictionary_config"]["architecture"] == "topk"
    assert attrs["dictionary_config"]["apply_b_dec_to_input"] is True


def test_bad_site_is_harvested_where_that_is_allowed(
    corpus, rows, make_model, dictionary_of_block_1, tmp_path, client, caplog
):
    wrong = config_of(make_model("llama"), "layers.0", dictionary=dictionary_of_block_1, allow_bad_site=True)
    stores = harvest(corpus, rows, wrong, "a", STORE, tmp_path / "a", client=client)
    assert "its site is layers.1" in open_activations(stores["layers.0"]).attrs["calibration"]["verdict"]
    assert "harvested all the same: allow_bad_site is set" in caplog.text
    strict = wrong.model_copy(update={"allow_bad_site": False})
    harvest(corpus, rows, strict, "a", STORE, tmp_path / "a", client=client)  # what is there stays


def test_command_line_overrides(tiny_inputs, tmp_path):
    """``--allow-bad-site`` on a dictionary that explains nothing of its site."""
    from sae_lens import TopKSAE, TopKSAEConfig

    sae = TopKSAE(TopKSAEConfig(d_in=D, d_sae=2 * D, k=2 * D))
    units = torch.eye(D)
    with torch.no_grad():
        sae.W_enc.copy_(torch.cat([units, -units]).T)
        sae.W_dec.copy_(torch.cat([units, -units]) * -3)
    sae.save_model(tmp_path / "sae")
    text = (tiny_inputs / "experiment.yaml").read_text()
    for name in ("llama", "bert", "texts.jsonl"):
        (tmp_path / name).symlink_to(tiny_inputs / name)
    (tmp_path / "e.yaml").write_text(text.replace("sae-llama", "sae").replace("sae-bert", "identity"))
    arguments = [str(tmp_path / "e.yaml"), "--run-dir", str(tmp_path / "out")]
    refused = CliRunner().invoke(app, ["harvest", *arguments])
    assert refused.exit_code == 2
    assert "times the variance of layers.0 unexplained" in refused.output
    assert not (tmp_path / "out" / "activations").exists()
    assert CliRunner().invoke(app, ["run", *arguments, "--until", "harvest", "--allow-bad-site"]).exit_code == 0
    assert (tmp_path / "out" / "activations" / "a" / "layers.0.zarr").is_dir()
    assert CliRunner().invoke(app, ["harvest", *arguments, "--allow-bad-site"]).exit_code == 0


# --- what the dictionary says of itself -------------------------------------------------------------------------------


def say(folder, target, **metadata):
    """Copy a dictionary, with something that it says of itself."""
    target.mkdir()
    config = json.loads((folder / "cfg.json").read_text())
    config["metadata"] |= metadata
    (target / "cfg.json").write_text(json.dumps(config))
    (target / "sae_weights.safetensors").write_bytes((folder / "sae_weights.safetensors").read_bytes())
    return target


def test_dictionary_that_says_another_site_is_refused_without_running_the_model(
    make_model, dictionary_of_block_1, tmp_path, caplog
):
    folder = say(dictionary_of_block_1, tmp_path / "sae", hook_name="blocks.2.hook_resid_post")
    wrong = config_of(make_model("llama"), "layers.1", dictionary=folder)
    with pytest.raises(
        InputError,
        match=r"trained at blocks\.2\.hook_resid_post \(output of layers\.2\), not at layers\.1.*--allow-bad",
    ):
        check_model(wrong)
    check_model(wrong.model_copy(update={"allow_bad_site": True}))
    assert "harvested all the same" in caplog.text


@pytest.mark.parametrize("hook", ["blocks.1.hook_resid_post", "blocks.2.hook_resid_pre", "model.layers.1", "layers.1"])
def test_same_tensor_under_another_name(make_model, dictionary_of_block_1, tmp_path, hook):
    folder = say(dictionary_of_block_1, tmp_path / "sae", hook_name=hook)
    check_model(config_of(make_model("llama"), "layers.1", dictionary=folder))


def test_mlp_is_not_the_residual_stream(make_model, dictionary_of_block_1, tmp_path):
    folder = say(dictionary_of_block_1, tmp_path / "sae", hook_name="layers.1.mlp")
    with pytest.raises(InputError, match=r"trained at layers\.1\.mlp .*not at layers\.1 "):
        check_model(config_of(make_model("llama"), "layers.1", dictionary=folder))
    check_model(config_of(make_model("llama"), "blocks.1.hook_mlp_out", dictionary=folder))


def test_site_that_this_model_has_not_is_only_said(make_model, dictionary_of_block_1, tmp_path, caplog):
    folder = say(dictionary_of_block_1, tmp_path / "sae", hook_name="blocks.40.hook_resid_post")
    check_model(config_of(make_model("llama"), "layers.1", dictionary=folder))
    assert "trained at 'blocks.40.hook_resid_post'" in caplog.text


def test_windows_are_as_short_as_the_dictionary_was_trained_on(
    corpus, make_model, dictionary_of_block_1, tmp_path, client, caplog
):
    folder = say(dictionary_of_block_1, tmp_path / "sae", context_size=12)
    side = config_of(make_model("llama"), "layers.1", dictionary=folder)
    with caplog.at_level("INFO"):
        table = xr.open_zarr(make_rows(corpus, side, side, 32, tmp_path / "rows.zarr", client=client))
    assert int((table["stop_a"] - table["first_a"]).max()) == 12
    assert "windows of at most 12 tokens" in caplog.text


def test_a_side_is_checked_once_and_again_when_its_files_change(tiny_inputs, tmp_path, monkeypatch, client):
    module = importlib.import_module("pipeline.harvest.site_check")
    described = []
    monkeypatch.setattr(module, "describe", lambda model: described.append(model.model) or describe(model))
    monkeypatch.setattr(module, "_checked", {})
    experiment = load_experiment(tiny_inputs / "experiment.yaml")
    run(experiment, run_dir=tmp_path / "run", until="harvest", client=client)
    assert sorted(described) == sorted([experiment.a.model, experiment.b.model])
    folder = shutil.copytree(tiny_inputs / "sae-llama", tmp_path / "sae")
    side = experiment.a.model_copy(update={"dictionary": str(folder)})
    check_model(side)
    (folder / "cfg.json").write_text("{")
    with pytest.raises(InputError, match="not valid JSON"):
        check_model(side)


# --- controls ---------------------------------------------------------------------------------------------------------


def test_neurons_are_stored_with_the_down_projection_as_decoder(corpus, rows, make_model, tmp_path, client):
    from transformers import AutoModel

    side = config_of(make_model("llama"), "layers.1.mlp.neurons")
    stores = harvest(corpus, rows, side, "a", STORE, tmp_path / "a", client=client)
    store = open_activations(stores["layers.1.mlp.neurons"])
    weight = AutoModel.from_pretrained(make_model("llama")).layers[1].mlp.down_proj.weight
    np.testing.assert_array_equal(store["decoder"].values, weight.detach().numpy().T)
    assert store["activation"].shape[1] == store["decoder"].shape[0] == 24
    assert (store.attrs["kind"], store.attrs["tensor"]) == ("raw", "input")
    assert store.attrs["calibration"]["neighbours"] == {}


def test_random_dictionary_is_never_refused(corpus, rows, raw, make_model, tmp_path, client):
    side = config_of(make_model("llama"), "layers.1", dictionary="random:64:5")
    stores = harvest(corpus, rows, side, "a", STORE, tmp_path / "a", client=client)
    store = open_activations(stores["layers.1"])
    assert (store.attrs["dictionary"], store.attrs["kind"]) == ("random:64:5:0", "post")
    assert store.attrs["calibration"]["l0"] == pytest.approx(5, abs=0.2)
    wanted = load_dictionary("random:64:5", D).encode(read_dense(raw["layers.1"])).toarray()
    np.testing.assert_allclose(store["activation"].values, wanted, atol=1e-5)


def test_randomised_model_is_another_model(corpus, rows, raw, make_model, tmp_path, client):
    side = config_of(make_model("llama"), "layers.1", randomise=3)
    stores = harvest(corpus, rows, side, "a", STORE, tmp_path / "a", client=client)
    attrs = open_activations(stores["layers.1"]).attrs
    assert attrs["model"] == f"{side.model}#random-3"
    assert attrs["model_revision"].endswith("#random-3")
    assert np.abs(read_dense(stores["layers.1"]) - read_dense(raw["layers.1"])).max() > 1e-2
    time = stores["layers.1"].stat().st_mtime_ns
    other = side.model_copy(update={"randomise": 4})
    harvest(corpus, rows, other, "a", STORE, tmp_path / "a", client=client)
    assert stores["layers.1"].stat().st_mtime_ns != time  # not taken for the same model


# --- the judgement ----------------------------------------------------------------------------------------------------

SITE = Site("layers.3", "layers.3", width=D)


class Explains:
    """Leaves a stated fraction of the variance of rows, which are told apart by their first column's mean."""

    id, reconstructs = "some-dictionary", True

    def __init__(self, left):
        self._left = left

    def encode(self, rows):
        return rows > 0

    def reconstruct(self, rows):
        centred = rows - rows.mean(axis=0)
        return rows - centred * np.sqrt(self._left[round(float(rows[:, 0].mean()) / 100)])


def sample_at(number):
    values = np.random.default_rng(number).normal(size=(200, D))
    values[:, 0] += 100 * number
    return Sample.of(values.astype(np.float32))


@pytest.mark.parametrize(
    ("here", "before", "behind", "message"),
    [
        (0.30, 0.40, 0.50, None),
        (0.30, 0.25, 0.50, None),  # adjacent layers are alike
        (0.02, 0.40, 0.005, None),  # both explained well
        (0.30, 0.40, 0.10, r"leaves 0\.300 of the variance of layers\.3 unexplained, but only 0\.100 at layers\.4"),
        (0.30, 0.15, 0.90, r"only 0\.150 at layers\.2: its site is layers\.2, or the hook is off by one block"),
        (1.40, 1.30, 1.20, r"leaves 1\.40 times the variance of layers\.3 unexplained: it belongs"),
        (1.40, 1.30, 0.20, r"leaves 1\.40 times the variance of layers\.3 unexplained; at layers\.4 it leaves 0\.200"),
    ],
)
def test_verdicts(here, before, behind, message):
    dictionary = Explains([here, before, behind])
    result = judge(SITE, sample_at(0), {"layers.2": sample_at(1), "layers.4": sample_at(2)}, dictionary)
    assert result.fvu == pytest.approx(here, rel=1e-4)
    assert result.neighbours == pytest.approx({"layers.2": before, "layers.4": behind}, rel=1e-3)
    if message is None:
        refuse_bad_sites({"layers.3": result}, allowed=False)
    else:
        with pytest.raises(InputError, match=message):
            refuse_bad_sites({"layers.3": result}, allowed=False)
        refuse_bad_sites({"layers.3": result}, allowed=True)


def test_neighbour_that_is_a_little_better_is_said(caplog):
    neighbours = {"layers.2": sample_at(1), "layers.4": sample_at(2)}
    assert judge(SITE, sample_at(0), neighbours, Explains([0.30, 0.27, 0.5])).verdict == ""
    assert "some-dictionary explains layers.2 better than layers.3: is the hook off by one?" in caplog.text
    caplog.clear()
    judge(SITE, sample_at(0), neighbours, Explains([0.30, 0.29, 0.5]))
    assert not caplog.text


def test_all_bad_sites_are_named_at_once():
    bad = Calibration(1, 10, 0, 0.9, 0.9, 3, verdict="first")
    with pytest.raises(InputError, match="first\nsecond\nIf this is meant: set"):
        refuse_bad_sites({"x": bad, "y": Calibration(1, 10, 0, 0.9, 0.9, 3, verdict="second")}, allowed=False)


def test_neighbour_that_overflows_is_no_better_site():
    broken = Sample.of(np.full((10, D), np.nan, np.float32))
    result = judge(SITE, sample_at(0), {"layers.2": broken}, Explains([0.3]))
    assert (result.neighbours, result.verdict) == ({}, "")


def test_sample_keeps_some_rows_and_all_norms():
    values = np.random.default_rng(0).normal(size=(300, 4)).astype(np.float32)
    values[7] *= 1e4
    parts = [Sample.of(values[:100]), Sample.of(values[100:130]), Sample.of(values[130:])]
    joined = Sample.join(parts)
    np.testing.assert_allclose(joined.norms, np.linalg.norm(values.astype(np.float64), axis=1))
    np.testing.assert_array_equal(joined.rows, values[joined.chosen])
    assert [len(part.rows) for part in parts] == [64, 30, 64]
    assert joined.threshold == 10 * np.median(joined.norms)


# --- values that are no numbers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "factor", "message"),
    [
        (
            "float32",
            np.inf,
            r"not finite in float32 at layers\.1, document \d+, .*; are the model's",
        ),
        ("float16", 3e4, r"not finite in float16 .*; float16 ends at 65,504: set 'dtype: bfloat16' or float32"),
    ],
)
def test_values_that_are_not_finite(corpus, rows, make_model, tmp_path, client, dtype, factor, message):
    from safetensors.torch import load_file, save_file

    for file in make_model("llama").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    weights["model.layers.1.mlp.down_proj.weight"] *= factor
    weights["model.layers.1.mlp.up_proj.weight"] *= min(factor, 100)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    side = config_of(tmp_path, "layers.1", dtype=dtype)
    with pytest.raises(InputError, match=message):
        harvest(corpus, rows, side, "a", STORE, tmp_path / "a", client=client)
    assert not (tmp_path / "a").exists()
