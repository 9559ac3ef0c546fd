"""Corpus → rows: which characters are a row, and which token stands for it on either side.

A row table holds everything that harvesting needs of the text, so that both models get the same rows by
construction: per row its document, characters, and per side the position and id of its token; per window the slice of
ready-made model inputs (special tokens included) on either side. ``row_hash`` of every store made from it is the same.

Special tokens and padding are never rows: neither those that the tokenizer adds, nor those that are written out in
the text (``<|endoftext|>`` in a web page).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from distributed import Client
from numpy.typing import NDArray

from pipeline.harvest.align import (
    Boundaries,
    Tokens,
    Windows,
    cut_windows,
    pooled_tokens,
    segment_starts,
    shared_boundaries,
)
from pipeline.harvest.manifests import ModelIdentity, Template, identify_model, rows_manifest
from pipeline.harvest.models import tokenizer_of
from pipeline.settings.harvest import ModelSettings, Pool
from pipeline.work.workers import ensure_client, in_order, run_tasks
from storage import Corpus, claim, open_corpus
from storage.errors import InputError
from storage.rundir import SIDES, Side

logger = logging.getLogger(__name__)

#: Documents that one task tokenizes.
_BLOCK_DOCUMENTS = 64

#: Special tokens that mark structure; the unknown token is not among them: it stands for text.
_STRUCTURAL = ("bos_token_id", "eos_token_id", "pad_token_id", "cls_token_id", "sep_token_id", "mask_token_id")


@dataclass(frozen=True)
class _Side:
    """What a task needs to tokenize for one model."""

    model: ModelSettings
    template: Template
    capacity: int


def make_rows(
    corpus_path: str | Path,
    a: ModelSettings,
    b: ModelSettings,
    max_length: int,
    out: str | Path,
    *,
    pool: Pool = "last",
    client: Client | None = None,
) -> Path:
    """Align both models' tokens over a corpus and write the table of rows.

    Parameters
    ----------
    corpus_path
        A corpus of ``storage.write_corpus``.
    a, b
        The two models.
    max_length
        Longest window in tokens, special tokens included; less where a model's context is shorter.
    out
        The table to write.
    pool
        What a row's value will be: the activation at the last token of its segment, or the ``max`` or ``mean`` over
        the segment's tokens.
    client
        Where the tasks run; threads of this process by default.

    Returns
    -------
    Path
        `out`.

    Raises
    ------
    InputError
        If a site or dictionary does not fit its model, or no row is shared; before anything is written.

    Notes
    -----
    Variables: ``document`` int32, ``char_start``, ``char_end`` int64, ``window_of_row`` int32, ``position_a``,
    ``token_id_a``, ``position_b``, ``token_id_b`` int32 over ``token``; ``window_document`` int32,
    ``window_start``, ``window_end``, ``first_a``, ``stop_a``, ``first_b``, ``stop_b`` int64 over ``window``;
    ``input_a``, ``input_b`` int32, the model inputs of all windows one after the other; unless `pool` is ``last``,
    ``pooled_a``, ``pooled_b`` bool beside them, the tokens that enter the value of the next row at or behind them;
    ``group`` int64 over ``token``, if the corpus has groups (:func:`storage.rows.group_number`).

    Attributes count what was read and what found no row: ``n_tokens_a``, ``n_tokens_b``; ``share_a``, ``share_b``, the
    share of these that have a row of their own; ``n_pooled_a``, ``n_pooled_b``, tokens that enter a row; ``n_special``
    ends of special tokens written out in the text; ``n_outside`` ends in segments longer than a window;
    ``n_documents``, ``n_documents_cut`` into several windows, ``n_documents_without_rows``.

    Memory: about 60 bytes a row and 10 bytes a token and side.
    """
    out = Path(out)
    corpus = open_corpus(corpus_path)
    models: dict[Side, ModelSettings] = {"a": a, "b": b}
    known = {side: identify_model(model) for side, model in models.items()}
    sides = {side: _side(models[side], known[side], max_length) for side in SIDES}
    manifest = rows_manifest(corpus.hash, known, max_length, pool)
    with claim(out, manifest, overwrite=True) as target:
        if not target.is_current():
            table = _align(corpus, sides, pool, client)
            if corpus.has_groups:
                table["group"] = ("token", corpus.group_numbers()[table["document"].values])
            settings = {"corpus_hash": corpus.hash, "max_length": max_length, "pool": pool}
            table.attrs |= settings | _document_counts(table, len(corpus)) | _template_attrs(sides)
            target.write(table)
            _log_counts(table)
    return out


def _align(corpus: Corpus, sides: Mapping[Side, _Side], pool: Pool, client: Client | None) -> xr.Dataset:
    """Return the rows of all documents, before attributes."""
    starts = range(0, len(corpus), _BLOCK_DOCUMENTS)
    with ensure_client(client) as used:
        tasks = run_tasks(
            used, _align_block, starts, name="align-block", label="align tokens",
            args=(str(corpus.path), sides["a"], sides["b"], pool),
        )  # fmt: skip
        blocks = list(in_order((start // _BLOCK_DOCUMENTS, block) for start, block in tasks))
    table = _assemble(blocks)
    if not table.sizes["token"]:
        raise InputError(f"Not one token of {corpus.path} ends at the same character in both models: no rows")
    return table


def _side(model: ModelSettings, known: ModelIdentity, max_length: int) -> _Side:
    longest = known.longest_window(max_length)
    if longest < max_length:
        logger.info("Windows for %s are %d tokens (its context), not %d", model.model, longest, max_length)
    if longest <= len(known.template):
        raise InputError(f"max_length {longest} leaves no room for text beside {len(known.template)} special tokens")
    return _Side(model, known.template, longest - len(known.template))


_tokenizers: dict[str, Any] = {}
_tokenizers_lock = threading.Lock()


def _tokenizer(model: ModelSettings) -> Any:
    """Return the tokenizer that all tasks of this process share; its encoding is free of state."""
    key = f"{model.model}@{model.revision}"
    with _tokenizers_lock:
        if key not in _tokenizers:
            _tokenizers[key] = tokenizer_of(model)
        return _tokenizers[key]


def tokenize(tokenizer: Any, texts: Sequence[str]) -> list[Tokens]:
    """Tokenize texts without special tokens, truncation or padding.

    The tokenizer is a fast one, as :func:`pipeline.harvest.models.describe` prepares it.
    """
    encodings = tokenizer.backend_tokenizer.encode_batch(list(texts), add_special_tokens=False)
    return [Tokens.of(encoding.ids, encoding.offsets) for encoding in encodings]


def count_tokens(tokenizer: Any, text: str) -> int:
    """Return how many tokens of a text stand for characters and are not special: those that may become rows."""
    (tokens,) = tokenize(tokenizer, [text])
    return int(((tokens.ends > tokens.starts) & ~_StructuralTokens(tokenizer)(tokens, text)).sum())


def _align_block(start: int, corpus_path: str, a: _Side, b: _Side, pool: Pool) -> dict[str, Any]:
    """Tokenize and align a block of documents; one task."""
    corpus = open_corpus(corpus_path)
    texts = corpus.texts(start, min(start + _BLOCK_DOCUMENTS, len(corpus)))
    readings = [_read_side(side, texts) for side in (a, b)]
    documents = enumerate(zip(*readings, strict=True), start)
    return _concatenate([_align_document(number, a_text, b_text, pool) for number, (a_text, b_text) in documents])


class _Reading(NamedTuple):
    """One document as one side reads it."""

    tokens: Tokens
    special: NDArray[np.bool_]
    side: _Side


def _read_side(side: _Side, texts: Sequence[str]) -> list[_Reading]:
    tokenizer = _tokenizer(side.model)
    structural = _StructuralTokens(tokenizer)
    return [
        _Reading(tokens, structural(tokens, text), side)
        for tokens, text in zip(tokenize(tokenizer, texts), texts, strict=True)
    ]


class _StructuralTokens:
    """Finds the tokens of a text that are special: written-out BOS, EOS, separators and so on."""

    def __init__(self, tokenizer: Any) -> None:
        self._structural = {getattr(tokenizer, name, None) for name in _STRUCTURAL} - {None}
        named = zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True)
        # Llama 3 marks the tokens of a chat as special in this list alone
        added = [(id_, token) for id_, token in tokenizer.added_tokens_decoder.items() if token.special]
        self._special = {int(id_): str(token) for id_, token in (*added, *named)}

    def __call__(self, tokens: Tokens, text: str) -> NDArray[np.bool_]:
        """Return which tokens are special, as bool (tokens,)."""
        suspects = np.isin(tokens.ids, list(self._special))
        for i in np.flatnonzero(suspects):
            spelled = text[tokens.starts[i] : tokens.ends[i]].strip() == self._special[int(tokens.ids[i])].strip()
            suspects[i] = spelled or int(tokens.ids[i]) in self._structural
        return suspects


def _align_document(number: int, a: _Reading, b: _Reading, pool: Pool) -> dict[str, Any]:
    """Return one document's part of the table; window numbers and input offsets start at 0."""
    boundaries = shared_boundaries(a.tokens, b.tokens)
    windows = cut_windows(boundaries, a.side.capacity, b.side.capacity)
    inside = _rows_of(windows)
    shared = inside[~(a.special[boundaries.last_a[inside]] | b.special[boundaries.last_b[inside]])]
    window = np.searchsorted(windows.last_row, shared)
    starts = segment_starts(boundaries, a.tokens, b.tokens)
    return {
        "document": np.full(len(shared), number, np.int32),
        "char_start": starts[shared],
        "char_end": boundaries.ends[shared],
        "window_of_row": window.astype(np.int32),
        "window_document": np.full(len(windows.first_row), number, np.int32),
        "window_start": starts[windows.first_row],
        "window_end": boundaries.ends[windows.last_row],
        **_side_part("a", a, boundaries.last_a[shared], (windows.first_a, windows.stop_a), window),
        **_side_part("b", b, boundaries.last_b[shared], (windows.first_b, windows.stop_b), window),
        **(_pooled_inputs(windows, boundaries, shared, {"a": a, "b": b}) if pool != "last" else {}),
        "n_special": len(inside) - len(shared),
        "n_outside": len(boundaries.ends) - len(inside),
    }


