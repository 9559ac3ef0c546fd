"""What the results of a harvest depend on: the text, what identifies a model and its dictionaries, and the settings.

Both the functions that write corpus, rows and stores and those that only ask whether these are current take the
manifests from here.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from pipeline.harvest.models import ModelInfo, describe
from pipeline.harvest.site_check import SINK_MULTIPLE, check_model, dictionary_at, is_checked, model_key
from pipeline.harvest.sources import source_identity
from pipeline.settings.harvest import CorpusSettings, ModelSettings, Pool, StoreSettings
from pipeline.work.workers import deferred_interrupt
from storage import Manifest, new_manifest
from storage.errors import InputError
from storage.files import write_atomically
from storage.rundir import Side

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Template:
    """The special tokens around a window's text."""

    prefix: tuple[int, ...]
    suffix: tuple[int, ...]

    def __len__(self) -> int:
        """Return how many tokens of a window they take."""
        return len(self.prefix) + len(self.suffix)


@dataclass(frozen=True)
class SiteIdentity:
    """What identifies the activations of a site.

    Attributes
    ----------
    module, tensor
        Which tensor of which module is read.
    dictionary, kind
        The dictionary's id, with the hash of its weights, and the kind of activation that it gives.
    scale
        What the tensor is multiplied by.
    """

    module: str
    tensor: str
    dictionary: str
    kind: str
    scale: float = 1.0


@dataclass(frozen=True)
class ModelIdentity:
    """What identifies a model, as far as its rows and activations depend on it.

    Attributes
    ----------
    fingerprint
        See :class:`pipeline.harvest.models.ModelInfo`.
    context
        Longest input of the model or of a dictionary, in tokens; None if there is no limit.
    template
        The special tokens around every window.
    sites
        By their names.
    """

    fingerprint: str
    context: int | None
    template: Template
    sites: dict[str, SiteIdentity]

    def longest_window(self, max_length: int) -> int:
        """Return the longest window in tokens, special tokens included."""
        return min(max_length, self.context or max_length)


@dataclass(frozen=True)
class _Kept:
    """What identifies a model, and the key under which it was found."""

    key: str
    identity: ModelIdentity


_KEPT: TypeAdapter[dict[Side, _Kept]] = TypeAdapter(dict[Side, _Kept])


def keep_identity(file: Path, side: Side, model: ModelSettings) -> None:
    """Keep what identifies a model, so that :func:`known_identity` finds it without loading dictionaries."""
    identities = _read_kept(file) | {side: _Kept(model_key(model), identify_model(model))}
    write_atomically(file, [_KEPT.dump_json(identities, indent=2)])


def known_identity(file: Path, side: Side, model: ModelSettings) -> ModelIdentity:
    """Return what identifies a model: as it was kept, while its settings and local files are the same.

    That a branch on a hub has moved is seen where the model has been described by this process, as a run does.
    """
    stored = None if is_checked(model) else _read_kept(file).get(side)
    return stored.identity if stored is not None and stored.key == model_key(model) else identify_model(model)


def _read_kept(file: Path) -> dict[Side, _Kept]:
    if not file.is_file():
        return {}
    try:
        return _KEPT.validate_json(file.read_bytes())
    except ValidationError as error:
        logger.warning("%s is damaged, and is made again: %s", file, error)
        return {}


def identify_model(model: ModelSettings) -> ModelIdentity:
    """Describe a model and its dictionaries; errors are those of :func:`pipeline.harvest.site_check.check_model`."""
    with deferred_interrupt():  # imports torch and transformers
        info = check_model(model)
    dictionaries = {name: dictionary_at(model, site) for name, site in info.sites.items()}
    sites = {
        name: SiteIdentity(site.path, site.tensor, dictionaries[name].id, dictionaries[name].kind, site.scale)
        for name, site in info.sites.items()
    }
    return ModelIdentity(info.fingerprint, info.context, special_tokens(model, info), sites)


def corpus_manifest(config: CorpusSettings, model: ModelSettings | None, *, keep_empty: bool = False) -> Manifest:
    """Return what a corpus depends on; `model` is the one whose tokenizer counts ``tokens``."""
    settings: dict[str, Any] = {"documents": config.documents, "seed": config.seed, "column": config.column}
    if config.group is not None:
        settings["group"] = config.group
    if keep_empty:
        settings["keep_empty"] = True
    if config.tokens is not None:
        if model is None:
            raise InputError("'corpus: tokens' needs a model whose tokenizer counts them")
        settings |= {"tokens": config.tokens, "tokenizer": describe(model).fingerprint}
    return new_manifest("corpus", {"source": source_identity(config)}, settings)


