"""The versions of a cluster's processes: a worker whose code is another one could write other bytes.

Driver and workers may import from different environments, as a checkout on a login node and a wheel on the nodes. A job
compares its versions with those that are in its settings (:func:`demanding_versions`) before its worker starts: Dask
imports this module there and calls :func:`dask_setup`. Workers that somebody else started are asked
(:func:`check_workers`).
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
import socket
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dask
import psutil
from distributed import Client
from distributed.comm import get_address_host_port

from storage.errors import InputError

#: Packages of which driver and workers need the same version.
PACKAGES = ("semantic-subspace-matching", "dask", "distributed", "numpy", "zarr")
#: What tasks run: a version stays the same from one commit to the next, so the files are compared too.
SOURCES = ("storage", "pipeline")
#: This module, which jobs import before their worker starts.
PRELOAD = "jobs.cluster.versions"
#: Seconds after which a worker that has not reached the scheduler says so, and for which it tries then.
REACHING = 5.0
#: What the line has, by which it is found in the log.
UNREACHABLE = "cannot reach the scheduler at"
#: The folder that this process imports them from.
PLACE = Path(__file__).parents[2]


def versions() -> dict[str, str]:
    """Return the versions of Python, of the packages that all processes need alike, and a hash of this one's files."""
    found = {"python": ".".join(platform.python_version_tuple()[:2])}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found | {"files of subspace": _hash_of_sources()}


def _hash_of_sources() -> str:
    digest = hashlib.sha256()
    for file in sorted(file for package in SOURCES for file in (PLACE / package).rglob("*.py")):
        digest.update(str(file.relative_to(PLACE)).encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def differences(theirs: Mapping[str, str], ours: Mapping[str, str]) -> list[str]:
    """Return what differs, for people.

    >>> differences({"numpy": "2.3.0", "zarr": "3.1.6"}, {"numpy": "2.4.6", "zarr": "3.1.6"})
    ['numpy 2.3.0, not 2.4.6']
    """
    return [
        f"{name} {theirs.get(name, 'unknown')}, not {version}"
        for name, version in ours.items()
        if theirs.get(name) != version
    ]


def _this_process() -> dict[str, Any]:
    return {"versions": versions(), "python": sys.executable, "place": str(PLACE)}


def demanding_versions(settings: dict[str, Any]) -> dict[str, Any]:
    """Return Dask settings with which the jobs that read them refuse to start with other versions than this process."""
    # `dask cuda worker` reads this key; `dask worker` has an option, whose default wins over the key
    preloads = dask.config.get("distributed.nanny.preload", [], config=settings)
    demands: dict[str, Any] = {
        "subspace": {"driver": _this_process()}, "distributed": {"nanny": {"preload": [*preloads, PRELOAD]}},
    }  # fmt: skip
    return dask.config.merge(settings, demands)


def dask_setup(nanny: Any) -> None:
    """End this process if its versions are not those that its settings demand; say it if no scheduler is reached.

    Dask by itself tries in silence, until the job's death-timeout.
    """
    if (driver := dask.config.get("subspace.driver", None)) is not None and (wrong := _mismatch(driver)):
        sys.exit(wrong)  # Dask goes on after an Exception

    def look() -> None:
        if nanny.process is None and (line := unreachable(nanny.scheduler_addr)):
            sys.stderr.write(f"{line}\n")  # the log of the job

    timer = threading.Timer(REACHING, look)
    timer.daemon = True
    timer.start()


def unreachable(address: str) -> str:
    """Return why this host cannot connect to a scheduler, and what to change; an empty text where it can.

    >>> "Connection refused" in unreachable("tcp://127.0.0.1:1")
    True
    """
    try:
        socket.create_connection(get_address_host_port(address), timeout=REACHING).close()
    except OSError as error:
        return (
            f"The worker on {socket.gethostname()} {UNREACHABLE} {address} ({error}). Set interface to a network that "
            f"both hosts are in (this one has {', '.join(sorted(psutil.net_if_addrs()))}), or have the firewall let it "
            "through, to one port if scheduler-options has one: {port: 8786}"
        )
    return ""


def _mismatch(driver: Mapping[str, Any]) -> str:
    """Return a message where the versions of this process are not the driver's; else an empty text."""
    different = "; ".join(differences(versions(), driver["versions"]))
    here = f"{sys.executable} with Subspace from {PLACE}"
    return different and (
        f"A worker on {socket.gethostname()} does not have the driver's versions: {different}. It is {here}, the "
        f"driver is {driver['python']} with {driver['place']}: install the same versions in both"
    )


def check_workers(client: Client) -> None:
    """Refuse the workers that a scheduler has if their versions are not those of this process."""
    driver = _this_process()
    answers = client.run(_mismatch, driver, on_error="return")
    for address, wrong in answers.items():
        if isinstance(wrong, OSError):  # it has gone meanwhile
            continue
        if isinstance(wrong, Exception):
            raise InputError(
                f"The worker at {address} lacks this version of Subspace ({wrong}): start it with {sys.executable}"
            )
        if wrong:
            raise InputError(wrong)
