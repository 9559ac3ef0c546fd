"""What identifies the content of a store or result.

A hash among the attributes is believed only where the group still agrees with its inventory
(:mod:`storage.inventory`). A group without one was written or changed by another program: its hash is computed again,
so that results of the old values do not count as results of the new ones.
"""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from storage.corpus import hash_of_text
from storage.damage import reading
from storage.errors import FormatError
from storage.inventory import REMEDY, array_names, attributes_hash, is_intact, listed_checksums
from storage.manifest import CONTENT_HASH, MANIFEST, Fingerprint, Manifest, read_attrs
from storage.targets import CORPUS
from storage.writer import hash_of_content

logger = logging.getLogger(__name__)


def fingerprint(path: str | Path) -> str:
    """Return what identifies the content at `path`.

    It is the content hash of a store or corpus, or the fingerprint of a result's manifest; computed from the content
    where another program changed the group.

    Raises
    ------
    MissingInputError
        If there is nothing at `path`.
    FormatError
        If it is neither a finished store nor a result.
    CorruptError
        If it is damaged; the message names the file.
    """
    return Fingerprint.of(Path(path), _identify)


def _identify(path: Path) -> str:
    attrs = read_attrs(path)
    if CONTENT_HASH not in attrs and MANIFEST not in attrs:
        raise FormatError(f"{path} has neither a content hash nor a manifest: it was not written by this package")
    if is_intact(path):
        return str(attrs[CONTENT_HASH]) if CONTENT_HASH in attrs else Manifest.from_attrs(attrs).fingerprint
    logger.info("%s was not finished by this version, or changed since: its hash is computed from its content", path)
    with reading(path, REMEDY):
        return content_hash(path)


def content_hash(path: Path) -> str:
    """Return the hash of what a group holds now, attributes of a result included that its stage has set."""
    attrs = read_attrs(path)
    if "layout" in attrs:
        return hash_of_content(path)
    if attrs.get("format") == CORPUS:
        return hash_of_text(path)
    checksums = listed_checksums(path, array_names(path))
    lines = [f"{name} {size} {crc}\n" for name, (size, crc) in sorted(checksums.items())]
    lines.append(attributes_hash({name: value for name, value in attrs.items() if name != MANIFEST}))
    if MANIFEST in attrs:
        lines.append(Manifest.from_attrs(attrs).fingerprint)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def hash_of_ids(*features: NDArray[np.integer[Any]]) -> str:
    """Return the hash of feature ids in their order: of the two features of all pairs, those of A first."""
    return hashlib.sha256(b"".join(ids.astype("<i4").tobytes() for ids in features)).hexdigest()


def hash_of_pairs(path: Path) -> str | None:
    """Return the hash of the features that a result pairs, which is what its scores depend on; None if it has none."""
    names = ("feature_a", "feature_b")
    if not {*names} <= {*array_names(path)}:
        return None
    with reading(path, REMEDY):
        return hash_of_ids(*(np.asarray(zarr.open_array(str(path / name), mode="r")[:]) for name in names))
