"""Faults of a site are told within seconds, and waiting for workers has a limit."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from distributed import Client, LocalCluster

from jobs.cluster import client, service, workers
from jobs.cluster.client import connect
from jobs.cluster.profiles import SlurmJob
from jobs.cluster.site import (
    advise,
    allowed_combinations,
    combine,
    explain_refusal,
    parse_associations,
    parse_partitions,
)
from storage.errors import InputError, SubspaceError

#: Seconds within which a fault is told.
SOON = 10.0
# recorded on Slurm 22.05, names changed
PARTITIONS = """\
PartitionName=cpu AllowGroups=ALL AllowAccounts=ALL AllowQos=ALL AllocNodes=ALL Default=YES MaxTime=2-00:00:00 State=UP
PartitionName=gpu AllowGroups=ALL AllowAccounts=vision,lab AllowQos=gpu,normal Default=NO MaxTime=1-00:00:00 State=UP
PartitionName=big AllowGroups=ALL DenyAccounts=lab AllowQos=ALL Default=NO MaxTime=UNLIMITED State=UP
PartitionName=old AllowGroups=ALL AllowAccounts=ALL AllowQos=ALL Default=NO MaxTime=UNLIMITED State=DOWN
"""
ASSOCIATIONS = "lab||gpu,normal\nteaching|cpu|normal\n"


def program(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Slurm's commands, in front of those on PATH; sbatch refuses everything."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "partitions").write_text(PARTITIONS)
    (folder / "associations").write_text(ASSOCIATIONS)
    program(folder, "scontrol", f"cat {folder}/partitions")
    program(folder, "sacctmgr", f"cat {folder}/associations")
    program(folder, "squeue", "exit 0")
    program(folder, "scancel", "exit 0")
    program(
        folder, "sbatch",
        "echo 'sbatch: error: Batch job submission failed: Invalid account or account/partition combination specified'"
        " >&2; exit 1",
    )  # fmt: skip
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setenv("SUBSPACE_STATE", str(tmp_path / "state"))
    return folder


def test_combinations_of_account_partition_and_qos() -> None:
    found = [str(each) for each in combine(parse_associations(ASSOCIATIONS), parse_partitions(PARTITIONS))]
    assert found == [
        "{partition: cpu, account: lab, qos: gpu}", "{partition: cpu, account: lab, qos: normal}",
        "{partition: cpu, account: teaching, qos: normal}",
        "{partition: gpu, account: lab, qos: gpu}", "{partition: gpu, account: lab, qos: normal}",
    ]  # fmt: skip
    assert [str(each) for each in combine(None, parse_partitions(PARTITIONS))] == [
        "{partition: cpu}", "{partition: gpu}", "{partition: big}",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("keys", "suits"),
    [
        ({}, True),
        ({"partition": "gpu", "account": "lab"}, True),
        ({"partition": "big,gpu", "account": "lab", "qos": "gpu"}, True),
        ({"partition": "gpu", "account": "teaching"}, False),
        ({"account": "teaching", "qos": "gpu"}, False),
        ({"partition": "old"}, False),
    ],
)
def test_what_a_job_may_ask_for(keys: dict[str, Any], suits: bool) -> None:
    found = list(combine(parse_associations(ASSOCIATIONS), parse_partitions(PARTITIONS)))
    assert any(each.suits(SlurmJob(**keys)) for each in found) == suits


def test_an_invalid_account_is_answered_by_one_that_works(commands: Path) -> None:
    assert len(allowed_combinations()) == 5
    said = explain_refusal("sbatch: error: Invalid account or account/partition combination specified")
    assert "under jobqueue.PROFILE: {partition: cpu, account: lab, qos: gpu}; " in said
    assert explain_refusal("sbatch: error: --mem is refused") == "sbatch: error: --mem is refused"
    (commands / "associations").write_text("")
    theirs = "PartitionName=theirs AllowGroups=no-group-of-mine AllowAccounts=ALL AllowQos=ALL Default=NO State=UP\n"
    (commands / "partitions").write_text(theirs + PARTITIONS)
    assert str(allowed_combinations()[0]) == "{partition: cpu}"
    assert advise([], "x").startswith("No account of this user")
    (commands / "scontrol").unlink()
    program(commands, "scontrol", "echo 'Unable to contact slurm controller' >&2; exit 1")
    assert "not known: `scontrol" in explain_refusal("Invalid qos specification")


def cluster_file(folder: Path, job: dict[str, Any], profile: dict[str, Any] | None = None) -> Path:
    base = {"interface": "lo", "scheduler-options": {"dashboard_address": "127.0.0.1:0"}}
    content = {"subspace": {"profiles": {"slurm-cpu": profile or {}}}, "jobqueue": {"slurm-cpu": {**base, **job}}}
    path = folder / "site.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield int(listener.getsockname()[1])


def test_where_every_sbatch_fails_the_start_is_given_up(
    commands: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("dask_jobqueue")
    start = time.monotonic()
    with (
        pytest.raises(SubspaceError, match=r"(?s)^The jobs are refused: sbatch: error.*\{partition: cpu, account"),
        connect("slurm-cpu", cluster_file(tmp_path, {}), tmp_path / "logs"),
    ):
        pass
    assert time.monotonic() - start < 60, "not after `wait`; how soon: tests/slurm/test_messages.py"
    assert "Traceback" not in caplog.text


def test_a_driver_that_slurm_ends_takes_its_jobs_along(commands: Path, tmp_path: Path) -> None:
    """SIGTERM comes at the walltime, on preemption and on scancel."""
    pytest.importorskip("dask_jobqueue")
    program(commands, "sbatch", "echo 17")
    program(commands, "squeue", f"[ -e {tmp_path}/ended ] || echo '17|PENDING||Priority'")
    program(commands, "scancel", f"echo $@ >> {tmp_path}/ended")
    code = "import sys, pathlib; from jobs.cluster.client import connect\n"
    code += "with connect('slurm-cpu', pathlib.Path(sys.argv[1])): pass"
    command = [sys.executable, "-c", code, str(cluster_file(tmp_path, {}))]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as driver:
        assert driver.stderr is not None
        for line in driver.stderr:  # until it waits
            if "No worker for" in line:
                break
        driver.terminate()
        driver.communicate(timeout=60)
    assert driver.returncode != 0
    assert "17" in (tmp_path / "ended").read_text().split()
    assert list((tmp_path / "state" / "runs").iterdir()) == [], "its keys are gone"


def test_a_host_that_cannot_submit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("dask_jobqueue")
    monkeypatch.setenv("PATH", str(tmp_path))
    with (
        pytest.raises(SubspaceError, match=r"^The jobs are refused: there is no sbatch on PATH; run this on a host"),
        connect("slurm-cpu", cluster_file(tmp_path, {}), tmp_path / "logs"),
    ):
        pass


def test_a_user_without_a_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("dask_jobqueue")
    monkeypatch.setenv("HOME", "/proc/none")
    for name in ("SUBSPACE_STATE", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    file = cluster_file(tmp_path, {})
    with (
        pytest.raises(InputError, match=r"cannot go to /proc/none/.*set shared-temp-directory"),
        connect("slurm-cpu", file),
    ):
        pass
    with pytest.raises(InputError, match=r"cannot be written down in /proc/none/.*set SUBSPACE_STATE"):
        service.up("night", "processes")


def test_an_interface_that_is_missing(commands: Path, tmp_path: Path) -> None:
    pytest.importorskip("dask_jobqueue")
    with (
        pytest.raises(InputError, match=r"^jobqueue.slurm-cpu: 'ib9' is not a valid network interface.*'lo'"),
        connect("slurm-cpu", cluster_file(tmp_path, {"interface": "ib9"})),
    ):
        pass


def test_a_port_that_is_taken(commands: Path, tmp_path: Path, taken_port: int) -> None:
    pytest.importorskip("dask_jobqueue")
    options = {"port": taken_port, "dashboard_address": "127.0.0.1:0", "interface": "lo"}
    with (
        pytest.raises(InputError, match=rf"cannot listen on port {taken_port} of .*in use.*choose another"),
        connect("slurm-cpu", cluster_file(tmp_path, {"scheduler-options": options})),
    ):
        pass


def test_options_that_a_scheduler_does_not_have(tmp_path: Path) -> None:
    for options, message in (
        ({"nonsense": 1}, "has 'nonsense'; it may have: .*interface"),
        ({"protocol": "tcp"}, "protocol"),
    ):
        with (
            pytest.raises(InputError, match=rf"^jobqueue.slurm-cpu: scheduler-options .*{message}"),
            connect("slurm-cpu", cluster_file(tmp_path, {"scheduler-options": options})),
        ):
            pass


def test_where_jobs_come_with_the_work_refusals_end_it_too(commands: Path, tmp_path: Path) -> None:
    pytest.importorskip("dask_jobqueue")

    def work() -> None:
        with connect("slurm-cpu", cluster_file(tmp_path, {}, {"minimum": 0}), tmp_path / "logs") as client:
            client.submit(sum, [1, 2]).result()

    start = time.monotonic()
    with pytest.raises(SubspaceError, match=r"(?s)^The jobs are refused: sbatch: error"):
        work()
    assert time.monotonic() - start < 60, "not after `wait`, which is ten times as much"


def listening(answer: bytes) -> tuple[socket.socket, int]:
    """Return a listener that answers whatever comes with the same; it is to be closed."""
    listener = socket.create_server(("127.0.0.1", 0))

    def loop() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                connection.sendall(answer)
                connection.close()

    threading.Thread(target=loop, daemon=True).start()
    return listener, listener.getsockname()[1]


@pytest.mark.parametrize(
    "answer",
    [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"SSH-2.0-OpenSSH_9.2p1\r\n", b"\0" * 64, b""],
    ids=["http", "ssh", "zeros", "nothing"],
)
def test_something_else_listens_where_a_scheduler_is_meant(answer: bytes, tmp_path: Path) -> None:
    listener, port = listening(answer)
    with (
        listener,
        pytest.raises(
            InputError, match=rf"(What|scheduler) answers at tcp://127.0.0.1:{port}.*not that of its dashboard"
        ),
        connect("scheduler", joining(tmp_path, f"tcp://127.0.0.1:{port}", 1)),
    ):
        pass


def test_a_scheduler_that_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert client.FIRST_LINE < SOON
    monkeypatch.setattr(client, "FIRST_LINE", 0.2)
    file = joining(tmp_path, "tcp://127.0.0.1:1", 1)
    quick = {"distributed": {"comm": {"timeouts": {"connect": "1s"}}}}
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | quick))
    with (
        pytest.raises(InputError, match=r"^No Dask scheduler answers at tcp://127\.0\.0\.1:1: "),
        connect("scheduler", file),
    ):
        pass
    assert "No scheduler answers at tcp://127.0.0.1:1 yet; waiting at most 1 s." in caplog.text


@pytest.fixture
def scheduler() -> Iterator[LocalCluster]:
    with LocalCluster(
        n_workers=0, threads_per_worker=1, processes=False, protocol="tcp", dashboard_address="127.0.0.1:0"
    ) as cluster:
        yield cluster


def joining(folder: Path, address: str, wait: int) -> Path:
    path = folder / "site.yaml"
    path.write_text(yaml.safe_dump({"subspace": {"profiles": {"scheduler": {"address": address, "wait": wait}}}}))
    return path


def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "LOOK_SECONDS", 0.1)
    monkeypatch.setattr(workers, "FIRST_LINE", 0.3)


def test_a_scheduler_without_workers(
    scheduler: LocalCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert workers.FIRST_LINE + workers.LOOK_SECONDS < SOON
    quick(monkeypatch)
    file = joining(tmp_path, scheduler.scheduler_address, 1)
    with (
        pytest.raises(SubspaceError, match=r"^No worker for 1 s. Start some: dask worker "),
        connect("scheduler", file),
    ):
        pass
    assert "waiting, at most 1 s" in caplog.text


def test_all_workers_lost(scheduler: LocalCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quick(monkeypatch)
    file = joining(tmp_path, scheduler.scheduler_address, 1)
    scheduler.scale(1)
    scheduler.wait_for_workers(1)

    def work() -> None:
        with connect("scheduler", file) as client:
            assert client.submit(sum, [1, 2]).result() == 3
            scheduler.scale(0)
            while client.scheduler_info()["workers"]:
                time.sleep(0.05)
            client.submit(sum, [3, 4]).result()

    with pytest.raises(SubspaceError, match="No worker for 1 s"):
        work()


def test_workers_that_come_back_in_time(
    scheduler: LocalCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    quick(monkeypatch)

    scheduler.scale(1)
    scheduler.wait_for_workers(1)
    with connect("scheduler", joining(tmp_path, scheduler.scheduler_address, 60)) as client:
        scheduler.scale(0)
        appears(caplog, "waiting, at most 60 s")
        future = client.submit(sum, [3, 4])
        scheduler.scale(1)
        assert future.result(timeout=SOON) == 7
        appears(caplog, "There are workers again")
    assert caplog.text.count("There are workers again") == 1


def test_where_workers_come_with_the_work_none_is_waited_for(
    scheduler: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick(monkeypatch)

    def work() -> None:
        with (
            Client(scheduler.scheduler_address) as client,
            workers.watching_workers(client, limit=0.5, why=lambda: "none came", elastic=True),
        ):
            time.sleep(1.0)
            client.submit(sum, [1, 2]).result()

    start = time.monotonic()
    with pytest.raises(SubspaceError, match=r"No worker for 0.5 s. none came"):
        work()
    assert time.monotonic() - start > 1.5


def appears(caplog: pytest.LogCaptureFixture, line: str) -> None:
    end = time.monotonic() + SOON
    while line not in caplog.text:
        assert time.monotonic() < end, caplog.text
        time.sleep(0.05)
