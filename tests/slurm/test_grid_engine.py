"""The `sge-cpu` profile on a private Grid Engine of one host, as Debian's packages configure one.

It needs ``gridengine-master`` and ``gridengine-exec``, whose services need not run, and root.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from jobs.cluster import keeper
from jobs.cluster.client import connect
from pipeline.experiment.run import run
from storage.errors import SubspaceError

pytestmark = pytest.mark.slurm

ROOT = Path(__file__).parents[2]
BINARIES, SHARED = Path("/usr/lib/gridengine"), Path("/usr/share/gridengine")
SLOTS = 2


def say(*command: str, check: bool = True) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=check).stdout


def changed(text: str, **values: object) -> str:
    """Return a configuration of Grid Engine with other values."""
    for key, value in values.items():
        text = re.sub(rf"^({key}\s+).*$", rf"\g<1>{value}", text, flags=re.MULTILINE)
    return text


@pytest.fixture(scope="module")
def grid_engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Run a Grid Engine of this host for the tests of this file; yields the folder of its files."""
    if not (BINARIES / "sge_qmaster").is_file() or os.geteuid() != 0:
        pytest.skip("no Grid Engine: it needs Debian's gridengine-master and gridengine-exec, and root")
    folder = tmp_path_factory.mktemp("grid-engine")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment(folder).items():
            patch.setenv(name, value)
        prepare(folder)
        daemons = [start(folder, "sge_qmaster")]
        try:
            wait_until(lambda: bool(say("qconf", "-sm", check=False)), folder)
            say("qconf", "-as", "localhost")
            daemons.append(start(folder, "sge_execd"))
            add_queue(folder)
            yield folder
        finally:
            say("qdel", "-f", "-u", "*", check=False)
            for daemon in reversed(daemons):
                daemon.terminate()
            for daemon in daemons:
                daemon.wait(timeout=20)


def environment(folder: Path) -> dict[str, str]:
    # the ports of this process: several of these may run on one host
    ports = {"SGE_QMASTER_PORT": 20000 + os.getpid() % 20000, "SGE_EXECD_PORT": 40000 + os.getpid() % 20000}
    return {"SGE_ROOT": str(folder), "SGE_CELL": "default", "SGE_ND": "1"} | {
        key: str(port) for key, port in ports.items()
    }


def prepare(folder: Path) -> None:
    """Do what Debian's `init_cluster` does, below `folder` and for the user of the tests."""
    common, spool = folder / "default" / "common", folder / "spool"
    for path in (common, spool / "db", spool / "qmaster", spool / "execd"):
        path.mkdir(parents=True)
    for name in ("bin", "lib", "utilbin"):
        shutil.copytree(Path("/var/lib/gridengine") / name, folder / name, symlinks=True)
    (folder / "util").symlink_to(SHARED / "util")
    bootstrap = changed(
        (SHARED / "default-bootstrap").read_text(), admin_user="none", ignore_fqdn="true",
        spooling_params=spool / "db", qmaster_spool_dir=spool / "qmaster",
    )  # fmt: skip
    (common / "bootstrap").write_text(bootstrap)
    (common / "act_qmaster").write_text("localhost\n")
    (common / "host_aliases").write_text(f"localhost {os.uname().nodename}\n")
    configuration = changed(
        (SHARED / "default-configuration").read_text(), execd_spool_dir=spool / "execd", min_uid=0, min_gid=0,
        load_report_time="00:00:01",
    )  # fmt: skip
    (folder / "configuration").write_text(configuration)
    say(str(BINARIES / "spoolinit"), "berkeleydb", "libspoolb", str(spool / "db"), "init")
    resources = SHARED / "util" / "resources"
    for what, source in {
        "configuration": folder / "configuration", "complexes": resources / "centry",
        "usersets": resources / "usersets", "managers": "root",
    }.items():  # fmt: skip
        say(str(BINARIES / "spooldefaults"), what, str(source))


def start(folder: Path, name: str) -> subprocess.Popen[bytes]:
    with (folder / f"{name}.log").open("wb") as log:
        return subprocess.Popen([name], stdout=log, stderr=log)


