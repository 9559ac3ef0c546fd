r"""Tables of tokens that come with activations of other programs: whose text each row is, and where in it.

==========================  ===========================================================================
``.csv``, ``.parquet``      a row for each row of the activations, with the columns below
``.npz``                    an array for each column
``.npy``                    one array: the document of each row
``.jsonl``                  a line for each document: the list of its tokens, or an object with ``tokens``
==========================  ===========================================================================

Columns are ``document`` (numbers from 0 on, or names) and, as far as they are known, ``char_start``, ``char_end``,
``position``, ``token_id`` and ``group``. In place of places in the text there may be the text itself: with a column
``token``, a document is its tokens one after the other, and each row is where its token stands in it; without ids,
different tokens are numbered as they first occur. Tokens are pieces of text, such as ``tokenizer.decode`` returns for
each id.

>>> import tempfile
>>> file = Path(tempfile.mkdtemp(), "tokens.jsonl")
>>> _ = file.write_text('["she", " saw", " it"]\n["not", " this"]\n')
>>> {name: column.tolist() for name, column in read_tokens(file, 5).items()}
{'document': [0, 0, 0, 1, 1], 'char_start': [0, 3, 7, 0, 3], 'char_end': [3, 7, 10, 3, 8], 'token_id': [0, 1, 2, 3, 4]}
>>> [document.text for document in iter_texts(file)]
['she saw it', 'not this']
"""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from storage.bounds import check_file, check_memory, n_bytes
from storage.damage import reading
from storage.errors import InputError, shown
from storage.extras import need
from storage.readers import Member, listed, names_in, open_archive, read_header, whole
from storage.rows import TOKEN_COORDINATES

logger = logging.getLogger(__name__)

#: The column that holds the text of each row.
TOKEN = "token"  # noqa: S105 - no password
#: The key of a document's tokens in JSON lines.
TOKENS = "tokens"
COLUMNS = (*TOKEN_COORDINATES, TOKEN)
#: How tokens of a vocabulary begin that are not the text that they stand for.
MARKS = ("Ġ", "▁", "##")
#: Share of such tokens above which a table is taken to be one of vocabulary entries.
MANY_MARKS = 0.2
SUFFIXES = (".csv", ".jsonl", ".npy", ".npz", ".parquet")

Columns = dict[str, NDArray[Any]]


class TokenText(NamedTuple):
    """A document as its tokens give it, with its name, and its group if the table has one."""

    name: str
    text: str
    group: str = ""


def read_tokens(path: str | Path, n_tokens: int) -> Columns:
    """Return coordinates of `n_tokens` rows from a table of tokens.

    Parameters
    ----------
    path
        The table; see the top of :mod:`storage.token_tables`.
    n_tokens
        Rows of the activations.

    Returns
    -------
    dict
        Columns of :data:`storage.rows.TOKEN_COORDINATES`, each (token,): ``document``, and those others that are known.
        Documents with names are numbered as they first occur. Other columns are left out, with a warning.

    Raises
    ------
    InputError
        If there is no file, it names no documents or has another number of rows, or it cannot be read.
    MissingDependencyError
        If the library that reads it is not installed.
    """
    path = _checked(path)
    columns = _of_json_lines(path, n_tokens) if path.suffix == ".jsonl" else _table(path, n_tokens)
    for name, values in columns.items():
        if name not in ("document", TOKEN) and (row := _first_hole(values)) is not None:
            raise InputError(f"{path} has no {name} in row {row}: fill it in, or leave out the column where it may be")
    lengths = {name: len(values) for name, values in columns.items()}
    if set(lengths.values()) != {n_tokens}:
        raise InputError(f"{path} has the coordinates of {shown(lengths)} rows; there are {n_tokens} activations")
    columns["document"], _ = _numbered(columns["document"])
    if (tokens := columns.pop(TOKEN, None)) is not None:
        texts = _texts_of(path, tokens)
        if "char_start" not in columns:
            columns |= _places(columns["document"], texts)
        columns.setdefault("token_id", _ids(texts, {}))
    return columns


