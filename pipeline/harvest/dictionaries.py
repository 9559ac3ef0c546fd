"""Dictionaries: found by one string, loaded, and checked for the width of what they read.

==============================  ====================================================================
``identity``                    the raw units; of hidden neurons, the decoder is the down projection
``random:FEATURES:K[:SEED]``    random unit directions, the K strongest a row: the control
a folder                        a dictionary in one of the formats below
a folder of folders             one dictionary for each site, in subfolders named like the sites
``release/sae_id``              a dictionary of SAELens's own list of releases
``owner/name[/folder]``         a repository on the hub, laid out like the folders
==============================  ====================================================================

A folder is known by its files: ``sae_weights.safetensors`` is SAELens's, ``sae.safetensors`` EleutherAI's sparsify,
``ae.pt`` dictionary_learning's, ``params.npz`` Gemma Scope's and ``params.safetensors`` Gemma Scope 2's,
``checkpoints/final.safetensors`` Llama Scope's; others can be registered. A subfolder may have any of the site's names:
``layers.3`` is found as ``blocks.3.hook_resid_post`` too, but never as ``layers.3.mlp``.

The *kind* of activation is explicit: ``post`` is what the dictionary's own nonlinearity gives, ``pre_topk`` the ReLU of
the encoder before the top k are chosen, ``raw`` the units themselves.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from pipeline.harvest.dictionary import CONFIG, IDENTITY, Asked, Dictionary, Encoded, Format, read_config
from pipeline.harvest.formats import saelens
from pipeline.harvest.hub import from_hub
from pipeline.settings.harvest import ActivationKind
from pipeline.settings.registries import DICTIONARIES
from storage.errors import InputError, MissingInputError

T = TypeVar("T")

__all__ = ["IDENTITY", "Dictionary", "Encoded", "dictionary_folder", "load_dictionary"]


def load_dictionary(
    spec: str,
    d_model: int,
    site: str = "",
    kind: ActivationKind = "post",
    *,
    names: Sequence[str] = (),
    neurons: bool = False,
    device: str = "cpu",
) -> Dictionary:
    """Load a dictionary and check that it fits the model; the same one is loaded once a process.

    Parameters
    ----------
    spec
        See the table of this module.
    d_model
        Width of the rows at the site.
    site, names
        The site and its other names, to choose the subfolder.
    kind
        Which activation to give; ``identity`` is always ``raw``.
    neurons
        Whether the site is the hidden neurons of an MLP.
    device
        The torch device that it computes on.

    Raises
    ------
    MissingInputError
        If there is no such folder, release or repository, or it is gated.
    InputError
        If the dictionary reads another width than `d_model`, `kind` makes no sense for it, or it cannot be honoured.
    MissingDependencyError
        If sae-lens is needed and not installed.

    Examples
    --------
    >>> load_dictionary("identity", 4).kind
    'raw'
    >>> load_dictionary("random:64:8", 4).id
    'random:64:8:0'
    """
    asked = Asked(spec, d_model, kind, neurons=neurons, device=device)
    name = spec.partition(":")[0]
    if name in DICTIONARIES and DICTIONARIES[name].weights is None:
        return DICTIONARIES[name].function(asked)
    spellings = tuple(dict.fromkeys((site, *names)))
    spellings += tuple(name.removesuffix(".input") for name in spellings if name.endswith(".input"))  # of transcoders
    folder = dictionary_folder(spec, *spellings)
    if folder is None:
        loaded = _load_remote(asked, spellings)
    else:
        if (folder / CONFIG).is_file():  # before the weights are read
            _check_width(read_config(folder).get("d_in"), d_model, str(folder))
        loaded = _load_folder(replace(asked, spec=str(folder), id=folder.name), _signature(folder))
    _check_width(loaded.d_model, d_model, loaded.id)
    return loaded


def dictionary_folder(spec: str, *sites: str) -> Path | None:
    """Return the local folder of a dictionary (its subfolder for the site, if it has one); None if it is elsewhere.

    `sites` are all names of the site. MissingInputError if the folder does not exist, or has no dictionary for the
    site.
    """
    root = Path(spec)
    inner = next((folder for folder in (root, *(root / site for site in sites)) if _holds_dictionary(folder)), None)
    if inner is not None:
        return inner
    if root.is_dir():
        inside = sorted(child.name for child in root.iterdir() if _holds_dictionary(child))
        wanted = sites[0] if sites else ""
        raise MissingInputError(
            f"The dictionary folder {root} has none of {', '.join(_files())}, nor a subfolder {wanted!r} "
            "with one" + (f"; it has dictionaries for {', '.join(inside)}" if inside else "")
        )
    if root.is_absolute() or spec.startswith("."):
        raise MissingInputError(f"No dictionary folder at {spec}: check 'dictionary' in the experiment file")
    return None


def _holds_dictionary(folder: Path) -> bool:
    return any((folder / file).is_file() for file in _files())


def _folder_formats() -> dict[str, Format]:
    """Return the formats that are known by their files, by that of the weights."""
    return {form.weights: form for form in DICTIONARIES.values() if form.weights is not None}


def _files() -> list[str]:
    """Return the names of all files that a dictionary may have."""
    return [CONFIG, *_folder_formats()]


def _downloads() -> list[str]:
    """Return the names of all files that are read of a dictionary."""
    return list(dict.fromkeys([*_files(), *(form.settings for form in _folder_formats().values())]))


def _check_width(width: int | None, d_model: int, name: str) -> None:
    """Refuse a dictionary that reads rows of another width."""
    if width != d_model:
        raise InputError(
            f"The dictionary {name} reads activations of width {width}, but the site has width {d_model}: it "
            "belongs to another model or another kind of site"
        )


def _signature(folder: Path) -> tuple[Any, ...]:
    """Return what changes when a folder's files do, so that a dictionary that was trained again is loaded again."""
    files = [(name, (folder / name).stat()) for name in _downloads() if (folder / name).is_file()]
    return tuple((name, status.st_size, status.st_mtime_ns, status.st_ctime_ns) for name, status in files)


