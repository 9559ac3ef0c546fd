"""A small random network of an architecture: what its blocks compute can be tried in a fraction of a second.

The network is built from the model's own configuration with small widths, on the CPU, and with every parameter moved
away from its initial value: a norm is no identity then, a learned scale is not 1, and no bias is 0. Numbers that hold
in it hold by the architecture, not by the weights.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from typing import Any

#: Width of a head.
_HEAD = 16

#: What numbers of a configuration become, by their names; the first that matches counts. Heads times their width is
#: the width of the stream, as most architectures require.
_SIZES: tuple[tuple[str, int], ...] = (
    (r"(un|un_?padded_)?.*vocab(_size)?(_.*)?|entity_vocab_size", 64),
    (r".*_token_ids?", 3),
    (r"(max_(2d_)?position_embeddings|n_positions|n_ctx|max_seq_len|context_length|max_sequence_length)", 64),
    (r"(.*_)?(num|n)_(routed_|local_)?experts|moe_num_experts|zero_expert_num|n_routed_experts", 4),
    (r"(num_experts_per_tok|num_experts_per_token|moe_k|moe_topk|top_k_experts|moe_top_k|router_top_k)", 2),
    (r"(n_group|topk_group|num_expert_group|num_limited_groups|n_groups|mamba_n_groups|ssm_n_groups)", 1),
    (r"qk_head_dim", 32),
    (r"mamba_(num|n)_heads", 8),
    (r"(.*_)?(num_attention_heads|n_heads?|num_heads|attention_heads|num_query_groups)", 4),
    (r"(.*_)?(num_key_value_heads|num_kv_heads|n_kv_heads|multi_query_group_num)", 2),
    (r"linear_num_(key|value)_heads", 2),
    (r"(.*_)?(head_dim|headdim|d_head|dim_head|kv_channels|attention_head_size|attention_head_dim|head_size)", _HEAD),
    (r"rotary_dim", 8),
    (r"(.*_)?(rank|time_step_rank|low_rank.*)|mamba_dt_rank", 8),
    (r"(mamba_)?d_state|(ssm_)?state_size", 8),
    (r"(.*_)?chunk_size|(.*_)?block_size|chunk_length", 8),
    (r".*intermediate_size(_mlp)?|.*ffn_hidden_size|feed_forward_size", 96),
    (r"ffn_dim|n_inner|d_?ff|dim_ff|d_inner|hidden_dim", 96),
    (r"(.*_)?hidden_size(_per_layer_input)?|n_embd|d_model|dim|emb_dim|.*embed(ding)?_(size|dim)|lru_width", 64),
    (r"word_embed_proj_dim|d_latents|router_hidden_size|prediction_head_size", 64),
    (r"mamba_d_ssm", 128),
    (r"index_topk.*", 4),
    (r"num_hash|num_landmarks|num_latents|segment_means_seq_len", 4),
)  # fmt: skip

#: Parameters that a small network has at most.
_LARGEST = 1 << 25

#: Names under which configurations state the number of blocks.
_DEPTHS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_blocks")


def small_network(kind: Any, config: Any, n_blocks: int | None = None, *, seed: int = 0) -> Any:
    """Return a network of the class `kind` in evaluation mode, with random weights.

    Parameters
    ----------
    kind
        A class of base models, which is built from a configuration.
    config
        The configuration of a model of that class; it is not changed.
    n_blocks
        Keep the first blocks only; by default all.
    seed
        Of the weights.

    Raises
    ------
    ValueError
        If it stays large: parts of it have sizes that are not known here.
    Exception
        Whatever the class raises if small widths do not fit together.
    """
    import torch

    small = shrunk(config, n_blocks)
    with torch.device("meta"):
        size = sum(values.numel() for values in kind(copy.deepcopy(small)).parameters())
    if size > _LARGEST:
        raise ValueError(f"it would have {size:,} parameters")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = kind(small).float().eval().requires_grad_(requires_grad=False)
        for values in (*network.parameters(), *network.buffers()):
            _move(values)
    return network


def shrunk(config: Any, n_blocks: int | None = None) -> Any:
    """Return a copy of a transformers configuration with small widths and at most `n_blocks` blocks."""
    small = copy.deepcopy(config)
    depth = _depth(small)
    for name, value in list(_numbers(small)):
        new = _resized(name, value)
        if name in _DEPTHS and isinstance(value, int):
            new = min(value, n_blocks or value)
        if isinstance(value, list) and n_blocks and len(value) == depth:
            new = new[:n_blocks]
        if new != value:
            setattr(small, name, new)
    if _heads(config)[0] == _heads(config)[1]:  # every head has its own keys
        small.num_key_value_heads = _heads(small)[0]
    for name in ("rope_parameters", "rope_scaling"):
        if isinstance(vars(small).get(name), dict):
            setattr(small, name, _plain_rope(vars(small)[name]))
    small._attn_implementation = "eager"
    return small


def _heads(config: Any) -> tuple[int | None, int | None]:
    """Return the number of heads, and of heads of keys and values where the configuration states it."""
    return getattr(config, "num_attention_heads", None), getattr(config, "num_key_value_heads", 0)


def _depth(config: Any) -> int:
    return next((int(getattr(config, name)) for name in _DEPTHS if isinstance(getattr(config, name, None), int)), 0)


def _numbers(config: Any) -> Iterator[tuple[str, Any]]:
    """Yield the numbers and lists of a configuration, by their own names."""
    for name, value in vars(config).items():
        if isinstance(value, (int, list)) and not isinstance(value, bool):
            yield name, value


def _resized(name: str, value: Any) -> Any:
    """Return a number as it is in the small network, never larger than it was; lists entry by entry."""
    if isinstance(value, list):
        return [_resized(name, item) for item in value]
    if not isinstance(value, int) or isinstance(value, bool):
        return value
    size = next((size for pattern, size in _SIZES if re.fullmatch(pattern, name)), value)
    return min(value, size) if value > 0 else value


def _plain_rope(settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings of rotary positions without scaling, whose factors are as long as the heads were wide."""
    if any(isinstance(value, dict) for value in settings.values()):
        return {name: _plain_rope(value) if isinstance(value, dict) else value for name, value in settings.items()}
    kept: dict[str, Any] = {
        name: settings[name] for name in ("rope_theta", "partial_rotary_factor") if name in settings
    }
    sections = settings.get("mrope_section")
    if sections:  # of time, height and width: together half of the rotated part of a head
        half, n = int(_HEAD * settings.get("partial_rotary_factor", 1)) // 2, len(sections)
        kept["mrope_section"] = [half - (n - 1) * (half // n), *[half // n] * (n - 1)]
    return {"rope_type": "default"} | kept


def _move(values: Any) -> None:
    """Move a parameter or buffer away from its initial value; masks and flags stay."""
    import torch

    if values.is_floating_point() and bool(torch.isfinite(values).all()) and bool((values.abs() < 1e4).all()):
        values.mul_(torch.empty_like(values).uniform_(0.5, 1.5)).add_(torch.empty_like(values).uniform_(-0.1, 0.1))
