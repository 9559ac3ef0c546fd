"""Sites, hooks and the pass that stops: on four architectures, with random weights."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModel

from pipeline.harvest.models import describe, load, torch_device
from pipeline.settings.harvest import ModelSettings
from storage.errors import InputError, MissingInputError

IDS = torch.tensor([[5, 6, 7, 8, 9, 10, 11], [12, 13, 14, 15, 0, 0, 0]])
MASK = torch.tensor([[1] * 7, [1] * 4 + [0] * 3])


FINAL = {
    "llama": "norm", "neox": "final_layer_norm", "gpt2": "ln_f", "bert": "pooler", "gemma2": "norm", "neo": "ln_f",
}  # fmt: skip


def config_of(folder, *sites, **options):
    return ModelSettings(model=str(folder), dictionary="identity", sites=list(sites), **options)


def hidden_states(folder):
    network = AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        return network(input_ids=IDS, attention_mask=MASK, output_hidden_states=True).hidden_states


def test_site_is_the_blocks_output_not_its_input(make_model, kind, site_of):
    """Trap 3: ``hidden_states[L]`` is block L's input."""
    sites = [site_of(kind, block) for block in (0, 1)]
    values = load(config_of(make_model(kind), *sites)).reader(IDS, MASK)
    states = hidden_states(make_model(kind))
    real = MASK.bool()
    for block, site in enumerate(sites):
        torch.testing.assert_close(values[site][real], states[block + 1][real], rtol=0, atol=1e-5)
        assert (values[site][real] - states[block][real]).abs().max() > 1e-3


def test_last_block_is_taken_before_the_final_norm(make_model, kind, site_of):
    last = site_of(kind, 2)
    value = load(config_of(make_model(kind), last)).reader(IDS, MASK)[last]
    state = hidden_states(make_model(kind))[-1]
    real = MASK.bool()
    if kind == "bert":  # its norms are inside the blocks
        torch.testing.assert_close(value[real], state[real], rtol=0, atol=1e-5)
    else:
        assert (value[real] - state[real]).abs().max() > 0.1


def test_pass_stops_and_deeper_blocks_are_gone(make_model, kind, site_of):
    loaded = load(config_of(make_model(kind), site_of(kind, 0), site_of(kind, 1)))
    path = site_of(kind, 0).rpartition(".")[0]
    assert len(loaded.reader.network.get_submodule(path)) == 2
    ran = []
    final = FINAL[kind]
    loaded.reader.network.get_submodule(final).register_forward_hook(lambda *_: ran.append(1))
    loaded.reader(IDS, MASK)
    assert not ran


def test_threads_do_not_see_each_others_values(make_model):
    from concurrent.futures import ThreadPoolExecutor

    reader = load(config_of(make_model("llama"), "layers.1")).reader
    inputs = [torch.full((1, 3 + i % 5), 5 + i) for i in range(24)]
    masks = [torch.ones_like(ids) for ids in inputs]
    alone = [reader(ids, mask)["layers.1"] for ids, mask in zip(inputs, masks, strict=True)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda pair: reader(*pair)["layers.1"], zip(inputs, masks, strict=True)))
    for one, other in zip(alone, together, strict=True):
        assert one.shape == other.shape
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    ("kind", "name", "path"),
    [
        ("llama", "model.layers.1", "layers.1"),
        ("llama", "blocks.1.hook_resid_post", "layers.1"),
        ("llama", "layers.1.mlp", "layers.1.mlp"),
        ("neox", "gpt_neox.layers.2", "layers.2"),
        ("gpt2", "transformer.h.0", "h.0"),
        ("gpt2", "layers.2", "h.2"),
        ("bert", "encoder.layer.1", "encoder.layer.1"),
        ("bert", "blocks.1.hook_resid_post", "encoder.layer.1"),
    ],
)
def test_names_of_sites(make_model, kind, name, path):
    assert describe(config_of(make_model(kind), name)).sites[name].key == (path, "output")


def test_unknown_site_lists_the_near_ones(make_model):
    with pytest.raises(InputError, match=r"no site 'layers\.9'; near names: .*its blocks are layers\.0 to layers\.2"):
        describe(config_of(make_model("llama"), "layers.9"))
    with pytest.raises(InputError, match=r"near names: encoder\.layer\.1"):
        describe(config_of(make_model("bert"), "encoder.layr.1"))


def test_missing_models(tmp_path):
    for name in (tmp_path / "none", tmp_path / "none.gguf"):
        with pytest.raises(MissingInputError, match="none"):
            describe(config_of(name, "layers.0"))
    with pytest.raises(MissingInputError, match=r"no config\.json"):
        describe(config_of(tmp_path, "layers.0"))


def test_tokenizer_without_offsets_is_refused(make_model, tmp_path):
    """ByT5's tokenizer is Python only."""
    from transformers import ByT5Tokenizer

    shutil.copytree(make_model("llama"), tmp_path / "model")
    for file in (tmp_path / "model").glob("tokenizer*"):
        file.unlink()
    ByT5Tokenizer().save_pretrained(tmp_path / "model")
    with pytest.raises(InputError, match=r"model' \(ByT5Tokenizer\) gives no character offsets.*a fast tokenizer"):
        describe(config_of(tmp_path / "model", "layers.0"))


