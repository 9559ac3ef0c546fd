"""Which text each row of a store is: the row hash, and the check that two stores describe the same rows."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import ArrayLike, NDArray

from storage.errors import InputError, RowMismatchError
from storage.inventory import check_whole
from storage.shards import iter_slices
from storage.sparse_array import read_metadata

logger = logging.getLogger(__name__)

# Coordinates of a row and their types on disk.
TOKEN_COORDINATES = {
    "document": "int32",
    "position": "int32",
    "char_start": "int64",
    "char_end": "int64",
    "token_id": "int32",
    "group": "int64",
}
# What makes two rows the same piece of text, as far as it is known: of some rows only the document is. Token ids are no
# part of it: two tokenizers can agree on a piece.
IDENTITY = ("document", "char_start", "char_end")
ROW_HASH = "row_hash"
# Of the coordinates that are not in the row hash.
TOKEN_HASH = "token_hash"  # noqa: S105 - of tokens of text
BLOCK_ROWS = 1_000_000


def check_tokens(tokens: Mapping[str, ArrayLike], n_tokens: int | None = None) -> dict[str, NDArray[Any]]:
    """Return token coordinates in the types in which they are stored.

    Parameters
    ----------
    tokens
        ``document``, and optionally ``char_start`` with ``char_end``, ``position``, ``token_id``, ``group``; each
        (token,). Groups may be texts, which are numbered by :func:`group_number`.
    n_tokens
        How many rows there must be.

    Raises
    ------
    InputError
        If one is missing, unknown, not integer, out of range or of another length, or a document is of two groups.
    """
    document, *places = IDENTITY
    needed = (document, *places) if set(places) & set(tokens) else (document,)
    missing = [name for name in needed if name not in tokens]
    unknown = sorted(set(tokens) - set(TOKEN_COORDINATES))
    if missing or unknown:
        raise InputError(
            "tokens must have document, and may have char_start with char_end, position, token_id, group; "
            f"missing: {missing}, unknown: {unknown}"
        )
    columns = {
        name: _integers(name, _numbered(values) if name == "group" else values) for name, values in tokens.items()
    }
    lengths = {name: len(values) for name, values in columns.items()}
    expected = n_tokens if n_tokens is not None else lengths[IDENTITY[0]]
    if set(lengths.values()) != {expected}:
        raise InputError(f"Every coordinate in tokens must have {expected} rows; they have {lengths}")
    _check_order(columns)
    if "group" in columns:
        _check_groups(columns["document"], columns["group"])
    return columns


def _check_order(columns: Mapping[str, NDArray[Any]]) -> None:
    """Refuse places that cannot be: before the first document or character, or that end before they begin."""
    for name in (name for name in (*IDENTITY, "position", "group") if name in columns):
        if len(negative := np.flatnonzero(columns[name] < 0)):
            row = negative[0]
            raise InputError(f"tokens[{name!r}] is {columns[name][row]} in row {row}; it must not be negative")
    if "char_end" in columns and len(backward := np.flatnonzero(columns["char_end"] < columns["char_start"])):
        row = backward[0]
        place = f"char_start {columns['char_start'][row]}, char_end {columns['char_end'][row]}"
        raise InputError(f"tokens end before they begin in row {row}: {place}")


def _check_groups(document: NDArray[Any], group: NDArray[Any]) -> None:
    """Refuse a document of two groups, which can be in different halves of the text: it would be in both."""
    order: Any = slice(None) if np.all(document[1:] >= document[:-1]) else np.argsort(document, kind="stable")
    documents, groups = document[order], group[order]
    split = np.flatnonzero((documents[1:] == documents[:-1]) & (groups[1:] != groups[:-1]))
    if len(split):
        rows = np.arange(len(document))[order][split[0] : split[0] + 2]
        raise InputError(
            f"Document {documents[split[0]]} is of two groups, in rows {rows[0]} and {rows[1]}: groups are of whole "
            "documents; give all rows of a document the same"
        )


def _integers(name: str, values: ArrayLike) -> NDArray[Any]:
    array = np.asarray(values)
    stored = np.dtype(TOKEN_COORDINATES[name])
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise InputError(f"tokens[{name!r}] must be one-dimensional integers, not {array.ndim}-D {array.dtype}")
    limits = np.iinfo(stored)
    if array.size and (array.min() < limits.min or array.max() > limits.max):
        raise InputError(f"tokens[{name!r}] has values outside of {stored}: {array.min()} to {array.max()}")
    return array.astype(stored, copy=False)


def group_number(name: str) -> int:
    """Return the number of a group of documents: 63 bits of the SHA-256 of its name, so it depends on nothing else.

    >>> group_number("Anarchism")
    3850192595502468097
    """
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") >> 1


def _numbered(groups: ArrayLike) -> ArrayLike:
    """Return the numbers of groups that are given by names; others as they are.

    >>> _numbered(["x", "y", "x"]) == [group_number(name) for name in "xyx"]
    array([ True,  True,  True])
    """
    array = np.asarray(groups)
    if array.dtype.kind not in "OUT":
        return groups
    if unnamed := [row for row, name in enumerate(array) if not isinstance(name, str)]:
        row = unnamed[0]
        raise InputError(
            f"tokens['group'] is {array[row]!r} in row {row}; give each row a name or a number of its group"
        )
    names, place = np.unique(array.astype(str), return_inverse=True)
    return np.array([group_number(name) for name in names.tolist()], np.int64)[place]


def row_hash(tokens: Mapping[str, NDArray[Any]]) -> str:
    """Return the SHA-256 over (document, char_start, char_end) of all rows in order, as little-endian int64.

    Where only documents are known, it is over these.

    >>> zeros = np.zeros(2, int)
    >>> row_hash({"document": zeros, "char_start": zeros, "char_end": zeros})[:8]
    '17b0761f'
    """
    return _hash_of_columns([tokens[name] for name in IDENTITY if name in tokens])


def token_hash(tokens: Mapping[str, NDArray[Any]]) -> str | None:
    """Return the SHA-256 over those of (position, token_id, group) that there are, as :func:`row_hash`; None if none.

    >>> token_hash({"document": np.zeros(2, int)}) is None
    True
    """
    columns = [tokens[name] for name in TOKEN_COORDINATES if name in tokens and name not in IDENTITY]
    return _hash_of_columns(columns) if columns else None


def _hash_of_columns(columns: Sequence[Any]) -> str:
    sha = hashlib.sha256()
    for rows in iter_slices(columns[0].shape[0], BLOCK_ROWS):
        block = [np.asarray(column[rows], "<i8") for column in columns]
        sha.update(np.stack(block, axis=1).tobytes())
    return sha.hexdigest()


def check_same_rows(path_a: str | Path, path_b: str | Path) -> None:
    """Raise unless row i of both stores is the same piece of text, for every i.

    The coordinates themselves are compared, not the hashes: a store that was copied through xarray may carry the
    hash of what it was copied from. Stores without coordinates cannot be checked: they need the same number of
    rows, and a warning is logged.

    Parameters
    ----------
    path_a, path_b
        Two activation stores.

    Raises
    ------
    MissingInputError
        If there is no store.
    RowMismatchError
        If the rows differ; the message names the first that does.
    """
    paths = (path_a, path_b)
    for path in paths:
        check_whole(path)  # a pipe in the place of a chunk would be waited for
    lengths = [read_metadata(Path(path) / "activation")["shape"][0] for path in paths]
    without = [str(path) for path in paths if not (Path(path) / IDENTITY[0]).is_dir()]
    if not without and (difference := _first_difference(path_a, path_b)):
        raise RowMismatchError(f"{difference}. Harvest both from the same rows")
    if lengths[0] != lengths[1]:
        raise RowMismatchError(
            f"{path_a} has {lengths[0]} rows and {path_b} has {lengths[1]}: both must hold the same pieces of text in "
            "the same order. Harvest both from the same rows; of arrays of your own, rows are tokens and columns are "
            "features: transpose one that is the other way round"
        )
    if without or (without := [str(path) for path in paths if not (Path(path) / IDENTITY[-1]).is_dir()]):
        logger.warning(
            "No token coordinates in %s: row i is assumed to be the same token in both stores",
            " and ".join(without),
        )


def check_order(matched: Mapping[str, str] | None, given: Mapping[str, str], use: str) -> None:
    """Refuse the stores of pairs in the wrong order; log where they are others than those that were matched.

    Others may be meant: the same dictionaries on new text.

    Parameters
    ----------
    matched
        By side, the fingerprint of the store that the pairs were found in; nothing is checked without them.
    given
        By side, that of the store which is to be used.
    use
        What of the stores is used, for the log.

    Raises
    ------
    InputError
        If the stores are swapped.

    Examples
    --------
    >>> check_order({"a": "12", "b": "34"}, {"a": "34", "b": "12"}, "rows")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    storage.errors.InputError: the stores are in the wrong order: ...
    """
    found_in, used = ([hashes.get(side) for side in "ab"] for hashes in (matched or given, given))
    if used == found_in[::-1] != found_in:
        raise InputError(
            "the stores are in the wrong order: side A of the pairs comes from the one given as b; swap them"
        )
    if used != found_in:
        logger.warning("The pairs were matched on other stores than those given, of which %s are used", use)


def _first_difference(path_a: str | Path, path_b: str | Path) -> str | None:
    """Say where the rows of two stores first differ, up to the length of the shorter one."""
    groups = [zarr.open_group(str(path), mode="r") for path in (path_a, path_b)]
    known = [name for name in IDENTITY if all(name in group for group in groups)]
    length = min(group[IDENTITY[0]].shape[0] for group in groups)
    for rows in iter_slices(length, BLOCK_ROWS):
        a, b = (np.stack([group[name][rows] for name in known], axis=1) for group in groups)
        different = np.flatnonzero((a != b).any(axis=1))
        if different.size:
            row = different[0]
            values = f"{path_a} has {_describe(a[row])}, {path_b} has {_describe(b[row])}"
            return f"Rows differ from row {rows.start + row} on: {values}"
    return None


def _describe(row: NDArray[np.int64]) -> str:
    document, *place = row.tolist()
    return f"document {document}" + (f", characters {place[0]} to {place[1]}" if place else "")
