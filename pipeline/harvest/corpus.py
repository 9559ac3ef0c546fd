"""Text → corpus: read once, hashed, shared by both models.

===============================  =======================================================================
``path`` to a ``.txt`` file      documents are separated by blank lines
``path`` to a ``.jsonl`` file    one document a line: an object with the text under ``column``, or a string
``path`` to a ``.parquet`` file  one document a row, the text in ``column``
``path`` to a folder             its files of these kinds in order of their names; a ``.txt`` file is one document
``dataset``                      a Hugging Face dataset: hub id (streamed), or local folder
===============================  =======================================================================

Documents without a visible character are dropped and counted. With ``documents`` the first so many are taken, or,
with ``seed`` too, a random sample of that size in the order of the source.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import random
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from pipeline.config import CorpusConfig, ModelConfig
from pipeline.harvest.gguf import file_sha256
from storage import Corpus, is_current, new_manifest, open_corpus, write_corpus
from storage.errors import InputError, MissingDependencyError, MissingInputError

logger = logging.getLogger(__name__)

Document = tuple[str, str]
"""Name and text."""

_SUFFIXES = (".txt", ".jsonl", ".parquet")
_BLANK_LINES = re.compile(r"\n[ \t]*\n\s*")


def build_corpus(config: CorpusConfig, out: str | Path, model: ModelConfig | None = None) -> Corpus:
    """Write the corpus of an experiment; a finished one from the same source and settings is kept.

    Parameters
    ----------
    config
        Where the text comes from.
    out
        The corpus to write.

    Returns
    -------
    storage.Corpus

    Raises
    ------
    MissingInputError
        If the file, folder or dataset is not there.
    InputError
        If it is of another kind, lacks the column, or holds no text.

    Notes
    -----
    Memory: one document at a time; with ``seed``, the sampled documents.
    """
    documents, source = _source(config)
    settings = {"documents": config.documents, "seed": config.seed, "column": config.column}
    manifest = new_manifest("corpus", {"source": source}, settings)
    if is_current(out, manifest):
        return open_corpus(out)
    kept = _Counted(documents)
    chosen = _choose(kept, config.documents, config.seed)
    first = next(chosen, None)
    if first is None:
        raise InputError(f"The corpus {config.path or config.dataset} holds no text: {kept.empty} empty documents")
    names, texts = _unzip(itertools.chain([first], chosen))
    corpus = write_corpus(out, texts, names=names, attrs={"source": config.path or config.dataset}, manifest=manifest)
    logger.info("Corpus: %d documents (%d empty ones dropped)", len(corpus), kept.empty)
    return corpus


class _Counted:
    """Passes on documents that hold a visible character, and counts the others."""

    def __init__(self, documents: Iterable[Document]) -> None:
        self._documents = documents
        self.empty = 0

    def __iter__(self) -> Iterator[Document]:
        for name, text in self._documents:
            if text.strip():
                yield name, text
            else:
                self.empty += 1


def _unzip(documents: Iterable[Document]) -> tuple[Iterator[str], Iterator[str]]:
    """Split into names and texts; they must be drawn in step for memory to stay flat."""
    one, two = itertools.tee(documents)
    return (name for name, _ in one), (text for _, text in two)


def _choose(documents: Iterable[Document], count: int | None, seed: int | None) -> Iterator[Document]:
    """Take all documents, the first `count`, or a seeded sample of `count` in the order of the source."""
    if count is None or seed is None:
        return itertools.islice(documents, count)
    generator = random.Random(seed)  # noqa: S311 - a sample, not a secret
    sample: list[tuple[int, Document]] = []
    for i, document in enumerate(documents):
        place = i if i < count else generator.randint(0, i)
        if i < count:
            sample.append((i, document))
        elif place < count:
            sample[place] = (i, document)
    return (document for _, document in sorted(sample, key=lambda item: item[0]))


def _source(config: CorpusConfig) -> tuple[Iterator[Document], str]:
    """Return the documents, lazily, and what identifies the source's content."""
    if config.dataset is not None:
        return _read_dataset(config), f"{config.dataset}@{config.revision}:{config.split}"
    path = Path(str(config.path))
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix in _SUFFIXES and file.is_file())
        if not files:
            raise InputError(f"The folder {path} holds no {', '.join(_SUFFIXES)} file")
        digest = hashlib.sha256("".join(f"{file.relative_to(path)}\0{file_sha256(file)}\n" for file in files).encode())
        return _read_folder(files, path, config.column), digest.hexdigest()
    if not path.is_file():
        raise MissingInputError(f"No corpus at {path}: check 'corpus: path' in the experiment file")
    return _reader(path)(path, config.column), file_sha256(path)