def _first_hole(values: NDArray[Any]) -> int | None:
    """Return the first row of a column with an empty cell; None if no cell is empty."""
    if values.dtype.kind not in "fOU":
        return None
    holes = [value is None or value == "" or value != value for value in values.tolist()]  # noqa: PLR0124 - NaN
    return holes.index(True) if True in holes else None


def read_documents(path: str | Path, n_tokens: int) -> Columns:
    """Return the ``document`` column alone of a table of tokens; errors are those of :func:`read_tokens`."""
    return {"document": read_tokens(path, n_tokens)["document"]}


def has_tokens(path: Path) -> bool:
    """Return whether a file is a table with the text of its rows, and so of whole documents."""
    if path.suffix == ".jsonl" or path.suffix not in SUFFIXES:
        return False
    with reading(path):
        return {"document", TOKEN} <= set(_names(path))


def iter_texts(path: str | Path) -> Iterator[TokenText]:
    """Yield the documents of a table of tokens in the order of their numbers, each its tokens one after the other.

    A number without rows is an empty document, so that rows keep the numbers of their documents.

    Raises
    ------
    InputError
        If there is no file, or it has no tokens.
    """
    path = _checked(path)
    if path.suffix == ".jsonl":
        for number, (tokens, group) in enumerate(_iter_lines(path)):
            yield TokenText(str(number), "".join(tokens), "" if group is None else str(group))
        return
    table = _table(path, None)
    if TOKEN not in table:
        raise InputError(f"{path} has no column {TOKEN!r}, so there is no text in it; it has {listed(sorted(table))}")
    document, names = _numbered(table["document"])
    order = np.argsort(document, kind="stable")
    texts, groups = _texts_of(path, table[TOKEN])[order], table.get("group")
    bounds = np.searchsorted(document[order], np.arange(len(names) + 1)).tolist()
    for name, (start, stop) in zip(names, itertools.pairwise(bounds), strict=True):
        group = "" if groups is None or start == stop else str(groups[order[start]])
        yield TokenText(name, "".join(texts[start:stop]), group)


def _checked(path: str | Path) -> Path:
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise InputError(f"Token coordinates are read from {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}, not {path}")
    check_file(path, f"There are no token coordinates at {path}; check the path")
    return path


def _table(path: Path, n_tokens: int | None) -> Columns:
    """Return the columns that are known of a table, as they are in it."""
    if path.suffix == ".npy":
        return {"document": _read_npy(path, n_tokens)}
    readers = {".npz": _read_npz, ".csv": _read_csv, ".parquet": _read_parquet}
    with reading(path):
        names = _names(path)
        wanted = [name for name in names if name in COLUMNS]
        if "document" not in wanted:
            raise InputError(
                f"{path} has {listed(names)} and no 'document': give each row the number or the name of its document"
            )
        # what pandas writes of an index without a name
        if others := [name for name in names if name not in COLUMNS and not name.startswith(("Unnamed:", "__index"))]:
            logger.warning("%s: %s is not read; what is known is %s", path, listed(others), ", ".join(COLUMNS))
        return readers[path.suffix](path, wanted, n_tokens)


def _names(path: Path) -> list[str]:
    """Return the names of the columns of a table."""
    if path.suffix == ".npz":
        with open_archive(path) as archive:
            return sorted(names_in(archive))
    if path.suffix == ".csv":
        import pandas as pd  # noqa: PLC0415 - half a second, for one option

        return [str(name) for name in pd.read_csv(path, nrows=0)]
    if path.suffix == ".parquet":
        with need("pyarrow.parquet", "models", "Reading Parquet").ParquetFile(path) as file:
            return list(file.schema_arrow.names)
    return ["document"]


