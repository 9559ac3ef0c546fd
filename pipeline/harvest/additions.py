"""What a block adds to the residual stream, found by arithmetic in a small random network of the same architecture.

TransformerLens's ``hook_attn_out`` and ``hook_mlp_out`` are what the attention and the MLP add to the stream. Which
module gives that differs: BLOOM's modules return the stream with their part already added, Gemma norms a part before
adding it, Granite multiplies it. No list of names can know them all, so the small network
(:func:`pipeline.harvest.small_network.small_network`) is run, and those two modules of a block are taken for which

- ``before + s · attention + s · mlp = behind`` (s is 1, or a multiplier that the configuration states), or
- ``norm(norm(before + attention) + mlp) = behind``, as in BERT.

Where no two modules do, the block adds something else, and the hook points are refused.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.harvest.small_network import small_network

Tensor = Literal["output", "input"]

#: Two tensors are the same if they differ by less than this part of their norm; networks compute in float32.
_TOLERANCE = 1e-4

#: An addend has at least this part of the norm of the sum.
_MATTERS = 1e-3

#: Tokens of each of the two windows that the small network reads, and of the window that is padded.
_LENGTH, _SHORT = 6, 3


@dataclass(frozen=True)
class Part:
    """A tensor of a block: the output or input of a module, times a number.

    Attributes
    ----------
    path
        The module's path in the block.
    tensor
        Whether its output or its input is meant.
    scale
        What the tensor is multiplied by before it is added.
    """

    path: str
    tensor: Tensor = "output"
    scale: float = 1.0


@dataclass(frozen=True)
class Additions:
    """What a block adds to the residual stream.

    Attributes
    ----------
    attention, mlp
        The two parts that are added.
    middle
        The stream between them; None where both read the same stream (parallel blocks).
    normed
        That stream behind the norm in front of the MLP; None where there is none.
    """

    attention: Part
    mlp: Part
    middle: Part | None
    normed: Part | None = None


class Seen(dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]):
    """Modules of a block → (input, output), both (rows, width), in the order in which they end; "" is the block."""


class SmallBlocks:
    """The blocks of a small random network; `path` is that of their list in a network of class `kind`.

    >>> from transformers import BloomConfig, BloomModel
    >>> blocks = SmallBlocks(BloomModel, BloomConfig(n_layer=2), "h")
    >>> blocks.additions(1).mlp
    Part(path='mlp.dense_4h_to_h', tensor='output', scale=1.0)
    """

    def __init__(self, kind: Any, config: Any, path: str) -> None:
        self._network = small_network(kind, config)
        self._path = path
        self._scales = (1.0, *_multipliers(config))
        self._known: dict[int, Additions | None] = {}

    def additions(self, i: int) -> Additions | None:
        """Return what block `i` adds; None if no two of its modules explain it."""
        if i not in self._known:
            self._known[i] = self._search(i)
        return self._known[i]

    def _search(self, i: int) -> Additions | None:
        seen = self._seen(i)
        if "" not in seen or seen[""][0].shape != seen[""][1].shape:
            return None
        kinds = {name: type(module).__name__ for name, module in self._blocks[i].named_modules()}
        norms = {name for name, kind in kinds.items() if kind.endswith("Norm")}
        return _added_to_stream(seen, self._scales, norms) or _normed_after_adding(seen)

    def passes_on(self, i: int) -> bool:
        """Return whether what block `i` gives is what the block behind it reads: the residual stream."""
        return i + 1 == len(self._blocks) or _same(self._seen(i)[""][1], self._seen(i + 1)[""][0])

    def padding_matters(self) -> bool:
        """Return whether a window's rows differ when it is padded on the right, and the padding masked."""
        import torch

        ids, mask = self._windows()
        mask[0, _SHORT:] = 0
        alone = self._last_rows(ids[:1, :_SHORT], torch.ones(1, _SHORT, dtype=torch.long))
        return not _same(alone, self._last_rows(ids, mask))

    @property
    def _blocks(self) -> Any:
        return self._network.get_submodule(self._path)

    def _windows(self) -> tuple[Any, Any]:
        """Return ids of two windows, and a mask without padding."""
        import torch

        ids = (3 + 7 * torch.arange(2 * _LENGTH)) % int(self._network.config.vocab_size)
        return ids.reshape(2, _LENGTH), torch.ones(2, _LENGTH, dtype=torch.long)

    def _last_rows(self, ids: Any, mask: Any) -> NDArray[np.float64]:
        """Return the last block's first rows of the first window."""
        seen: list[Any] = []
        with self._blocks[-1].register_forward_hook(lambda _module, _args, output: seen.append(first_tensor(output))):
            self._run(ids, mask)
        rows: NDArray[np.float64] = seen[0].reshape(*ids.shape, -1)[0, :_SHORT].double().numpy()
        return rows

    def _run(self, ids: Any, mask: Any) -> None:
        import torch

        options = {"use_cache": False} if hasattr(self._network.config, "use_cache") else {}
        with torch.inference_mode():
            self._network(input_ids=ids, attention_mask=mask, **options)

    def _seen(self, i: int) -> Seen:
        """Return what goes into and comes out of the modules of block `i`."""
        block, seen = self._blocks[i], Seen()
        inputs: dict[str, NDArray[np.float64] | None] = {}

        def enter(name: str, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
            inputs.setdefault(name, _rows(first_tensor(arguments or tuple(named.values()))))

        def leave(name: str, output: Any) -> None:
            before, after = inputs.get(name), _rows(first_tensor(output))
            if before is not None and after is not None:
                seen.setdefault(name, (before, after))

        hooks = [
            handle
            for name, module in block.named_modules()
            for handle in (
                module.register_forward_pre_hook(
                    lambda _, args, kwargs, name=name: enter(name, args, kwargs), with_kwargs=True
                ),
                module.register_forward_hook(lambda _, _args, output, name=name: leave(name, output)),
            )
        ]
        try:
            self._run(*self._windows())
        finally:
            for hook in hooks:
                hook.remove()
        return seen


def first_tensor(value: Any) -> Any:
    """Return the first tensor of what goes into or comes out of a module: most give it alone, some with others."""
    return value[0] if isinstance(value, (tuple, list)) and len(value) else value


def _rows(value: Any) -> NDArray[np.float64] | None:
    """Return a tensor as rows of numbers, a copy; None if it is something else."""
    import torch

    if not isinstance(value, torch.Tensor) or value.ndim < 2 or not value.is_floating_point():
        return None
    rows: NDArray[np.float64] = value.detach().reshape(-1, value.shape[-1]).double().numpy()
    return rows


def _multipliers(config: Any) -> list[float]:
    """Return the factors that a configuration states for what is added, such as Granite's ``residual_multiplier``."""
    names = [name for name in vars(config) if "residual" in name and isinstance(getattr(config, name), float)]
    return [getattr(config, name) for name in names]


def _same(a: NDArray[np.float64], b: NDArray[np.float64]) -> bool:
    """Return whether two tensors are equal but for rounding."""
    return a.shape == b.shape and bool(np.linalg.norm(a - b) <= _TOLERANCE * np.linalg.norm(b))


def _candidates(seen: Seen, total: NDArray[np.float64]) -> list[tuple[str, NDArray[np.float64]]]:
    """Return the outputs in a block that can be an addend, of equal ones the outermost module."""
    floor = _MATTERS * np.linalg.norm(total)
    outermost = sorted((name for name in seen if name), key=lambda name: name.count("."))
    unique: dict[str, NDArray[np.float64]] = {}
    for name in outermost:
        output = seen[name][1]
        can_add = output.shape == total.shape and np.linalg.norm(output) > floor
        if can_add and not any(_same(output, other) for other in unique.values()):
            unique[name] = output
    order = list(seen)
    return sorted(unique.items(), key=lambda item: order.index(item[0]))


def _added_to_stream(seen: Seen, scales: tuple[float, ...], norms: set[str]) -> Additions | None:
    """Return the two parts whose sum is what a block adds; `norms` are its modules of that kind."""
    before, behind = seen[""]
    added = behind - before
    candidates = _candidates(seen, added)
    for scale in scales:
        for i, (first, a) in enumerate(candidates):
            for second, b in candidates[i + 1 :]:
                if np.abs(scale * (a + b) - added).max() <= _TOLERANCE * np.abs(behind).max():
                    return _additions(seen, (Part(first, scale=scale), Part(second, scale=scale)), norms)
    return None


def _additions(seen: Seen, addends: tuple[Part, Part], norms: set[str]) -> Additions | None:
    """Return two addends as attention and MLP; None if it is not clear which is which."""
    first, second = addends
    attention, mlp = (first, second) if _attends(first) else (second, first)
    if not _attends(attention) or _attends(mlp):
        return None
    stream = seen[""][0] + attention.scale * seen[attention.path][1]
    readers = [name for name, (inside, _) in seen.items() if name and _same(inside, stream)]
    middle, norm = _outermost(readers), _outermost([name for name in readers if name in norms])
    return Additions(
        attention, mlp, Part(middle, "input") if middle else None, Part(norm) if norm and norm != mlp.path else None
    )


def _outermost(names: list[str]) -> str | None:
    return min(names, key=lambda name: name.count("."), default=None)


def _attends(part: Part) -> bool:
    return "att" in part.path.lower()


def _normed_after_adding(seen: Seen) -> Additions | None:
    """Return the parts of a block that norms the stream after each addition."""
    before, behind = seen[""]
    for attention, middle, normed in _norms_of_sum(seen, before):
        for mlp, _, end in _norms_of_sum(seen, normed):
            if _same(end, behind) and _attends(Part(attention)) and not _attends(Part(mlp)):
                return Additions(Part(attention), Part(mlp), Part(middle, "input"))
    return None


def _norms_of_sum(seen: Seen, stream: NDArray[np.float64]) -> Iterator[tuple[str, str, NDArray[np.float64]]]:
    """Yield (addend, module, its output) for modules that read the stream with another module's output added."""
    candidates = _candidates(seen, stream)
    for module, (inside, outside) in seen.items():
        if not module or inside.shape != stream.shape or outside.shape != stream.shape or _same(inside, stream):
            continue
        for addend, value in candidates:
            if addend != module and _same(stream + value, inside):
                yield addend, module, outside


#: What a network may raise whose small widths do not fit together.
MISFITS = (RuntimeError, ValueError, TypeError, LookupError, AttributeError, NotImplementedError)

_small: dict[tuple[type, str], SmallBlocks] = {}
_small_lock = threading.Lock()


def small_blocks(kind: Any, config: Any, path: str) -> SmallBlocks:
    """Return the small network of a configuration; it is built once a process."""
    key = (kind, f"{path}|{config.to_json_string(use_diff=False)}")
    with _small_lock:
        if key not in _small:
            if len(_small) > 1:
                _small.clear()
            _small[key] = SmallBlocks(kind, config, path)
        return _small[key]