def test_encoder_decoder_is_refused(make_model, tmp_path):
    from transformers import T5Config

    shutil.copytree(make_model("llama"), tmp_path / "model")
    T5Config(vocab_size=50, d_model=16, d_ff=24, num_layers=2, num_heads=2).save_pretrained(tmp_path / "model")
    with pytest.raises(InputError, match=r"is an encoder-decoder \(t5\)"):
        describe(config_of(tmp_path / "model", "encoder.block.0"))


def test_randomised_weights_follow_the_seed_and_nothing_else(make_model, tmp_path):
    """They are what the architecture draws for itself; the trained ones are not even read."""
    folder = tmp_path / "model"
    shutil.copytree(make_model("llama"), folder)
    trained = load(config_of(folder, "layers.1")).reader(IDS, MASK)["layers.1"]
    (folder / "model.safetensors").unlink()
    torch.manual_seed(99)
    state = torch.random.get_rng_state()
    first, again, other = (
        load(config_of(folder, "layers.1", randomise=seed)).reader(IDS, MASK)["layers.1"] for seed in (3, 3, 4)
    )
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    assert min((first - other).abs().max(), (first - trained).abs().max()) > 1e-3
    torch.manual_seed(3)
    fresh = AutoModel.from_config(AutoConfig.from_pretrained(folder)).eval()
    with torch.no_grad():
        wanted = fresh(input_ids=IDS, attention_mask=MASK, output_hidden_states=True).hidden_states[2]
    torch.testing.assert_close(first[MASK.bool()], wanted[MASK.bool()], rtol=0, atol=1e-5)
    prints = {describe(config_of(folder, "layers.1", randomise=seed)).fingerprint for seed in (None, 3, 4)}
    assert len(prints) == 3


def test_devices():
    assert torch_device("cpu") == "cpu"
    assert torch_device("auto") == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(InputError, match="'gpu please' is none of torch's; give auto, cpu or cuda"):
        torch_device("gpu please")
    with pytest.raises(InputError, match=r"'cuda:63', but torch sees \d+ CUDA devices here"):
        torch_device("cuda:63")


def test_truncation_saved_with_a_tokenizer_is_off(make_model):
    backend = describe(config_of(make_model("bert"), "encoder.layer.0")).tokenizer.backend_tokenizer
    assert len(backend.encode("fox " * 50, add_special_tokens=False).ids) >= 50


def test_weights_that_are_missing_are_an_error(make_model, tmp_path):
    from safetensors.torch import load_file, save_file

    for file in make_model("llama").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.layers.0.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"lack weights.*layers\.0\.mlp\.up_proj"):
        load(config_of(tmp_path, "layers.1"))


def test_fingerprint_follows_the_content_and_not_the_place(make_model, tmp_path):
    for file in make_model("llama").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    original = describe(config_of(make_model("llama"), "layers.0")).fingerprint
    assert describe(config_of(tmp_path, "layers.0")).fingerprint == original
    content = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(content | {"rms_norm_eps": 0.5}))
    assert describe(config_of(tmp_path, "layers.0")).fingerprint != original


def test_half_precision_gives_float32_close_to_the_full(make_model):
    full, half = (
        load(config_of(make_model("llama"), "layers.1", dtype=dtype)).reader(IDS, MASK)["layers.1"]
        for dtype in ("float32", "bfloat16")
    )
    assert half.dtype == torch.float32
    np.testing.assert_allclose(half[0], full[0], atol=0.05)


def test_the_part_of_a_multimodal_model_that_reads_text(make_model, tmp_path):
    """Gemma 3 with vision: the rows are those of its language model alone, by the same names."""
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    folder = shutil.copytree(make_model("llama"), tmp_path / "gemma3")
    for file in folder.glob("*.safetensors"):
        file.unlink()
    text = {"vocab_size": 320, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "head_dim": 8}
    text |= {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64}
    vision = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = Gemma3Config(text_config=text, vision_config=vision | {"image_size": 28, "patch_size": 14})
    torch.manual_seed(1)
    whole = Gemma3ForConditionalGeneration(config).eval()
    whole.save_pretrained(folder)
    names = ["layers.1", "model.language_model.layers.0", "blocks.1.hook_mlp_out"]
    model = ModelSettings(model=str(folder), dictionary="identity", sites=names)
    info = describe(model)
    assert (info.d_model, info.names.n_blocks) == (16, 3)
    assert info.sites["blocks.1.hook_mlp_out"].path == "layers.1.post_feedforward_layernorm"
    ids = torch.arange(5, 12)[None]
    read = load(model).reader(ids, torch.ones_like(ids))
    with torch.no_grad():
        states = whole.model.language_model(input_ids=ids, output_hidden_states=True).hidden_states
    torch.testing.assert_close(read["layers.1"], states[2], rtol=0, atol=1e-5)
    torch.testing.assert_close(read["model.language_model.layers.0"], states[1], rtol=0, atol=1e-5)


def test_code_of_a_model_that_has_it_with_a_head_only(make_model, tmp_path):
    folder = shutil.copytree(make_model("llama"), tmp_path / "remote")
    (folder / "modeling_own.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'own'\n"
        "class OwnForCausalLM(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
    config = json.loads((folder / "config.json").read_text())
    code = {"AutoConfig": "modeling_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "own", "auto_map": code}))
    ids = torch.arange(5, 12)[None]
    plain, own = (
        load(ModelSettings(model=str(path), dictionary="identity", sites=["layers.1"], trust_remote_code=True))
        for path in (make_model("llama"), folder)
    )
    mask = torch.ones_like(ids)
    torch.testing.assert_close(own.reader(ids, mask)["layers.1"], plain.reader(ids, mask)["layers.1"])
