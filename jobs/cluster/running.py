"""Clusters that outlive the command which started them: where they are written down, and whether they still run.

Each has a folder ``STATE/clusters/NAME`` that only the user may enter. STATE is ``$SUBSPACE_STATE``, else
``$XDG_STATE_HOME/subspace``, else ``~/.local/state/subspace``; all hosts that use the cluster must see it.

=================  =====================================================================================================
``cluster.json``   what it was started with, and a token that all its processes carry (``SUBSPACE_CLUSTER``)
``service.json``   the process that runs the scheduler, and where that is reached; there once the scheduler runs
``settings.yaml``  the Dask configuration in force
``*.pem``          the certificate
``service.log``    what the process says
``logs/``          logs of Slurm jobs
=================  =====================================================================================================
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psutil

from storage.errors import CorruptError, InputError
from storage.files import require_private, write_atomically
from storage.json_files import read_json_object

#: The environment variable by which the processes of a cluster are known.
TOKEN_VARIABLE = "SUBSPACE_CLUSTER"  # noqa: S105 - a name, no password
#: Seconds by which the clock's and the kernel's idea of a start may differ.
CLOCK_SECONDS = 5.0


def state_root() -> Path:
    """Return the folder under which the state of all clusters of this user is kept."""
    chosen = os.environ.get("SUBSPACE_STATE")
    if chosen:
        return Path(chosen).expanduser().absolute()
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "subspace"


def state_folder(part: Literal["clusters", "runs"]) -> Path:
    """Return a folder of the state, whether it is there or not; InputError if others may write there."""
    folder = state_root() / part
    for place in (folder.parent, folder):
        if place.exists():
            require_private(place)
    return folder


@dataclass(frozen=True)
class Service:
    """The process that runs a cluster's scheduler, and the name and logs of its Slurm jobs, if it has any.

    It is known by its number on `host` and the second at which it began: numbers are used again.
    """

    host: str
    pid: int
    created: float
    address: str
    dashboard: str
    job_name: str | None
    logs: str | None


@dataclass(frozen=True)
class ClusterState:
    """A cluster that ``subspace cluster up`` started, as it is written down."""

    folder: Path

    @property
    def name(self) -> str:
        """Its name."""
        return self.folder.name

    def begin(self, **about: Any) -> None:
        """Write down what the cluster is started with."""
        self._write("cluster.json", {"host": socket.gethostname(), "started": time.time(), **about})

    @property
    def about(self) -> dict[str, Any]:
        """What it was started with: ``profile``, ``token``, ``host``, ``started``."""
        return self._read("cluster.json")

    def announce(self, service: Service) -> None:
        """Write down that the scheduler runs."""
        self._write("service.json", vars(service))

    @property
    def service(self) -> Service | None:
        """The process that runs the scheduler, or None while it starts."""
        file = self.folder / "service.json"
        if not file.is_file():
            return None
        try:
            return Service(**self._read("service.json"))
        except TypeError as error:
            raise CorruptError(f"{file} does not describe a cluster's process; remove {self.folder}") from error

    def address(self) -> str:
        """Return the scheduler's address; InputError, with what is known of its end, if it does not run."""
        service, gone = self.service, self.gone()
        if service is None or gone is not None:
            raise InputError(
                f"The cluster {self.name!r} does not run: {gone or 'its scheduler is still starting'}. "
                f"`subspace cluster down {self.name}` clears what is left of it"
            )
        return service.address

    def gone(self) -> str | None:
        """Say why the cluster cannot be running; None if it may be (its host may be another than this one)."""
        about, service = self.about, self.service
        if about["host"] != socket.gethostname():
            return None
        if psutil.boot_time() > about["started"] + CLOCK_SECONDS:
            return f"{about['host']} was restarted since, and its process ended with it"
        if service is not None and not _is_running(service.pid, service.created):
            return f"its process {service.pid} died; {self.folder / 'service.log'} may say why"
        if service is None and not list(self.processes()):
            return f"its process died before the scheduler ran; {self.folder / 'service.log'} may say why"
        return None

    def processes(self) -> Iterator[psutil.Process]:
        """Yield the cluster's processes on this host: those that carry its token."""
        token = self.about["token"]
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get(TOKEN_VARIABLE) == token and process.pid != os.getpid():
                    yield process

    def _write(self, name: str, content: dict[str, Any]) -> None:
        write_atomically(self.folder / name, [json.dumps(content, indent=2).encode()], mode=0o600)

    def _read(self, name: str) -> dict[str, Any]:
        file = self.folder / name
        missing = f"{self.folder} is not the folder of a cluster: {name} is missing; remove it"
        if self.folder.is_dir():
            require_private(self.folder)
        return read_json_object(file, missing, f"remove {self.folder}")


def _is_running(pid: int, created: float) -> bool:
    try:
        process = psutil.Process(pid)
        return abs(process.create_time() - created) < CLOCK_SECONDS and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def cluster_of(name: str) -> ClusterState:
    """Return the place of a cluster of that name, whether there is one or not."""
    if not re.fullmatch(r"[\w][\w.-]*", name):
        raise InputError(f"A cluster's name is letters, digits, '_', '.' and '-', not {name!r}")
    return ClusterState(state_folder("clusters") / name)


def find_cluster(name: str) -> ClusterState | None:
    """Return the cluster of that name, running or not; None if none was started."""
    folder = state_folder("clusters") / name
    return ClusterState(folder) if name and "/" not in name and (folder / "cluster.json").is_file() else None


def known_names() -> list[str]:
    """Return the names of the clusters that were started and not taken down."""
    return sorted(file.parent.name for file in state_folder("clusters").glob("*/cluster.json"))
