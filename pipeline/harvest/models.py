"""Language models: found, described, loaded, cut at the deepest site.

Three steps of growing cost: :func:`describe` reads the configuration and the tokenizer (no weights), so that wrong
names are found before anything else is done; :func:`load` reads the weights; :func:`shared` keeps what was loaded
for all tasks of a process.

With ``randomise`` the weights are drawn anew by the architecture's own initialisation under that seed: the control
for "does it need a trained model?".
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import threading
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pipeline.harvest.additions import MISFITS, small_blocks
from pipeline.harvest.gguf import converted
from pipeline.harvest.hub import from_hub, refusal
from pipeline.harvest.reader import SiteReader, with_widths
from pipeline.harvest.sites import Site, Sites, blocks_path
from pipeline.settings.harvest import ModelSettings
from storage.damage import first_line
from storage.errors import InputError, MissingInputError
from storage.extras import need

logger = logging.getLogger(__name__)

#: How many bytes at either end of a weights file enter the model's fingerprint.
_SAMPLED_BYTES = 1 << 20

#: What is read of a repository on the hub: everything but weights; then weights, in the first of the forms it has.
_SETTINGS_FILES = ["*.json", "*.txt", "*.model", "*.jinja", "*.py"]
_WEIGHTS_FILES = ("model*.safetensors", "pytorch_model*.bin")

_HINT = "Give the path of a local folder or GGUF file, or check the id"


@dataclass(frozen=True)
class ModelInfo:
    """What is known of a model without its weights.

    Attributes
    ----------
    folder
        What transformers loads; of a model on the hub, the folder of one commit in the hub's cache.
    fingerprint
        The commit on the hub, or a hash over the folder's configuration, tokenizer and (sampled) weights; of a
        randomised model also its seed.
    sites
        The experiment's name of a site → the site.
    names
        What the network calls its other sites.
    d_model
        Width of the residual stream.
    context
        Longest input in tokens, special tokens included; None if the model states no limit.
    tokenizer
        A fast tokenizer, its own truncation and padding switched off.
    config
        The transformers configuration; of a multimodal model that of the part that reads text.
    """

    folder: str
    fingerprint: str
    sites: dict[str, Site]
    names: Sites = field(repr=False)
    d_model: int
    context: int | None
    tokenizer: Any = field(repr=False)
    config: Any = field(repr=False)


def require_models() -> None:
    """Raise a clear error if the optional packages for models are not installed."""
    for module in ("torch", "transformers"):
        need(module, "models", "Harvesting")


def describe(model: ModelSettings) -> ModelInfo:
    """Find a model, read its configuration and tokenizer, and resolve its sites; no weights are read.

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
    folder = locate(model)
    with quiet_transformers():
        outer = _from_pretrained("AutoConfig", folder, model)
        config = outer.get_text_config()
        _check_architecture(config, model.model)
        tokenizer = _tokenizer(folder, model)
        skeleton = _text_part(_skeleton(outer, model), model.model)[0]
        names = Sites(skeleton, model.model)
        sites = [names.resolve(site) for site in model.sites]
    return ModelInfo(
        folder=folder,
        fingerprint=_fingerprint(Path(folder), model),
        sites={site.name: site for site in _measured(skeleton, sites, int(config.hidden_size))},
        names=names,
        d_model=int(config.hidden_size),
        context=_context(config, tokenizer),
        tokenizer=tokenizer,
        config=config,
    )


def tokenizer_of(model: ModelSettings) -> Any:
    """Return a model's tokenizer, its own truncation and padding switched off; nothing else of it is read."""
    require_models()
    with quiet_transformers():
        return _tokenizer(locate(model), model)


def _check_architecture(config: Any, name: str) -> None:
    if getattr(config, "is_encoder_decoder", False):
        raise InputError(
            f"Model {name!r} is an encoder-decoder ({config.model_type}): causal language models and encoders are read"
        )
    if not getattr(config, "hidden_size", None):
        raise InputError(f"Model {name!r} ({config.model_type}) states no hidden_size: is it a language model?")


def _measured(skeleton: Any, sites: list[Site], d_model: int) -> list[Site]:
    """Return the sites with their widths."""
    try:
        return with_widths(skeleton, sites)
    except InputError:
        raise
    except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
        # mixtures of experts choose by values; the width is checked when the first values are read
        logger.info("Widths of sites are taken to be %d: no pass without numbers (%s)", d_model, first_line(error))
        return [replace(site, width=d_model) for site in sites]


