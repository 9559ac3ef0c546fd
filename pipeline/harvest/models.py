"""Language models: found, described, loaded, cut at the deepest site, read by forward hooks.

A *site* is the output of a module of the network, usually of a block. It is named by the module's path in the base
model (``layers.3``, ``encoder.layer.2``, ``h.5``), with or without the head's prefix (``model.layers.3``), or by the
name that TransformerLens made common (``blocks.3.hook_resid_post``).

Activations come from hooks only, never from ``hidden_states``: ``hidden_states[L]`` is the *input* of block L, and
the last entry has the final norm applied in most architectures. The pass ends by an exception as soon as every site
has been seen, and the blocks behind the deepest one are not even kept in memory.

Three steps of growing cost: :func:`describe` reads the configuration and the tokenizer (no weights), so that wrong
names are found before anything else is done; :func:`load` reads the weights; :func:`shared` keeps what was loaded
for all tasks of a process.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import logging
import re
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.config import ModelConfig
from pipeline.harvest.gguf import converted
from storage.errors import InputError, MissingDependencyError, MissingInputError

logger = logging.getLogger(__name__)

#: ``blocks.3.hook_resid_post`` or ``layers.3`` for a network that calls its blocks otherwise.
_BLOCK_ALIASES = (re.compile(r"blocks\.(\d+)\.hook_resid_post"), re.compile(r"(?:layers|h|encoder\.layer)\.(\d+)"))

#: How many bytes at either end of a weights file enter the model's fingerprint.
_SAMPLED_BYTES = 1 << 20


@dataclass(frozen=True)
class ModelInfo:
    """What is known of a model without its weights.

    Attributes
    ----------
    folder
        What transformers loads: a folder or a hub id.
    fingerprint
        The commit on the hub, or a hash over the folder's configuration, tokenizer and (sampled) weights.
    paths
        Site → module path in the base model.
    d_model
        Width of the residual stream.
    context
        Longest input in tokens, special tokens included; None if the model states no limit.
    tokenizer
        A fast tokenizer, its own truncation and padding switched off.
    config
        The transformers configuration.
    """

    folder: str
    fingerprint: str
    paths: dict[str, str]
    d_model: int
    context: int | None
    tokenizer: Any = field(repr=False)
    config: Any = field(repr=False)


def require_models() -> None:
    """Raise a clear error if the optional packages for models are not installed."""
    try:
        import torch
        import transformers  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(
            f"Harvesting needs {error.name}: pip install 'semantic-subspace-matching[models]'"
        ) from error
    del torch


def describe(model: ModelConfig) -> ModelInfo:
    """Find a model, read its configuration and tokenizer, and resolve its sites; no weights are read.

    Parameters
    ----------
    model
        One side of the experiment.

    Returns
    -------
    ModelInfo

    Raises
    ------
    MissingInputError
        If there is no such folder, file or hub repository.
    InputError
        If a site does not exist (the near ones are listed), or the tokenizer gives no character offsets.
    MissingDependencyError
        If torch or transformers is not installed.
    """
    require_models()
    folder = _locate(model.model)
    with _quiet_transformers():
        config = _from_pretrained("AutoConfig", folder, model)
        tokenizer = _from_pretrained("AutoTokenizer", folder, model)
        skeleton = _skeleton(config, model)
    _prepare_tokenizer(tokenizer, model.model)
    paths = {site: resolve_site(skeleton, site, model.model) for site in model.sites}
    return ModelInfo(
        folder=folder,
        fingerprint=_fingerprint(folder, config),
        paths=paths,
        d_model=int(config.hidden_size),
        context=_context(config, tokenizer),
        tokenizer=tokenizer,
        config=config,
    )


def _locate(name: str) -> str:
    """Return the folder or hub id that transformers can load for the name in the experiment file."""
    path = Path(name)
    if name.lower().endswith(".gguf"):
        if not path.is_file():
            raise MissingInputError(f"No GGUF file at {name}: check 'model' in the experiment file")
        return str(converted(path))
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise MissingInputError(f"The model folder {name} holds no config.json: is it a transformers model?")
        return str(path)
    if path.is_absolute() or name.startswith(".") or name.count("/") > 1:
        raise MissingInputError(f"No model folder at {name}: check 'model' in the experiment file")
    return name


def _from_pretrained(loader: str, folder: str, model: ModelConfig, **options: Any) -> Any:
    """Call ``transformers.<loader>.from_pretrained`` and turn its failures into our errors."""
    import transformers

    try:
        return getattr(transformers, loader).from_pretrained(
            folder, revision=model.revision, trust_remote_code=model.trust_remote_code, **options
        )
    except OSError as error:
        raise MissingInputError(
            f"Model {model.model!r} is neither a folder here nor readable from the hub ({_first_line(error)}). "
            "Give the path of a local folder or GGUF file, or check the id, your network and `hf auth login`"
        ) from error
    except (ValueError, KeyError) as error:
        raise InputError(f"Model {model.model!r} cannot be loaded: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n", maxsplit=1)[0]


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Keep transformers' bars and load reports off the screen; what matters in them is checked here."""
    from transformers.utils import logging as transformers_logging

    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        transformers_logging.enable_progress_bar()


