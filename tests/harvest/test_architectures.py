"""What hook points mean in every architecture of the installed transformers: right, or refused with what to name."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    BloomConfig,
    BloomModel,
    GraniteConfig,
    GraniteModel,
    LlamaConfig,
    LlamaModel,
    MptConfig,
    MptModel,
    Qwen2VLTextConfig,
)
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLTextModel

from pipeline.harvest.additions import SmallBlocks, first_tensor
from pipeline.harvest.architectures import HOOKS, model_types, padding, row, small_skeleton
from pipeline.harvest.models import LoadedModel, quiet_transformers
from pipeline.harvest.reader import SiteReader
from pipeline.harvest.run import _run_windows, _Windows
from pipeline.harvest.sites import Sites, blocks_path
from pipeline.harvest.small_network import shrunk, small_network
from storage.errors import InputError

TABLE = Path(__file__).parents[2] / "docs" / "hook-points.md"
ADDED = ("hook_resid_pre", "hook_attn_out", "hook_mlp_out", "hook_resid_post")


def other_network(network):
    """Return a small network with other weights than those that the names were found with."""
    return small_network(type(network), network.config, seed=1)


def values(other, sites, block, *hooks):
    places = [sites.resolve(f"blocks.{block}.{hook}") for hook in hooks]
    ids = torch.arange(3, 3 + 18).reshape(2, 9)
    read = SiteReader(other, places)(ids, torch.ones_like(ids))
    return [read[site.name].double() for site in places]


def same(a, b):
    return torch.allclose(a, b, atol=1e-4 * float(b.abs().max()))


def standardised(value):
    return (value - value.mean(-1, keepdim=True)) / value.std(-1, keepdim=True, correction=0)


def adds_up(network, sites, block):
    """Say whether the block gives its input and what its parts add, or norms each sum as BERT does."""
    other = other_network(network)
    before, attention, mlp, behind, *middle = values(other, sites, block, *ADDED, *middle_of(sites, block))
    assert not middle or same(before + attention, middle[0])
    if same(before + attention + mlp, behind):
        return True
    norm = other.get_submodule(sites.resolve(f"blocks.{block}.hook_resid_mid").path)
    z = standardised(first_tensor(norm(middle[0].float())).double() + mlp).flatten(0, 1)
    # every feature of the block's output is the same line of the standardised second sum: a weight and a bias
    z, target = z - z.mean(0), behind.flatten(0, 1) - behind.flatten(0, 1).mean(0)
    error = target - z * (z * target).sum(0) / z.square().sum(0)
    return bool((error.square().sum(0) < 1e-6 * target.square().sum(0)).all())


def middle_of(sites, block):
    with contextlib.suppress(InputError):
        sites.resolve(f"blocks.{block}.hook_resid_mid")
        return ["hook_resid_mid"]
    return []


def test_every_architecture_is_right_or_refused() -> None:
    rows, right = {}, 0
    with quiet_transformers():
        for name in model_types():
            network = small_skeleton(name)
            if network is None:
                continue
            rows[name] = row(network), str(blocks_path(network)), padding(network)
            sites = Sites(network)
            if rows[name][0]["hook_attn_out"] and rows[name][2] != "no rows":
                assert adds_up(network, sites, min(1, sites.n_blocks - 1)), name
                right += 1
    assert len(rows) >= 150
    assert right >= 130
    documented = TABLE.read_text()
    for name, (read, path, how) in rows.items():
        cells = [f"`{read[hook]}`" if read[hook] else "refused" for hook in HOOKS]
        assert f"| {name} | `{path}` | {' | '.join(cells)} | {how} |" in documented


@pytest.mark.parametrize(
    ("kind", "config", "path"),
    [
        (BloomModel, BloomConfig(n_layer=2, hidden_size=32, n_head=2, vocab_size=50), "dense_4h_to_h"),
        (MptModel, MptConfig(n_layers=2, d_model=32, n_heads=2, vocab_size=50), "ffn.down_proj"),
        (GraniteModel, GraniteConfig(num_hidden_layers=2, vocab_size=50, residual_multiplier=0.22), "mlp"),
    ],
    ids=["bloom", "mpt", "granite"],
)  # fmt: skip
def test_what_is_added_is_read_not_what_a_module_gives(kind, config, path) -> None:
    """BLOOM's and MPT's MLPs return the whole stream, Granite's is multiplied before it is added."""
    with torch.device("meta"):
        network = kind(config)
    site = Sites(network).resolve("blocks.1.hook_mlp_out")
    assert site.path.endswith(path)
    assert site.scale == getattr(config, "residual_multiplier", 1)
    before, attention, mlp, behind = values(other_network(network), Sites(network), 1, *ADDED)
    torch.testing.assert_close(before + attention + mlp, behind)
    assert "blocks.1.hook_mlp_out" not in Sites(network).resolve("layers.1.mlp").names


def test_an_architecture_that_scales_what_it_adds_by_weights_is_refused() -> None:
    network = small_skeleton("gemma4_text")
    with pytest.raises(InputError, match=r"no blocks\.1\.hook_mlp_out: .*gemma4_text.*layers\.1\.mlp"):
        Sites(network).resolve("blocks.1.hook_mlp_out")
    assert Sites(network).resolve("layers.1.mlp").path == "layers.1.mlp"


def test_rotary_positions_in_sections_become_as_narrow_as_the_heads() -> None:
    """Qwen2-VL turns parts of a head by time, height and width; the sections make up half a head."""
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}
    config = Qwen2VLTextConfig(num_hidden_layers=2, rope_parameters=rope)
    with torch.device("meta"):
        network = Qwen2VLTextModel(config)
    assert Sites(network).resolve("blocks.1.hook_mlp_out").path == "layers.1.mlp"
    assert config.rope_parameters["mrope_section"] == [16, 24, 24]


def test_names_of_parallel_blocks_have_no_middle() -> None:
    with pytest.raises(InputError, match="not one behind the other"):
        Sites(small_skeleton("gpt_neox")).resolve("blocks.1.hook_resid_mid")


def test_a_small_network_is_small_and_has_every_block() -> None:
    config = LlamaConfig(num_hidden_layers=40, hidden_size=8192, num_attention_heads=64, num_key_value_heads=8)
    small = shrunk(config)
    assert (small.num_hidden_layers, small.hidden_size, config.hidden_size) == (40, 64, 8192)
    assert small.num_attention_heads % small.num_key_value_heads == 0
    assert SmallBlocks(LlamaModel, config, "layers").additions(39).mlp.path == "mlp"


@pytest.mark.parametrize(("model_type", "matters"), [("fnet", True), ("bert", False), ("gpt2", False)])
def test_windows_are_not_padded_where_padding_changes_rows(model_type, matters) -> None:
    network = small_network(type(small_skeleton(model_type)), small_skeleton(model_type).config)
    sites = Sites(network)
    loaded = LoadedModel(SiteReader(network, [sites.resolve("layers.1")]), torch.device("cpu"))
    assert loaded.padding_matters is matters
    inputs = [np.arange(3, 3 + n, dtype=np.int32) for n in (9, 4, 6)]
    everything = [np.arange(len(ids)) for ids in inputs]
    windows = _Windows(inputs, everything, everything, 0)
    together = {len(rows): values["layers.1"] for rows, values in _run_windows(windows, loaded, 8)}
    assert len(together) == (3 if matters else 1)
    if matters:
        alone = loaded.reader(torch.arange(3, 7)[None], torch.ones(1, 4, dtype=torch.long))["layers.1"][0]
        np.testing.assert_allclose(together[4], alone.numpy(), atol=1e-6)