def _read_folder(files: list[Path], root: Path, column: str) -> Iterator[Document]:
    for file in files:
        name = file.relative_to(root).as_posix()
        if file.suffix == ".txt":
            yield name, _read_text(file)
        else:
            yield from ((f"{name}:{inner}", text) for inner, text in _reader(file)(file, column))


def _reader(path: Path) -> Callable[[Path, str], Iterator[Document]]:
    """Return the reader of a file's kind."""
    readers = {".txt": _read_blocks, ".jsonl": _read_jsonl, ".parquet": _read_parquet}
    if path.suffix not in readers:
        raise InputError(
            f"The corpus {path} is a {path.suffix or 'nameless kind of'} file; expected {', '.join(readers)}"
        )
    return readers[path.suffix]


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text: {error}; convert it first") from error


def _read_blocks(path: Path, _: str) -> Iterator[Document]:
    for number, block in enumerate(_BLANK_LINES.split(_read_text(path))):
        yield str(number), block


def _read_jsonl(path: Path, column: str) -> Iterator[Document]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield _json_document(line, column, f"{path}, line {number}", str(number))


def _json_document(line: str, column: str, where: str, number: str) -> Document:
    """Return the name and text of one JSON line."""
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{where} is not valid JSON: {error}") from error
    if isinstance(record, str):
        return number, record
    text = record.get(column) if isinstance(record, dict) else None
    if not isinstance(text, str):
        keys = sorted(record) if isinstance(record, dict) else type(record).__name__
        raise InputError(f"{where} has no text under {column!r} (it has {keys}): set 'corpus: column'")
    return str(record.get("name", number)), text


def _read_parquet(path: Path, column: str) -> Iterator[Document]:
    try:
        import pyarrow.parquet as pq  # type: ignore[import-untyped]
    except ImportError as error:
        raise MissingDependencyError(
            "Reading Parquet needs pyarrow: pip install 'semantic-subspace-matching[models]'"
        ) from error
    file = pq.ParquetFile(path)
    if column not in file.schema_arrow.names:
        raise InputError(f"{path} has no column {column!r} (it has {file.schema_arrow.names}): set 'corpus: column'")
    texts = (text for batch in file.iter_batches(columns=[column]) for text in batch.column(0).to_pylist())
    yield from ((str(i), text or "") for i, text in enumerate(texts))


def _read_dataset(config: CorpusConfig) -> Iterator[Document]:
    """Yield the documents of a Hugging Face dataset, streamed where it lies on the hub."""
    for i, record in enumerate(_open_dataset(config)):
        if not isinstance(record.get(config.column), str):
            raise InputError(
                f"Dataset {config.dataset!r} has no text column {config.column!r} (it has {sorted(record)}): "
                "set 'corpus: column'"
            )
        yield str(i), record[config.column]


def _open_dataset(config: CorpusConfig) -> Iterable[dict[str, Any]]:
    try:
        import datasets
    except ImportError as error:
        raise MissingDependencyError(
            "Datasets need the package datasets: pip install 'semantic-subspace-matching[models]'"
        ) from error
    name = str(config.dataset)
    try:
        if (Path(name) / "dataset_dict.json").is_file() or (Path(name) / "dataset_info.json").is_file():
            stored: Any = datasets.load_from_disk(name)
            return stored[config.split] if isinstance(stored, datasets.DatasetDict) else stored
        return datasets.load_dataset(name, split=config.split, revision=config.revision, streaming=True)
    except KeyError as error:
        raise InputError(f"Dataset {name!r} has no split {config.split!r}") from error
    except (FileNotFoundError, ConnectionError, ValueError) as error:
        first_line = str(error).split("\n", maxsplit=1)[0]
        raise MissingInputError(f"Dataset {name!r}, split {config.split!r}, cannot be read: {first_line}") from error
