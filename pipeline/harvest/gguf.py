"""GGUF files: dequantised once, kept as safetensors in a cache folder in the layout of the Hugging Face hub.

Dequantising takes half a minute even for a small model and needs the optional packages ``gguf`` and ``accelerate``;
reading the converted folder takes a second and needs neither.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import time
from pathlib import Path
from typing import Any

from storage.errors import BusyError, InputError, MissingDependencyError
from storage.files import remove_folder, temporary_path
from storage.locks import lock
from storage.targets import sweep

logger = logging.getLogger(__name__)

#: Where converted models are kept, unless ``SUBSPACE_CACHE`` names another folder.
CACHE_NAME = "semantic-subspace-matching"

#: Raised when a change here makes older conversions unusable.
CONVERSION_VERSION = 1


def cache_folder() -> Path:
    """Return the folder of converted models: ``$SUBSPACE_CACHE``, or one under ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    chosen = os.environ.get("SUBSPACE_CACHE")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / CACHE_NAME


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal; an unchanged file is read once a process."""
    status = path.stat()
    return _sha256(path, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


@functools.lru_cache(maxsize=1024)
def _sha256(path: Path, _size: int, _modified: int, _changed: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def converted(path: Path) -> Path:
    """Return the folder with the dequantised copy of a GGUF file, making it on first use.

    It holds ``config.json``, ``model.safetensors`` (float32) and the tokenizer. Its name holds the SHA-256 of the GGUF
    file, so that another file never gets this one's copy.
    """
    folder = cache_folder() / f"{path.stem}-{file_sha256(path)[:16]}-v{CONVERSION_VERSION}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    waits = False
    while not (folder / "config.json").is_file():
        try:
            with lock(folder):
                _make(path, folder)
        except BusyError as error:
            if not waits:
                logger.info("Waiting for the copy of %s: %s", path.name, error)
            waits = True
            time.sleep(1)
    return folder


def _make(path: Path, folder: Path) -> None:
    """Make the copy under another name and rename it, unless it has been made in the meantime."""
    sweep(folder)
    if (folder / "config.json").is_file():
        return
    logger.info("Dequantising %s to %s (once; about half a minute for each 100 MB)", path.name, folder)
    new = temporary_path(folder, "new")
    new.mkdir()
    try:
        _convert(path, new)
        new.rename(folder)
    finally:
        remove_folder(new)


def _convert(path: Path, target: Path) -> None:
    """Write config, tokenizer and dequantised weights of `path` into `target`."""
    from safetensors.torch import save_file

    model, tokenizer = _read(path)
    weights = {name: value.contiguous() for name, value in model.state_dict().items()}
    # A tied output layer is the embedding under a second name; readers of the base model want the embedding.
    if model.config.tie_word_embeddings:
        weights.pop("lm_head.weight", None)
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    config = model.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.architectures = [type(model).__name__]
    tokenizer.save_pretrained(target)
    config.save_pretrained(target)


def _read(path: Path) -> tuple[Any, Any]:
    """Load a GGUF file as a float32 model and its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    place = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    try:
        return AutoModelForCausalLM.from_pretrained(**place, dtype=torch.float32), AutoTokenizer.from_pretrained(
            **place
        )
    except ImportError as error:
        raise MissingDependencyError(
            f"Reading {path.name} needs the packages gguf and accelerate: "
            "pip install 'semantic-subspace-matching[models]'"
        ) from error
    except (ValueError, KeyError, OSError, NotImplementedError) as error:
        raise InputError(f"{path} cannot be read as a GGUF language model: {error}") from error
