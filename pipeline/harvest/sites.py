"""Sites: names for the places in a network where activations are read.

A name is looked up in this order; the first that the network has is meant:

1. a module's path in the base model, with or without the head's prefix (``layers.3``, ``model.layers.3.mlp``,
   ``encoder.layer.2.attention``): that module's **output**, nothing added and nothing normed after it;
2. a hook point of TransformerLens (``blocks.3.hook_mlp_out``): the tensor that TransformerLens calls so;
3. ``layers.N`` and what follows it, whatever the network calls its blocks.

===================  ==========================================  =====================================================
in any network       TransformerLens                             what is read
===================  ==========================================  =====================================================
``layers.3``         ``blocks.3.hook_resid_post``                residual stream after block 3: the block's output
``layers.3.input``   ``blocks.3.hook_resid_pre``                 residual stream before block 3: the block's input
``layers.3.mlp``     ``blocks.3.hook_mlp_out``                   output of the MLP
``layers.3.attention``  ``blocks.3.hook_attn_out``               output of the attention, heads mixed
``layers.3.mlp.neurons``  ``blocks.3.mlp.hook_post``             hidden neurons: the down projection's input
===================  ==========================================  =====================================================

Where a block norms what its parts give before adding it (Gemma-2, Gemma-3, OLMo-2), ``hook_mlp_out`` and
``hook_attn_out`` are behind that norm, as in TransformerLens: they are what is added to the residual stream. The
dotted names are the modules themselves, before it. BERT norms after adding: its two outputs are those of the dense
layers before the sum, and ``hook_resid_post`` is the block's output, behind the last norm (TransformerLens hooks
BERT before that norm).

To teach a further architecture, add the names of its parts to :data:`_MLP`, :data:`_ATTENTION`, :data:`_DOWN`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

from storage.errors import InputError

Tensor = Literal["output", "input"]
Role = Literal["residual", "mlp", "attention", "neurons", "module"]

#: Names of a block's parts, relative to the block; the first that exists counts.
_DOWN = (
    "mlp.down_proj", "mlp.dense_4h_to_h", "mlp.c_proj", "mlp.fc2", "mlp.fc_out", "ffn.lin2", "output.dense", "fc2",
)  # fmt: skip
_MLP = ("mlp", "ffn", "output.dense", "fc2")
_ATTENTION = ("attention.output.dense", "self_attn", "self_attention", "attention", "attn")

#: A norm on the attention's output is behind it only where there is one behind the MLP: Llama calls the norm in front
#: of its MLP ``post_attention_layernorm`` too.
_NORM_BEHIND_ATTENTION, _NORM_BEHIND_MLP = "post_attention_layernorm", "post_feedforward_layernorm"

_ANY_BLOCK = re.compile(r"(?:layers|h|encoder\.layer)\.(\d+)(?:\.(.+))?")

_WORDS = {
    "residual": "residual stream",
    "mlp": "MLP output",
    "attention": "attention output",
    "neurons": "hidden neurons of the MLP",
    "module": "module",
}


@dataclass(frozen=True)
class Site:
    """A place where activations are read.

    Attributes
    ----------
    name
        As the experiment calls it.
    path
        The module's path in the base model.
    tensor
        Whether its output is read, or the first tensor that goes into it.
    role
        What it is in the architecture.
    width
        Length of one row; 0 while it is not known.
    names
        Every known name of the same tensor, `name` first.
    """

    name: str
    path: str
    tensor: Tensor = "output"
    role: Role = "module"
    width: int = 0
    names: tuple[str, ...] = ()

    @property
    def key(self) -> tuple[str, Tensor]:
        """What is hooked."""
        return self.path, self.tensor

    def __str__(self) -> str:
        """Say what is read, for the log."""
        width = f", width {self.width}" if self.width else ""
        return f"{self.name}: {self.tensor} of {self.path} ({_WORDS[self.role]}{width})"


class Sites:
    """The sites of a base model (a ``torch.nn.Module`` without its weights); `name` is the model, for messages.

    >>> import torch
    >>> from transformers import GPT2Config, GPT2Model
    >>> sites = Sites(GPT2Model(GPT2Config(vocab_size=11, n_embd=8, n_layer=2, n_head=2)))
    >>> print(sites.resolve("blocks.1.hook_mlp_out"))
    blocks.1.hook_mlp_out: output of h.1.mlp (MLP output)
    >>> [site.name for site in sites.neighbours(sites.resolve("h.0"))]
    ['h.0.input', 'h.1']
    """

    def __init__(self, network: Any, name: str = "the model") -> None:
        self._name = name
        self._modules = {path for path, _ in network.named_modules() if path}
        prefix = getattr(network, "base_model_prefix", "")
        self._prefix = f"{prefix}." if prefix else ""
        self.blocks = blocks_path(network)
        self.n_blocks = len(network.get_submodule(self.blocks)) if self.blocks else 0
        self._known = {site.name: site for i in range(self.n_blocks) for site in self._of_block(i)}

    def resolve(self, name: str) -> Site:
        """Return the site that `name` means; if there is none, an InputError lists the near ones."""
        site_found = self._find(name)
        if site_found is None:
            raise InputError(self._unknown(name))
        role = next((site.role for site in self._known.values() if site.key == site_found.key), site_found.role)
        site = Site(name, site_found.path, site_found.tensor, role)
        return replace(site, names=self._names(site))

    def _find(self, name: str) -> Site | None:
        bare = name.removeprefix(self._prefix)
        for path in (name, bare):
            if path in self._modules:
                return Site(name, path)
        match = _ANY_BLOCK.fullmatch(bare)
        rest = f".{match[2]}" if match and match[2] else ""
        literal = f"{self.blocks}.{match[1]}{rest}" if match else ""
        return self._known.get(bare) or (Site(name, literal) if literal in self._modules else None)

    def _of_block(self, i: int) -> Iterator[Site]:
        """Yield the known sites of block `i` under each of their names."""
        block = f"{self.blocks}.{i}"
        for short, hook, site in self._parts(block):
            for name in dict.fromkeys((f"{block}{short}", f"layers.{i}{short}")):
                yield Site(name, site.path, site.tensor, site.role)
            behind = self._behind_norm(block, site.role)
            yield Site(f"blocks.{i}.{hook}", behind or site.path, site.tensor, site.role)

    def _parts(self, block: str) -> Iterator[tuple[str, str, Site]]:
        """Yield for each part of a block what follows the block's name, TransformerLens's hook, and the site."""
        yield "", "hook_resid_post", Site("", block, "output", "residual")
        yield ".input", "hook_resid_pre", Site("", block, "input", "residual")
        parts_of_block: tuple[tuple[str, str, tuple[str, ...], Tensor, Role], ...] = (
            (".mlp", "hook_mlp_out", _MLP, "output", "mlp"),
            (".attention", "hook_attn_out", _ATTENTION, "output", "attention"),
            (".mlp.neurons", "mlp.hook_post", _DOWN, "input", "neurons"),
        )
        for short, hook, parts, tensor, role in parts_of_block:
            path = next((f"{block}.{part}" for part in parts if f"{block}.{part}" in self._modules), None)
            if path is not None:
                yield short, hook, Site("", path, tensor, role)

    def _behind_norm(self, block: str, role: Role) -> str | None:
        """Return the norm between a part and the residual stream; None where the part is added as it is."""
        norms = {"mlp": f"{block}.{_NORM_BEHIND_MLP}", "attention": f"{block}.{_NORM_BEHIND_ATTENTION}"}
        return norms.get(role) if f"{block}.{_NORM_BEHIND_MLP}" in self._modules else None

    def _names(self, site: Site) -> tuple[str, ...]:
        """Return every name of a site's tensor, the one asked for first."""
        main = [site.name, *([site.path] if site.tensor == "output" else [])]
        known = [other.name for other in self._known.values() if self.same(site, other) and self._means(other)]
        names = list(dict.fromkeys(main + known))
        prefixed = [f"{self._prefix}{name}" for name in names if self._prefix and name in self._modules]
        return tuple(dict.fromkeys(names + prefixed))

    def _means(self, known: Site) -> bool:
        """Return whether a known name really leads to its site: a module of that name goes first."""
        other = self._find(known.name)
        return other is not None and other.key == known.key

    def same(self, a: Site, b: Site) -> bool:
        """Return whether two sites read the same tensor: block 2's output is block 3's input."""
        position = self._residual_position(a)
        return a.key == b.key if position is None else position == self._residual_position(b)

    def _residual_position(self, site: Site) -> int | None:
        """Return after how many blocks the residual stream is read; None if it is another tensor."""
        match = re.fullmatch(rf"{re.escape(self.blocks or '-')}\.(\d+)", site.path)
        return int(match[1]) + (site.tensor == "output") if match else None

    def neighbours(self, site: Site) -> list[Site]:
        """Return the same place one block before and one block behind, as far as the network has them."""
        position = self._residual_position(site)
        if position is not None:
            return [self._residual(i) for i in (position - 1, position + 1) if 0 <= i <= self.n_blocks]
        match = re.match(rf"{re.escape(self.blocks or '-')}\.(\d+)(\..+)", site.path)
        if not match:
            return []
        paths = [f"{self.blocks}.{int(match[1]) + step}{match[2]}" for step in (-1, 1)]
        return [
            Site(self._shortest_name(path, site), path, site.tensor, site.role)
            for path in paths
            if path in self._modules
        ]

    def _shortest_name(self, path: str, like: Site) -> str:
        """Return a name that resolves to a part of a block: its path, or a known one if its input is read."""
        if like.tensor == "output":
            return path
        return next(site.name for site in self._known.values() if site.key == (path, like.tensor))

    def _residual(self, position: int) -> Site:
        if position == 0:
            return Site(f"{self.blocks}.0.input", f"{self.blocks}.0", "input", "residual")
        return Site(f"{self.blocks}.{position - 1}", f"{self.blocks}.{position - 1}", "output", "residual")

    def _unknown(self, name: str) -> str:
        """Return the message for a site that does not exist."""
        usual = [f"{self.blocks}.{i}" for i in range(self.n_blocks)]
        close = difflib.get_close_matches
        near = (
            close(name, usual, n=4, cutoff=0.7)
            or close(name, self._known, n=4, cutoff=0.7)
            or close(name, self._modules, n=4)
            or close(name, usual, n=4, cutoff=0.5)
        )
        span = f"; its blocks are {usual[0]} to {usual[-1]}" if usual else ""
        hint = f"; near names: {', '.join(near)}" if near else ""
        return f"{self._name} has no site {name!r}{hint}{span}"


def blocks_path(network: Any) -> str | None:
    """Return the path of the list of blocks: as long as the configuration says, else the longest."""
    import torch

    wanted = getattr(getattr(network, "config", None), "num_hidden_layers", None)
    lists = [
        (len(module) == wanted, len(module), -len(path), path)
        for path, module in network.named_modules()
        if isinstance(module, torch.nn.ModuleList) and len({type(child) for child in module}) == 1
    ]
    return max(lists)[-1] if lists else None
