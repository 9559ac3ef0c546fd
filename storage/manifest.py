"""Manifests: which inputs and settings a result was made from, so that a finished stage is known to be current.

>>> one = new_manifest("match", {"correlation": "ab12"}, {"method": "greedy"})
>>> two = new_manifest("match", {"correlation": "ab12"}, {"method": "mutual"})
>>> one.fingerprint == two.fingerprint
False
"""

from __future__ import annotations

import datetime as dt
import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np

from storage.errors import FormatError, InputError, MissingInputError
from storage.sparse_array import read_metadata

# Raised when a change of the code makes results on disk wrong or unreadable: everything is then made again.
FORMAT_VERSION = 1
VERSIONED_PACKAGES = ("semantic-subspace-matching", "numpy", "scipy", "zarr", "xarray", "dask", "numba")
MANIFEST = "manifest"
CONTENT_HASH = "content_hash"


class Fingerprint(str):
    """What identifies the content of a group on disk, which knows whether the group is still the same.

    Attributes
    ----------
    path
        The group.
    state
        Inode, size and time of modification (ns) of its ``zarr.json`` before the content was looked at.
    """

    __slots__ = ("path", "state")

    path: Path
    state: tuple[int, int, int]

    @classmethod
    def of(cls, path: Path, compute: Callable[[Path], str]) -> Self:
        """Return what `compute` says of a group."""
        state = _state_of(path)
        made = cls(compute(path))
        made.path, made.state = path, state
        return made

    def holds(self) -> bool:
        """Return whether the group was neither replaced by another one nor written to since."""
        if _state_of(self.path) == self.state:
            return True
        try:
            attrs = read_attrs(self.path)
        except (MissingInputError, FormatError):
            return False
        return self in (attrs.get(CONTENT_HASH), (attrs.get(MANIFEST) or {}).get("fingerprint"))


def _state_of(path: Path) -> tuple[int, int, int]:
    try:
        status = (path / "zarr.json").stat()
    except OSError:
        return -1, -1, -1
    return status.st_ino, status.st_size, status.st_mtime_ns


@dataclass(frozen=True)
class Manifest:
    """What a result was made from.

    Attributes
    ----------
    stage
        Name of the stage.
    inputs
        Fingerprint of every input, by name.
    settings
        Everything else that the result depends on; JSON values.
    versions
        Versions of the libraries that made it. Not part of the fingerprint.
    created
        When, in UTC. Not part of the fingerprint.
    """

    stage: str
    inputs: dict[str, str]
    settings: dict[str, Any]
    versions: dict[str, str]
    created: str

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over stage, inputs, settings and the version of the format."""
        parts = [self.stage, self.inputs, self.settings, FORMAT_VERSION]
        return hashlib.sha256(canonical_json(parts).encode()).hexdigest()

    def to_attrs(self) -> dict[str, Any]:
        """Return the manifest as attributes of a Zarr group."""
        return {MANIFEST: {**asdict(self), "fingerprint": self.fingerprint, "format_version": FORMAT_VERSION}}

    @classmethod
    def from_attrs(cls, attrs: Mapping[str, Any]) -> Self:
        """Make a manifest from what :meth:`to_attrs` returned; FormatError if it is not there, or not complete."""
        try:
            stored = attrs[MANIFEST]
            if stored.get("format_version", FORMAT_VERSION) != FORMAT_VERSION:
                raise FormatError(f"It is of format version {stored['format_version']}, and this is {FORMAT_VERSION}")
            return cls(**{key: stored[key] for key in ("stage", "inputs", "settings", "versions", "created")})
        except (KeyError, TypeError, AttributeError) as error:
            raise FormatError(f"The attributes hold no complete manifest ({error!r})") from error


def new_manifest(stage: str, inputs: Mapping[str, str], settings: Mapping[str, Any]) -> Manifest:
    """Return a manifest with the versions of the libraries in use and the present time filled in.

    Parameters
    ----------
    stage
        Name of the stage.
    inputs
        Fingerprint of every input (:func:`storage.fingerprint`), by name.
    settings
        Everything else that the result depends on. Paths, tuples and NumPy scalars become
        strings, lists and numbers.

    Raises
    ------
    InputError
        If a setting is not a JSON value.
    """
    now = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
    known = {name: value if isinstance(value, Fingerprint) else json_values(value) for name, value in inputs.items()}
    return Manifest(stage, known, json_values(dict(settings)), library_versions(), now)


def json_values(value: Any) -> Any:
    """Return `value` as JSON gives it back: paths as strings, tuples as lists, NumPy scalars as numbers."""
    return json.loads(canonical_json(value))


def canonical_json(value: Any) -> str:
    """Return JSON that is the same for equal values."""
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), default=_plain)
    except (TypeError, ValueError) as error:
        raise InputError(f"Attributes, inputs and settings must be JSON values: {error}") from error


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{value!r} is not one")


@cache
def _library_versions() -> Mapping[str, str]:
    versions = {"python": platform.python_version()}
    for package in VERSIONED_PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def library_versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that results may depend on."""
    return dict(_library_versions())


def read_attrs(path: str | Path) -> dict[str, Any]:
    """Return the attributes of the Zarr group at `path`; MissingInputError if there is none."""
    attributes: dict[str, Any] = read_metadata(Path(path)).get("attributes", {})
    return attributes


def read_manifest(path: str | Path) -> Manifest | None:
    """Return the manifest of the store or result at `path`, or None if there is no such thing or it has none."""
    try:
        return Manifest.from_attrs(read_attrs(path))
    except FormatError:
        return None
    except MissingInputError:
        return None
