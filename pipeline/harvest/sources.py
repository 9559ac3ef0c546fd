"""Where text comes from: files, folders and Hugging Face datasets, read one document at a time.

===============================  =======================================================================
``path`` to a ``.txt`` file      documents are separated by blank lines
``path`` to a ``.jsonl`` file    one document a line: an object with the text under ``column``, or a string
``path`` to a ``.parquet`` file  one document a row, the text in ``column``
``path`` to a table of tokens    a document is its tokens, one after the other (:mod:`storage.token_tables`)
``path`` to a corpus             what ``subspace corpus`` wrote, or an earlier run
``path`` to a folder             its files of these kinds in order of their names; a ``.txt`` file is one document
``dataset``, a local folder      what ``save_to_disk`` wrote, or data files that ``load_dataset`` reads; never copied
``dataset``, a hub id            streamed, or downloaded into Hugging Face's own cache (``streaming``)
===============================  =======================================================================

A list of texts in the place of one is that of a document's tokens.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pipeline.harvest.gguf import file_sha256
from pipeline.harvest.hub import from_hub
from pipeline.settings.harvest import CorpusSettings
from storage import Corpus, open_corpus
from storage.damage import first_line
from storage.errors import InputError, MissingInputError
from storage.extras import need
from storage.inventory import GROUP_FILE
from storage.listing import files_below
from storage.token_tables import TOKENS, check_pieces, has_tokens, iter_texts

T = TypeVar("T")


class Document(NamedTuple):
    """A text, its name, and the group that it is of; empty if none are asked for."""

    name: str
    text: str
    group: str = ""


class Columns(NamedTuple):
    """The columns or JSON keys of the text, and of the group if there is one."""

    text: str
    group: str | None


_SUFFIXES = (".txt", ".jsonl", ".parquet")
_BLANK_LINES = re.compile(r"\n[ \t]*\n\s*")


def source_identity(config: CorpusSettings) -> str:
    """Return what identifies the source's content.

    Local sources are identified by the hash of their files; a hub dataset by its name, revision, subset and split, so
    that a finished corpus is known without a network. Pin ``revision`` to be sure which text it is.
    """
    if config.dataset is not None:
        return _dataset_identity(config)
    path = Path(str(config.path))
    if is_group(path):
        return open_corpus(path).hash
    files = local_files(path)
    return _hash_of(files, path) if path.is_dir() else file_sha256(path)


def open_source(config: CorpusSettings) -> Iterator[Document]:
    """Return the documents, lazily.

    Raises
    ------
    MissingInputError
        If there is no such file, folder or dataset, or it is gated.
    InputError
        If it is of another kind than expected, holds no such split, subset or column, or is not UTF-8.
    MissingDependencyError
        If the package that reads it is not installed.
    """
    if config.dataset is not None:
        return _read_dataset(config)
    path = Path(str(config.path))
    if is_group(path):
        return _read_corpus(open_corpus(path))
    files = local_files(path)
    columns = Columns(config.column, config.group)
    return _read_folder(files, path, columns) if path.is_dir() else _reader(path)(path, columns)


def is_group(path: Path) -> bool:
    """Say whether something at a path is no file of text, but a group of Zarr, as a corpus is."""
    return (path / GROUP_FILE).is_file()


def _read_corpus(corpus: Corpus) -> Iterator[Document]:
    for number, text in enumerate(corpus.iter_texts(range(len(corpus)))):
        group = corpus.groups(number, number + 1)[0] if corpus.has_groups else ""
        yield Document(corpus.name(number), text, group)


def local_files(path: Path) -> list[Path]:
    """Return the files of a corpus that is a file or a folder of this host; InputError if there are none."""
    if is_group(path):
        open_corpus(path)
        return [path]
    if path.is_dir():
        files = sorted(file for file in files_below(path) if file.suffix in _SUFFIXES)
        if not files:
            raise InputError(f"The folder {path} holds no {', '.join(_SUFFIXES)} file")
        return files
    if not path.is_file():
        raise MissingInputError(f"No corpus at {path}: check 'corpus: path' in the experiment file")
    return [path]


def _hash_of(files: Iterable[Path], root: Path) -> str:
    lines = (f"{file.relative_to(root)}\0{file_sha256(file)}\n" for file in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _read_folder(files: list[Path], root: Path, columns: Columns) -> Iterator[Document]:
    for file in files:
        name = file.relative_to(root).as_posix()
        if file.suffix == ".txt":
            _no_group(file, columns)
            yield Document(name, _read_text(file))
        else:
            for document in _reader(file)(file, columns):
                yield document._replace(name=f"{name}:{document.name}")


def _no_group(file: Path, columns: Columns) -> None:
    """Refuse a file of plain text where documents are to be in groups."""
    if columns.group is not None:
        raise InputError(
            f"{file} is plain text, and has no {columns.group!r} for 'corpus: group': write its documents as .jsonl"
        )


def _reader(path: Path) -> Callable[[Path, Columns], Iterator[Document]]:
    """Return the reader of a file's kind."""
    readers = {".txt": _read_blocks, ".jsonl": _read_jsonl, ".parquet": _read_parquet}
    if has_tokens(path):
        return _read_tokens
    if path.suffix not in readers:
        raise InputError(
            f"The corpus {path} is a {path.suffix or 'nameless kind of'} file; expected {', '.join(readers)}, "
            "or a table of tokens with the columns document and token (.csv, .parquet, .npz)"
        )
    return readers[path.suffix]