def locate(model: ModelSettings, *, weights: bool = False) -> str:
    """Return the folder that transformers can load for the name in the experiment file, with its weights or without.

    MissingInputError if there is no such folder, file or repository; UnreachableError if the hub does not answer.
    """
    name, path = model.model, Path(model.model)
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
    folder = _download(model, _SETTINGS_FILES)
    for form in _WEIGHTS_FILES if weights else ():
        folder = _download(model, [*_SETTINGS_FILES, form])
        if any(folder.glob(form)):
            break
    return str(folder)


def _download(model: ModelSettings, files: list[str]) -> Path:
    """Return the folder of a commit in the hub's cache, once all of `files` that the repository has are in it.

    What transformers would download by itself may be of several commits, and it goes on without a tokenizer's settings
    where the hub does not give them.
    """
    from huggingface_hub import constants, snapshot_download, try_to_load_from_cache

    def read() -> Path:
        if constants.HF_HUB_OFFLINE:  # what another program downloaded may lack files that are not needed
            known = try_to_load_from_cache(model.model, "config.json", revision=model.revision)
            if not isinstance(known, str):
                raise FileNotFoundError(model.model)
            return Path(known).parent
        return Path(
            snapshot_download(model.model, revision=model.revision, allow_patterns=files, ignore_patterns=["*/*"])
        )

    return from_hub(read, f"Model {model.model!r}", model.model, _HINT)


def _from_pretrained(loader: str, folder: str, model: ModelSettings, **options: Any) -> Any:
    """Call ``transformers.<loader>.from_pretrained`` and turn its failures into our errors."""
    import transformers

    try:
        return getattr(transformers, loader).from_pretrained(
            folder, trust_remote_code=model.trust_remote_code, **options
        )
    except OSError as error:
        raise refusal(error, f"Model {model.model!r}", model.model, _HINT) from error
    except (ValueError, KeyError) as error:
        raise InputError(f"Model {model.model!r} cannot be loaded: {first_line(error)}") from error


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
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


def _skeleton(config: Any, model: ModelSettings) -> Any:
    """Return the base network without memory for its weights, to resolve names in."""
    import torch
    import transformers

    with torch.device("meta"):
        return getattr(transformers, _loader(config)).from_config(config, trust_remote_code=model.trust_remote_code)


def _loader(config: Any) -> str:
    """Return the class of transformers that loads a model: code that comes with one may have it with a head only."""
    own = getattr(config, "auto_map", None) or {}
    return "AutoModelForCausalLM" if "AutoModelForCausalLM" in own and "AutoModel" not in own else "AutoModel"


def _text_part(network: Any, name: str) -> tuple[Any, str]:
    """Return the part of a network that turns token ids into activations, and its path: no head, no other senses."""
    import transformers

    text = type(network.config.get_text_config())
    if not isinstance(network.config, text):
        parts = (
            (module, path)
            for path, module in network.named_modules()
            if isinstance(module, transformers.PreTrainedModel) and isinstance(module.config, text)
        )
        network_of_text, path = next(parts, (None, ""))
        if network_of_text is None:
            raise InputError(f"Model {name!r} ({network.config.model_type}) has no part that reads text alone")
        return network_of_text, path
    if _loader(network.config) == "AutoModel":
        return network, ""
    if network.base_model is network:
        raise InputError(f"The code of model {name!r} has no base model under {network.base_model_prefix!r}")
    return network.base_model, network.base_model_prefix


def _tokenizer(folder: str, model: ModelSettings) -> Any:
    """Return a model's tokenizer; refuse one without offsets, switch off the truncation and padding saved with it."""
    tokenizer = _from_pretrained("AutoTokenizer", folder, model)
    if not getattr(tokenizer, "is_fast", False):
        raise InputError(
            f"The tokenizer of {model.model!r} ({type(tokenizer).__name__}) gives no character offsets, which rows are "
            "made of: a fast tokenizer (a tokenizer.json) is needed"
        )
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    return tokenizer


def _context(config: Any, tokenizer: Any) -> int | None:
    """Return the longest input that both the network and its tokenizer allow."""
    limits = [int(tokenizer.model_max_length or 0), int(getattr(config, "max_position_embeddings", None) or 0)]
    if limits[1] and config.model_type in {"roberta", "xlm-roberta", "camembert"}:
        limits[1] -= int(config.pad_token_id) + 1  # these count positions from behind the padding id
    sensible = [limit for limit in limits if 0 < limit < 1 << 30]
    return min(sensible, default=None)


def _fingerprint(folder: Path, model: ModelSettings) -> str:
    """Return what identifies the model's content; the cache calls its folders by the commit."""
    content = _content_hash(folder) if Path(model.model).exists() else folder.name
    return content if model.randomise is None else f"{content}#random-{model.randomise}"


