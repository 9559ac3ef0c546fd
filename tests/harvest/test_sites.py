"""Every kind of site on six architectures, against the whole model: its hidden states, and the sum that is a block."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoModel

from pipeline.harvest.models import describe, load
from pipeline.settings.harvest import ModelSettings
from storage.errors import InputError

IDS = torch.tensor([[5, 6, 7, 8, 9, 10, 11], [12, 13, 14, 15, 0, 0, 0]])
MASK = torch.tensor([[1] * 7, [1] * 4 + [0] * 3])
REAL = MASK.bool()

#: The module in block 1 whose input is the hidden neurons, and whether its weight is (in, out).
DOWN = {
    "llama": ("layers.1.mlp.down_proj", False),
    "gemma2": ("layers.1.mlp.down_proj", False),
    "neox": ("layers.1.mlp.dense_4h_to_h", False),
    "gpt2": ("h.1.mlp.c_proj", True),
    "neo": ("h.1.mlp.c_proj", False),
    "bert": ("encoder.layer.1.output.dense", False),
}


def config_of(folder, *sites, **options):
    return ModelSettings(model=str(folder), dictionary="identity", sites=list(sites), **options)


def read(folder, *sites):
    """Return the sites' values at real tokens, in the order of the names."""
    values = load(config_of(folder, *sites)).reader(IDS, MASK)
    return [values[site][REAL] for site in sites]


@pytest.fixture
def whole(make_model, kind):
    """The untruncated model, nothing of ours on it, and its hidden states at real tokens."""
    network = AutoModel.from_pretrained(make_model(kind)).eval()
    with torch.no_grad():
        states = network(input_ids=IDS, attention_mask=MASK, output_hidden_states=True).hidden_states
    return network, [state[REAL] for state in states]


@pytest.mark.parametrize("name", ["blocks.{}.hook_resid_pre", "layers.{}.input"])
def test_residual_stream_before_a_block(make_model, kind, whole, name):
    for block in (0, 1, 2):
        (value,) = read(make_model(kind), name.format(block))
        torch.testing.assert_close(value, whole[1][block], rtol=0, atol=1e-5)


def test_block_is_its_input_and_what_its_parts_add(make_model, kind, whole):
    """Only the tensors behind Gemma-2's post-norms, and in front of BERT's norms, add up."""
    names = [f"blocks.1.{hook}" for hook in ("hook_resid_pre", "hook_attn_out", "hook_mlp_out", "hook_resid_post")]
    before, attention, mlp, after = read(make_model(kind), *names)
    torch.testing.assert_close(after, whole[1][2], rtol=0, atol=1e-5)
    if kind == "bert":
        block = whole[0].encoder.layer[1]
        with torch.no_grad():
            wanted = block.output.LayerNorm(block.attention.output.LayerNorm(before + attention) + mlp)
    else:
        wanted = before + attention + mlp
    torch.testing.assert_close(after, wanted, rtol=0, atol=1e-5)
    assert min(attention.abs().max(), mlp.abs().max()) > 1e-3


@pytest.mark.parametrize("name", ["layers.1.mlp.neurons", "blocks.1.mlp.hook_post"])
def test_neurons_and_their_decoder_give_the_mlps_output(make_model, kind, whole, name):
    config = config_of(make_model(kind), name, "layers.1.mlp")
    site = describe(config).sites[name]
    loaded = load(config)
    values = loaded.reader(IDS, MASK)
    decoder = loaded.reader.down_projection(site)
    module = whole[0].get_submodule(DOWN[kind][0])
    weight = module.weight.detach().numpy()
    np.testing.assert_array_equal(decoder, weight if DOWN[kind][1] else weight.T)
    assert (
        decoder.shape == (site.width, describe(config).d_model) == (values[name].shape[-1], weight.shape[DOWN[kind][1]])
    )
    bias = 0 if module.bias is None else module.bias.detach().numpy()
    wanted = values[name][REAL].numpy() @ decoder + bias
    np.testing.assert_allclose(values["layers.1.mlp"][REAL].numpy(), wanted, atol=1e-5)


