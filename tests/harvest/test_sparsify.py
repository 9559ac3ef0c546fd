"""The sparsify format: saved and encoded by its own library, and against its formula in float64."""

from __future__ import annotations

import contextlib
import io
import json
import warnings

import numpy as np
import pytest
import torch

from pipeline.harvest.dictionaries import load_dictionary
from storage.errors import InputError, MissingInputError

with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):  # it prints that there is no GPU
    warnings.simplefilter("ignore")
    sparsify = pytest.importorskip("sparsify", reason="the oracle: pip install --no-deps eai-sparsify")

D, F, K = 12, 48, 5
ROWS = np.random.default_rng(0).normal(2, 4, (57, D)).astype(np.float32)


@pytest.fixture
def make_coder(tmp_path):
    """Return a function (hookpoint, **settings) → the library's coder with random weights, and its folder."""

    def make(hookpoint="layers.3", dtype=torch.float32, **settings):
        torch.manual_seed(5)
        options = {"num_latents": F, "k": K} | settings
        coder = sparsify.SparseCoder(D, sparsify.SparseCoderConfig(**options), dtype=dtype)
        for parameter in coder.parameters():
            torch.nn.init.normal_(parameter, 0.3)
        coder.save_to_disk(tmp_path / "coders" / hookpoint)
        return coder, tmp_path / "coders" / hookpoint

    return make


def dense(top_acts, top_indices):
    out = np.zeros((len(top_acts), F), np.float32)
    np.put_along_axis(out, top_indices.numpy(), top_acts.detach().numpy(), axis=1)
    return out


@pytest.mark.parametrize(
    "settings",
    [{}, {"activation": "groupmax", "k": 6}, {"num_latents": 0, "expansion_factor": 4}, {"multi_topk": True}],
    ids=["topk", "groupmax", "expansion", "multi"],
)
def test_encodes_and_decodes_as_sparsify_does(make_coder, settings):
    coder, folder = make_coder(**settings)
    loaded = load_dictionary(str(folder), D)
    theirs = coder.encode(torch.from_numpy(ROWS))
    encoded = loaded.encode(ROWS)
    np.testing.assert_allclose(encoded.toarray(), dense(theirs.top_acts, theirs.top_indices), atol=1e-6)
    assert encoded.has_sorted_indices
    assert np.diff(encoded.indptr).max() <= coder.cfg.k
    decoded = coder.decode(theirs.top_acts, theirs.top_indices).detach().numpy()
    np.testing.assert_allclose(loaded.reconstruct(ROWS), decoded, rtol=1e-5, atol=1e-4)
    np.testing.assert_array_equal(loaded.decoder, coder.W_dec.detach().numpy())
    before = load_dictionary(str(folder), D, kind="pre_topk")
    np.testing.assert_allclose(before.encode(ROWS), theirs.pre_acts.detach().numpy(), atol=1e-6)
    assert (loaded.kind, before.kind, loaded.layout, before.layout) == ("post", "pre_topk", "csr", "dense")


