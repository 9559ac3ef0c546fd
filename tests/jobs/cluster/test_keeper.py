"""The watcher of Slurm jobs, on a cluster that is only pretended: what it does when which job is gone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jobs.cluster import keeper as watcher
from jobs.cluster import versions
from jobs.cluster.keeper import Keeper, keep_jobs, keeper_of
from jobs.cluster.profiles import SlurmJob, walltime_seconds
from jobs.cluster.scripts import memory_of_workers, retiring
from storage.errors import InputError, SubspaceError, WorkerLostError


class PretendedCluster:
    """Has the attributes of a ``SLURMCluster`` that the watcher uses, and notes what it is told."""

    def __init__(self, folder: Path, processes: int = 1) -> None:
        self._dummy_job = SimpleNamespace(worker_processes=processes)
        self.folder = folder
        self.workers: dict[str, Any] = {}
        self.scheduler_info: dict[str, Any] = {"workers": {}}
        self.told: list[tuple[str, Any]] = []
        self.job_cls = SimpleNamespace(refusals=[], scheduler="slurm")

    def job_script(self) -> str:
        return f"#!/bin/sh\n#SBATCH -J w\n#SBATCH -e {self.folder}/w-%J.err\n#SBATCH -o {self.folder}/w-%J.out\n"

    def adapt(self, **said: int) -> None:
        self.told.append(("adapt", said))

    def scale(self, **said: int) -> None:
        self.told.append(("scale", said))

    def scale_down(self, names: list[str]) -> None:
        self.told.append(("scale_down", names))
        for name in names:
            del self.workers[name]

    def sync(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(*arguments)

    def submit(self, name: str, job: str) -> None:
        self.workers[name] = SimpleNamespace(job_id=job)

    def arrive(self, worker: str) -> None:
        self.scheduler_info["workers"][f"tcp://{worker}"] = {"name": worker}


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The jobs that Slurm has, and what it says of each."""
    jobs: dict[str, str] = {}
    monkeypatch.setattr(watcher, "queued_jobs", lambda *_: jobs)
    return jobs


def test_a_lost_job_of_several_workers_is_replaced_at_once(tmp_path: Path, queue: dict[str, str]) -> None:
    cluster = PretendedCluster(tmp_path, processes=2)
    keeper = Keeper(cluster, 2)
    for name, job in (("x-0", "10"), ("x-1", "11")):
        cluster.submit(name, job)
        cluster.arrive(f"{name}-0")
        queue[job] = "RUNNING n1"
    keeper.look()
    assert cluster.told == []
    del queue["10"]
    keeper.look()
    assert cluster.told == [("scale_down", ["x-0"]), ("scale", {"jobs": 2})]
    assert [(one.job, one.had_worker) for one in keeper.lost] == [("10", True)]