def _read_npy(path: Path, n_tokens: int | None) -> NDArray[Any]:
    with reading(path), path.open("rb") as file:
        shape, _, dtype = read_header(file, str(path))
        if len(shape) != 1 or (n_tokens is not None and shape != (n_tokens,)):
            expected = "one number for each row" if n_tokens is None else f"there are {n_tokens} activations"
            raise InputError(f"{path} has the shape {shown(shape)}; it holds the document of each row, and {expected}")
        check_memory(str(path), n_bytes(shape, dtype.itemsize))
        return np.fromfile(file, dtype, shape[0]).astype(dtype.newbyteorder("="), copy=False)


def _read_npz(path: Path, wanted: Collection[str], n_tokens: int | None) -> Columns:
    with open_archive(path) as archive:
        for name in wanted:
            shape = Member(archive, name).shape
            if len(shape) != 1 or (n_tokens is not None and shape != (n_tokens,)):
                raise InputError(f"{name} in {path} has the shape {shown(shape)}; there are {n_tokens} activations")
        return {name: whole(archive, name) for name in wanted}


def _read_csv(path: Path, wanted: Collection[str], n_tokens: int | None) -> Columns:
    import pandas as pd  # noqa: PLC0415 - half a second, for one option

    # "NA" and "null" are tokens like others
    options: dict[str, Any] = {"usecols": list(wanted), "keep_default_na": False, "dtype": {TOKEN: str}}
    table = pd.read_csv(path, nrows=None if n_tokens is None else n_tokens + 1, **options)
    return {str(name): table[name].to_numpy() for name in table}


def _read_parquet(path: Path, wanted: Collection[str], n_tokens: int | None) -> Columns:
    with need("pyarrow.parquet", "models", "Reading Parquet").ParquetFile(path) as file:
        if n_tokens is not None and file.metadata.num_rows != n_tokens:
            raise InputError(f"{path} has {file.metadata.num_rows} rows; there are {n_tokens} activations")
        table = file.read(columns=list(wanted))
    return {name: table[name].to_numpy() for name in table.column_names}


def _of_json_lines(path: Path, n_tokens: int) -> Columns:
    """Return the coordinates of the tokens of documents, a document a line; one line is in memory at a time."""
    lengths, counts, groups, ids = [], [], [], []
    vocabulary: dict[str, int] = {}
    n_rows = 0
    for number, (tokens, group) in enumerate(_iter_lines(path)):
        n_rows += len(tokens)
        if n_rows > n_tokens:
            raise InputError(f"{path} has more than {n_tokens} tokens (in document {number}), one for each activation")
        lengths.append(np.fromiter(map(len, tokens), np.int64, len(tokens)))
        ids.append(_ids(tokens, vocabulary))
        counts.append(len(tokens))
        groups.append(group)
    if n_rows != n_tokens:
        raise InputError(f"{path} has {n_rows} tokens; there are {n_tokens} activations, one for each token")
    document = np.repeat(np.arange(len(counts)), counts)
    columns = {"document": document, **_spans(document, np.concatenate(lengths)), "token_id": np.concatenate(ids)}
    if any(group is not None for group in groups):
        columns["group"] = np.repeat(np.array(groups, object), counts)
    return columns


def _iter_lines(path: Path) -> Iterator[tuple[list[str], Any]]:
    """Yield the tokens and the group of each document of a file of JSON lines; empty lines are passed over."""
    with reading(path), path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            try:
                record = json.loads(line.decode("utf-8-sig"))
            except (ValueError, RecursionError) as error:
                raise InputError(f"{where} is not valid JSON: {error}") from error
            group = record.get("group") if isinstance(record, dict) else None
            tokens = record.get(TOKENS) if isinstance(record, dict) else record
            yield check_pieces(tokens, where), group


