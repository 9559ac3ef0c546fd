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
``params.npz`` Gemma Scope's. A subfolder may have any of the site's names: ``layers.3`` is found as
``blocks.3.hook_resid_post`` too, but never as ``layers.3.mlp``.

The *kind* of activation is explicit: ``post`` is what the dictionary's own nonlinearity gives, ``pre_topk`` the ReLU of
the encoder before the top k are chosen, ``raw`` the units themselves.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.config import ActivationKind
from pipeline.harvest import saelens, sparsify
from pipeline.harvest.dictionary import IDENTITY, Dictionary, Encoded, Identity
from pipeline.harvest.topk import RANDOM, random_dictionary
from storage.errors import InputError, MissingInputError
from storage.json_files import read_json_object

__all__ = ["IDENTITY", "Dictionary", "Encoded", "dictionary_folder", "load_dictionary"]

CONFIG = "cfg.json"

_WEIGHTS = (saelens.WEIGHTS, sparsify.WEIGHTS, saelens.GEMMA_SCOPE)


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
    site
        The site, to choose the subfolder.
    kind
        Which activation to give; ``identity`` is always ``raw``.
    names
        Other names of the site.
    neurons
        Whether the site is the hidden neurons of an MLP.
    device
        The torch device that it computes on.

    Returns
    -------
    Dictionary

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
    if spec == IDENTITY:
        return Identity(d_model, neurons=neurons)
    if spec.split(":", maxsplit=1)[0] == RANDOM:
        return random_dictionary(spec, d_model, kind, device)
    spellings = tuple(dict.fromkeys((site, *names)))
    folder = dictionary_folder(spec, *spellings)
    if folder is None:
        loaded = _load_remote(spec, spellings, kind, device)
    else:
        if (folder / CONFIG).is_file():  # before the weights are read
            _check_width(_read_config(folder).get("d_in"), d_model, str(folder))
        loaded = _load_folder(folder, _signature(folder), folder.name, kind, device)
    _check_width(loaded.d_model, d_model, loaded.id)
    return loaded


def dictionary_folder(spec: str, *sites: str) -> Path | None:
    """Return the local folder of a dictionary (its subfolder for the site, if it has one); None if it is elsewhere.

    Parameters
    ----------
    spec
        What the experiment names.
    sites
        All names of the site.

    Raises
    ------
    MissingInputError
        If the folder does not exist, or has no dictionary for the site.
    """
    root = Path(spec)
    found = next((folder for folder in (root, *(root / site for site in sites)) if _holds_dictionary(folder)), None)
    if found is not None:
        return found
    if root.is_dir():
        inside = sorted(child.name for child in root.iterdir() if _holds_dictionary(child))
        wanted = sites[0] if sites else ""
        raise MissingInputError(
            f"The dictionary folder {root} has neither a {CONFIG} (or {saelens.GEMMA_SCOPE}) nor a subfolder "
            f"{wanted!r} with one" + (f"; it has dictionaries for {', '.join(inside)}" if inside else "")
        )
    if root.is_absolute() or spec.startswith("."):
        raise MissingInputError(f"No dictionary folder at {spec}: check 'dictionary' in the experiment file")
    return None


def _holds_dictionary(folder: Path) -> bool:
    return (folder / CONFIG).is_file() or (folder / saelens.GEMMA_SCOPE).is_file()


def _check_width(width: int | None, d_model: int, name: str) -> None:
    """Refuse a dictionary that reads rows of another width."""
    if width != d_model:
        raise InputError(
            f"The dictionary {name} reads activations of width {width}, but the site has width {d_model}: it "
            "belongs to another model or another kind of site"
        )