def test_formula_in_float64(make_coder):
    """z = topk(ReLU((x − b_dec) Wᵀ + b)), x̂ = z W_dec + b_dec."""
    coder, folder = make_coder()
    w, b, decoder, offset = (
        tensor.detach().numpy().astype(np.float64)
        for tensor in (coder.encoder.weight, coder.encoder.bias, coder.W_dec, coder.b_dec)
    )
    before = np.maximum((ROWS - offset) @ w.T + b, 0)
    wanted = np.where(before >= np.sort(before, axis=1)[:, [-K]], before, 0)
    loaded = load_dictionary(str(folder), D)
    np.testing.assert_allclose(loaded.encode(ROWS).toarray(), wanted, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(loaded.reconstruct(ROWS), wanted @ decoder + offset, rtol=1e-5, atol=1e-4)


def test_signed_coder_of_an_early_version(make_coder):
    """The library has dropped these; the formula was: the k largest magnitudes of the hidden values, signs kept."""
    coder, folder = make_coder()
    config = json.loads((folder / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps(config | {"signed": True}))
    hidden = ((torch.from_numpy(ROWS) - coder.b_dec) @ coder.encoder.weight.T + coder.encoder.bias).detach().numpy()
    size = np.abs(hidden)
    wanted = np.where(size >= np.sort(size, axis=1)[:, [-K]], hidden, 0)
    encoded = load_dictionary(str(folder), D).encode(ROWS).toarray()
    np.testing.assert_allclose(encoded, wanted, atol=1e-5)
    assert (encoded < 0).any()


def test_half_precision_weights_are_used_in_float32(make_coder):
    coder, folder = make_coder(dtype=torch.bfloat16)
    loaded = load_dictionary(str(folder), D)
    assert loaded.config["dtype"] == "bfloat16"
    assert loaded.encode(ROWS).dtype == np.float32
    theirs = coder.float().encode(torch.from_numpy(ROWS))
    np.testing.assert_allclose(loaded.encode(ROWS).toarray(), dense(theirs.top_acts, theirs.top_indices), atol=1e-6)


def test_hookpoint_is_the_site_exactly(make_coder, tmp_path):
    """``.mlp`` is the MLP's output, never the residual stream."""
    make_coder("layers.3")
    make_coder("layers.3.mlp", k=7)
    root = str(tmp_path / "coders")
    assert load_dictionary(root, D, "layers.3").config["k"] == K
    assert load_dictionary(root, D, "layers.3.mlp").config["k"] == 7
    hook = load_dictionary(root, D, "blocks.3.hook_resid_post", names=("layers.3", "gpt_neox.layers.3"))
    assert (hook.config["k"], hook.site) == (K, "layers.3")
    with pytest.raises(
        MissingInputError, match=r"nor a subfolder 'layers\.4'.*dictionaries for layers\.3, layers\.3\.mlp"
    ):
        load_dictionary(root, D, "layers.4")


def test_what_is_recorded(make_coder):
    _, folder = make_coder()
    loaded = load_dictionary(str(folder), D)
    assert loaded.config == {
        "format": "sparsify", "hookpoint": "layers.3", "dtype": "float32", "activation": "topk", "k": K,
        "multi_topk": False, "normalize_decoder": True, "skip_connection": False, "transcode": False,
    }  # fmt: skip
    assert loaded.id.startswith("layers.3@")
    assert (loaded.context, loaded.prepend_bos) == (None, None)


@pytest.mark.parametrize("settings", [{"transcode": True}, {"transcode": True, "skip_connection": True}])
def test_transcoders_read_the_input_of_their_module(make_coder, settings):
    coder, folder = make_coder("layers.3.mlp", **settings)
    loaded = load_dictionary(str(folder.parent), D, "layers.3.mlp.input")
    with torch.no_grad():
        theirs = coder(torch.from_numpy(ROWS))
    encoded = np.zeros((len(ROWS), F), np.float32)
    np.put_along_axis(encoded, theirs.latent_indices.numpy(), theirs.latent_acts.numpy(), axis=1)
    np.testing.assert_allclose(loaded.encode(ROWS).toarray(), encoded, rtol=1e-6, atol=1e-5)
    np.testing.assert_allclose(loaded.reconstruct(ROWS), theirs.sae_out.numpy(), rtol=1e-5, atol=1e-4)
    assert (loaded.site, loaded.output_site) == ("layers.3.mlp.input", "layers.3.mlp")


def test_a_skip_connection_that_is_not_stated_is_refused(make_coder):
    _, folder = make_coder(skip_connection=True)
    with pytest.raises(InputError, match="skip_connection without transcode is not read"):
        load_dictionary(str(folder), D)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"k": 0}, "k must be a number from 1 to 48, not 0"),
        ({"num_latents": 99}, "states 99 latents, but the weights have 48"),
        ({"activation": "softmax"}, "activation is topk or groupmax, not 'softmax'"),
        ({"d_in": 16}, r"width 16.*has width 12"),
    ],
)
def test_configuration_that_contradicts_itself(make_coder, changed, message):
    _, folder = make_coder()
    config = json.loads((folder / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps(config | changed))
    with pytest.raises(InputError, match=message):
        load_dictionary(str(folder), D)


def test_weights_that_are_no_sparse_coder(make_coder):
    from safetensors.torch import load_file, save_file

    _, folder = make_coder()
    weights = load_file(folder / "sae.safetensors")
    save_file(weights | {"W_dec": weights["W_dec"].T.contiguous()}, folder / "sae.safetensors")
    with pytest.raises(InputError, match=r"W_dec has shape \(12, 48\), expected \(48, 12\)"):
        load_dictionary(str(folder), D)
    save_file({"b_dec": weights["b_dec"]}, folder / "sae.safetensors")
    with pytest.raises(InputError, match=r"has no matrix encoder\.weight"):
        load_dictionary(str(folder), D)
    (folder / "sae.safetensors").write_bytes(b"broken")
    with pytest.raises(InputError, match="cannot be read as safetensors"):
        load_dictionary(str(folder), D)


@pytest.mark.parametrize("where", [".", ".."])
def test_a_transcoder_of_early_versions_is_refused(make_coder, where):
    """It is stated in the settings of the run only, beside the folders of the hookpoints or in one of them."""
    _, folder = make_coder()
    (folder / where / "config.json").write_text(json.dumps({"sae": {"k": K}, "transcode": True}))
    with pytest.raises(InputError, match=r"of an early version \(transcode in .*config\.json, but not in cfg\.json\)"):
        load_dictionary(str(folder), D)


def test_tensors_and_settings_that_change_the_formula_are_refused(make_coder):
    from safetensors.torch import load_file, save_file

    _, folder = make_coder()
    config = json.loads((folder / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps(config | {"softcap": 5}))
    with pytest.raises(InputError, match="settings that are not known here: softcap"):
        load_dictionary(str(folder), D)
    (folder / "cfg.json").write_text(json.dumps(config))
    tensors = load_file(folder / "sae.safetensors")
    save_file(tensors | {"W_skip": torch.zeros(D, D)}, folder / "sae.safetensors")
    with pytest.raises(InputError, match="has W_skip, which may change"):
        load_dictionary(str(folder), D)