def check_pieces(tokens: Any, where: str) -> list[str]:
    """Return a list of tokens, if it is one; else an InputError that says where.

    >>> check_pieces(["a", 3], "tokens.jsonl, line 2")
    Traceback (most recent call last):
    storage.errors.InputError: tokens.jsonl, line 2 has 3 among its tokens, which are pieces of text: ...
    """
    if not isinstance(tokens, list):
        raise InputError(f"{where} has no list of tokens: write a list of texts, or an object with {TOKENS!r}")
    if wrong := [token for token in tokens if not isinstance(token, str)]:
        raise InputError(
            f"{where} has {shown(wrong[0])} among its tokens, which are pieces of text: decode ids one by one "
            "(tokenizer.decode)"
        )
    return tokens


def _texts_of(path: Path, tokens: NDArray[Any]) -> NDArray[Any]:
    """Return a column of tokens as an array of strings, after a look at whether they are text."""
    texts = np.asarray(tokens, object)
    if (row := next((row for row, token in enumerate(texts) if not isinstance(token, str)), None)) is not None:
        raise InputError(
            f"{path}: {TOKEN} is {shown(texts[row])} in row {row}; give the text of each row (tokenizer.decode)"
        )
    n_marked = sum(token.startswith(MARKS) for token in texts)
    if n_marked > MANY_MARKS * len(texts):
        logger.warning(
            "%s: %d of %d tokens begin with %s, as entries of a vocabulary do: the text will show that. Decode each id "
            "(tokenizer.decode) to have its text",
            *(path, n_marked, len(texts), " or ".join(MARKS)),
        )
    return texts


def _ids(tokens: Iterable[str], vocabulary: dict[str, int]) -> NDArray[np.int64]:
    """Return the numbers of some tokens; those that are new to the vocabulary are added to it."""
    return np.array([vocabulary.setdefault(token, len(vocabulary)) for token in tokens], np.int64)


def _places(document: NDArray[Any], tokens: NDArray[Any]) -> Columns:
    """Return where each token stands in its document, which is its tokens in their order."""
    lengths = np.fromiter(map(len, tokens), np.int64, len(tokens))
    order = np.argsort(document, kind="stable")
    sorted_places = _spans(document[order], lengths[order])
    places = {name: np.empty(len(order), np.int64) for name in sorted_places}
    for name, values in sorted_places.items():
        places[name][order] = values
    return places


def _spans(document: NDArray[Any], lengths: NDArray[np.int64]) -> Columns:
    """Return start and end of each token in its document, whose tokens follow each other."""
    ends = np.cumsum(lengths)
    starts = ends - lengths
    first = np.flatnonzero(np.append(True, np.diff(document) != 0)[: len(document)])
    offset = np.repeat(starts[first], np.diff(np.append(first, len(document))))
    return {"char_start": starts - offset, "char_end": ends - offset}


def _numbered(document: NDArray[Any]) -> tuple[NDArray[Any], list[str]]:
    """Return the number of each row's document, and the names of all documents.

    >>> _numbered(np.array(["x", "z", "x"], object)), _numbered(np.array([0, 2]))
    ((array([0, 1, 0]), ['x', 'z']), (array([0, 2]), ['0', '1', '2']))
    """
    if document.dtype.kind in "OUT":
        if wrong := [row for row, name in enumerate(document) if not isinstance(name, str) or not name]:
            raise InputError(
                f"document is {shown(document[wrong[0]])} in row {wrong[0]}; give each row the number or the name of "
                "its document"
            )
        names = list(dict.fromkeys(map(str, document)))
        numbers = {name: number for number, name in enumerate(names)}
        return np.fromiter((numbers[name] for name in document), np.int64, len(document)), names
    last = int(document.max(initial=-1)) if document.dtype.kind in "iu" else -1
    if last > len(document) + _LARGEST_GAP:
        raise InputError(
            f"document {last} is beyond the number of rows, {len(document)}: number documents from 0 on, or give names"
        )
    return document, [str(number) for number in range(last + 1)]


#: Numbers of documents without a row that a table may pass over.
_LARGEST_GAP = 100_000