def _content_hash(folder: Path) -> str:
    """Return a hash over a folder's files, of which large ones are sampled."""
    digest = hashlib.sha256()
    for file in sorted(folder.iterdir()):
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


@dataclass(frozen=True)
class LoadedModel:
    """A network in memory, and where it computes."""

    reader: SiteReader
    device: Any

    @functools.cached_property
    def padding_matters(self) -> bool:
        """Whether a window's rows change when it is padded, as in networks that look at their input without a mask.

        Tried in a small random network of the architecture; where none can be built, padding is taken to matter
        unless every token sees only those before it.
        """
        network = self.reader.network
        kind = network.config.model_type
        try:
            with quiet_transformers():
                small = small_blocks(type(network), network.config, str(blocks_path(network)))
                matters = small.padding_matters()
        except MISFITS as error:
            matters = not _is_causal(network.config)
            logger.info("No small network of %s can be tried (%s)", kind, first_line(error))
        if matters:
            logger.info("Windows of %s are not padded, since that changes rows: batches are of equal length", kind)
        return matters

    def only(self, names: Collection[str]) -> LoadedModel:
        """Return the same model for some of its sites; a pass ends at the deepest of them."""
        return replace(self, reader=self.reader.only(names))


def _is_causal(config: Any) -> bool:
    """Return whether transformers knows the architecture as a causal language model, and as nothing else."""
    import transformers

    kind = type(config)
    return kind in transformers.MODEL_FOR_CAUSAL_LM_MAPPING and kind not in transformers.MODEL_FOR_MASKED_LM_MAPPING


def load(model: ModelSettings, sites: Collection[Site] | None = None) -> LoadedModel:
    """Load a model's weights and put hooks at `sites`, by default those of the model.

    Blocks behind the deepest site are dropped before the network goes to its device.

    Raises
    ------
    InputError
        If weights are missing from the model's files (a network with random parts would give plausible nonsense), or
        the device does not exist.
    """
    import torch

    device = torch_device(model.device)
    places = describe(model).sites.values() if sites is None else sites
    with quiet_transformers():
        network, missing = _drawn(model) if model.randomise is not None else _read(model)
    reader = SiteReader(network.eval().requires_grad_(requires_grad=False), places)
    persistent = set(network.state_dict())
    lacking = sorted(name for name in missing if name in persistent and "pooler" not in name)
    if lacking:
        raise InputError(f"The files of {model.model!r} lack weights that its architecture needs: {lacking[:5]}")
    network.to(torch.device(device))
    return LoadedModel(reader=reader, device=torch.device(device))


def _read(model: ModelSettings) -> tuple[Any, list[str]]:
    """Return the base network with its trained weights, and the names of those that its files lack."""
    import torch

    folder = locate(model, weights=True)
    loader = _loader(_from_pretrained("AutoConfig", folder, model))
    network, report = _from_pretrained(
        loader, folder, model, dtype=getattr(torch, model.dtype), output_loading_info=True
    )
    part, path = _text_part(network, model.model)
    return part, [name.removeprefix(f"{path}.") for name in report["missing_keys"]]


def _drawn(model: ModelSettings) -> tuple[Any, list[str]]:
    """Return the base network with weights of its own initialisation, the same for the same seed."""
    import torch
    import transformers

    config = _from_pretrained("AutoConfig", locate(model), model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(model.randomise)
        kind = getattr(transformers, _loader(config))
        network = kind.from_config(config, trust_remote_code=model.trust_remote_code)
    return _text_part(network, model.model)[0].to(getattr(torch, model.dtype)), []


def torch_device(name: str) -> str:
    """Return the torch device that a setting means here: ``auto`` is this process's GPU, if it sees one.

    Dask-CUDA shows each worker its own GPU first, so that ``cuda`` is another one in every worker. InputError if torch
    does not know the device, or there is none of that kind.

    >>> torch_device("cpu")
    'cpu'
    """
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"device: {name!r} is none of torch's; give auto, cpu or cuda") from error
    if device.type == "cuda" and not (torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count()):
        raise InputError(
            f"device: {name!r}, but torch sees {torch.cuda.device_count()} CUDA devices here; give auto or cpu"
        )
    return name


_shared: dict[str, LoadedModel] = {}
_shared_lock = threading.Lock()


def shared(model: ModelSettings, sites: Collection[Site]) -> LoadedModel:
    """Return the model that all tasks of this process share, loading it on first use.

    One model is kept at a time, so that a process never holds both sides of an experiment.
    """
    key = f"{model.model_dump_json()}|{sorted((site.name, *site.key) for site in sites)}"
    with _shared_lock:
        if key not in _shared:
            _shared.clear()
            _shared[key] = load(model, sites)
        return _shared[key]