def _skeleton(config: Any, model: ModelConfig) -> Any:
    """Return the base network without memory for its weights, to resolve names in."""
    import torch
    import transformers

    with torch.device("meta"):
        return transformers.AutoModel.from_config(config, trust_remote_code=model.trust_remote_code)


def _prepare_tokenizer(tokenizer: Any, name: str) -> None:
    """Refuse a tokenizer without offsets; switch off the truncation and padding saved with it."""
    if not getattr(tokenizer, "is_fast", False):
        raise InputError(
            f"The tokenizer of {name!r} ({type(tokenizer).__name__}) gives no character offsets, which rows are made "
            "of: a fast tokenizer (a tokenizer.json) is needed"
        )
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()


def _context(config: Any, tokenizer: Any) -> int | None:
    """Return the longest input that both the network and its tokenizer allow."""
    limits = [int(tokenizer.model_max_length or 0), int(getattr(config, "max_position_embeddings", None) or 0)]
    if limits[1] and config.model_type in {"roberta", "xlm-roberta", "camembert"}:
        limits[1] -= int(config.pad_token_id) + 1  # these count positions from behind the padding id
    sensible = [limit for limit in limits if 0 < limit < 1 << 30]
    return min(sensible, default=None)


def _fingerprint(folder: str, config: Any) -> str:
    """Return what identifies the model's content: the hub's commit, or a hash over the folder's files."""
    if not Path(folder).is_dir():
        return str(getattr(config, "_commit_hash", None) or folder)
    digest = hashlib.sha256()
    for file in sorted(Path(folder).iterdir()):
        if file.suffix in {".json", ".safetensors", ".bin", ".txt", ".model"}:
            digest.update(f"{file.name}\0{file.stat().st_size}\0".encode())
            digest.update(_sample(file))
    return digest.hexdigest()


def _sample(file: Path) -> bytes:
    """Return the first and last bytes of a file; all of it if it is small."""
    with file.open("rb") as stream:
        head = stream.read(_SAMPLED_BYTES)
        stream.seek(max(len(head), file.stat().st_size - _SAMPLED_BYTES))
        return head + stream.read()


def resolve_site(network: Any, site: str, name: str = "the model") -> str:
    """Return the path of the module whose output is `site`.

    Parameters
    ----------
    network
        The base model (a ``torch.nn.Module``).
    site
        A module path, with or without the prefix of a model with a head, or ``blocks.N.hook_resid_post``.
    name
        The model, for the message.

    Raises
    ------
    InputError
        If there is no such module; the message lists the near ones.
    """
    known = {path for path, _ in network.named_modules() if path}
    for candidate in _candidates(network, site):
        if candidate in known:
            return candidate
    blocks = _blocks_path(network)
    usual = [f"{blocks}.{i}" for i in range(len(network.get_submodule(blocks)))] if blocks else []
    near = difflib.get_close_matches(site, usual, n=4, cutoff=0.5) or difflib.get_close_matches(site, known, n=4)
    span = f"; its blocks are {usual[0]} to {usual[-1]}" if usual else ""
    hint = f"; near names: {', '.join(near)}" if near else ""
    raise InputError(f"{name} has no site {site!r}{hint}{span}")


def _candidates(network: Any, site: str) -> Iterator[str]:
    """Yield the module paths that a site's name may mean, the literal one first."""
    yield site
    prefix = f"{network.base_model_prefix}." if getattr(network, "base_model_prefix", "") else ""
    bare = site.removeprefix(prefix) if prefix else site
    yield bare
    blocks = _blocks_path(network)
    for pattern in _BLOCK_ALIASES:
        match = pattern.fullmatch(bare)
        if match and blocks:
            yield f"{blocks}.{match[1]}"


def _blocks_path(network: Any) -> str | None:
    """Return the path of the longest list of equal modules: the blocks."""
    import torch

    lists = [
        (len(module), path)
        for path, module in network.named_modules()
        if isinstance(module, torch.nn.ModuleList) and len({type(child) for child in module}) == 1
    ]
    return max(lists, key=lambda item: (item[0], -len(item[1])))[1] if lists else None


