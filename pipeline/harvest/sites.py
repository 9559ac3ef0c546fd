"""Sites: names for the places in a network where activations are read.

A name is looked up in this order; the first that the network has is meant:

1. a module's path in the base model, with or without the head's prefix (``layers.3``, ``model.layers.3.mlp``,
   ``encoder.layer.2.attention``): that module's **output**, nothing added and nothing normed after it; with ``.input``
   behind it, the first tensor that goes into that module;
2. a hook point of TransformerLens (``blocks.3.hook_mlp_out``): the tensor that TransformerLens calls so;
3. ``layers.N`` and what follows it, whatever the network calls its blocks.

===================  ==========================================  =====================================================
in any network       TransformerLens                             what is read
===================  ==========================================  =====================================================
``layers.3``         ``blocks.3.hook_resid_post``, ``hook_out``  residual stream after block 3: the block's output
``layers.3.input``   ``blocks.3.hook_resid_pre``, ``hook_in``    residual stream before block 3: the block's input
``layers.3.mlp``     ``blocks.3.mlp.hook_out``                   output of the MLP's module
``layers.3.mlp.input``  ``blocks.3.mlp.hook_in``                 input of the MLP's module
``layers.3.attention``  ``blocks.3.attn.hook_out``               output of the attention's module, heads mixed
``layers.3.attention.heads``  ``blocks.3.attn.hook_z``           heads side by side: the output projection's input
``layers.3.mixer``   ``blocks.3.mixer.hook_out``                 output of a state-space mixer (Mamba)
``layers.3.mlp.neurons``  ``blocks.3.mlp.hook_post``             hidden neurons: the down projection's input
===================  ==========================================  =====================================================

==================================  ==================================================================
TransformerLens only                what is read
==================================  ==================================================================
``blocks.3.hook_attn_out``          what the attention adds to the residual stream
``blocks.3.hook_mlp_out``           what the MLP adds to the residual stream
``blocks.3.hook_resid_mid``         residual stream between the two; ``hook_mlp_in`` too
``blocks.3.ln2.hook_normalized``    that stream behind the norm in front of the MLP
==================================  ==================================================================

What is *added* is not always what a module gives: Gemma-2 norms it first, Granite scales it, BLOOM's modules return the
whole stream. The last four are therefore found by arithmetic (:mod:`pipeline.harvest.additions`), and refused where
it does not come out. BERT norms after adding: ``hook_resid_post`` is the block's output, behind the last norm
(TransformerLens hooks BERT before that norm).

To teach the dotted names a further architecture, add the names of its parts to :data:`_MLP`, :data:`_ATTENTION`,
:data:`_MIX`, :data:`_MIXER`, :data:`_DOWN`.
"""

from __future__ import annotations

import contextlib
import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

from pipeline.harvest.additions import MISFITS, Additions, Part, Tensor, small_blocks
from storage.damage import first_line
from storage.errors import InputError

Role = Literal["residual", "mlp", "attention", "heads", "mixer", "neurons", "module"]

#: Names of a block's parts, relative to the block; the first that exists counts.
_DOWN = (
    "mlp.down_proj", "mlp.dense_4h_to_h", "mlp.c_proj", "mlp.fc2", "mlp.fc_out", "mlp.Wo", "ffn.lin2", "ffn.down_proj",
    "feed_forward.down_proj", "feed_forward.w2", "output.dense", "fc2",
)  # fmt: skip
_MLP = ("mlp", "ffn", "feed_forward", "block_sparse_moe", "output.dense", "fc2")
_ATTENTION = (
    "attention.output.dense", "self_attn", "self_attention", "attention", "attn", "linear_attn", "multi_head_attention",
)  # fmt: skip
_MIXER = ("mixer", "mamba")
_MIX = (
    "self_attn.o_proj", "self_attn.out_proj", "self_attn.dense", "self_attention.dense", "attention.dense",
    "attention.output.dense", "attention.out_lin", "attn.c_proj", "attn.out_proj", "attn.attention.out_proj", "attn.Wo",
)  # fmt: skip

_ANY_BLOCK = re.compile(r"(?:layers|h|encoder\.layer)\.(\d+)(?:\.(.+))?")

#: TransformerLens's names of what is found by arithmetic.
_ADDED = ("hook_attn_out", "hook_mlp_out", "hook_resid_mid", "hook_mlp_in", "ln2.hook_normalized")
_HOOK = re.compile(rf"blocks\.(\d+)\.({'|'.join(map(re.escape, _ADDED))})")

_INPUT = ".input"

#: In front of the names of the part of a multimodal model that reads text.
_OF_TEXT = re.compile(r"^(?:model\.)?language_model\.")