def test_parts_by_their_own_paths_are_in_front_of_a_post_norm(make_model):
    folder = make_model("gemma2")
    plain, hooked, norm = read(folder, "layers.1.mlp", "blocks.1.hook_mlp_out", "layers.1.post_feedforward_layernorm")
    torch.testing.assert_close(hooked, norm, rtol=0, atol=0)
    assert (plain - hooked).abs().max() > 1e-3
    attention, generic = read(folder, "layers.1.self_attn", "layers.1.attention")
    torch.testing.assert_close(attention, generic, rtol=0, atol=0)


def test_any_module_of_the_model_is_a_site(make_model):
    site = "layers.1.mlp.gate_proj"
    config = config_of(make_model("llama"), site)
    assert describe(config).sites[site].width == 24
    network = AutoModel.from_pretrained(make_model("llama")).eval()
    seen = []
    network.layers[1].mlp.gate_proj.register_forward_hook(lambda _m, _i, output: seen.append(output))
    with torch.no_grad():
        network(input_ids=IDS, attention_mask=MASK)
    torch.testing.assert_close(load(config).reader(IDS, MASK)[site][REAL], seen[0][REAL], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("site", "later"),
    [
        ("blocks.1.hook_resid_pre", "layers.1.input_layernorm"),
        ("blocks.1.hook_attn_out", "layers.1.mlp"),
        ("blocks.1.mlp.hook_post", "layers.1.mlp.down_proj"),
        ("layers.1.self_attn.q_proj", "layers.1.self_attn.k_proj"),
    ],
)
def test_nothing_behind_the_site_is_computed(make_model, site, later):
    loaded = load(config_of(make_model("llama"), "layers.0", site))
    assert len(loaded.reader.network.layers) == 2
    ran = []
    loaded.reader.network.get_submodule(later).register_forward_hook(lambda *_: ran.append(1))
    loaded.reader(IDS, MASK)
    assert not ran


def test_a_reader_of_some_sites_ends_at_the_deepest_of_them(make_model):
    reader = load(config_of(make_model("llama"), "layers.0", "layers.2")).reader
    ran = []
    reader.network.layers[1].register_forward_hook(lambda *_: ran.append(1))
    first = reader.only(["layers.0"])(IDS, MASK)
    assert not ran
    torch.testing.assert_close(first["layers.0"], reader(IDS, MASK)["layers.0"], rtol=0, atol=0)
    assert list(first) == ["layers.0"]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision(make_model, kind, dtype):
    names = ["blocks.1.hook_attn_out", "blocks.1.mlp.hook_post"]
    full = load(config_of(make_model(kind), *names)).reader(IDS, MASK)
    half = load(config_of(make_model(kind), *names, dtype=dtype)).reader(IDS, MASK)
    for name in names:
        assert half[name].dtype == torch.float32
        torch.testing.assert_close(half[name][REAL], full[name][REAL], rtol=0.05, atol=0.05)


def test_names_of_one_tensor(make_model):
    sites = describe(
        config_of(make_model("neox"), "layers.1", "blocks.1.hook_mlp_out", "blocks.0.hook_resid_pre")
    ).sites
    residual = sites["layers.1"].names
    assert {"layers.1", "gpt_neox.layers.1", "blocks.1.hook_resid_post", "blocks.2.hook_resid_pre"} <= set(residual)
    assert not any("mlp" in name for name in residual)
    assert set(sites["blocks.1.hook_mlp_out"].names) >= {"layers.1.mlp", "gpt_neox.layers.1.mlp"}
    assert "blocks.0.hook_resid_post" not in sites["blocks.0.hook_resid_pre"].names


