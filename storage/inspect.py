"""What a store, a result or a run holds, from its metadata and statistics alone: no activation is read.

>>> import tempfile, storage
>>> folder = Path(tempfile.mkdtemp())
>>> storage.write_activations(folder / "a.zarr", np.eye(9, 30), attrs={"model": "toy"})
>>> found = inspect(folder / "a.zarr")
>>> found["kind_of_data"], found["tokens"], found["features"], found["l0"], found["dead_features"]
('activations', 9, 30, 1.0, 21)
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from storage.damage import reading
from storage.errors import CorruptError, MissingInputError
from storage.files import PARTIAL_SUFFIX, partial_path
from storage.inventory import GROUP_FILE, REMEDY, array_names, check_whole, is_closed
from storage.listing import files_below, size_on_disk
from storage.manifest import CONTENT_HASH, MANIFEST
from storage.rows import ROW_HASH
from storage.rundir import RunDirectory
from storage.sparse_array import is_csr_array, missing_shards, read_metadata
from storage.targets import CORPUS
from storage.writer import ACTIVATION, ActivationWriter, chunk_shape

logger = logging.getLogger(__name__)

#: What a store says of where it comes from.
PROVENANCE = ("model", "model_revision", "site", "dictionary", "kind", "corpus_hash", ROW_HASH, CONTENT_HASH)


def inspect(path: str | Path) -> dict[str, Any]:
    """Describe what is at a path.

    Parameters
    ----------
    path
        An activation store, a corpus, a result, unfinished work (``NAME.partial``, or NAME where only that is
        there), or a run directory.

    Returns
    -------
    dict
        JSON values. ``kind_of_data`` is ``activations``, ``corpus``, ``run``, or the stage of a result; ``bytes`` is
        the size on disk; ``complete`` says whether it is finished. Of a store also: shape, ``bytes_per_value`` (of
        those not zero), ``ratio_to_dense`` (how many times smaller than the dense array), shards and chunks,
        ``l0`` (features active in a row on average), ``density``, ``dead_features``, ``sinks``, where it comes
        from, hashes and dates. Of an unfinished store: the numbers of the shards that are missing. Of a run: all of
        this for everything in it, and which results of its grid are missing.

    Raises
    ------
    MissingInputError
        If there is nothing there that this package wrote.
    CorruptError
        If files are missing, foreign, or not those that were written; the message names the first.
    """
    folder = Path(path)
    if not folder.exists() and partial_path(folder).exists():
        folder = partial_path(folder)
    if (folder / "experiment.json").is_file():
        return _inspect_run(RunDirectory(folder))
    if not (folder / "zarr.json").is_file():
        raise MissingInputError(
            f"There is no store, result or run directory at {path}; a store is a folder that holds a zarr.json"
        )
    return _inspect_group(folder)


def _inspect_group(folder: Path) -> dict[str, Any]:
    metadata = read_metadata(folder)
    if metadata.get("node_type") == "array" and folder.parent.suffix == ".zarr":
        raise CorruptError(f"{folder.parent} has lost its {GROUP_FILE}; {REMEDY}")
    check_whole(folder, metadata)
    with reading(folder):
        return _describe_group(folder, metadata.get("attributes", {}))


def _describe_group(folder: Path, attrs: dict[str, Any]) -> dict[str, Any]:
    common = {"path": str(folder), "bytes": size_on_disk(folder), "complete": not folder.name.endswith(PARTIAL_SUFFIX)}
    if "layout" in attrs:
        return {"kind_of_data": "activations", **common, **_store(folder, attrs), **_origin(attrs)}
    if attrs.get("format") == CORPUS:
        return {"kind_of_data": "corpus", **common, **_corpus(folder), **_origin(attrs)}
    stage = attrs.get(MANIFEST, {}).get("stage", "unknown")
    return {"kind_of_data": stage, **common, **_result(folder, attrs), **_origin(attrs)}


def _origin(attrs: dict[str, Any]) -> dict[str, Any]:
    """Return where something comes from: names, hashes, date, versions."""
    manifest = attrs.get(MANIFEST, {})
    made = {"created": manifest.get("created"), "fingerprint": manifest.get("fingerprint")}
    known = {name: attrs[name] for name in PROVENANCE if name in attrs} | made
    return {name: value for name, value in known.items() if value is not None} | {
        "settings": manifest.get("settings", {}),
        "inputs": manifest.get("inputs", {}),
        "versions": manifest.get("versions", attrs.get("versions", {})),
    }


def _store(folder: Path, attrs: dict[str, Any]) -> dict[str, Any]:
    writer = ActivationWriter.from_disk(folder, folder)
    group = zarr.open_group(str(folder), mode="r")
    rows, columns = chunk_shape(folder)
    summary: dict[str, Any] = {
        "tokens": writer.n_tokens,
        "features": writer.n_features,
        "dtype": str(writer.dtype),
        "layout": writer.layout,
        "shards": writer.n_shards,
        "shard_rows": writer.shard_rows,
        "chunk": [rows, columns],
        "chunks_per_shard": (writer.shard_rows // rows) * -(-writer.n_features // columns),
        "decoder": list(group["decoder"].shape) if "decoder" in group else None,
        "coordinates": attrs.get("coordinates", "").split(),
        "missing_shards": missing_shards(folder, ACTIVATION),
    }
    if "n_active" not in group:
        return summary
    if not is_closed(folder):
        logger.warning(
            "%s was saved by another program: what is said of its values is what was stored when it was first written. "
            "`subspace verify` compares that with the values that it has now",
            folder,
        )
    return summary | _statistics(writer, group, folder, attrs)


def _statistics(writer: ActivationWriter, group: zarr.Group, folder: Path, attrs: dict[str, Any]) -> dict[str, Any]:
    """Return what the statistics of a finished store tell; values and rows are those that are not sinks."""
    active, sinks = np.asarray(group["n_active"][...]), int(attrs.get("n_sinks", 0))
    rows, values, size = writer.n_tokens - sinks, int(active.sum()), size_on_disk(folder / ACTIVATION)
    return {
        "sinks": sinks,
        "values_not_zero": values,
        "bytes_of_activations": size,
        "bytes_per_value": size / values if values else None,
        "ratio_to_dense": writer.n_tokens * writer.n_features * writer.dtype.itemsize / size if size else None,
        "l0": values / rows if rows else None,
        "density": values / (rows * writer.n_features) if rows else None,
        "dead_features": int(np.count_nonzero(active == 0)),
        "constant_features": int(np.count_nonzero(np.asarray(group["std"][...]) == 0)),
    }


def _corpus(folder: Path) -> dict[str, Any]:
    group = zarr.open_group(str(folder), mode="r")
    return {"documents": max(0, group["offsets"].shape[0] - 1), "text_bytes": group["text"].shape[0]}


def _result(folder: Path, attrs: dict[str, Any]) -> dict[str, Any]:
    """Return the arrays of a result, and those of its attributes that are single values."""
    arrays = array_names(folder)
    known = (*PROVENANCE, MANIFEST)
    plain = {
        name: value
        for name, value in attrs.items()
        if name not in known and isinstance(value, int | float | str | bool | None)
    }
    sparse = [name for name in arrays if is_csr_array(folder, name)]
    return {
        "arrays": {name: _array(folder / name) for name in arrays},
        "missing_shards": {name: missing for name in sparse if (missing := missing_shards(folder, name))},
        "attributes": plain,
    }


def _array(folder: Path) -> dict[str, Any]:
    metadata = read_metadata(folder)
    kind = metadata["data_type"] if isinstance(metadata["data_type"], str) else metadata["data_type"].get("name")
    return {"shape": metadata["shape"], "dtype": kind, "dimensions": metadata.get("dimension_names") or []}


def _inspect_run(run: RunDirectory) -> dict[str, Any]:
    name = run.read_experiment().get("name")
    wanted = [path for stage in run.expected() for path in stage]
    return {
        "kind_of_data": "run",
        "path": str(run.root),
        "name": name,
        "bytes": size_on_disk(run.root),
        "complete": not (missing := [str(path) for path in wanted if not path.exists()]),
        "missing": missing,
        "parts": list(_parts(run.root)),
    }


def _parts(root: Path) -> Iterator[dict[str, Any]]:
    """Describe every store and result of a run; what is renamed or deleted meanwhile is left out."""
    metadata = {file.parent for file in files_below(root) if file.name == "zarr.json"}
    for group in sorted(folder for folder in metadata if folder.parent not in metadata):
        try:
            part = _inspect_group(group)
        except (FileNotFoundError, KeyError, CorruptError):
            if (group / "zarr.json").exists():
                raise
        else:
            # Zarr takes a chunk that is not there for zeros
            if (group / "zarr.json").exists():
                yield part
