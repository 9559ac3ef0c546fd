"""A private Slurm on this host: one controller, two nodes, no root services touched.

The tests start it and stop exactly the processes that they started. It needs ``slurmctld``, ``slurmd`` and
``sbatch`` on PATH (Debian: ``slurm-wlm``) and root, which slurmd wants; set ``SUBSPACE_REQUIRE_SLURM=1`` to make
their absence an error instead of a skip.
"""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
import venv
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

SLURM_CONF = """
ClusterName=subspace-tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/none
CredType=cred/none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
MpiDefault=none
ReturnToService=2
SchedulerParameters=sched_interval=1,batch_sched_delay=0
KillWait=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
GresTypes=gpu
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[0]} CPUs=2 RealMemory=8000 Gres=gpu:2
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2 RealMemory=8000 Gres=gpu:2
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
PartitionName=short Nodes=n1,n2 MaxTime=2 State=UP OverSubscribe=NO
"""


class Slurm:
    """What an administrator, or a user in another terminal, does to a Slurm."""

    def jobs(self) -> dict[str, tuple[str, str]]:
        """Return job id → state and node of every job that is waiting or running."""
        lines = self._say("squeue", "-h", "-o", "%A|%T|%N").splitlines()
        return {job: (state, node) for job, state, node in (line.split("|") for line in lines)}

    def running(self) -> list[str]:
        """Return the ids of the running jobs, the oldest first."""
        return sorted((job for job, (state, _) in self.jobs().items() if state == "RUNNING"), key=int)

    def cancel(self, job: str) -> None:
        self._say("scancel", job)

    def requeue(self, job: str) -> None:
        """Stop a job and put it back into the queue, as preemption does."""
        self._say("scontrol", "requeue", job)

    def drain(self, node: str) -> None:
        """Take a node out of use; what runs there goes on, and nothing else starts."""
        self._say("scontrol", "update", f"nodename={node}", "state=drain", "reason=test")

    def resume(self, node: str) -> None:
        self._say("scontrol", "update", f"nodename={node}", "state=resume")

    def _say(self, *command: str) -> str:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def _why_not() -> str | None:
    missing = [name for name in ("slurmctld", "slurmd", "sbatch", "squeue") if shutil.which(name) is None]
    if missing:
        return f"not on PATH: {', '.join(missing)} (Debian: apt-get install slurm-wlm)"
    return None if os.geteuid() == 0 else "slurmd needs root"


def _write_configuration(folder: Path) -> Path:
    controller_port, *ports = _free_ports(3)
    for name in ("state", "spool-n1", "spool-n2"):
        (folder / name).mkdir()
    for i in range(2):
        (folder / f"gpu{i}").touch()
    host = socket.gethostname().split(".")[0]
    configuration = folder / "slurm.conf"
    configuration.write_text(
        SLURM_CONF.format(
            host=host, controller_port=controller_port, ports=ports, folder=folder, user=getpass.getuser()
        )
    )
    (folder / "gres.conf").write_text(f"NodeName=n[1-2] Name=gpu File={folder}/gpu[0-1]\n")
    return configuration


