"""Dictionaries encode as the library that owns them, and wrong ones are refused."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
import scipy.sparse as sp

from pipeline.harvest.dictionaries import load_dictionary
from storage.errors import InputError, MissingInputError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from sae_lens import SAE, JumpReLUSAE, JumpReLUSAEConfig, StandardSAE, StandardSAEConfig, TopKSAE, TopKSAEConfig

D, F = 12, 40
ROWS = np.random.default_rng(0).normal(3, 5, (57, D)).astype(np.float32)

KINDS = {
    "topk": (TopKSAE, TopKSAEConfig, {"k": 5}),
    "topk-rescaled": (TopKSAE, TopKSAEConfig, {"k": 5, "rescale_acts_by_decoder_norm": True}),
    "topk-bias": (TopKSAE, TopKSAEConfig, {"k": 5, "apply_b_dec_to_input": False}),
    "topk-norm": (TopKSAE, TopKSAEConfig, {"k": 5, "normalize_activations": "constant_norm_rescale"}),
    "relu": (StandardSAE, StandardSAEConfig, {}),
    "relu-layer-norm": (StandardSAE, StandardSAEConfig, {"normalize_activations": "layer_norm"}),
    "jumprelu": (JumpReLUSAE, JumpReLUSAEConfig, {}),
}


@pytest.fixture
def make_sae(tmp_path):
    """Return a function (kind, name) → folder with a random dictionary."""
    import torch

    def make(kind, name="sae", **metadata):
        made, config, options = KINDS[kind]
        torch.manual_seed(3)
        sae = made(config(d_in=D, d_sae=F, **options))
        for parameter in sae.parameters():
            torch.nn.init.normal_(parameter)
        for key, value in metadata.items():
            setattr(sae.cfg.metadata, key, value)
        sae.save_model(tmp_path / name)
        return tmp_path / name

    return make


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_encodes_as_sae_lens_does(make_sae, kind):
    import torch

    folder = make_sae(kind)
    ours = load_dictionary(str(folder), D).encode(ROWS)
    theirs = SAE.load_from_disk(folder).encode(torch.from_numpy(ROWS)).detach().numpy()
    assert isinstance(ours, sp.csr_array)
    assert ours.has_sorted_indices
    np.testing.assert_allclose(ours.toarray(), theirs, atol=1e-6)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_reconstructs_as_sae_lens_does(make_sae, kind):
    import torch

    folder = make_sae(kind)
    loaded = load_dictionary(str(folder), D)
    theirs = SAE.load_from_disk(folder)(torch.from_numpy(ROWS)).detach().numpy()
    np.testing.assert_allclose(loaded.reconstruct(ROWS), theirs, rtol=1e-5, atol=1e-4)
    np.testing.assert_array_equal(loaded.decoder, SAE.load_from_disk(folder).W_dec.detach().numpy())


def test_before_the_top_k(make_sae):
    import torch

    folder = make_sae("topk-rescaled")
    sae = SAE.load_from_disk(folder)
    before = load_dictionary(str(folder), D, kind="pre_topk")
    hidden = (torch.from_numpy(ROWS) - sae.b_dec) @ sae.W_enc + sae.b_enc
    wanted = torch.relu(hidden * sae.W_dec.norm(dim=-1)).detach().numpy()
    np.testing.assert_allclose(before.encode(ROWS), wanted, rtol=1e-5, atol=1e-4)
    assert (before.kind, before.layout) == ("pre_topk", "dense")
    assert load_dictionary(str(folder), D).kind == "post"


def test_kinds_that_make_no_sense(make_sae):
    with pytest.raises(InputError, match="needs a TopK dictionary"):
        load_dictionary(str(make_sae("relu")), D, kind="pre_topk")
    with pytest.raises(InputError, match="raw is for 'dictionary: identity'"):
        load_dictionary(str(make_sae("topk")), D, kind="raw")


def test_half_precision_weights_are_used_in_float32(make_sae):
    from safetensors.torch import load_file, save_file

    folder = make_sae("topk")
    weights = {name: value.half() for name, value in load_file(folder / "sae_weights.safetensors").items()}
    save_file(weights, folder / "sae_weights.safetensors")
    config = json.loads((folder / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps(config | {"dtype": "float16"}))
    loaded = load_dictionary(str(folder), D)
    assert loaded.decoder.dtype == np.float32
    assert loaded.encode(ROWS).dtype == np.float32
    np.testing.assert_array_equal(loaded.decoder, weights["W_dec"].float().numpy())


def test_identity():
    identity = load_dictionary("identity", D)
    assert identity.encode(ROWS) is ROWS
    np.testing.assert_array_equal(identity.decoder, np.eye(D))
    assert (identity.kind, identity.layout, identity.n_features) == ("raw", "dense", D)


def test_one_subfolder_for_each_site(make_sae, tmp_path):
    make_sae("topk", "layers.1", prepend_bos=True)
    assert load_dictionary(str(tmp_path), D, "layers.1").prepend_bos is True
    with pytest.raises(MissingInputError, match=r"subfolder 'layers\.2'.*it has dictionaries for layers\.1"):
        load_dictionary(str(tmp_path), D, "layers.2")


def test_wrong_width_names_both(make_sae):
    with pytest.raises(InputError, match=rf"width {D}.*has width 16: it belongs to another model"):
        load_dictionary(str(make_sae("topk")), 16)


def test_missing_and_broken(make_sae, tmp_path):
    with pytest.raises(MissingInputError, match="No dictionary folder at"):
        load_dictionary(str(tmp_path / "none"), D)
    with pytest.raises(MissingInputError, match="give 'identity', a folder"):
        load_dictionary("nothing", D)
    folder = make_sae("topk")
    (folder / "sae_weights.safetensors").unlink()
    with pytest.raises(MissingInputError, match=r"lacks sae_weights\.safetensors"):
        load_dictionary(str(folder), D)
    (folder / "cfg.json").write_text("{")
    with pytest.raises(InputError, match="not valid JSON"):
        load_dictionary(str(folder), D)


def test_no_rows(make_sae):
    assert load_dictionary(str(make_sae("topk")), D).encode(ROWS[:0]).shape == (0, F)