def _read_tokens(path: Path, columns: Columns) -> Iterator[Document]:
    for name, text, group in iter_texts(path):
        yield Document(name, text, group if columns.group == "group" else _group_of({}, columns.group, str(path)))


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text: {error}; convert it first") from error


def _read_blocks(path: Path, columns: Columns) -> Iterator[Document]:
    _no_group(path, columns)
    for number, block in enumerate(_BLANK_LINES.split(_read_text(path))):
        yield Document(str(number), block)


def _read_jsonl(path: Path, columns: Columns) -> Iterator[Document]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield _json_document(line, columns, f"{path}, line {number}", str(number))


def _json_document(line: bytes, columns: Columns, where: str, number: str) -> Document:
    """Return the document of one JSON line."""
    try:
        record = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise InputError(f"{where} is not UTF-8 text: {error}; convert it first") from error
    except (ValueError, RecursionError) as error:  # ValueError: also a number of thousands of digits
        raise InputError(f"{where} is not valid JSON: {error}") from error
    if isinstance(record, str | list) and columns.group is None:
        return Document(number, _text(record, where))
    if isinstance(record, dict) and isinstance(record.get(TOKENS), list) and columns.text not in record:
        record = {columns.text: record[TOKENS], **record}
    if not isinstance(record, dict) or columns.text not in record:
        keys = sorted(record) if isinstance(record, dict) else type(record).__name__
        raise InputError(f"{where} has no text under {columns.text!r} (it has {keys}): set 'corpus: column'")
    name = _text(str(record.get("name", number)), f"The name at {where}")
    return Document(name, _text(record[columns.text], where, columns.text), _group_of(record, columns.group, where))


def _text(value: Any, where: str, column: str = "") -> str:
    """Return a text as every format gives it: null is an empty one, and what is no text is refused.

    A list of texts is one, cut into tokens.

    Half of a pair of surrogates, which JSON can hold, is no character and cannot be stored.

    >>> _text(None, "t.jsonl, line 1"), _text("one", "t.jsonl, line 2")
    ('', 'one')
    """
    if value is None:
        return ""
    if isinstance(value, list):
        value = "".join(check_pieces(value, where))
    if not isinstance(value, str):
        under = f" under {column!r}" if column else ""
        raise InputError(f"{where} has {type(value).__name__}, not text{under}: set 'corpus: column'")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{where} has half a character at position {error.start} (the lone surrogate "
            f"{value[error.start]!a}), which is not Unicode text: replace it"
        ) from error
    return value


def _group_of(record: Mapping[str, Any], group: str | None, where: str) -> str:
    """Return the group of a document as text; empty if none is asked for.

    >>> _group_of({"article": 7}, "article", "t.jsonl, line 1")
    '7'
    """
    if group is None:
        return ""
    value = record.get(group)
    if isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool)):
        return _text(str(value), f"The group at {where}")
    given = f"{value!r} under {group!r}" if group in record else f"no {group!r} (it has {sorted(record)})"
    raise InputError(
        f"{where} has {given}: the group of a document is text or a whole number; give one to each, or leave "
        "'corpus: group' out"
    )