def rows_manifest(corpus: str, models: Mapping[Side, ModelIdentity], max_length: int, pool: Pool) -> Manifest:
    """Return what the table of rows depends on; `corpus` is the fingerprint of the text."""
    settings: dict[str, Any] = {
        side: {
            "prefix": known.template.prefix,
            "suffix": known.template.suffix,
            "capacity": known.longest_window(max_length) - len(known.template),
        }
        for side, known in models.items()
    }
    fingerprints: dict[str, str] = {side: known.fingerprint for side, known in models.items()}
    return new_manifest("rows", {"corpus": corpus, **fingerprints}, settings | {"pool": pool})


def store_manifest(  # noqa: PLR0917 - what activations depend on, from the text to the settings
    corpus: str, rows: str, known: ModelIdentity, site: str, side: Side, model: ModelSettings, store: StoreSettings
) -> Manifest:
    """Return what the activation store of a site depends on; `corpus` and `rows` are fingerprints."""
    at = known.sites[site]
    return new_manifest(
        "harvest",
        {"corpus": corpus, "rows": rows, "model": known.fingerprint, "dictionary": at.dictionary},
        {
            "side": side,
            "module": at.module,
            "tensor": at.tensor,
            "kind": at.kind,
            "model_dtype": model.dtype,
            "batch_size": model.batch_size,
            "sink_multiple": SINK_MULTIPLE,
            **({} if at.scale == 1 else {"scale": at.scale}),
            **store.model_dump(),
        },
    )


def special_tokens(model: ModelSettings, info: ModelInfo) -> Template:
    """Return the special tokens around every window: the tokenizer's own, and BOS as the dictionary was trained.

    A causal model whose tokenizer adds nothing (SmolLM2, GPT-2) uses its first token as an attention sink, with a norm
    hundreds of times the others'; BOS in front takes that part. Dictionaries may say that they were trained without
    it, and ``prepend_bos`` in the experiment overrides both.
    """
    encoding = info.tokenizer.backend_tokenizer.encode("a")
    special = np.asarray(encoding.special_tokens_mask, bool)
    text = np.flatnonzero(~special)
    ids = list(encoding.ids)
    prefix, suffix = (ids[: text[0]], ids[text[-1] + 1 :]) if len(text) else (ids, [])
    wanted = model.prepend_bos if model.prepend_bos is not None else _trained_with_bos(model, info)
    bos = _first_token(model, info, wanted)
    if wanted is None:
        wanted = not prefix
    if wanted and bos is not None and bos not in prefix:
        prefix = [bos, *prefix]
    elif not wanted and not suffix and prefix[:1] == [bos]:
        # An encoder's first token is part of a pair with its last (RoBERTa calls it BOS): it stays.
        prefix = prefix[1:]
    return Template(tuple(prefix), tuple(suffix))


def _first_token(model: ModelSettings, info: ModelInfo, wanted: bool | str | None) -> int | None:
    """Return the id of the token that windows begin with, if they begin with one; None if there is none.

    Where a tokenizer has no BOS, TransformerLens puts EOS in front, and so did the training of a dictionary at one of
    its hook points.
    """
    tokenizer = info.tokenizer
    if isinstance(wanted, str):
        if wanted not in tokenizer.get_vocab():
            raise InputError(f"prepend_bos: {wanted!r} is not a token of the tokenizer of {model.model!r}")
        return int(tokenizer.convert_tokens_to_ids(wanted))
    if tokenizer.bos_token_id is not None or not wanted:
        return None if tokenizer.bos_token_id is None else int(tokenizer.bos_token_id)
    if model.prepend_bos:
        raise InputError(
            f"prepend_bos is set, but the tokenizer of {model.model!r} has no BOS token; name the token instead, "
            f"such as prepend_bos: {tokenizer.eos_token!r}"
        )
    trained_at = {str(dictionary_at(model, site).site) for site in info.sites.values()}
    if tokenizer.eos_token_id is None or not all(site.startswith("blocks.") for site in trained_at):
        logger.warning(
            "The dictionaries of %s were trained with BOS in front, which its tokenizer lacks: nothing is put in "
            "front; set prepend_bos to the token that was", model.model,
        )  # fmt: skip
        return None
    logger.info(
        "%s has no BOS token: windows begin with %r, as in TransformerLens, where its dictionaries were trained",
        model.model, tokenizer.eos_token,
    )  # fmt: skip
    return int(tokenizer.eos_token_id)


def _trained_with_bos(model: ModelSettings, info: ModelInfo) -> bool | None:
    """Return what the dictionaries say about BOS; None if nothing, or if they contradict each other."""
    said = {dictionary_at(model, site).prepend_bos for site in info.sites.values()} - {None}
    if len(said) > 1:
        raise InputError(
            f"The dictionaries of {model.model!r} disagree whether text starts with BOS: set 'prepend_bos', or "
            "harvest the sites in two experiments"
        )
    return said.pop() if said else None
