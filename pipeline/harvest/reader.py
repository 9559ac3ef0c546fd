"""Activations of a network at some sites, by hooks, in a pass that ends at the deepest of them.

Activations come from hooks only, never from ``hidden_states``: ``hidden_states[L]`` is the *input* of block L, and
the last entry has the final norm applied in most architectures. The pass ends by an exception as soon as every site
has been seen, and the blocks behind the deepest one are not even kept in memory.
"""

from __future__ import annotations

import contextlib
import copy
import re
import threading
from collections.abc import Collection, Iterable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.harvest.additions import Tensor, first_tensor
from pipeline.harvest.sites import Site, blocks_path
from storage.errors import InputError

Key = tuple[str, Tensor]


class _AllSeenError(Exception):
    """Ends a forward pass once every site has been seen."""


class SiteReader:
    """A network that gives back its activations at some sites, and computes nothing behind the deepest.

    Several threads may use one reader: what a pass has seen is kept per thread. The network is a base model in
    evaluation mode; hooks are put on it, and blocks behind the deepest site are removed.

    Examples
    --------
    >>> import torch
    >>> from transformers import LlamaConfig, LlamaModel
    >>> from pipeline.harvest.sites import Sites
    >>> size = {"hidden_size": 8, "intermediate_size": 12, "num_attention_heads": 2, "num_key_value_heads": 2}
    >>> network = LlamaModel(LlamaConfig(vocab_size=11, num_hidden_layers=3, **size)).eval()
    >>> names = ("layers.0", "blocks.1.mlp.hook_post")
    >>> reader = SiteReader(network, [Sites(network).resolve(name) for name in names])
    >>> len(network.layers)
    2
    >>> values = reader(torch.tensor([[1, 2, 3]]), torch.ones(1, 3))
    >>> [tuple(values[name].shape) for name in names]
    [(1, 3, 8), (1, 3, 12)]
    """

    def __init__(self, network: Any, sites: Iterable[Site]) -> None:
        self.network = network
        self._sites = {site.name: site for site in sites}
        self._wanted = tuple(self._sites)
        self._pass = threading.local()
        _drop_deeper_blocks(network, [site.path for site in self._sites.values()])
        self._handles = [self._put_hook(key) for key in {site.key for site in self._sites.values()}]

    def _put_hook(self, key: Key) -> Any:
        module = self.network.get_submodule(key[0])
        if key[1] == "output":
            return module.register_forward_hook(lambda _module, _args, output: self._remember(key, output))
        return module.register_forward_pre_hook(
            lambda _module, args, kwargs: self._remember(key, args or tuple(kwargs.values())), with_kwargs=True
        )

    def _remember(self, key: Key, value: Any) -> None:
        """Keep what a hook sees, if this pass wants it; end the pass with the last one."""
        if key not in self._pass.wanted:
            return
        tensor = first_tensor(value)
        # a copy: some blocks go on to change the tensor in place
        self._pass.seen[key] = tensor.clone() if hasattr(tensor, "clone") else tensor
        if len(self._pass.seen) == len(self._pass.wanted):
            raise _AllSeenError

    def close(self) -> None:
        """Take the hooks off the network."""
        for handle in self._handles:
            handle.remove()

    def only(self, names: Collection[str]) -> SiteReader:
        """Return a reader of the same network for some of its sites: a pass ends at the deepest of these."""
        other = copy.copy(self)
        other._wanted = tuple(names)
        return other

    def __call__(self, input_ids: Any, attention_mask: Any) -> dict[str, Any]:
        """Run the network as far as needed; return site → float32 tensor (batch, length, width).

        Both arguments are tensors (batch, length): token ids, padded on the right, and a mask that is 0 where padded,
        or None if nothing is. InputError if a site gives no tensor of that shape: it is no place where every token has
        a row.
        """
        import torch

        sites = [self._sites[name] for name in self._wanted]
        self._pass.wanted, self._pass.seen = {site.key for site in sites}, {}
        # without a mask (and without numbers, see with_widths) transformers looks at positions unless a cache is kept
        cached = attention_mask is None or not hasattr(self.network.config, "use_cache")
        options = {} if cached else {"use_cache": False}
        with torch.inference_mode(), contextlib.suppress(_AllSeenError):
            self.network(input_ids=input_ids, attention_mask=attention_mask, **options)
        seen, self._pass.seen = self._pass.seen, {}
        rows = {site.name: _unflattened(seen.get(site.key), input_ids.shape) for site in sites}
        for site in sites:
            _check_shape(site, rows[site.name], tuple(input_ids.shape))
        return {site.name: _scaled(rows[site.name].float(), site.scale) for site in sites}

    def down_projection(self, site: Site) -> NDArray[np.float32]:
        """Return the rows that a site's hidden neurons write: float32 (neurons, d_model)."""
        from transformers.pytorch_utils import Conv1D

        module = self.network.get_submodule(site.path)
        weight = module.weight.detach().float().cpu().numpy()
        # GPT-2's Conv1D keeps its weight as (in, out), a Linear as (out, in)
        rows: NDArray[np.float32] = np.ascontiguousarray(weight if isinstance(module, Conv1D) else weight.T)
        return rows


def _scaled(rows: Any, scale: float) -> Any:
    return rows if scale == 1 else rows * scale


def _unflattened(value: Any, batch: tuple[int, ...]) -> Any:
    """Return a tensor by window and token; some networks put all tokens of a batch in one row of rows."""
    flat = getattr(value, "ndim", 0) == 2 and value.shape[0] == batch[0] * batch[1]
    return value.reshape(*batch, -1) if flat else value


def _check_shape(site: Site, value: Any, batch: tuple[int, ...]) -> None:
    """Refuse what is not one row a token."""
    shape = tuple(value.shape) if hasattr(value, "shape") else None
    if shape is None or len(shape) != 3 or shape[:2] != batch or (site.width and shape[2] != site.width):
        given = f"a tensor of shape {shape}" if shape else "no tensor in a forward pass"
        raise InputError(
            f"Site {site.name!r} ({site.tensor} of {site.path}) gives {given}, not one row for each of "
            f"{batch[0]} × {batch[1]} tokens: name a block, its mlp or its attention"
        )


def _drop_deeper_blocks(network: Any, paths: Collection[str]) -> None:
    """Remove the blocks that come after every site, where all sites lie in the list of blocks."""
    blocks = blocks_path(network)
    inside = [re.match(rf"{re.escape(blocks or '-')}\.(\d+)", path) for path in paths]
    if blocks and all(inside):
        del network.get_submodule(blocks)[max(int(match[1]) for match in inside if match) + 1 :]


def with_widths(network: Any, sites: Iterable[Site]) -> list[Site]:
    """Return the sites with the width of their rows, from a pass without numbers.

    The network is a base model on torch's ``meta`` device: shapes are computed, nothing else. It loses its deepest
    blocks. InputError if a site gives no row for each token; else whatever the network raises if it cannot run without
    numbers.
    """
    import torch

    reader = SiteReader(network, sites)
    ids = torch.zeros((1, 3), dtype=torch.long, device="meta")
    shapes = {name: value.shape for name, value in reader(ids, None).items()}
    return [replace(site, width=int(shapes[site.name][-1])) for site in sites]