def _rows_of(windows: Windows) -> NDArray[np.int64]:
    """Return the numbers of the boundaries that lie in some window."""
    spans = [np.arange(first, last + 1) for first, last in zip(windows.first_row, windows.last_row, strict=True)]
    return np.concatenate([np.empty(0, np.int64), *spans])


def _side_part(
    name: str,
    reading: _Reading,
    token: NDArray[np.int64],
    spans: tuple[NDArray[np.int64], NDArray[np.int64]],
    window: NDArray[np.int64],
) -> dict[str, Any]:
    """Return one side's columns of a document: positions, token ids, and the model inputs of its windows.

    `token` is each row's token; `spans` are the windows' first and stop tokens.
    """
    first, stop = spans
    ids, template = reading.tokens.ids, reading.side.template
    pieces = [part for i, j in zip(first, stop, strict=True) for part in (template.prefix, ids[i:j], template.suffix)]
    lengths = stop - first + len(template)
    ends = np.cumsum(lengths)
    return {
        f"position_{name}": (token - first[window] + len(template.prefix)).astype(np.int32),
        f"token_id_{name}": ids[token].astype(np.int32),
        f"first_{name}": ends - lengths,
        f"stop_{name}": ends,
        f"input_{name}": np.concatenate([np.empty(0, np.int32), *pieces]).astype(np.int32),
        f"n_tokens_{name}": len(ids),
    }


