"""Tables with a column for each feature, or one column of lists: CSV and Parquet.

Columns that say which token a row is (:mod:`storage.token_tables`) are no features; give the file as ``--tokens`` too.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from storage.errors import InputError
from storage.extras import need
from storage.readers import Importer, Source, check_matrix, listed
from storage.registry import IMPORTERS
from storage.token_tables import COLUMNS

#: Columns of a table of tokens, and what pandas calls an index without a name.
NO_FEATURES = (*COLUMNS, "Unnamed: 0", "__index_level_0__")
#: Rows that are read at once to count them.
COUNTED_ROWS = 10_000


def read_csv(path: Path, key: str | None, _: Collection[int]) -> Source:
    """Open a CSV with a header of names, or of numbers alone; it is read twice, first to count its rows."""
    import pandas as pd  # noqa: PLC0415 - half a second, for one format

    if key is not None:
        raise InputError(f"{path} is one table; leave --key out")
    names = [str(name) for name in pd.read_csv(path, nrows=1, header=None, dtype=str, keep_default_na=False).iloc[0]]
    header = None if _are_values(names) else 0
    features = [i for i, name in enumerate(names) if header is None or name not in NO_FEATURES]
    first = pd.read_csv(path, nrows=1, header=header)
    _check_numbers(path, [str(first.columns[i]) for i in features if first.dtypes.iloc[i].kind not in "fiub"])
    options: dict[str, Any] = {"usecols": features, "header": header}
    n_rows = sum(len(part) for part in pd.read_csv(path, usecols=features[:1], header=header, chunksize=COUNTED_ROWS))
    check_matrix(path, (n_rows, len(features)), np.dtype("float64"))

    def slabs(rows: int) -> Iterator[Any]:
        with pd.read_csv(path, dtype=np.float64, chunksize=rows, **options) as parts:
            for part in parts:
                yield part.to_numpy()

    return Source(n_rows, len(features), np.dtype("float32"), slabs)


def _are_values(names: Sequence[str]) -> bool:
    """Return whether the first line of a table is one of values, and not of names, which may be numbers from 0 on.

    >>> _are_values(["0", "1"]), _are_values(["1.5", "0.0"]), _are_values(["token", "1"])
    (False, True, False)
    """
    try:
        values = [float(name) for name in names]
    except ValueError:
        return False
    return values != [*range(len(names))]


def _check_numbers(path: Path, others: Sequence[str]) -> None:
    if others:
        raise InputError(
            f"{path} has columns that hold no numbers: {listed(others)}; leave out all but features, and those of a "
            "table of tokens (document, token, …)"
        )


def read_parquet(path: Path, key: str | None, _: Collection[int]) -> Source:
    """Open a Parquet with a column for each feature, or one column of lists."""
    parquet, types = need("pyarrow.parquet", "models", "Reading Parquet"), need("pyarrow.types", "models")
    with parquet.ParquetFile(path) as file:
        schema, n_rows = file.schema_arrow, file.metadata.num_rows
    fields = [field for field in schema if field.name not in NO_FEATURES]
    lists = [field for field in fields if types.is_list(field.type) or types.is_fixed_size_list(field.type)]
    if lists or key is not None:
        return _lists(path, parquet, [field.name for field in lists], key)
    is_number = (types.is_floating, types.is_integer, types.is_boolean)
    _check_numbers(path, [field.name for field in fields if not any(check(field.type) for check in is_number)])
    names = [field.name for field in fields]
    check_matrix(path, (n_rows, len(names)), np.dtype("float64"))

    def slabs(rows: int) -> Iterator[Any]:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(rows, columns=names):
                yield np.stack([column.to_numpy(zero_copy_only=False) for column in batch.columns], axis=1)

    kinds = {field.type.to_pandas_dtype() for field in fields}
    dtype = np.dtype(kinds.pop()) if len(kinds) == 1 else np.dtype("float64")
    return Source(n_rows, len(names), dtype, slabs)


def _lists(path: Path, parquet: Any, names: Sequence[str], key: str | None) -> Source:
    if len(names) != 1 and key not in names:
        raise InputError(f"{path} has the columns of lists {listed(names)}; name one with --key")
    name = key or names[0]
    with parquet.ParquetFile(path) as file:
        n_rows = file.metadata.num_rows
        first = next(file.iter_batches(1, columns=[name]), None)
    if first is None:
        raise InputError(f"{path} has no rows")
    width, dtype = len(first.column(0)[0]), np.dtype(first.column(0).type.value_type.to_pandas_dtype())
    check_matrix(path, (n_rows, width), dtype)

    def slabs(rows: int) -> Iterator[Any]:
        start = 0
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(rows, columns=[name]):
                column = batch.column(0)
                lengths = column.value_lengths().to_numpy(zero_copy_only=False)
                if len(wrong := np.flatnonzero(lengths != width)):
                    raise InputError(
                        f"{path}: row {start + wrong[0]} of {name} has {lengths[wrong[0]]} values, and row 0 "
                        f"{width}; every token has as many features"
                    )
                start += len(lengths)
                yield column.flatten().to_numpy(zero_copy_only=False).reshape(-1, width)

    return Source(n_rows, width, dtype, slabs)


IMPORTERS.register(Importer("csv", read_csv, (".csv",)))
IMPORTERS.register(Importer("parquet", read_parquet, (".parquet",)))