def add_queue(folder: Path) -> None:
    """Add a queue of this host, and look for work every second."""
    queue = changed(
        say("qconf", "-sq"), qname="main", hostlist="localhost", slots=SLOTS, load_thresholds="NONE",
        pe_list="NONE",
    )  # fmt: skip
    scheduling = changed(say("qconf", "-ssconf"), schedule_interval="0:0:1", flush_submit_sec=1, flush_finish_sec=1)
    for option, text in (("-Aq", queue), ("-Msconf", scheduling)):
        (folder / "given").write_text(text)
        say("qconf", option, str(folder / "given"))
    wait_until(lambda: "lx-" in say("qhost", "-h", "localhost"), folder)


def wait_until(true: Callable[[], bool], folder: Path, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():
        logs = "\n".join(log.read_text() for log in [*folder.glob("*.log"), *folder.glob("spool/*/**/messages")])
        assert time.monotonic() < end, f"{say('qstat', '-f', check=False)}\n{logs}"
        time.sleep(0.2)


@pytest.fixture
def sge_file(grid_engine: Path, tmp_path: Path) -> Callable[..., Path]:
    """Write what the site changes in cluster.yaml: jobs of Grid Engine start with an environment of their own."""

    def make(**job: object) -> Path:
        (tmp_path / "logs").mkdir(exist_ok=True)
        variables = [f"export {name}={os.environ[name]}" for name in ("NUMBA_CACHE_DIR",) if name in os.environ]
        usual: dict[str, object] = {
            "partition": "main", "cores": 1, "memory": "2GB", "walltime": "00:10:00", "interface": "lo",
            "log-directory": str(tmp_path / "logs"), "shared-temp-directory": str(tmp_path),
            "scheduler-options": {"dashboard_address": "127.0.0.1:0"},
            "job-script-prologue": [f"export PYTHONPATH={ROOT}", *variables],
        }  # fmt: skip
        settings = {
            "subspace": {"profiles": {"sge-cpu": {"jobs": 2, "wait": 60}}},
            "jobqueue": {"sge-cpu": usual | job},
            "distributed": {"deploy": {"lost-worker-timeout": "4s"}},
        }
        path = tmp_path / "cluster.yaml"
        path.write_text(yaml.safe_dump(settings))
        return path

    return make


def job_numbers() -> list[str]:
    return re.findall(r"^ *(\d+) ", say("qstat"), re.MULTILINE)


def test_the_pipeline_on_grid_engine(
    sge_file: Callable[..., Path],
    tiny_inputs: Path,
    local_run: dict[str, str],
    digest: Callable[[Path], dict[str, str]],
    tmp_path: Path,
) -> None:
    """A worker's job is deleted before the work; there are the same bytes, and no job is left."""
    with connect("sge-cpu", sge_file()) as client:
        client.wait_for_workers(2, timeout=90)
        victim, survivor = client.run(lambda: os.environ["JOB_ID"]).values()
        say("qdel", victim)
        run(tiny_inputs / "experiment.yaml", run_dir=tmp_path / "run", until="match", client=client)
        client.wait_for_workers(2, timeout=90)
        assert survivor in job_numbers()
        assert victim not in job_numbers()
    made = digest(tmp_path / "run")
    assert made.items() <= local_run.items()
    assert any(name.startswith("pairs/") for name in made)
    wait_until(lambda: not job_numbers(), tmp_path)


def test_why_jobs_of_grid_engine_do_not_start(
    sge_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with (
        pytest.raises(SubspaceError, match=r'The jobs are refused: .*unknown resource "no_such"'),
        connect("sge-cpu", sge_file(**{"resource-spec": "no_such=1"})),
    ):
        pass
    monkeypatch.setattr(keeper, "POLL_SECONDS", 0.5)
    monkeypatch.setattr(keeper, "BACKOFF", (0.0, 0.0))
    monkeypatch.setattr(keeper, "SPARE_JOBS", -1)
    prologue = ["echo no such module: python/9", "exit 1"]
    with (
        pytest.raises(SubspaceError, match=r"(?s)jobs died.*no such module: python/9"),
        connect("sge-cpu", sge_file(**{"job-script-prologue": prologue})),
    ):
        pass
