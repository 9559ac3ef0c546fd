"""A cluster of processes that outlives its command, and what is said of one that does not run."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from jobs.cluster import service
from jobs.cluster.client import connect
from jobs.cluster.running import ClusterState, cluster_of, known_names
from storage.errors import InputError


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ClusterState]:
    """A running cluster of this host, started by the command, which has ended."""
    monkeypatch.setenv("SUBSPACE_STATE", str(tmp_path / "state"))
    command = [sys.executable, "-m", "jobs.cli", "cluster", "up", "mine"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    yield cluster_of("mine")
    if known_names():
        service.down("mine")


def test_joined_by_name_and_ended(state: ClusterState) -> None:
    said = service.status(state)
    assert (said["state"], said["workers"], said["jobs"]) == ("running", 2, [])
    with connect("mine") as client:
        assert client.submit(sum, [1, 2]).result() == 3
    with pytest.raises(InputError, match="There is a cluster 'mine'"):
        service.up("mine", "processes")
    processes = list(state.processes())
    assert len(processes) >= 3
    ended = service.down("mine")
    assert (ended.gone, ended.processes, ended.jobs) == (None, [], [])
    assert not [process for process in processes if process.is_running()]
    assert not state.folder.exists()
    with pytest.raises(InputError, match="There is no cluster 'mine'"):
        service.down("mine")


def test_after_a_crash(state: ClusterState) -> None:
    result = state.service
    assert result is not None
    os.kill(result.pid, signal.SIGKILL)
    deadline = time.monotonic() + 30
    while state.gone() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert f"process {result.pid} died" in str(state.gone())
    assert service.status(state)["state"] == "gone"
    with pytest.raises(InputError, match=r"'mine' does not run: its process \d+ died"), connect("mine"):
        pass
    with pytest.raises(InputError, match=r"was started and does not run.*cluster down mine"):
        service.up("mine", "processes")
    assert service.down("mine").gone is not None
    assert not known_names()


def _written(folder: Path, **about: object) -> ClusterState:
    folder.mkdir(parents=True)
    state = ClusterState(folder)
    state.begin(profile="processes", token="0" * 32, **about)
    return state


def test_a_host_that_was_started_anew(tmp_path: Path) -> None:
    state = _written(tmp_path / "old", started=psutil.boot_time() - 1000)
    assert "was restarted since" in str(state.gone())


def test_a_number_that_another_process_has_now(tmp_path: Path) -> None:
    state = _written(tmp_path / "reused")
    mine = psutil.Process()
    state.announce(
        service.Service(socket.gethostname(), mine.pid, mine.create_time() - 100, "tls://x", "http://x", None, None)
    )
    assert "died" in str(state.gone())


def test_a_cluster_of_another_host_is_asked_over_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUBSPACE_STATE", str(tmp_path))
    monkeypatch.setattr(service, "ANSWERING", 0.5)
    state = _written(cluster_of("far").folder, host="elsewhere")
    state.announce(service.Service("elsewhere", 1, 0.0, "tls://127.0.0.1:1", "http://x", "subspace-far", None))
    service.make_certificates(service.private_folder(tmp_path / "keys"))
    for key in (tmp_path / "keys").iterdir():
        key.rename(state.folder / key.name)
    assert state.gone() is None
    monkeypatch.setenv("PATH", str(tmp_path))
    said = service.status(state)
    assert said["jobs_unknown"].startswith("There is no squeue on PATH")
    assert said["state"] == "gone"
    assert "runs on elsewhere, if it does" in said["why"]
    assert service.down("far").elsewhere == "elsewhere"


@pytest.mark.parametrize(
    ("name", "profile", "message"),
    [
        ("local", "processes", "'local' is the name of a profile"),
        ("mine", "local", "has no processes that could keep running"),
        ("../mine", "processes", "name is letters"),
    ],
)
def test_what_cannot_be_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, profile: str, message: str
) -> None:
    monkeypatch.setenv("SUBSPACE_STATE", str(tmp_path))
    with pytest.raises(InputError, match=message):
        service.up(name, profile)
    assert not known_names()


def test_an_unknown_name_is_said_with_the_clusters_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUBSPACE_STATE", str(tmp_path))
    _written(cluster_of("mine").folder)
    with (
        pytest.raises(InputError, match=r"No cluster profile 'mien'.*Clusters that were started: mine"),
        connect("mien"),
    ):
        pass
