"""What features are called: labels made elsewhere, brought in from CSV, JSON and Neuronpedia's exports.

=====================================  ==================================================================
file                                   what is read
=====================================  ==================================================================
``.csv``, ``.tsv``                     columns ``feature`` and ``label`` (or Neuronpedia's names)
``.json``                              ``{"17": "label"}``, or a list of records with these keys
``.jsonl``, ``.jsonl.gz``              one record a line
folder                                 all ``*.jsonl.gz`` and ``*.jsonl`` in it, as Neuronpedia exports them
=====================================  ==================================================================

Neuronpedia's records, from its public exports (``v1/MODEL/SOURCE/explanations/batch-*.jsonl.gz``) and from its API
(``/api/explanation/export``), have the keys ``modelId``, ``layer`` (the source), ``index``, ``description``,
``explanationModelName`` and ``typeName``.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import logging
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from storage import Manifest, fingerprint, new_manifest, open_activations, open_result, write_result
from storage.damage import cause_of
from storage.errors import FormatError, InputError, MissingInputError, shown
from storage.manifest import canonical_json

logger = logging.getLogger(__name__)

STAGE = "labels"
#: Names under which files give a feature's id and its label, best first.
ID_NAMES = ("feature", "index", "feature_id", "latent")
LABEL_NAMES = ("label", "description", "explanation")
#: Characters of a label that are kept.
LONGEST = 300


@dataclass(frozen=True)
class Label:
    """A feature's label; who gave it, and of which model and source it is, where that is known."""

    feature: int
    text: str
    method: str = ""
    source: str = ""


def import_labels(
    path: str | Path,
    out: str | Path,
    *,
    store: str | Path | None = None,
    source: str | None = None,
    method: str | None = None,
    overwrite: bool = False,
) -> xr.Dataset:
    r"""Bring labels in and keep them as a result.

    Parameters
    ----------
    path
        The file or folder.
    out
        Where the result is written.
    store
        The activation store whose features they are of; ids outside of it are an error then.
    source
        Of which model and source, as ``gpt2-small/6-res-jb``, where the file has several.
    method
        By which model or method, as the file names it, where a feature has several labels; the first one by default.
    overwrite
        Whether labels at `out` that came from another file or store may be replaced.

    Returns
    -------
    xarray.Dataset
        Over ``feature``, the ascending ids of the labelled ones: ``label`` and ``method``, text.

    Raises
    ------
    MissingInputError
        If there is nothing at the path.
    FormatError
        If the file has no labels, is damaged, or is of no known form.
    InputError
        If it has several sources and none is chosen, or ids that the store does not have.

    Examples
    --------
    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "labels.csv"
    >>> _ = file.write_text("feature,label\n17,days of the week\n3,prime ministers\n")
    >>> found = import_labels(file, file.with_suffix(".zarr"))
    >>> dict(zip(found.feature.values.tolist(), found.label.values.tolist()))
    {3: 'prime ministers', 17: 'days of the week'}
    """
    file = Path(path)
    if not file.exists():
        raise MissingInputError(f"There are no labels at {file}; check the path")
    chosen = _chosen(file, list(_read(file)), source, method)
    if store is not None:
        _check_ids(chosen, store)
    content = hashlib.sha256(canonical_json([astuple(label) for label in chosen]).encode()).hexdigest()
    inputs = {"labels": content} | ({} if store is None else {"activations": fingerprint(store)})
    settings = {"source": source, "method": method, "file": file.name}
    return write_labels(chosen, out, new_manifest(STAGE, inputs, settings), overwrite=overwrite)


def write_labels(
    labels: Iterable[Label], out: str | Path, manifest: Manifest, *, overwrite: bool = False
) -> xr.Dataset:
    """Write labels as a result, by ascending feature; see :func:`import_labels`."""
    ordered = sorted(labels, key=lambda label: label.feature)
    result = xr.Dataset(
        {
            "label": ("feature", np.array([label.text for label in ordered], object)),
            "method": ("feature", np.array([label.method for label in ordered], object)),
        },
        {"feature": np.array([label.feature for label in ordered], np.int64)},
        {"source": ordered[0].source if ordered else ""},
    )
    write_result(result, out, manifest, overwrite=overwrite)
    logger.info("%d labels at %s", len(ordered), out)
    return open_result(out, STAGE)


def _check_ids(labels: Iterable[Label], store: str | Path) -> None:
    n_features = open_activations(store).sizes["feature"]
    outside = [label.feature for label in labels if label.feature >= n_features]
    if outside:
        raise InputError(
            f"{store} has {n_features} features, and there are labels for {len(outside)} more, such as {outside[0]}; "
            "they are of another dictionary"
        )