def _signature(folder: Path) -> tuple[Any, ...]:
    """Return what changes when a folder's files do, so that a dictionary that was trained again is loaded again."""
    files = [folder / name for name in (CONFIG, *_WEIGHTS)]
    return tuple((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.is_file())


@functools.lru_cache(maxsize=16)
def _load_folder(folder: Path, _content: tuple[Any, ...], name: str, kind: ActivationKind, device: str) -> Dictionary:
    """Load the dictionary in a folder, once a process for the same content."""
    files = [name for name in _WEIGHTS if (folder / name).is_file()]
    if not files:
        raise MissingInputError(f"The dictionary folder {folder} lacks {' or '.join(_WEIGHTS)}")
    own_id = f"{name}@{_folder_hash(folder, files[0])[:16]}"
    if files[0] == saelens.GEMMA_SCOPE:
        return saelens.load_gemma_scope(folder, own_id, kind, device)
    config = _read_config(folder)
    if files[0] == sparsify.WEIGHTS:
        return sparsify.load_sparsify(folder, config, own_id, kind, device)
    return saelens.load_folder(folder, own_id, kind, device)


def _read_config(folder: Path) -> dict[str, Any]:
    return read_json_object(folder / CONFIG, f"There is no {folder / CONFIG}", "download the dictionary again")


def _folder_hash(folder: Path, weights: str) -> str:
    """Return a SHA-256 over a dictionary's configuration and weights."""
    digest = hashlib.sha256()
    for file in (folder / CONFIG, folder / weights):
        if file.is_file():
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


@functools.lru_cache(maxsize=16)
def _load_remote(spec: str, sites: tuple[str, ...], kind: ActivationKind, device: str) -> Dictionary:
    """Load a dictionary of SAELens's list or of the hub, once a process."""
    if "/" not in spec.strip("/"):
        raise MissingInputError(
            f"No dictionary {spec!r}: give 'identity', a folder, 'release/sae_id' of SAELens's list, or 'owner/name' "
            "of the hub"
        )
    release, _, sae_id = spec.partition("/")
    repository = _repository_of(release)
    if repository is None:
        return _load_from_hub(*_split(spec), spec, sites, kind, device)
    try:
        return saelens.load_release(release, sae_id, kind, device)
    except OSError as error:
        raise MissingInputError(_why_missing(spec, repository, error)) from error


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

    found = get_pretrained_saes_directory().get(release)
    return None if found is None else str(found.repo_id)


def _load_from_hub(  # noqa: PLR0917
    repository: str, folder: str, spec: str, sites: tuple[str, ...], kind: ActivationKind, device: str
) -> Dictionary:
    """Download the part of a repository that holds the site's dictionary, and load it like a local folder."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    files = (CONFIG, *_WEIGHTS)
    places = [folder, *(f"{folder}/{site}".lstrip("/") for site in sites if site)]
    patterns = [f"{place}/{file}".lstrip("/") for place in places for file in files]
    try:
        root = Path(snapshot_download(repository, allow_patterns=patterns))
    except (OSError, HFValidationError) as error:
        raise MissingInputError(_why_missing(spec, repository, error)) from error
    found = dictionary_folder(str(root / folder) if folder else str(root), *sites)
    if found is None or not any((found / file).is_file() for file in _WEIGHTS):
        raise MissingInputError(f"The repository {repository} holds no dictionary for site {sites[0]!r}")
    return _load_folder(found, _signature(found), f"{repository}/{found.relative_to(root)}", kind, device)


def _why_missing(spec: str, repository: str, error: Exception) -> str:
    """Return the message for a dictionary that the hub does not give."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    if isinstance(error, GatedRepoError):
        return (
            f"The dictionary {spec!r} is in a gated repository: ask for access at https://huggingface.co/{repository}, "
            "then log in with `hf auth login`"
        )
    if isinstance(error, RepositoryNotFoundError):
        return (
            f"No dictionary {spec!r}: there is no such folder, SAELens's list has no such release, and the hub has no "
            f"repository {repository} that you may read; check the name, or log in with `hf auth login`"
        )
    first = str(error).strip().split("\n", maxsplit=1)[0]
    return f"No dictionary {spec!r}: there is no such folder here, and the hub does not give {repository} ({first})"