def _read_parquet(path: Path, columns: Columns) -> Iterator[Document]:
    file = need("pyarrow.parquet", "models", "Reading Parquet").ParquetFile(path)
    wanted = list(dict.fromkeys(filter(None, columns)))
    for column, setting in zip(columns, ("column", "group"), strict=True):
        if column is not None and column not in file.schema_arrow.names:
            raise InputError(
                f"{path} has no column {column!r} (it has {file.schema_arrow.names}): set 'corpus: {setting}'"
            )
    records = (record for batch in file.iter_batches(columns=wanted) for record in batch.to_pylist())
    for i, record in enumerate(records):
        where = f"{path}, row {i}"
        yield Document(
            str(i), _text(record[columns.text], where, columns.text), _group_of(record, columns.group, where)
        )


# --- datasets ---------------------------------------------------------------------------------------------------------


def _dataset_identity(config: CorpusSettings) -> str:
    """Return what tells a dataset's content apart; `streaming` does not change it."""
    folder = Path(str(config.dataset))
    version = config.revision
    if folder.is_dir():
        version = _hash_of(sorted(files_below(folder)), folder)
    return f"{config.dataset}@{version}:{config.subset}:{config.split}"


def _read_dataset(config: CorpusSettings) -> Iterator[Document]:
    """Yield the documents of a dataset."""
    dataset = _open_dataset(config)
    if getattr(dataset, "column_names", None):
        _check_column(config, dataset.column_names)
    for i, record in enumerate(_records(config, dataset)):
        _check_column(config, record)
        where = f"Document {i} of dataset {config.dataset!r}"
        text = _text(record[config.column], where, config.column)
        yield Document(str(i), text, _group_of(record, config.group, where))


def _check_column(config: CorpusSettings, columns: Iterable[str]) -> None:
    if config.column not in columns:
        raise InputError(
            f"Dataset {config.dataset!r} has no text column {config.column!r} (it has {sorted(columns)}): "
            "set 'corpus: column'"
        )


def is_streamed(config: CorpusSettings) -> bool:
    """Say whether a hub dataset is read as it comes: as configured, else where only its first documents are taken.

    >>> is_streamed(CorpusSettings(dataset="a/b", tokens=1000)), is_streamed(CorpusSettings(dataset="a/b"))
    (True, False)
    """
    if config.streaming is not None:
        return config.streaming
    return config.seed is None and (config.documents is not None or config.tokens is not None)


def _open_dataset(config: CorpusSettings) -> Any:
    """Open a dataset; nothing local is copied into Hugging Face's cache."""
    datasets = need("datasets", "models", "Reading a dataset")
    folder = Path(str(config.dataset))
    if folder.is_file():
        raise InputError(f"{folder} is a file: give it as 'corpus: path'")
    if folder.is_absolute() and not folder.is_dir():
        raise MissingInputError(f"No dataset folder at {folder}: check 'corpus: dataset' in the experiment file")
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        return _saved_dataset(datasets, config, folder)
    streaming = folder.is_dir() or is_streamed(config)
    return _read_from_hub(
        config,
        lambda: datasets.load_dataset(
            config.dataset, config.subset, split=config.split, revision=config.revision, streaming=streaming
        ),
    )


def _saved_dataset(datasets: Any, config: CorpusSettings, folder: Path) -> Any:
    """Open what ``save_to_disk`` wrote: one split, or a folder of splits."""
    stored = _read_from_hub(config, lambda: datasets.load_from_disk(str(folder)))
    if not isinstance(stored, datasets.DatasetDict):
        return stored
    if config.split not in stored:
        raise InputError(f"Dataset {config.dataset!r} has no split {config.split!r}; it has {sorted(stored)}")
    return stored[config.split]


def _records(config: CorpusSettings, dataset: Any) -> Iterator[dict[str, Any]]:
    """Yield records; a stream that breaks off goes on behind the last of them."""
    records, n_read = iter(dataset), 0

    def following() -> dict[str, Any] | None:
        nonlocal records
        try:
            return next(records, None)
        except BaseException:
            records = iter(dataset.skip(n_read))  # an iterator that has failed is at its end
            raise

    while (record := _read_from_hub(config, following)) is not None:
        n_read += 1
        yield record


def _read_from_hub(config: CorpusSettings, read: Callable[[], T]) -> T:
    """Call a function of ``datasets``; its errors, and those of ``huggingface_hub``, are said in our words."""
    name = config.dataset
    try:
        return from_hub(read, f"Dataset {name!r}", str(name))
    except InputError:
        raise
    except ValueError as error:
        raise InputError(
            f"Dataset {name!r}, split {config.split!r}, subset {config.subset!r}, cannot be read: {first_line(error)}"
        ) from error
