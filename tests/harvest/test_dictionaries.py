"""Dictionaries encode as the library that owns them, and wrong ones are refused."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp

from pipeline.harvest.dictionaries import load_dictionary
from pipeline.harvest.formats import saelens
from pipeline.settings.registries import DICTIONARIES
from storage.errors import InputError, MissingInputError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from sae_lens import (
        SAE,
        BatchTopKTrainingSAE,
        BatchTopKTrainingSAEConfig,
        GatedSAE,
        GatedSAEConfig,
        JumpReLUSAE,
        JumpReLUSAEConfig,
        StandardSAE,
        StandardSAEConfig,
        TopKSAE,
        TopKSAEConfig,
    )

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
    "jumprelu-bias": (JumpReLUSAE, JumpReLUSAEConfig, {"apply_b_dec_to_input": False}),
    "gated": (GatedSAE, GatedSAEConfig, {}),
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
    with pytest.raises(MissingInputError, match="give one of 'identity', 'random', a folder"):
        load_dictionary("nothing", D)
    folder = make_sae("topk")
    (folder / "sae_weights.safetensors").unlink()
    with pytest.raises(MissingInputError, match=r"lacks .*sae_weights\.safetensors"):
        load_dictionary(str(folder), D)
    (folder / "cfg.json").write_text("{")
    with pytest.raises(InputError, match="not valid JSON"):
        load_dictionary(str(folder), D)


def test_no_rows(make_sae):
    assert load_dictionary(str(make_sae("topk")), D).encode(ROWS[:0]).shape == (0, F)


def test_batch_topk_as_its_training_saves_it(tmp_path):
    """BatchTopK becomes a JumpReLU with one threshold when it is saved for inference."""
    import torch

    torch.manual_seed(3)
    trained = BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(d_in=D, d_sae=F, k=5))
    for parameter in trained.parameters():
        torch.nn.init.normal_(parameter)
    trained.topk_threshold.fill_(2.5)
    trained.save_inference_model(tmp_path / "sae")
    loaded = load_dictionary(str(tmp_path / "sae"), D)
    theirs = SAE.load_from_disk(tmp_path / "sae").encode(torch.from_numpy(ROWS)).detach().numpy()
    encoded = loaded.encode(ROWS).toarray()
    np.testing.assert_allclose(encoded, theirs, atol=1e-6)
    assert encoded[encoded > 0].min() > 2.5
    assert loaded.config["architecture"] == "jumprelu"


def test_reconstruction_is_the_dictionarys_own_also_before_the_top_k(make_sae):
    """The variance unexplained says whether the dictionary fits, not whether all its features together would."""
    folder = str(make_sae("topk"))
    before, after = load_dictionary(folder, D, kind="pre_topk"), load_dictionary(folder, D)
    np.testing.assert_array_equal(before.reconstruct(ROWS), after.reconstruct(ROWS))
    assert (before.encode(ROWS) > 0).sum() > after.encode(ROWS).nnz


def test_what_a_dictionary_says_of_itself_is_kept(make_sae):
    folder = make_sae("topk-norm", hook_name="blocks.3.hook_resid_post", context_size=128, prepend_bos=False)
    loaded = load_dictionary(str(folder), D)
    assert (loaded.site, loaded.context, loaded.prepend_bos) == ("blocks.3.hook_resid_post", 128, False)
    assert loaded.config == {
        "format": "sae-lens", "architecture": "topk", "dtype": "float32", "apply_b_dec_to_input": True,
        "normalize_activations": "constant_norm_rescale", "k": 5, "rescale_acts_by_decoder_norm": False,
        "hook_name": "blocks.3.hook_resid_post", "context_size": 128, "prepend_bos": False,
    }  # fmt: skip


def test_trained_on_a_model_with_centred_weights(make_sae):
    """TransformerLens then takes each row's mean off the residual stream; rows of the plain model are made alike."""
    import torch

    folder = make_sae("relu", model_from_pretrained_kwargs={"center_writing_weights": True})
    loaded = load_dictionary(str(folder), D)
    mean = ROWS.mean(axis=1, keepdims=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sae = SAE.load_from_disk(folder)
    centred = torch.from_numpy(ROWS - mean)
    np.testing.assert_allclose(loaded.encode(ROWS).toarray(), sae.encode(centred).detach().numpy(), atol=1e-5)
    np.testing.assert_allclose(loaded.reconstruct(ROWS), sae(centred).detach().numpy() + mean, rtol=1e-5, atol=1e-4)


def test_what_cannot_be_honoured_is_refused(make_sae, tmp_path):
    folder = make_sae("relu")
    config = json.loads((folder / "cfg.json").read_text())
    for changed, message in (
        ({"normalize_activations": "expected_average_only_in"}, "the scale is not in its files: fold it"),
        ({"further": 1}, "settings that the installed sae-lens does not know: further"),
    ):
        (folder / "cfg.json").write_text(json.dumps(config | changed))
        with pytest.raises(InputError, match=message):
            load_dictionary(str(folder), D)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"activation_fn_str": "tanh-relu"}, "activation 'tanh-relu' with {} is not read"),
        ({"activation_fn_str": "topk"}, "activation 'topk' with {} is not read"),
        ({"hook_point_head_index": 3}, "hook_point_head_index 3: dictionaries of one head"),
        ({"hook_point_out": "blocks.3.hook_mlp_out"}, r"a transcoder \(hook_point_out: blocks\.3\.hook_mlp_out\)"),
    ],
)
def test_old_settings_that_change_the_formula_are_refused(make_sae, changed, message):
    """SAELens drops them without a word: a tanh is read as a ReLU."""
    folder = make_sae("relu")
    old = {"d_in": D, "d_sae": F, "dtype": "float32", "hook_point": "blocks.3.hook_resid_post", "lr": 0.1}
    (folder / "cfg.json").write_text(json.dumps(old | changed))
    with pytest.raises(InputError, match=message):
        load_dictionary(str(folder), D)
    (folder / "cfg.json").write_text(json.dumps(old | {"activation_fn_str": "relu", "hook_point_head_index": None}))
    assert load_dictionary(str(folder), D).site == "blocks.3.hook_resid_post"


