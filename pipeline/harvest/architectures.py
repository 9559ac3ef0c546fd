"""Which sites the architectures of the installed transformers have: ``python -m pipeline.harvest.architectures``.

Every causal language model and encoder that can be built small from the defaults of its configuration is tried, and
the table of the documentation is written to the standard output.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

from pipeline.harvest.additions import MISFITS, small_blocks
from pipeline.harvest.models import quiet_transformers
from pipeline.harvest.sites import Sites, blocks_path
from pipeline.harvest.small_network import shrunk
from storage.errors import InputError

#: Blocks of the networks that are tried.
_N_BLOCKS = 2

#: The hook points of TransformerLens that the table has a column for.
HOOKS = ("hook_attn_out", "hook_mlp_out", "hook_resid_mid", "ln2.hook_normalized", "attn.hook_z", "mlp.hook_post")

_HEAD = """\
# Hook points, architecture by architecture

Which module TransformerLens's names stand for in the second block of each architecture, found by arithmetic in a small
random network (see [harvest](harvest.md)). Every causal language model and encoder is listed that transformers
{version} can build small from the defaults of its configuration. *Refused* names can still be read by the path of a
module. Windows are padded and masked, or, where that would change rows, put in batches of equal length.

This page is written by `python -m pipeline.harvest.architectures > docs/hook-points.md`, and held by a test.
"""


def model_types() -> list[str]:
    """Return what transformers calls its causal language models and encoders, encoder-decoders left out."""
    from transformers.models.auto import modeling_auto

    causal, masked = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return sorted({*causal, *masked})


def small_skeleton(model_type: str) -> Any | None:
    """Return a small base network of an architecture without weights; None if its defaults do not give one."""
    import torch
    import transformers
    from huggingface_hub.errors import StrictDataclassError

    with contextlib.suppress(*MISFITS, StrictDataclassError):
        config = transformers.AutoConfig.for_model(model_type)
        if config.is_encoder_decoder:
            return None
        kind = transformers.MODEL_MAPPING[type(config.get_text_config())]
        kind = kind[0] if isinstance(kind, tuple) else kind
        with torch.device("meta"):
            network = kind(shrunk(config.get_text_config(), _N_BLOCKS))
        path = blocks_path(network)
        if path is not None:
            small_blocks(kind, network.config, path).passes_on(0)  # that it runs
            return network
    return None


def row(network: Any) -> dict[str, str]:
    """Return for each hook point of a network the module that is read, relative to its block; "" where refused."""
    sites = Sites(network)
    block = min(1, sites.n_blocks - 1)
    read = {}
    for hook in HOOKS:
        with contextlib.suppress(InputError):
            site = sites.resolve(f"blocks.{block}.{hook}")
            factor = "" if site.scale == 1 else f" × {site.scale:g}"
            path = site.path.removeprefix(f"{sites.blocks}.{block}.")
            read[hook] = f"{'input of ' * (site.tensor == 'input')}{path}{factor}"
    return {hook: read.get(hook, "") for hook in HOOKS}


def table() -> Iterator[str]:
    """Yield the lines of the page of the documentation."""
    import transformers

    yield _HEAD.format(version=transformers.__version__)
    yield f"| architecture | blocks | {' | '.join(f'`{hook}`' for hook in HOOKS)} | padding |"
    yield f"|---|---|{'---|' * len(HOOKS)}---|"
    for name in model_types():
        network = small_skeleton(name)
        if network is not None:
            cells = [f"`{value}`" if value else "refused" for value in row(network).values()]
            yield f"| {name} | `{blocks_path(network)}` | {' | '.join(cells)} | {padding(network)} |"


def padding(network: Any) -> str:
    """Return how windows of different lengths are read."""
    try:
        matters = small_blocks(type(network), network.config, str(blocks_path(network))).padding_matters()
    except MISFITS:  # its blocks do not give one row a token
        return "no rows"
    return "equal lengths" if matters else "masked"


if __name__ == "__main__":
    with quiet_transformers():
        sys.stdout.writelines(f"{line}\n" for line in table())
