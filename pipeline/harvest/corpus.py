"""Text → corpus: read once, hashed, shared by both models.

Where the text may come from stands in :mod:`pipeline.harvest.sources`. Documents without a visible character are
dropped and counted. Of the others are taken

* all, or with ``documents`` the first so many, or with ``seed`` too a random sample of that size;
* with ``tokens``, documents from the first on, or with ``seed`` in random order, until model A's tokenizer finds so
  many tokens of text in them (special tokens not counted). The document that reaches the number is the last, and whole.

A sample is kept in the order of the source. The same source, settings and seed always give the same corpus.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import operator
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from pipeline.harvest.manifests import corpus_manifest
from pipeline.harvest.models import describe
from pipeline.harvest.rows import count_tokens
from pipeline.harvest.sources import Document, open_source
from pipeline.settings.harvest import CorpusSettings, ModelSettings
from storage import Corpus, claim, open_corpus, write_corpus
from storage.errors import InputError

logger = logging.getLogger(__name__)


def build_corpus(
    config: CorpusSettings,
    out: str | Path,
    model: ModelSettings | None = None,
    *,
    keep_empty: bool = False,
    overwrite: bool = True,
) -> Corpus:
    """Write a corpus; a finished one from the same source and settings is kept.

    Parameters
    ----------
    config
        Where the text comes from, and how much of it.
    out
        The corpus to write.
    model
        Model A, whose tokenizer counts; needed for ``tokens`` only.
    keep_empty
        Keep documents without a visible character too, so that numbers are those of the source: for stores whose rows
        name their documents.
    overwrite
        Whether a corpus at `out` that came from another source may be replaced.

    Raises
    ------
    InputError
        If the source is not there, is of another kind, lacks the column or split, or holds no text; or ``tokens`` is
        set without a model.

    Notes
    -----
    Memory: one document at a time; with ``seed``, the sampled documents.
    """
    manifest = corpus_manifest(config, model, keep_empty=keep_empty)
    with claim(out, manifest, overwrite=overwrite) as target:
        if target.is_current():
            return open_corpus(out)
        count = None if config.tokens is None or model is None else _counter(model)
        empty = Counter[str]()
        documents = open_source(config)
        chosen = _choose(documents if keep_empty else _with_text(documents, empty), config, count)
        first = next(chosen, None)
        if first is None:
            raise InputError(
                f"The corpus {config.path or config.dataset} holds no text: {empty.total()} empty documents"
            )
        names, texts, groups = _unzip(itertools.chain([first], chosen))
        corpus = write_corpus(
            out,
            texts,
            names=names,
            groups=groups if config.group is not None or first.group else None,
            attrs={"source": config.path or config.dataset},
            manifest=manifest,
            overwrite=overwrite,
        )
        dropped = "" if keep_empty else f" ({empty.total()} empty ones dropped)"
        logger.info("Corpus: %d documents%s", len(corpus), dropped)
        return corpus


def _counter(model: ModelSettings) -> Callable[[str], int]:
    """Return the function that counts a text's tokens."""
    tokenizer = describe(model).tokenizer
    return lambda text: count_tokens(tokenizer, text)


def _with_text(documents: Iterable[Document], empty: Counter[str]) -> Iterator[Document]:
    """Yield the documents that hold a visible character, and count the others."""
    for document in documents:
        if document.text.strip():
            yield document
        else:
            empty["documents"] += 1


def _unzip(documents: Iterable[Document]) -> Iterator[Iterator[str]]:
    """Return the names, texts and groups; those that are used must be drawn in step for memory to stay flat."""
    copies = itertools.tee(documents, len(Document._fields))
    return (map(operator.itemgetter(i), copy) for i, copy in enumerate(copies))


def _choose(
    documents: Iterable[Document], config: CorpusSettings, count: Callable[[str], int] | None
) -> Iterator[Document]:
    """Take what `config` asks for, in the order of the source."""
    if count is not None and config.tokens is not None:
        if config.seed is None:
            return _until(itertools.islice(documents, config.documents), config.tokens, count)
        return _sample_tokens(documents, config.tokens, config.documents, count, config.seed)
    if config.documents is None or config.seed is None:
        return itertools.islice(documents, config.documents)
    return _sample(documents, config.documents, config.seed)


def _until(documents: Iterable[Document], tokens: int, count: Callable[[str], int]) -> Iterator[Document]:
    """Yield documents up to the one with which `tokens` is reached."""
    n_tokens = 0
    for document in documents:
        yield document
        n_tokens += count(document.text)
        if n_tokens >= tokens:
            return
    _warn_of_too_few(n_tokens, tokens)


def _warn_of_too_few(n_tokens: int, wanted: int) -> None:
    if n_tokens < wanted:
        logger.warning("The documents that may be taken hold %d tokens; %d were asked for", n_tokens, wanted)


def _sample(documents: Iterable[Document], size: int, seed: int) -> Iterator[Document]:
    """Draw `size` documents at random (reservoir sampling, Vitter 1985, algorithm R)."""
    generator = random.Random(seed)  # noqa: S311 - a sample, not a secret
    sample: list[tuple[int, Document]] = []
    for i, document in enumerate(documents):
        place = i if i < size else generator.randint(0, i)
        if i < size:
            sample.append((i, document))
        elif place < size:
            sample[place] = (i, document)
    return (document for _, document in sorted(sample, key=lambda item: item[0]))


class _Drawn(NamedTuple):
    """A document with its place in the random order, negative: the last in the order is the least."""

    place: float
    number: int
    tokens: int
    document: Document


def _sample_tokens(
    documents: Iterable[Document], tokens: int, most: int | None, count: Callable[[str], int], seed: int
) -> Iterator[Document]:
    """Take documents in random order until `tokens` is reached, or there are `most`.

    Each document draws a number, and those with the lowest are kept, as few as reach `tokens`: a document of which
    that is known not to be one of them is not even tokenized.
    """
    generator = random.Random(seed)  # noqa: S311 - a sample, not a secret
    drawn: list[_Drawn] = []
    total = 0
    for number, document in enumerate(documents):
        place = -generator.random()
        if drawn and (total >= tokens or len(drawn) == most) and place < drawn[0].place:
            continue
        candidate = _Drawn(place, number, count(document.text), document)
        heapq.heappush(drawn, candidate)
        total += candidate.tokens
        while total - drawn[0].tokens >= tokens or (most is not None and len(drawn) > most):
            total -= heapq.heappop(drawn).tokens
    _warn_of_too_few(total, tokens)
    return (drawing.document for drawing in sorted(drawn, key=lambda drawing: drawing.number))