_WORDS = {
    "residual": "residual stream",
    "mlp": "MLP output",
    "attention": "attention output",
    "heads": "heads of the attention, before they are mixed",
    "mixer": "state-space mixer output",
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
    scale
        What the tensor is multiplied by.
    """

    name: str
    path: str
    tensor: Tensor = "output"
    role: Role = "module"
    width: int = 0
    names: tuple[str, ...] = ()
    scale: float = 1.0

    @property
    def key(self) -> tuple[str, Tensor]:
        """What is hooked."""
        return self.path, self.tensor

    def __str__(self) -> str:
        """Say what is read, for the log."""
        width = f", width {self.width}" if self.width else ""
        factor = "" if self.scale == 1 else f" × {self.scale:g}"
        return f"{self.name}: {self.tensor} of {self.path}{factor} ({_WORDS[self.role]}{width})"


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
        self._kind, self._config = type(network), getattr(network, "config", None)
        self._modules = {path: type(module).__name__ for path, module in network.named_modules() if path}
        prefix = getattr(network, "base_model_prefix", "")
        self._prefix = f"{prefix}." if prefix else ""
        self.blocks = blocks_path(network)
        self.n_blocks = len(network.get_submodule(self.blocks)) if self.blocks else 0
        self._known = {site.name: site for i in range(self.n_blocks) for site in self._of_block(i)}

    def resolve(self, name: str) -> Site:
        """Return the site that `name` means; InputError if there is none, or it is not what the name says."""
        site_found = self._find(name)
        if site_found is None:
            raise InputError(self._unknown(name))
        role = next((site.role for site in self._known.values() if site.key == site_found.key), site_found.role)
        site = replace(site_found, name=name, role=role)
        return replace(site, names=self._names(site))

    def _find(self, name: str) -> Site | None:
        bare = _OF_TEXT.sub("", name).removeprefix(self._prefix)
        match = _ANY_BLOCK.fullmatch(bare)
        rest = f".{match[2]}" if match and match[2] else ""
        literal = f"{self.blocks}.{match[1]}{rest}" if match else ""
        return (
            self._module(name)
            or self._module(bare)
            or self._known.get(bare)
            or self._added(bare)
            or self._module(literal)
            or self._module_input(bare)
            or self._module_input(literal)
        )

    def _module(self, path: str) -> Site | None:
        return Site(path, path) if path in self._modules else None

    def _module_input(self, name: str) -> Site | None:
        path = name.removesuffix(_INPUT)
        return Site(name, path, "input") if path != name and path in self._modules else None

    def _added(self, name: str) -> Site | None:
        """Return the site of a hook point that is found by arithmetic; InputError if it does not come out."""
        match = _HOOK.fullmatch(name)
        if not match or int(match[1]) >= self.n_blocks:
            return None
        i, hook = int(match[1]), match[2]
        try:
            additions = self._additions(i)
        except MISFITS as error:
            raise InputError(self._not_added(name, i, f"that cannot be tried ({first_line(error)})")) from error
        if additions is None:
            raise InputError(self._not_added(name, i, "no two of its modules give what block behind − before is"))
        part, role = _parts_added(additions)[hook]
        if part is None:
            raise InputError(self._not_added(name, i, "attention and MLP are not one behind the other, with a norm"))
        return Site(name, f"{self.blocks}.{i}.{part.path}", part.tensor, role, scale=part.scale)

    def _additions(self, i: int) -> Additions | None:
        return small_blocks(self._kind, self._config, str(self.blocks)).additions(i)

    def _not_added(self, name: str, i: int, why: str) -> str:
        """Return the message for a hook point that is not what its name says."""
        block = f"{self.blocks}.{i}."
        parts = [path for path in self._modules if path.startswith(block) and "." not in path.removeprefix(block)]
        kind = getattr(self._config, "model_type", self._kind.__name__)
        return (
            f"{self._name} has no {name}: in a small network of its architecture ({kind}), {why}. Name a module to "
            f"read its own output: {', '.join(parts)}"
        )

    def _of_block(self, i: int) -> Iterator[Site]:
        """Yield the known sites of block `i` under each of their names."""
        block = f"{self.blocks}.{i}"
        for short, hooks, site in self._parts(block):
            shorts = (f"{block}{short}", f"layers.{i}{short}")
            for name in dict.fromkeys((*shorts, *(f"blocks.{i}.{hook}" for hook in hooks))):
                yield replace(site, name=name)

    def _parts(self, block: str) -> Iterator[tuple[str, tuple[str, ...], Site]]:
        """Yield for each part of a block what follows the block's name, TransformerLens's hooks, and the site."""
        yield "", ("hook_resid_post", "hook_out"), Site("", block, "output", "residual")
        yield _INPUT, ("hook_resid_pre", "hook_in"), Site("", block, "input", "residual")
        parts_of_block: tuple[tuple[str, tuple[str, ...], tuple[str, ...], Tensor, Role], ...] = (
            (".mlp", ("mlp.hook_out",), _MLP, "output", "mlp"),
            (".mlp.input", ("mlp.hook_in",), _MLP, "input", "module"),
            (".attention", ("attn.hook_out",), _ATTENTION, "output", "attention"),
            (".attention.heads", ("attn.hook_z",), _MIX, "input", "heads"),
            (".mixer", ("mixer.hook_out", "hook_mixer_out"), _MIXER, "output", "mixer"),
            (".mixer.input", ("mixer.hook_in", "hook_mixer_in"), _MIXER, "input", "module"),
            (".mlp.neurons", ("mlp.hook_post",), _DOWN, "input", "neurons"),
        )
        for short, hooks, parts, tensor, role in parts_of_block:
            path = next((f"{block}.{part}" for part in parts if f"{block}.{part}" in self._modules), None)
            if path is not None:
                yield short, hooks, Site("", path, tensor, role)

    def _names(self, site: Site) -> tuple[str, ...]:
        """Return every name of a site's tensor, the one asked for first."""
        main = [site.name, *([site.path] if site.tensor == "output" and site.scale == 1 else [])]
        known = [other.name for other in self._known.values() if self.same(site, other) and self._means(other)]
        names = list(dict.fromkeys(main + known + self._names_added(site)))
        prefixed = [f"{self._prefix}{name}" for name in names if self._prefix and name in self._modules]
        return tuple(dict.fromkeys(names + prefixed))

    def _names_added(self, site: Site) -> list[str]:
        """Return the hook points found by arithmetic that are the output of an attention or MLP."""
        match = re.match(rf"{re.escape(self.blocks or '-')}\.(\d+)\.", site.path)
        if match is None or site.role not in {"mlp", "attention"}:
            return []
        names = [f"blocks.{match[1]}.{hook}" for hook in ("hook_attn_out", "hook_mlp_out")]
        with contextlib.suppress(InputError):
            return [name for name in names if (other := self._added(name)) is not None and self.same(site, other)]
        return []

    def _means(self, known: Site) -> bool:
        """Return whether a known name really leads to its site: a module of that name goes first."""
        other = self._find(known.name)
        return other is not None and other.key == known.key

    def same(self, a: Site, b: Site) -> bool:
        """Return whether two sites read the same tensor: block 2's output is block 3's input."""
        position = self._residual_position(a)
        return (a.key, a.scale) == (b.key, b.scale) if position is None else position == self._residual_position(b)

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
            Site(self._shortest_name(path, site), path, site.tensor, site.role, scale=site.scale)
            for path in paths
            if path in self._modules
        ]

    def _shortest_name(self, path: str, like: Site) -> str:
        """Return a name that resolves to a part of a block: its path, or a known one if its input is read."""
        if like.tensor == "output":
            return path
        known = (site.name for site in self._known.values() if site.key == (path, like.tensor))
        return next(known, f"{path}{_INPUT}")

    def _residual(self, position: int) -> Site:
        if position == 0:
            return Site(f"{self.blocks}.0.input", f"{self.blocks}.0", "input", "residual")
        return Site(f"{self.blocks}.{position - 1}", f"{self.blocks}.{position - 1}", "output", "residual")

    def _hooks(self) -> list[str]:
        return [f"blocks.{i}.{hook}" for i in range(self.n_blocks) for hook in _ADDED]

    def _unknown(self, name: str) -> str:
        """Return the message for a site that does not exist."""
        usual = [f"{self.blocks}.{i}" for i in range(self.n_blocks)]
        close = difflib.get_close_matches
        near = (
            close(name, usual, n=4, cutoff=0.7)
            or close(name, [*self._known, *self._hooks()], n=4, cutoff=0.7)
            or close(name, self._modules, n=4)
            or close(name, usual, n=4, cutoff=0.5)
        )
        span = f"; its blocks are {usual[0]} to {usual[-1]}" if usual else ""
        hint = f"; near names: {', '.join(near)}" if near else ""
        return f"{self._name} has no site {name!r}{hint}{span}"