def test_own_names_go_before_general_ones(make_model):
    """BERT has a module called attention, which norms; the general name is the attention's output."""
    info = describe(config_of(make_model("bert"), "encoder.layer.1.attention", "layers.1.attention"))
    assert info.sites["encoder.layer.1.attention"].path == "encoder.layer.1.attention"
    assert info.sites["layers.1.attention"].path == "encoder.layer.1.attention.output.dense"
    assert str(info.sites["layers.1.attention"]) == (
        "layers.1.attention: output of encoder.layer.1.attention.output.dense (attention output, width 12)"
    )


def test_neighbours(make_model):
    info = describe(config_of(make_model("llama"), "layers.0", "layers.2", "blocks.1.mlp.hook_post", "embed_tokens"))
    around = {name: [near.name for near in info.names.neighbours(site)] for name, site in info.sites.items()}
    assert around == {
        "layers.0": ["layers.0.input", "layers.1"],
        "layers.2": ["layers.1"],
        "blocks.1.mlp.hook_post": ["layers.0.mlp.neurons", "layers.2.mlp.neurons"],
        "embed_tokens": [],
    }


def test_site_that_is_not_one_row_a_token(make_model):
    with pytest.raises(
        InputError, match=r"'pooler' \(output of pooler\) gives a tensor of shape \(1, 12\), not one row"
    ):
        describe(config_of(make_model("bert"), "pooler"))
    with pytest.raises(InputError, match="gives no tensor"):
        describe(config_of(make_model("gpt2"), "h.1.attn.attn_dropout"))


def test_misspelt_hook_lists_the_near_ones(make_model):
    with pytest.raises(
        InputError, match=r"has no site 'blocks\.1\.hook_mlp_outt'; near names: blocks\.1\.hook_mlp_out"
    ):
        describe(config_of(make_model("gpt2"), "blocks.1.hook_mlp_outt"))
    with pytest.raises(InputError, match=r"no site 'blocks\.7\.hook_resid_pre'; near names: blocks\.\d"):
        describe(config_of(make_model("neox"), "blocks.7.hook_resid_pre"))


def test_mixture_of_experts_has_blocks_and_mlp_but_no_neurons(make_model, caplog):
    """Its router chooses by values, so that no pass without numbers tells the widths."""
    folder = make_model("mixtral")
    with caplog.at_level("INFO"):
        info = describe(config_of(folder, "layers.1", "layers.1.mlp"))
    assert [site.width for site in info.sites.values()] == [16, 16]
    assert "taken to be 16" in caplog.text
    before, attention, mlp, after = read(
        folder, *(f"blocks.1.{hook}" for hook in ("hook_resid_pre", "hook_attn_out", "hook_mlp_out", "hook_resid_post"))
    )
    torch.testing.assert_close(after, before + attention + mlp, rtol=0, atol=1e-5)
    with pytest.raises(InputError, match=r"no site 'blocks\.1\.mlp\.hook_post'"):
        describe(config_of(folder, "blocks.1.mlp.hook_post"))
    with pytest.raises(InputError, match=r"shape \(2, 7, 2\)|shape \(14, 2\)|no tensor"):
        load(config_of(folder, "layers.1.mlp.gate")).reader(IDS, MASK)


def test_stream_between_attention_and_mlp_and_inputs_of_modules(make_model):
    """GPT-2's blocks have the MLP behind the attention: the same tensors by TransformerLens's names and by paths."""
    folder = make_model("gpt2")
    names = [f"blocks.1.{hook}" for hook in ("hook_resid_pre", "hook_attn_out", "hook_resid_mid", "hook_mlp_in")]
    before, attention, middle, entry = read(folder, *names)
    torch.testing.assert_close(middle, before + attention, rtol=0, atol=1e-5)
    torch.testing.assert_close(entry, middle, rtol=0, atol=0)
    normed, by_path, inside, given = read(
        folder, "blocks.1.ln2.hook_normalized", "h.1.ln_2", "blocks.1.mlp.hook_in", "h.1.ln_2.input"
    )
    torch.testing.assert_close(normed, by_path, rtol=0, atol=0)
    torch.testing.assert_close(inside, by_path, rtol=0, atol=0)
    torch.testing.assert_close(given, middle, rtol=0, atol=0)