def test_where_dask_replaces_the_job_it_is_left_to_it(
    tmp_path: Path, queue: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = PretendedCluster(tmp_path)
    keeper = Keeper(cluster, 1)
    cluster.submit("x-1", "7")
    cluster.submit("x-10", "8")
    cluster.arrive("x-1")
    queue.update({"7": "RUNNING n1", "8": "RUNNING n1"})
    keeper.look()
    del queue["7"]
    keeper.look()
    assert cluster.told == []
    monkeypatch.setattr(watcher, "PATIENCE", 0.0)  # but not for ever
    keeper.look()
    assert cluster.told == [("scale_down", ["x-1"])]


def test_jobs_that_die_before_a_worker_comes_are_replaced_more_and_more_slowly(
    tmp_path: Path, queue: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(watcher.time, "monotonic", lambda: now)
    cluster = PretendedCluster(tmp_path)
    keeper = Keeper(cluster, 1)
    waited = []
    for job in ("1", "2", "3"):
        cluster.submit("x-0", job)
        gone = now
        while "x-0" in cluster.workers:
            keeper.look()
            now += 1.0
        waited.append(now - 1.0 - gone)
    assert waited == [5.0, 10.0, 20.0]


def test_a_job_that_slurm_did_not_take_is_asked_for_again(
    tmp_path: Path, queue: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = PretendedCluster(tmp_path)
    cluster.workers["x-0"] = SimpleNamespace(job_id=None)
    keeper = Keeper(cluster, 1)
    keeper.look()
    assert cluster.told == []
    monkeypatch.setattr(watcher, "PATIENCE", 0.0)
    keeper.look()
    assert cluster.told == [("scale_down", ["x-0"])]


def test_a_queue_that_does_not_answer_is_no_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watcher, "queued_jobs", lambda *_: None)
    cluster = PretendedCluster(tmp_path)
    cluster.submit("x-0", "1")
    keeper = Keeper(cluster, 1)
    keeper.look()
    assert keeper.lost == []


def test_an_error_about_a_lost_worker_leaves_with_its_log(tmp_path: Path, queue: dict[str, str]) -> None:
    cluster = PretendedCluster(tmp_path)
    cluster.submit("x-0", "5")
    queue["5"] = "RUNNING n1"
    (tmp_path / "w-5.err").write_text("t - distributed.worker - INFO - Threads: 1\nworker exceeded 95% memory\n")
    said = r"(?s)task 7 is poison.*w-5\.err\nworker exceeded 95% memory$"
    with pytest.raises(WorkerLostError, match=said), keep_jobs(cluster, 1) as keeper:
        raise WorkerLostError("task 7 is poison", worker="x-0")
    assert keeper_of(cluster) is keeper
    assert cluster.told == [("adapt", {"minimum_jobs": 1, "maximum_jobs": 1})]
    assert [file.name for file in keeper.copy_logs(tmp_path / "copy")] == ["w-5.err"]
    assert keeper_of(None) is None


def test_a_start_without_a_worker_is_given_up_with_the_last_log(
    tmp_path: Path, queue: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watcher, "BACKOFF", (0.0, 0.0))
    cluster = PretendedCluster(tmp_path)
    keeper = Keeper(cluster, 1)
    (tmp_path / "w-3.err").write_text("python: command not found\n")
    for job in ("1", "2", "3"):
        cluster.submit("x-0", job)
        keeper.look()
    with pytest.raises(SubspaceError, match=r"(?s)^3 Slurm jobs died.*python: command not found"):
        keeper.check_start()


def test_where_every_job_is_refused_the_start_is_given_up_at_once(tmp_path: Path, queue: dict[str, str]) -> None:
    cluster = PretendedCluster(tmp_path)
    keeper = Keeper(cluster, 2)
    keeper.check_start()
    cluster.job_cls.refusals.append("sbatch: error: Unable to contact slurm controller (connect failure)")
    keeper.check_start()  # it is away, and may come back
    cluster.job_cls.refusals.append("sbatch: error: --mem is not allowed here")
    with pytest.raises(SubspaceError, match=r"^The jobs are refused: sbatch: error: --mem is not allowed here$"):
        keeper.check_start()
    assert keeper.why() == "No job was accepted: sbatch: error: --mem is not allowed here"
    cluster.submit("x-0", "10")
    keeper.check_start()  # one was taken: others may be over a limit of jobs


def test_where_every_job_waits_in_vain_the_start_is_given_up(tmp_path: Path, queue: dict[str, str]) -> None:
    cluster = PretendedCluster(tmp_path)
    keeper = Keeper(cluster, 2)
    for name, job in (("x-0", "7"), ("x-1", "8")):
        cluster.submit(name, job)
    queue |= {"7": "PENDING (PartitionTimeLimit)", "8": "PENDING (Resources)"}
    keeper.look()
    keeper.check_start()  # the other may start
    queue["8"] = "PENDING (PartitionTimeLimit)"
    keeper.look()
    with pytest.raises(
        SubspaceError, match=r"^Slurm job 7 waits in vain: it is PENDING \(PartitionTimeLimit\).*walltime"
    ):
        keeper.check_start()


def test_a_worker_that_cannot_reach_the_scheduler_is_reported_once(
    tmp_path: Path, queue: dict[str, str], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = versions.unreachable("tcp://127.0.0.1:1")
    assert "cannot reach the scheduler at tcp://127.0.0.1:1" in line
    assert "Set interface to a network" in line
    cluster = PretendedCluster(tmp_path)
    keeper = Keeper(cluster, 1)
    cluster.submit("x-0", "7")
    queue["7"] = "RUNNING n1"
    (tmp_path / "w-7.err").write_text(f"t - distributed.nanny - INFO - Start\n{line}\n")
    keeper.look()
    keeper.look()
    assert caplog.text.count(line) == 1
    monkeypatch.setattr(watcher, "listed_jobs", lambda *_: queue)
    assert keeper.why() == f"The queue:\n7 RUNNING n1\n{line}"


def test_jobs_that_come_and_go_with_the_work(tmp_path: Path, queue: dict[str, str]) -> None:
    cluster = PretendedCluster(tmp_path)
    with keep_jobs(cluster, 4, minimum=0):
        pass
    assert cluster.told == [("adapt", {"minimum_jobs": 0, "maximum_jobs": 4})]
    with pytest.raises(InputError, match="leave `minimum` out"), keep_jobs(PretendedCluster(tmp_path, 2), 4, minimum=1):
        pass


def test_lifetimes() -> None:
    assert retiring(None, ["--resources", "x=1"]) == ["--resources", "x=1"]
    assert retiring("UNLIMITED", []) == []
    for walltime in ("00:01:00", "00:10:00", "01:00:00", "7-00:00:00"):
        _, lifetime, _, stagger = retiring(walltime, [])
        latest = float(lifetime[:-1]) + float(stagger[:-1])
        seconds = walltime_seconds(walltime)
        assert seconds is not None
        assert 0.5 * seconds < latest <= seconds - 15
    with pytest.raises(InputError, match="'an hour' is none that Slurm reads"):
        retiring("an hour", [])


def test_the_limit_of_a_worker_leaves_room_for_the_nanny() -> None:
    assert memory_of_workers(SlurmJob(memory="1GB")) == "900000000B"
    assert memory_of_workers(SlurmJob(memory="8GB", job_mem="0")) == "8GB"


@pytest.mark.parametrize(
    ("script", "jobs"),
    [("echo 7 PENDING", {"7": "PENDING"}), ("echo away >&2; exit 1", None), ("exec /bin/sleep 9", None), (None, None)],
)
def test_the_queue_is_unknown_where_slurm_does_not_answer(
    script: str | None, jobs: dict[str, str] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(watcher, "ANSWERING", 2.0)
    if script is not None:
        (tmp_path / "squeue").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "squeue").chmod(0o755)
    assert watcher.queued_jobs("slurm", ["7"]) == jobs