def _parts_added(additions: Additions) -> dict[str, tuple[Part | None, Role]]:
    """Return for each hook point that is found by arithmetic the tensor and what it is."""
    return {
        "hook_attn_out": (additions.attention, "attention"),
        "hook_mlp_out": (additions.mlp, "mlp"),
        "hook_resid_mid": (additions.middle, "residual"),
        "hook_mlp_in": (additions.middle, "residual"),
        "ln2.hook_normalized": (additions.normed, "module"),
    }


def blocks_path(network: Any) -> str | None:
    """Return the path of the list of blocks: as long as the configuration says, else the longest.

    None if there are several such lists side by side: XLM keeps its attentions in one and its MLPs in another, so that
    no module is a block.
    """
    import torch

    wanted = getattr(getattr(network, "config", None), "num_hidden_layers", None)
    lists = [
        (len(module) == wanted, len(module), -len(path), path)
        for path, module in network.named_modules()
        if isinstance(module, torch.nn.ModuleList) and len({type(child) for child in module}) == 1
    ]
    if not lists:
        return None
    _, length, _, blocks = max(lists)
    parent = blocks.rpartition(".")[0]
    beside = [path for _, n, _, path in lists if n == length and path.rpartition(".")[0] == parent]
    return blocks if len(beside) == 1 else None