def test_heads_are_what_the_output_projection_mixes(make_model, kind, whole):
    z, mixed = read(make_model(kind), "blocks.1.attn.hook_z", "blocks.1.attn.hook_out")
    path = describe(config_of(make_model(kind), "layers.1.attention.heads")).sites["layers.1.attention.heads"].path
    with torch.no_grad():
        torch.testing.assert_close(whole[0].get_submodule(path)(z), mixed, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("new", "known"), [("hook_in", "hook_resid_pre"), ("hook_out", "hook_resid_post"), ("mlp.hook_out", None)]
)
def test_names_of_transformer_lens_3(make_model, new, known):
    network = describe(config_of(make_model("gemma2"), "layers.1")).names
    site = network.resolve(f"blocks.1.{new}")
    assert site.key == network.resolve(f"blocks.1.{known}" if known else "layers.1.mlp").key


def test_flattened_rows_are_put_back_in_their_windows():
    """OPT's MLP may see all tokens of a batch one behind the other."""
    from transformers import OPTConfig, OPTModel

    from pipeline.harvest.reader import SiteReader
    from pipeline.harvest.sites import Sites

    config = OPTConfig(vocab_size=50, hidden_size=16, ffn_dim=24, num_hidden_layers=1, num_attention_heads=2)
    config.word_embed_proj_dim = 16
    network = OPTModel(config).eval()
    site = Sites(network).resolve("layers.0.mlp")
    reader = SiteReader(network, [site])
    plain = reader(IDS, MASK)[site.name]
    reader.close()
    network.decoder.layers[0].fc1.register_forward_pre_hook(lambda _, args: (args[0].reshape(-1, 16),))
    torch.testing.assert_close(SiteReader(network, [site])(IDS, MASK)[site.name], plain)


def test_a_state_space_mixer_and_the_stream_around_it():
    from transformers import MambaConfig, MambaModel

    from pipeline.harvest.reader import SiteReader
    from pipeline.harvest.sites import Sites

    torch.manual_seed(2)
    network = MambaModel(MambaConfig(vocab_size=50, hidden_size=16, state_size=4, num_hidden_layers=2)).eval()
    sites = Sites(network)
    names = ["layers.0.input", "layers.0.mixer", "layers.0", "layers.1.input", "layers.0.mixer.input"]
    read = SiteReader(network, [sites.resolve(name) for name in names])(IDS, MASK)
    torch.testing.assert_close((read["layers.0.input"] + read["layers.0.mixer"])[REAL], read["layers.0"][REAL])
    torch.testing.assert_close(read["layers.1.input"], read["layers.0"])
    assert sites.resolve("blocks.0.hook_mixer_out").key == sites.resolve("layers.0.mixer").key
    with pytest.raises(InputError, match=r"no blocks\.0\.hook_mlp_out: .*layers\.0\.norm, layers\.0\.mixer"):
        sites.resolve("blocks.0.hook_mlp_out")


def test_a_network_without_blocks_has_no_residual_stream_by_name():
    """XLM keeps all attentions in one list and all MLPs in another: the longest list is not one of blocks."""
    from transformers import XLMConfig, XLMModel

    from pipeline.harvest.sites import Sites

    sites = Sites(XLMModel(XLMConfig(vocab_size=50, emb_dim=16, n_layers=2, n_heads=2)), "xlm")
    for name in ("layers.1", "blocks.1.hook_resid_post"):
        with pytest.raises(InputError, match="xlm has no site"):
            sites.resolve(name)
    assert sites.resolve("ffns.1").path == "ffns.1"