def _chosen(file: Path, labels: list[Label], source: str | None, method: str | None) -> list[Label]:
    """Return one label for each feature, of one source."""
    if not labels:
        raise FormatError(f"{file} holds no labels")
    sources = sorted({label.source for label in labels})
    if source is None and len(sources) > 1:
        raise InputError(f"{file} has labels of {', '.join(map(repr, sources))}; choose one with source")
    of_source = [label for label in labels if source is None or label.source == source]
    if not of_source:
        raise InputError(f"{file} has no labels of {source!r}; it has those of {', '.join(map(repr, sources))}")
    methods = sorted({label.method for label in of_source})
    if method is not None and method not in methods:
        raise InputError(f"{file} has no labels by {method!r}; it has those by {', '.join(map(repr, methods))}")
    first: dict[int, Label] = {}
    for label in of_source:
        if method is None or label.method == method:
            first.setdefault(label.feature, label)
    if len(first) < len(of_source):
        logger.info("%d more labels of the same features are left out", len(of_source) - len(first))
    return list(first.values())


def _read(file: Path) -> Iterator[Label]:
    if file.is_dir():
        batches = sorted({*file.glob("*.jsonl"), *file.glob("*.jsonl.gz")}, key=lambda batch: batch.name)
        if not batches:
            raise FormatError(f"{file} has no *.jsonl or *.jsonl.gz; give the folder of Neuronpedia's batches")
        for batch in batches:
            yield from _read(batch)
        return
    name = file.name.removesuffix(".gz")
    reader = next((read for suffix, read in _READERS.items() if name.endswith(suffix)), None)
    if reader is None:
        raise InputError(f"{file} is none of {', '.join(_READERS)} (or .gz of these), nor a folder of them")
    try:
        text = (gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()).decode("utf-8-sig")
        for number, record in reader(text):
            yield _label(record, f"{file}, {number}")
    except FormatError:
        raise
    except (ValueError, RecursionError, gzip.BadGzipFile, zlib.error, EOFError, csv.Error) as error:
        raise FormatError(f"{file} cannot be read ({cause_of(error)}): repair it, or give another file") from error


def _csv_records(text: str, delimiter: str = ",") -> Iterator[tuple[str, Any]]:
    for i, record in enumerate(csv.DictReader(text.splitlines(), delimiter=delimiter)):
        yield f"line {i + 2}", record


def _tsv_records(text: str) -> Iterator[tuple[str, Any]]:
    return _csv_records(text, "\t")


def _json_records(text: str) -> Iterator[tuple[str, Any]]:
    content = json.loads(text)
    if isinstance(content, dict) and not set(content) & set(ID_NAMES):
        for key, value in content.items():
            yield f"key {key!r}", {"feature": key, "label": value} if isinstance(value, str) else value
        return
    for i, record in enumerate(content if isinstance(content, list) else [content]):
        yield f"entry {i}", record


def _jsonl_records(text: str) -> Iterator[tuple[str, Any]]:
    for i, line in enumerate(text.splitlines()):
        if line.strip():
            yield f"line {i + 1}", json.loads(line)


_READERS = {".csv": _csv_records, ".tsv": _tsv_records, ".jsonl": _jsonl_records, ".json": _json_records}


def _label(record: Any, where: str) -> Label:
    if not isinstance(record, dict):
        raise FormatError(f"{where}: a label is a record of {ID_NAMES[0]} and {LABEL_NAMES[0]}, not {shown(record)}")
    feature, text = (
        next((record[name] for name in names if name in record), None) for names in (ID_NAMES, LABEL_NAMES)
    )
    if feature is None or text is None:
        names = shown(list(record))
        raise FormatError(f"{where}: there must be one of {ID_NAMES} and one of {LABEL_NAMES}; it has {names}")
    if not str(feature).strip().isdecimal():
        raise FormatError(f"{where}: {shown(feature)} is not a feature id")
    method = str(record.get("explanationModelName") or record.get("typeName") or record.get("method") or "")
    source = "/".join(str(record[key]) for key in ("modelId", "layer") if record.get(key))
    return Label(int(feature), clean(str(text)), method, source)


def clean(text: str) -> str:
    r"""Return a label as one line without control characters, of at most :data:`LONGEST` characters.

    >>> clean(" days\n of the \x1b[31mweek ")
    'days of the [31mweek'
    """
    plain = "".join(char if char.isprintable() else " " for char in text.replace("\x1b", ""))
    return " ".join(plain.split())[:LONGEST]