def _wait_until_idle(daemons: list[subprocess.Popen[bytes]], folder: Path, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        states = subprocess.run(["sinfo", "-h", "-o", "%T %D"], capture_output=True, text=True, check=False).stdout
        if states.strip() == "idle 2":
            return
        time.sleep(0.2)
    logs = "\n".join(f"--- {log.name}\n{log.read_text()[-2000:]}" for log in folder.glob("*.log"))
    codes = [daemon.poll() for daemon in daemons]
    raise RuntimeError(f"Slurm's nodes are not idle after {seconds} s: {states!r}; exit codes {codes}\n{logs}")


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Run a Slurm of two nodes for the session; yields the folder of its files."""
    reason = _why_not()
    if reason is not None:
        if os.environ.get("SUBSPACE_REQUIRE_SLURM"):
            pytest.fail(f"Slurm is required here, but {reason}")
        pytest.skip(f"no Slurm: {reason}")
    folder = tmp_path_factory.mktemp("slurm")
    previous = os.environ.get("SLURM_CONF")
    os.environ["SLURM_CONF"] = str(_write_configuration(folder))
    commands = [["slurmctld", "-D"], ["slurmd", "-D", "-N", "n1"], ["slurmd", "-D", "-N", "n2"]]
    daemons: list[subprocess.Popen[bytes]] = []
    try:
        for command in commands:
            with (folder / f"{'-'.join(command)}.out.log").open("wb") as out:
                daemons.append(subprocess.Popen(command, stdout=out, stderr=out))
        _wait_until_idle(daemons, folder)
        yield folder
        subprocess.run(["scancel", "--user", getpass.getuser(), "--full"], check=False)
        time.sleep(1)
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
        for daemon in daemons:
            daemon.wait(timeout=20)
        if previous is None:
            os.environ.pop("SLURM_CONF", None)
        else:
            os.environ["SLURM_CONF"] = previous


@pytest.fixture
def slurmctl(slurm: Path) -> Iterator[Slurm]:
    """Commands for the private Slurm; all nodes are in use again when the test ends."""
    control = Slurm()
    yield control
    for node in ("n1", "n2"):
        subprocess.run(
            ["scontrol", "update", f"nodename={node}", "state=resume"], check=False, stderr=subprocess.DEVNULL
        )


ClusterFile = Callable[..., Path]


@pytest.fixture(scope="session")
def make_cluster_file() -> ClusterFile:
    """Write what a site changes in cluster.yaml: two small jobs, and what the test gives besides."""

    def make(
        folder: Path,
        job: dict[str, object] | None = None,
        profile: dict[str, object] | None = None,
        distributed: dict[str, object] | None = None,
    ) -> Path:
        (folder / "logs").mkdir(exist_ok=True)
        usual = {
            "queue": "main",
            "cores": 1,
            "memory": "2GB",
            "walltime": "00:10:00",
            "interface": "lo",
            "log-directory": str(folder / "logs"),
            "shared-temp-directory": str(folder),
            "local-directory": str(folder / "scratch"),
            "scheduler-options": {"dashboard_address": "127.0.0.1:0"},
        }
        settings = {
            "subspace": {"profiles": {"slurm-cpu": {"jobs": 2, "wait": 60, **(profile or {})}}},
            "jobqueue": {"slurm-cpu": {**usual, **(job or {})}},
            "distributed": distributed or {},
        }
        path = folder / "cluster.yaml"
        path.write_text(yaml.safe_dump(settings))
        return path

    return make


@pytest.fixture
def cluster_file(make_cluster_file: ClusterFile, tmp_path: Path) -> Path:
    """What a site changes in cluster.yaml."""
    return make_cluster_file(tmp_path)


WITHOUT_HOME = """#!/bin/sh
unset PYTHONPATH NUMBA_CACHE_DIR XDG_CACHE_HOME XDG_STATE_HOME
export HOME='{folder}/no home' TMPDIR='{temporary}'
exec {bound} '{folder}/bin/python' "$@"
"""


@pytest.fixture(scope="session")
def other_python(
    once: Callable[[str, Callable[[Path], None]], Path],
    bound_by_permissions: list[str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The interpreter of another environment: read-only, with the project's wheel, for users who have no home."""
    temporary = tmp_path_factory.mktemp("of-nodes")

    def make(folder: Path) -> None:
        root = Path(__file__).parents[2]
        command = [sys.executable, "-m", "pip", "--quiet", "wheel", "--no-deps", "--wheel-dir", str(folder), str(root)]
        subprocess.run(command, check=True)
        venv.create(folder, symlinks=True)
        packages = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
        zipfile.ZipFile(next(folder.glob("*.whl"))).extractall(packages)
        # what the project needs; the .pth files there, that of an editable installation among them, are not read
        (packages / "needed.pth").write_text(sysconfig.get_path("purelib") + "\n")
        python = folder / "bin" / "python-of-the-site"
        bound = " ".join(bound_by_permissions)
        python.write_text(WITHOUT_HOME.format(folder=folder, temporary=temporary, bound=bound))
        python.chmod(0o755)
        for path in (folder, *folder.rglob("*")):
            if path.is_dir():
                path.chmod(0o555)

    return once("other environment", make) / "bin" / "python-of-the-site"


@pytest.fixture
def subspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Run the ``subspace`` command in a process of its own; returns what it prints. State is kept below `tmp_path`."""
    monkeypatch.setenv("SUBSPACE_STATE", str(tmp_path / "state"))

    def call(*arguments: object) -> str:
        command = [sys.executable, "-m", "jobs.cli", *map(str, arguments)]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return call
