"""Transcoders: features of the site that they read, decoder rows and site check at the site that they predict."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
import xarray as xr
from safetensors.torch import load_file

from pipeline.harvest.dictionaries import load_dictionary
from pipeline.harvest.run import harvest
from pipeline.harvest.site_check import check_model
from pipeline.settings.harvest import ModelSettings
from storage.errors import InputError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import sae_lens
    from sae_lens.registry import get_sae_class

D, F, OUT = 12, 40, 7
ROWS = np.random.default_rng(0).normal(1, 3, (57, D)).astype(np.float32)
KINDS = ["transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder"]


def save(folder, kind, *, d_in=D, d_out=OUT, hooks=("blocks.1.hook_mlp_in", "blocks.1.hook_mlp_out"), **weights):
    """Save a transcoder as SAELens does: random but for what is given."""
    made, config = get_sae_class(kind)
    torch.manual_seed(1)
    transcoder = made(config(d_in=d_in, d_sae=F, d_out=d_out, apply_b_dec_to_input=False))
    for name, parameter in transcoder.named_parameters():
        torch.nn.init.normal_(parameter)
        if name in weights:
            parameter.data = weights[name]
    transcoder.cfg.metadata.hook_name, transcoder.cfg.metadata.hook_name_out = hooks
    transcoder.save_model(folder)
    return transcoder


@pytest.mark.parametrize("kind", KINDS)
def test_encodes_and_predicts_as_sae_lens_does(tmp_path, kind):
    theirs, rows = save(tmp_path / "t", kind), torch.from_numpy(ROWS)
    loaded = load_dictionary(str(tmp_path / "t"), D)
    np.testing.assert_allclose(loaded.encode(ROWS).toarray(), theirs.encode(rows).detach(), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(loaded.reconstruct(ROWS), theirs(rows).detach(), rtol=1e-5, atol=1e-4)
    assert (loaded.d_model, loaded.decoder.shape) == (D, (F, OUT))
    assert (loaded.site, loaded.output_site) == ("blocks.1.hook_mlp_in", "blocks.1.hook_mlp_out")
    assert loaded.config["hook_name_out"] == "blocks.1.hook_mlp_out"


def test_what_does_not_say_where_it_writes_is_refused(tmp_path):
    save(tmp_path / "t", "transcoder", hooks=("blocks.1.hook_mlp_in", None))
    with pytest.raises(InputError, match="does not say what it predicts: give the name of that site as hook_name_out"):
        load_dictionary(str(tmp_path / "t"), D)


def test_gemma_scope_transcoders_are_known_by_their_path(tmp_path):
    folder = tmp_path / "gemma-scope-2b-pt-transcoders" / "layer_1" / "width_16k" / "average_l0_8"
    folder.mkdir(parents=True)
    theirs = save(tmp_path / "t", "jumprelu_transcoder", d_out=D)
    np.savez(folder / "params.npz", **{name: values.numpy() for name, values in theirs.state_dict().items()})
    loaded = load_dictionary(str(folder), D)
    wanted = theirs.encode(torch.from_numpy(ROWS)).detach()
    np.testing.assert_allclose(loaded.encode(ROWS).toarray(), wanted, rtol=1e-6, atol=1e-6)
    assert (loaded.site, loaded.output_site) == ("blocks.1.ln2.hook_normalized", "blocks.1.hook_mlp_out")


def linear_transcoder(folder, model):
    """Save a transcoder that is the output projection of the second block's attention, and has features besides."""
    projection = load_file(model / "model.safetensors")["model.layers.1.self_attn.o_proj.weight"]
    hooks = ("blocks.1.attn.hook_z", "layers.1.self_attn.o_proj")
    quiet = {"W_dec": torch.full((F, 16), 1e-8), "b_dec": torch.zeros(16)}
    return save(folder, "skip_transcoder", d_in=16, d_out=16, hooks=hooks, W_skip=projection, **quiet)


def test_a_harvest_checks_a_transcoder_where_it_predicts(tiny_inputs, tiny_run, client, tmp_path):
    """It explains its own block's output, not its neighbours'; its features are those of what it reads."""
    theirs = linear_transcoder(tmp_path / "t", tiny_inputs / "llama")
    site = "layers.1.attention.heads"
    model = ModelSettings(model=str(tiny_inputs / "llama"), dictionary=str(tmp_path / "t"), sites=[site])
    run = tiny_run.directory
    settings = tiny_run.experiment.store
    path = harvest(run.corpus, run.rows, model, "a", settings, tmp_path / "out", client=client)[site]
    with xr.open_zarr(path) as store:
        calibration = store.attrs["calibration"]
        assert calibration["fvu"] < 0.01
        assert min(calibration["neighbours"].values()) > 0.5
        assert len(calibration["neighbours"]) == 2
        assert store.sizes["feature"] == F
        np.testing.assert_array_equal(store.decoder, theirs.W_dec.detach())


def test_the_site_and_what_is_predicted_must_be_there(tiny_inputs, tmp_path):
    linear_transcoder(tmp_path / "t", tiny_inputs / "llama")
    settings = {"model": str(tiny_inputs / "llama"), "dictionary": str(tmp_path / "t")}
    with pytest.raises(
        InputError, match=r"was trained at blocks\.1\.attn\.hook_z .* not at layers\.2\.attention\.heads"
    ):
        check_model(ModelSettings(**settings, sites=["layers.2.attention.heads"]))
    save(tmp_path / "t", "transcoder", d_in=16, d_out=16, hooks=("blocks.1.attn.hook_z", "blocks.9.hook_mlp_out"))
    with pytest.raises(InputError, match=r"has no site 'blocks\.9\.hook_mlp_out'"):
        check_model(ModelSettings(**settings, sites=["layers.1.attention.heads"]))


def test_releases_are_read_by_sae_lens(tmp_path, monkeypatch):
    """A layer of a cross-layer transcoder has the sum of its decoders: it explains no single site."""
    save(tmp_path / "t", "transcoder", d_out=D)
    monkeypatch.setattr(sae_lens.SAE, "from_pretrained", lambda *_, **__: sae_lens.SAE.load_from_disk(tmp_path / "t"))
    loaded = load_dictionary("mntss-gemma-2-2b-2.5m-clt-as-per-layer/0", D)
    assert (loaded.reconstructs, loaded.config["decoder"][:8]) == (False, "sum over")
    assert load_dictionary("mwhanna-qwen3-4b-transcoders/layer_0", D).reconstructs