class _AllSeenError(Exception):
    """Ends a forward pass once every site has been seen."""


class SiteReader:
    """A network that gives back its activations at some sites, and computes nothing behind the deepest.

    Several threads may use one reader: what a pass has seen is kept per thread.

    Parameters
    ----------
    network
        The base model, in evaluation mode. Hooks are put on it, and blocks behind the deepest site are removed.
    paths
        Site → module path.

    Examples
    --------
    >>> import torch
    >>> from transformers import LlamaConfig, LlamaModel
    >>> size = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2, "num_key_value_heads": 2}
    >>> network = LlamaModel(LlamaConfig(vocab_size=11, num_hidden_layers=3, **size)).eval()
    >>> reader = SiteReader(network, {"layers.0": "layers.0", "layers.1": "layers.1"})
    >>> len(network.layers)
    2
    >>> values = reader(torch.tensor([[1, 2, 3]]), torch.ones(1, 3))
    >>> values["layers.1"].shape
    torch.Size([1, 3, 8])
    """

    def __init__(self, network: Any, paths: dict[str, str]) -> None:
        self.network = network
        self._n_sites = len(set(paths.values()))
        self._paths = dict(paths)
        self._seen = threading.local()
        _drop_deeper_blocks(network, list(paths.values()))
        for path in set(paths.values()):
            network.get_submodule(path).register_forward_hook(self._hook(path))

    def _hook(self, path: str) -> Any:
        def remember(_module: Any, _inputs: Any, output: Any) -> None:
            self._seen.values[path] = output[0] if isinstance(output, tuple) else output
            if len(self._seen.values) == self._n_sites:
                raise _AllSeenError

        return remember

    def __call__(self, input_ids: Any, attention_mask: Any) -> dict[str, Any]:
        """Run the network as far as needed.

        Parameters
        ----------
        input_ids
            Tensor (batch, length) of token ids, padded on the right.
        attention_mask
            Tensor (batch, length), 0 where padded.

        Returns
        -------
        dict
            Site → float32 tensor (batch, length, d_model).
        """
        import torch

        self._seen.values = {}
        options = {"use_cache": False} if hasattr(self.network.config, "use_cache") else {}
        with torch.inference_mode(), contextlib.suppress(_AllSeenError):
            self.network(input_ids=input_ids, attention_mask=attention_mask, **options)
        seen, self._seen.values = self._seen.values, {}
        return {site: seen[path].float() for site, path in self._paths.items()}


def _drop_deeper_blocks(network: Any, paths: Sequence[str]) -> None:
    """Remove the blocks that come after every site, where all sites lie in the list of blocks."""
    blocks = _blocks_path(network)
    inside = [re.match(rf"{re.escape(blocks or '')}\.(\d+)", path) for path in paths]
    if blocks and all(inside):
        del network.get_submodule(blocks)[max(int(match[1]) for match in inside if match) + 1 :]


@dataclass(frozen=True)
class LoadedModel:
    """A described model with its network in memory."""

    info: ModelInfo
    reader: SiteReader
    device: Any


def load(model: ModelConfig, info: ModelInfo | None = None) -> LoadedModel:
    """Load a model's weights and put the hooks in place.

    Parameters
    ----------
    model
        One side of the experiment.
    info
        Its description, if already made.

    Returns
    -------
    LoadedModel

    Raises
    ------
    InputError
        If weights are missing from the model's files: a network with random parts would give plausible nonsense.
    """
    import torch

    info = info or describe(model)
    device = torch.device(_device(model.device))
    with _quiet_transformers():
        network, report = _from_pretrained(
            "AutoModel", info.folder, model, dtype=getattr(torch, model.dtype), output_loading_info=True
        )
    reader = SiteReader(network.eval().requires_grad_(requires_grad=False), info.paths)
    kept = set(network.state_dict())
    missing = sorted(name for name in report["missing_keys"] if name in kept and "pooler" not in name)
    if missing:
        raise InputError(f"The files of {model.model!r} lack weights that its architecture needs: {missing[:5]}")
    network.to(device)
    return LoadedModel(info=info, reader=reader, device=device)


def _device(name: str) -> str:
    import torch

    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"


_shared: dict[str, LoadedModel] = {}
_shared_lock = threading.Lock()


def shared(model: ModelConfig, paths: dict[str, str]) -> LoadedModel:
    """Return the model that all tasks of this process share, loading it on first use.

    One model is kept at a time, so that a process never holds both sides of an experiment.
    """
    key = f"{model.model_dump_json()}|{sorted(paths.items())}"
    with _shared_lock:
        if key not in _shared:
            _shared.clear()
            _shared[key] = load(model)
        return _shared[key]