def _pooled_inputs(
    windows: Windows, boundaries: Boundaries, shared: NDArray[np.int64], readings: dict[Side, _Reading]
) -> dict[str, Any]:
    """Return which model inputs of a document's windows enter the value of a row, on both sides."""
    columns = {}
    for side, reading in readings.items():
        tokens, template = reading.tokens, reading.side.template
        last = getattr(boundaries, f"last_{side}")
        pooled = pooled_tokens(last, shared, (tokens.ends > tokens.starts) & ~reading.special)
        first, stop = (getattr(windows, f"{edge}_{side}") for edge in ("first", "stop"))
        around = np.zeros(len(template.prefix), bool), np.zeros(len(template.suffix), bool)
        pieces = [part for i, j in zip(first, stop, strict=True) for part in (around[0], pooled[i:j], around[1])]
        columns[f"pooled_{side}"] = np.concatenate([np.empty(0, bool), *pieces])
    return columns


#: What to add to the values of a part when it is put behind others: the number of windows or of input tokens so far.
_SHIFTED_BY = {
    "window_of_row": "window_document",
    "first_a": "input_a",
    "stop_a": "input_a",
    "first_b": "input_b",
    "stop_b": "input_b",
}


def _concatenate(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Put parts of the table one behind the other; counts are summed."""
    joined: dict[str, Any] = {}
    for name, value in parts[0].items():
        if isinstance(value, int):
            joined[name] = sum(part[name] for part in parts)
        else:
            joined[name] = np.concatenate(list(_shifted(parts, name)))
    return joined


def _shifted(parts: Sequence[dict[str, Any]], name: str) -> Iterator[NDArray[Any]]:
    """Yield a column's parts, numbers of windows or input tokens counted on from the parts before."""
    counter, shift = _SHIFTED_BY.get(name), 0
    for part in parts:
        yield part[name] if counter is None else (part[name] + shift).astype(part[name].dtype)
        shift += len(part[counter]) if counter else 0


def _assemble(blocks: Sequence[dict[str, Any]]) -> xr.Dataset:
    """Make the table of all blocks."""
    joined = _concatenate(blocks)
    table = xr.Dataset(
        {name: (_dimension(name), value) for name, value in joined.items() if not isinstance(value, int)},
        attrs={name: value for name, value in joined.items() if isinstance(value, int)},
    )
    n_rows = table.sizes["token"]
    table.attrs["n_rows"] = n_rows
    for side in ("a", "b"):
        table.attrs[f"share_{side}"] = n_rows / max(1, table.attrs[f"n_tokens_{side}"])
        table.attrs[f"n_pooled_{side}"] = int(table[f"pooled_{side}"].sum()) if f"pooled_{side}" in table else n_rows
    return table


def _document_counts(table: xr.Dataset, n_documents: int) -> dict[str, int]:
    """Count the documents that were cut into several windows, and those without any row."""
    windows = np.bincount(table["window_document"].values, minlength=n_documents)
    rows = np.bincount(table["document"].values, minlength=n_documents)
    return {
        "n_documents": n_documents,
        "n_documents_cut": int((windows > 1).sum()),
        "n_documents_without_rows": int((rows == 0).sum()),
    }


def _dimension(name: str) -> str:
    if name.startswith(("input_", "pooled_")):
        return f"slot_{name[-1]}"
    if name.startswith(("window_", "first_", "stop_")) and name != "window_of_row":
        return "window"
    return "token"


def _template_attrs(sides: Mapping[Side, _Side]) -> dict[str, Any]:
    return {
        f"{part}_{side}": list(getattr(s.template, part)) for side, s in sides.items() for part in ("prefix", "suffix")
    }


def _log_counts(table: xr.Dataset) -> None:
    """Say how many tokens found a row and how documents were cut, so that nothing is dropped silently."""
    counts = table.attrs
    logger.info(
        "%d rows: %.1f%% of A's tokens and %.1f%% of B's end one; left out: %d special tokens written in the text, "
        "%d ends in segments longer than a window",
        table.sizes["token"], 100 * counts["share_a"], 100 * counts["share_b"],
        counts["n_special"], counts["n_outside"],
    )  # fmt: skip
    logger.info(
        "%d windows: %d of %d documents are cut into several, %d have no row",
        table.sizes["window"], counts["n_documents_cut"], counts["n_documents"], counts["n_documents_without_rows"],
    )  # fmt: skip