@functools.lru_cache(maxsize=16)
def _load_folder(asked: Asked, _content: tuple[Any, ...]) -> Dictionary:
    """Load the dictionary in a folder, once a process for the same content."""
    formats = _folder_formats()
    weights = next((file for file in formats if (asked.folder / file).is_file()), None)
    if weights is None:
        raise MissingInputError(f"The dictionary folder {asked.folder} lacks {' or '.join(formats)}")
    return formats[weights].function(replace(asked, id=f"{asked.id}@{_folder_hash(asked.folder, weights)[:16]}"))


def _folder_hash(folder: Path, weights: str) -> str:
    """Return a SHA-256 over a dictionary's configuration and weights."""
    digest = hashlib.sha256()
    for file in (folder / _folder_formats()[weights].settings, folder / weights):
        if file.is_file():
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


@functools.lru_cache(maxsize=16)
def _load_remote(asked: Asked, sites: tuple[str, ...]) -> Dictionary:
    """Load a dictionary of SAELens's list or of the hub, once a process."""
    if "/" not in asked.spec.strip("/"):
        named = ", ".join(repr(name) for name, form in DICTIONARIES.items() if form.weights is None)
        raise MissingInputError(
            f"No dictionary {asked.spec!r}: give one of {named}, a folder, 'release/sae_id' of SAELens's list, or "
            "'owner/name' of the hub"
        )
    release, _, sae_id = asked.spec.partition("/")
    repository = _repository_of(release)
    if repository is None:
        return _load_from_hub(asked, sites)
    return _from_hub(lambda: saelens.load_release(release, sae_id, asked.kind, asked.device), asked.spec, repository)


def _split(spec: str) -> tuple[str, str]:
    """Return the repository and the folder in it.

    >>> _split("EleutherAI/sae-pythia-70m-32k/layers.3")
    ('EleutherAI/sae-pythia-70m-32k', 'layers.3')
    """
    owner, name, *folder = spec.split("/", maxsplit=2)
    return f"{owner}/{name}", "".join(folder)


def _repository_of(release: str) -> str | None:
    """Return the repository of a release of SAELens's list; None if the list lacks it."""
    saelens.sae_lens()
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    entry = get_pretrained_saes_directory().get(release)
    return None if entry is None else str(entry.repo_id)


def _load_from_hub(asked: Asked, sites: tuple[str, ...]) -> Dictionary:
    """Download the part of a repository that holds the site's dictionary, and load it like a local folder."""
    from huggingface_hub import snapshot_download

    repository, folder = _split(asked.spec)
    places = [folder, *(f"{folder}/{site}".lstrip("/") for site in sites if site)]
    patterns = ["config.json", *(f"{place}/{file}".lstrip("/") for place in places for file in _downloads())]
    root = Path(_from_hub(lambda: snapshot_download(repository, allow_patterns=patterns), asked.spec, repository))
    local = next((root / place for place in places if _has_weights(root / place)), None)
    if local is None:
        raise MissingInputError(
            f"The repository {repository} holds no dictionary for site {sites[0]!r}" + _others(asked.spec, repository)
        )
    source = replace(asked, spec=str(local), id=f"{repository}/{local.relative_to(root)}")
    return _load_folder(source, _signature(local))


def _has_weights(folder: Path) -> bool:
    return any((folder / file).is_file() for file in _folder_formats())


def _others(spec: str, repository: str) -> str:
    """Return for a message where in a repository dictionaries are; nothing if it has none, or cannot be asked."""
    from huggingface_hub import HfApi, constants

    if constants.HF_HUB_OFFLINE:
        return " in the hub's cache, and HF_HUB_OFFLINE keeps it from being downloaded"
    files = _from_hub(lambda: HfApi().list_repo_files(repository), spec, repository)
    folders = sorted(
        {file.removesuffix(f"/{name}") for name in _folder_formats() for file in files if file.endswith(f"/{name}")}
    )
    return f"; it has {', '.join(folders)}" if folders else ""


def _from_hub(read: Callable[[], T], spec: str, repository: str) -> T:
    hint = f"Check the name (a folder, a release of SAELens's list, or the repository {repository})"
    return from_hub(read, f"Dictionary {spec!r}", repository, hint)