@pytest.mark.parametrize("kind", ["batchtopk", "matryoshka_batchtopk"])
def test_saved_for_going_on_with_training(tmp_path, kind):
    """The oracle is the same dictionary, saved by SAELens for use."""
    import torch
    from sae_lens.registry import get_sae_training_class

    made, config = get_sae_training_class(kind)
    widths = {"matryoshka_widths": [10, F]} if kind.startswith("m") else {}
    torch.manual_seed(4)
    sae = made(config(d_in=D, d_sae=F, k=5, **widths))
    for parameter in sae.parameters():
        torch.nn.init.normal_(parameter)
    sae.topk_threshold.fill_(3.0)
    sae.save_model(tmp_path / "training")
    sae.save_inference_model(tmp_path / "use")
    assert json.loads((tmp_path / "training" / "cfg.json").read_text())["architecture"] == kind
    loaded = load_dictionary(str(tmp_path / "training"), D)
    theirs = SAE.load_from_disk(tmp_path / "use")
    wanted = theirs.encode(torch.from_numpy(ROWS)).detach().numpy()
    np.testing.assert_allclose(loaded.encode(ROWS).toarray(), wanted, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(loaded.decoder, theirs.W_dec.detach().numpy())
    assert 0.02 < (wanted > 0).mean() < 0.9


def test_heads_of_the_attention_side_by_side(make_sae):
    """SAELens is given the heads apart, and puts them side by side itself; rows of a site hold them so."""
    import torch

    folder = make_sae("relu", hook_name="blocks.3.attn.hook_z")
    config = json.loads((folder / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps(config | {"reshape_activations": "hook_z"}))
    loaded = load_dictionary(str(folder), D)
    apart = torch.from_numpy(ROWS).reshape(-1, 1, 3, D // 3)
    theirs = SAE.load_from_disk(folder)
    np.testing.assert_allclose(loaded.encode(ROWS).toarray(), theirs.encode(apart).detach().numpy()[:, 0], atol=1e-6)
    out = theirs(apart).detach().numpy().reshape(-1, D)
    np.testing.assert_allclose(loaded.reconstruct(ROWS), out, rtol=1e-5, atol=1e-4)
    assert loaded.site == "blocks.3.attn.hook_z"


def test_dictionary_that_was_trained_again_is_loaded_again(make_sae):
    from safetensors.torch import load_file, save_file

    folder = make_sae("topk")
    before = load_dictionary(str(folder), D)
    assert load_dictionary(str(folder), D) is before
    weights = {name: value * 2 for name, value in load_file(folder / "sae_weights.safetensors").items()}
    save_file(weights, folder / "sae_weights.safetensors")
    after = load_dictionary(str(folder), D)
    assert after.id != before.id
    np.testing.assert_array_equal(after.decoder, 2 * before.decoder)


def test_gemma_scope_folder_as_sae_lens_reads_it(tmp_path, monkeypatch):
    """The oracle is SAELens's own loader of the release, its download replaced by the local file."""
    import torch
    from sae_lens.loading import pretrained_sae_loaders as loaders

    random = np.random.default_rng(1)
    folder = tmp_path / "gemma-scope-2b-pt-res" / "layer_3" / "width_16k" / "average_l0_5"
    folder.mkdir(parents=True)
    shapes = {"W_enc": (D, F), "W_dec": (F, D), "b_enc": (F,), "b_dec": (D,)}
    arrays = {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    np.savez(folder / "params.npz", **arrays, threshold=random.uniform(1, 9, F).astype(np.float32))
    monkeypatch.setattr(loaders, "hf_hub_download", lambda **_: folder / "params.npz")
    name = "layer_3/width_16k/average_l0_5"
    config, weights, _ = loaders.gemma_2_sae_huggingface_loader("google/gemma-scope-2b-pt-res", name)
    config |= {"d_in": D, "d_sae": F}
    theirs = SAE.from_dict(loaders.handle_pre_6_0_config(config))
    theirs.load_state_dict(weights)
    loaded = load_dictionary(str(folder), D)
    wanted = theirs.encode(torch.from_numpy(ROWS)).detach().numpy()
    np.testing.assert_allclose(loaded.encode(ROWS).toarray(), wanted, atol=1e-6)
    assert 0 < (wanted > 0).mean() < 0.5
    assert (loaded.site, loaded.output_site, loaded.context, loaded.prepend_bos) == (
        theirs.cfg.metadata.hook_name, None, theirs.cfg.metadata.context_size, theirs.cfg.metadata.prepend_bos
    )  # fmt: skip
    np.savez(folder / "params.npz", W_enc=arrays["W_enc"])
    with pytest.raises(InputError, match="it lacks W_dec, b_dec, b_enc, threshold"):
        load_dictionary(str(folder), D)


def save_tensors(file, **shapes):
    """Write random tensors of these shapes as safetensors; return them."""
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(6)
    tensors = {name: torch.randn(shape) for name, shape in shapes.items()}
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, file)
    return tensors


def read_by_sae_lens(loaders, monkeypatch, loader, folder, name):
    """Return the dictionary that SAELens's own loader of a release makes of local files."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")

        def local(repo_id="", filename="", subfolder="", **_):
            return str(folder / filename if filename.startswith(name) else folder / subfolder / filename)

        monkeypatch.setattr(loaders, "hf_hub_download", local)
        shapes = {"w_enc": [D, F], "w_dec": [F, D]}
        monkeypatch.setattr(loaders, "get_safetensors_tensor_shapes", lambda *_, **__: shapes)
        config, weights, _ = getattr(loaders, loader)("owner/repository", name, cfg_overrides={"dtype": "float32"})
        theirs = SAE.from_dict(loaders.handle_pre_6_0_config(config))
        theirs.process_state_dict_for_loading(weights)
        theirs.load_state_dict(weights)
    return theirs.to(dtype=torch.float32)


def test_gemma_scope_2_folder_as_sae_lens_reads_it(tmp_path, monkeypatch):
    import torch
    from sae_lens.loading import pretrained_sae_loaders as loaders

    name = "resid_post/layer_3_width_16k_l0_small"
    folder = tmp_path / name
    vectors = {"b_enc": (F,), "b_dec": (D,), "threshold": (F,)}
    save_tensors(folder / "params.safetensors", w_enc=(D, F), w_dec=(F, D), **vectors)
    config = {"architecture": "jump_relu", "model_name": "gemma-v3-1b", "hf_hook_point_in": "model.layers.3.output"}
    (folder / "config.json").write_text(json.dumps(config))
    theirs = read_by_sae_lens(loaders, monkeypatch, "gemma_3_sae_huggingface_loader", tmp_path, name)
    wanted = theirs.encode(torch.from_numpy(ROWS)).detach().numpy()
    loaded = load_dictionary(str(folder), D)
    np.testing.assert_allclose(loaded.encode(ROWS).toarray(), wanted, rtol=1e-6, atol=1e-6)
    assert 0.02 < (wanted > 0).mean() < 0.9
    assert (loaded.site, loaded.context, loaded.prepend_bos) == ("model.layers.3", 1024, True)
    save_tensors(folder / "params.safetensors", w_enc=(D, F), w_dec=(F, D), affine_skip_connection=(D, D), **vectors)
    with pytest.raises(InputError, match="has affine_skip_connection, which may change"):
        load_dictionary(str(folder), D)


@pytest.mark.parametrize("affine", [False, True])
def test_gemma_scope_2_transcoder_as_sae_lens_reads_it(tmp_path, monkeypatch, affine):
    import torch
    from sae_lens.loading import pretrained_sae_loaders as loaders

    name = "transcoder/layer_3_width_16k_l0_small" + "_affine" * affine
    folder = tmp_path / name
    skip = {"affine_skip_connection": (D, D)} if affine else {}
    vectors = {"b_enc": (F,), "b_dec": (D,), "threshold": (F,)}
    save_tensors(folder / "params.safetensors", w_enc=(D, F), w_dec=(F, D), **vectors, **skip)
    hooks = [f"model.layers.3.{part}_feedforward_layernorm.output" for part in ("pre", "post")]
    config = {"architecture": "jump_relu", "model_name": "gemma-v3-1b", "affine_connection": affine}
    config |= dict(zip(("hf_hook_point_in", "hf_hook_point_out"), hooks, strict=True))
    (folder / "config.json").write_text(json.dumps(config))
    theirs = read_by_sae_lens(loaders, monkeypatch, "gemma_3_sae_huggingface_loader", tmp_path, name)
    loaded, rows = load_dictionary(str(folder), D), torch.from_numpy(ROWS)
    np.testing.assert_allclose(loaded.encode(ROWS).toarray(), theirs.encode(rows).detach(), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(loaded.reconstruct(ROWS), theirs(rows).detach(), rtol=1e-5, atol=1e-4)
    assert [f"{site}.output" for site in (loaded.site, loaded.output_site)] == hooks


def test_llama_scope_folder_as_sae_lens_reads_it(tmp_path, monkeypatch):
    """SAELens folds the scale of the rows into the weights once it has read them."""
    import torch
    from sae_lens.loading import pretrained_sae_loaders as loaders

    name = "Llama3_1-8B-Base-L3R-8x"
    folder = tmp_path / name
    shapes = {"encoder.weight": (F, D), "encoder.bias": (F,), "decoder.weight": (D, F), "decoder.bias": (D,)}
    save_tensors(folder / "checkpoints" / "final.safetensors", **shapes)
    config = {
        "d_model": D, "d_sae": F, "hook_point_in": "blocks.3.hook_resid_post", "jump_relu_threshold": 0.5,
        "dataset_average_activation_norm": {"in": 7.0, "out": 7.0}, "act_fn": "jumprelu",
    }  # fmt: skip
    (folder / "hyperparams.json").write_text(json.dumps(config))
    theirs = read_by_sae_lens(loaders, monkeypatch, "llama_scope_sae_huggingface_loader", tmp_path, name)
    theirs.fold_activation_norm_scaling_factor(D**0.5 / 7)
    theirs.cfg.normalize_activations = "none"
    wanted = theirs.encode(torch.from_numpy(ROWS)).detach().numpy()
    loaded = load_dictionary(str(folder), D)
    np.testing.assert_allclose(loaded.encode(ROWS).toarray(), wanted, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(loaded.decoder, theirs.W_dec.detach().numpy(), rtol=1e-6)
    assert (loaded.site, loaded.context) == ("blocks.3.hook_resid_post", 1024)
    for changed, message in (
        ({"act_fn": "topk"}, "act_fn: topk is not read"),
        ({"use_glu_encoder": True}, "use_glu_encoder: True is not read"),
        ({"hook_point_out": "blocks.3.hook_mlp_out"}, "a transcoder, from"),
        ({"dataset_average_activation_norm": None}, "lacks d_model, jump_relu_threshold or"),
    ):
        (folder / "hyperparams.json").write_text(json.dumps(config | changed))
        with pytest.raises(InputError, match=message):
            load_dictionary(str(folder), D)


# --- the random control -----------------------------------------------------------------------------------------------


def test_random_directions_and_the_k_strongest():
    random = load_dictionary("random:64:4:7", D)
    np.testing.assert_allclose(np.linalg.norm(random.decoder, axis=1), 1, atol=1e-6)
    strength = ROWS.astype(np.float64) @ random.decoder.T.astype(np.float64)
    wanted = np.zeros_like(strength)
    top = np.argsort(-strength, axis=1)[:, :4]
    np.put_along_axis(wanted, top, np.take_along_axis(strength, top, axis=1).clip(0), axis=1)
    encoded = random.encode(ROWS)
    np.testing.assert_allclose(encoded.toarray(), wanted, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(random.reconstruct(ROWS), wanted @ random.decoder, rtol=1e-4, atol=1e-4)
    assert np.diff(encoded.indptr).max() == 4
    assert (random.id, random.kind, random.reconstructs) == ("random:64:4:7", "post", False)


def test_random_is_the_same_for_the_same_seed_only():
    first, again, other = (load_dictionary(f"random:64:4:{seed}", D).decoder for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(first, load_dictionary("random:64:4", D).decoder)
    assert abs((first * other).sum(axis=1)).mean() < 0.5
    assert load_dictionary("random:64:4", D, kind="pre_topk").encode(ROWS).shape == (len(ROWS), 64)


@pytest.mark.parametrize("spec", ["random", "random:64", "random:many:4", "random:64:4:0:1"])
def test_random_of_another_form(spec):
    with pytest.raises(InputError, match="'random:FEATURES:K' or"):
        load_dictionary(spec, D)


def test_random_with_too_large_a_k():
    with pytest.raises(InputError, match="K must be from 1 to 8"):
        load_dictionary("random:8:9", D)


#: What the page calls SAELens's architectures.
WORDS = {
    "standard": "standard (ReLU)", "topk": "TopK", "abstopk": "AbsTopK", "jumprelu": "JumpReLU", "gated": "gated",
    "matching_pursuit": "matching pursuit", "batchtopk": "BatchTopK", "matryoshka_batchtopk": "Matryoshka BatchTopK",
    "transcoder": "transcoders: ReLU", "skip_transcoder": "or without skip", "jumprelu_transcoder": "ReLU, JumpReLU",
    "jumprelu_skip_transcoder": "with",
}  # fmt: skip


def test_the_page_lists_every_format_and_architecture():
    page = (Path(__file__).parents[2] / "docs" / "harvest.md").read_text(encoding="utf-8")
    formats = dict(re.findall(r"^\| (`.*`) \| (.*) \|$", page, flags=re.MULTILINE))
    files = {form.weights for form in DICTIONARIES.values() if form.weights is not None}
    assert not {file for file in files if not any(f"`{file}`" in row for row in formats)}
    assert set(WORDS) == {*saelens._ARCHITECTURES, *saelens._TRAINED_ONLY}
    saved_by_sae_lens = formats["`cfg.json`, `sae_weights.safetensors`"]
    assert not {word for word in WORDS.values() if word not in saved_by_sae_lens}


# --- releases (tests/hub reads real ones) -----------------------------------------------------------------------------


def test_a_release_without_such_a_dictionary():
    with pytest.raises(InputError, match="ID nonsense not found in release gemma-scope-2b-pt-res-canonical"):
        load_dictionary("gemma-scope-2b-pt-res-canonical/nonsense", D)
