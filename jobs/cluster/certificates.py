"""The keys by which client, scheduler and workers of one cluster know each other.

Each cluster has a certificate of its own that signs itself: whoever holds its key may connect, nobody else. It is
kept as ``ca.pem``, ``cert.pem`` and ``key.pem`` in a folder that only the user may enter.
"""

from __future__ import annotations

import os
from pathlib import Path

from distributed.security import Security

from storage.errors import InputError, MissingInputError

FILES = {"ca_file": "ca.pem", "cert": "cert.pem", "key": "key.pem"}


def make_certificates(folder: Path) -> Security:
    """Make a certificate, write it to a folder that only the user may enter, and return what a Dask cluster takes."""
    _require_private(folder)
    roles = Security.temporary().get_tls_config_for_role("scheduler")
    for part, name in FILES.items():
        write_private(folder / name, roles[part])
    return read_certificates(folder)


def has_certificates(folder: Path) -> bool:
    """Return whether a cluster's certificate is in a folder."""
    return (folder / FILES["key"]).is_file()


def read_certificates(folder: Path) -> Security:
    """Return what a Dask cluster or client takes to use the certificate in a folder, whose key nobody else may read."""
    paths = {part: folder / name for part, name in FILES.items()}
    missing = [str(path) for path in paths.values() if not path.is_file()]
    if missing:
        raise MissingInputError(
            f"No certificate: {', '.join(missing)} missing; a folder of them has ca.pem, cert.pem, key.pem"
        )
    if paths["key"].stat().st_mode & 0o077:
        raise InputError(f"Others may read {paths['key']}: chmod 600 it, and make a new one if they should not know it")
    keys = {
        f"tls_{role}_{part}": str(paths[part]) for role in ("client", "scheduler", "worker") for part in ("cert", "key")
    }
    return Security(require_encryption=True, tls_ca_file=str(paths["ca_file"]), **keys)


def write_private(path: Path, text: str) -> None:
    """Write a new file that only the user may read."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)


def _require_private(folder: Path) -> None:
    if folder.stat().st_mode & 0o077:
        raise InputError(f"Others may enter {folder}, and keys are to go there: chmod 700 it")
