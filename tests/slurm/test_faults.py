"""What may go wrong while a run goes on, on a real Slurm: it finishes all the same, with the same bytes.

Every fault hits while shards are being written, which is seen on disk. ``SUBSPACE_FAULT_TABLE=FILE`` keeps what the
table at the end shows; ``python -m benchmarks.slurm_faults`` does that.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributed import Client

from jobs.cluster import keeper as watcher
from jobs.cluster.client import connect
from jobs.watch.recorder import Record, read_sessions, recorded
from pipeline.experiment.run import run
from pipeline.work.workers import n_slots, run_tasks
from storage.errors import SubspaceError, WorkerLostError

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(420)]

DOCUMENTS, SHARD_ROWS = 120, 64
#: Files of shards on disk when the fault hits; about a fifth of one side's.
MOMENT = 50
#: Dask waits so long for a lost worker to come back by itself, so that tests are quick.
QUICK: dict[str, object] = {"deploy": {"lost-worker-timeout": "4s"}}

Fault = Callable[[Client], None]


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watcher, "POLL_SECONDS", 1.0)


def digest(folder: Path) -> dict[str, str]:
    """Return a hash of every data file of every store and result; metadata carries times of creation."""
    files = [path for path in sorted(folder.rglob("*.zarr/**/*")) if path.is_file() and path.suffix != ".json"]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def n_shards(folder: Path) -> int:
    # os.walk passes over a folder that is renamed while it looks; Path.rglob of Python 3.11 raises
    return sum(
        len(folders) for path, folders, _ in os.walk(folder / "activations") if path.endswith(f"activation{os.sep}c")
    )


def wait_until(true: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"waited {seconds} s in vain"
        time.sleep(0.05)


@dataclass
class Work:
    """The same work again and again: undisturbed here, and then with faults."""

    experiment: Path
    folder: Path
    expected: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    rows: list[dict[str, Any]] = field(default_factory=list)

    def once(self, name: str, client: Client | None, fault: Fault | None = None) -> tuple[float, Record | None]:
        """Run, let the fault hit meanwhile, and compare; return seconds and the run's record."""
        out = self.folder / name
        failed: list[BaseException] = []

        def strike() -> None:
            try:
                wait_until(lambda: n_shards(out) >= MOMENT)
                fault(client)
                assert len(list(out.glob("activations/*/*.zarr"))) < 4, "the fault came too late"
            except (AssertionError, OSError, subprocess.SubprocessError) as error:
                failed.append(error)

        thread = threading.Thread(target=strike)
        start = time.monotonic()
        with recorded(client, out) if client else contextlib.nullcontext() as recorder:
            if fault is not None:
                thread.start()
            run(self.experiment, run_dir=out, until="match", client=client)
        seconds = time.monotonic() - start
        if fault is not None:
            thread.join()
        if failed:
            raise failed[0]
        return seconds, recorder.record if recorder else None

    def same(self, name: str) -> bool:
        return digest(self.folder / name) == self.expected

    def note(self, fault: str, seconds: float, lost: float, identical: bool) -> None:
        self.rows.append(
            {
                "fault": fault,
                "seconds_undisturbed": round(self.seconds, 1),
                "seconds": round(seconds, 1),
                "seconds_lost_as_recorded": round(lost, 1),
                "identical": identical,
            }
        )


def many_documents(inputs: Path, folder: Path) -> Path:
    """Write an experiment of many small shards, beside a copy of the tiny one's inputs."""
    shutil.copytree(inputs, folder)
    words = [json.loads(line)["text"].split() for line in (folder / "texts.jsonl").read_text().splitlines()]
    draw = random.Random(1)
    texts = [" ".join(draw.sample(draw.choice(words), k=20)) * 2 for _ in range(DOCUMENTS)]
    (folder / "many.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts) + "\n")
    settings = (folder / "experiment.yaml").read_text().replace("texts.jsonl", "many.jsonl")
    path = folder / "many.yaml"
    path.write_text(settings.replace("shard_rows: 256", f"shard_rows: {SHARD_ROWS}"))
    return path


@pytest.fixture(scope="module")
def work(tiny_inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Work]:
    """The work, with the bytes of its local run; shows the table of all faults at the end."""
    folder = tmp_path_factory.mktemp("faults")
    work = Work(many_documents(tiny_inputs, folder / "inputs"), folder)
    work.once("local", None)
    work.expected = digest(work.folder / "local")
    assert len(work.expected) > 100
    yield work
    lines = [f"{'fault':<34}{'undisturbed':>12}{'with it':>10}{'lost (recorded)':>17}  same bytes"]
    lines += [
        f"{row['fault']:<34}{row['seconds_undisturbed']:>10} s{row['seconds']:>8} s"
        f"{row['seconds_lost_as_recorded']:>15} s  {row['identical']}"
        for row in work.rows
    ]
    sys.__stderr__.write("\n" + "\n".join(lines) + "\n")
    if (file := os.environ.get("SUBSPACE_FAULT_TABLE")) is not None:
        Path(file).write_text(json.dumps(work.rows))


def job_of_worker() -> str | None:
    return os.environ.get("SLURM_JOB_ID")


class TestOnTwoJobs:
    """Faults on two jobs that live on from one to the next, which one process of the tests hence does all."""

    @pytest.fixture(scope="class")
    @classmethod
    def client(cls, slurm: Path, make_cluster_file: Callable[..., Path], work: Work) -> Iterator[Client]:
        """Two jobs that have done the work once: what later runs take is not the import of torch."""
        file = make_cluster_file(work.folder, distributed=QUICK)
        with connect("slurm-cpu", file) as client:
            wait_until(lambda: n_slots(client) == 2)
            work.once("cold", client)
            work.seconds, _ = work.once("undisturbed", client)
            yield client

    def test_undisturbed_it_equals_the_local_run(self, client: Client, work: Work) -> None:
        assert work.same("undisturbed")
        for name in ("watch.html", "watch/1/performance-report.html", "watch/1/task-stream.html"):
            assert (work.folder / "undisturbed" / name).is_file()
        assert read_sessions(work.folder / "undisturbed")[0]["workers_lost"] == 0

    def test_a_cancelled_job(self, client: Client, work: Work, slurmctl: Any) -> None:
        victim = min(client.run(job_of_worker).values(), key=int)
        seconds, record = work.once("scancel", client, lambda _: slurmctl.cancel(victim))
        wait_until(lambda: n_slots(client) == 2)
        assert victim not in client.run(job_of_worker).values()
        work.note("scancel of a worker's job", seconds, record.seconds_lost, work.same("scancel"))
        assert work.same("scancel")
        assert record.workers_lost >= 1
        assert record.seconds_lost > 0

    def test_a_killed_worker(self, client: Client, work: Work) -> None:
        pids = client.run(os.getpid)
        victim = pids[min(pids)]
        seconds, record = work.once("kill", client, lambda _: os.kill(victim, signal.SIGKILL))
        wait_until(lambda: n_slots(client) == 2)
        work.note("kill -9 of a worker", seconds, record.seconds_lost, work.same("kill"))
        assert work.same("kill")
        assert record.workers_lost >= 1

    def test_a_worker_beyond_its_memory_ends_and_not_the_run(self, client: Client, work: Work, tmp_path: Path) -> None:
        before = set(client.run(os.getpid).values())
        items = [tmp_path / name for name in "abcd"]
        done = dict(run_tasks(client, swells_once, items, name="test-swelling", label="Swelling"))
        assert done == {item: item == items[1] for item in items}
        wait_until(lambda: n_slots(client) == 2)
        assert set(client.run(os.getpid).values()) - before
        assert any("memory budget" in log.read_text() for log in (work.folder / "logs").glob("*.err"))

    def test_a_drained_node(self, client: Client, work: Work, slurmctl: Any) -> None:
        victim = min(client.run(job_of_worker).values(), key=int)
        node = slurmctl.jobs()[victim][1]

        def drain(_: Client) -> None:
            slurmctl.drain(node)
            slurmctl.cancel(victim)

        try:
            seconds, record = work.once("drain", client, drain)
            wait_until(lambda: n_slots(client) == 2)
            replacement = max(client.run(job_of_worker).values(), key=int)
            assert slurmctl.jobs()[replacement][1] != node
        finally:
            slurmctl.resume(node)
        work.note("drained node, its job cancelled", seconds, record.seconds_lost, work.same("drain"))
        assert work.same("drain")

    def test_a_preempted_job(self, client: Client, work: Work, slurmctl: Any) -> None:
        """Slurm puts the job back into its queue, as it does with jobs that may be preempted."""
        victim = min(client.run(job_of_worker).values(), key=int)
        seconds, record = work.once("preempted", client, lambda _: slurmctl.requeue(victim))
        wait_until(lambda: n_slots(client) == 2)
        work.note("preempted (requeued) job", seconds, record.seconds_lost, work.same("preempted"))
        assert work.same("preempted")


def test_workers_retire_before_their_walltime(
    work: Work, slurmctl: Any, make_cluster_file: Callable[..., Path], tmp_path: Path
) -> None:
    """Jobs of two minutes: the work, begun in the second one, is done again until it has seen a worker go.

    On a busy host a worker needs most of one minute to start and to import torch.
    """
    file = make_cluster_file(tmp_path, job={"queue": "short", "walltime": "00:02:00"}, distributed=QUICK)
    with connect("slurm-cpu", file) as client:
        wait_until(lambda: n_slots(client) == 2)
        time.sleep(60)
        for i in range(8):
            seconds, record = work.once(f"walltime-{i}", client)
            assert work.same(f"walltime-{i}")
            if record.workers_lost:
                break
        assert record.workers_lost
        keeper = watcher.keeper_of(client.cluster)
        written = [log.read_text() for log in keeper.copy_logs(tmp_path / "copied")]
    assert any("worker-lifetime-reached" in log for log in written)
    assert not any("DUE TO TIME LIMIT" in log for log in written)
    work.note("workers reach their walltime", seconds, record.seconds_lost, work.same(f"walltime-{i}"))


def test_a_killed_driver(work: Work, slurmctl: Any, make_cluster_file: Callable[..., Path], tmp_path: Path) -> None:
    # workers whose scheduler is gone wait for it so long, and then end their job
    file, out = make_cluster_file(tmp_path, job={"death-timeout": 10}, distributed=QUICK), work.folder / "driver"
    command = [sys.executable, "-m", "jobs.cli", "run", str(work.experiment), "--until", "match", "--run-dir"]
    command += [str(out), "--cluster", "slurm-cpu", "--cluster-file", str(file)]
    before = set(slurmctl.jobs())
    start = time.monotonic()
    with (tmp_path / "driver.log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as driver:
        wait_until(lambda: n_shards(out) >= MOMENT or driver.poll() is not None)
        assert driver.poll() is None, (tmp_path / "driver.log").read_text()
        orphans = set(slurmctl.jobs()) - before
        driver.kill()

    subprocess.run(command, check=True, capture_output=True)
    seconds = time.monotonic() - start
    killed, finished = read_sessions(out)
    assert killed["ended"] is None
    assert finished["ended"] == "finished"
    assert finished["seconds_between"] > 0
    work.note("kill -9 of the driver, run again", seconds, finished["seconds_lost"], work.same("driver"))
    assert work.same("driver")
    assert orphans
    wait_until(lambda: not orphans & set(slurmctl.jobs()))


def swells_once(mark: Path) -> bool:
    """Take more memory than a job of 2 GB has, if the mark is called b and not there yet; say whether it was there."""
    if mark.name != "b" or mark.exists():
        return mark.exists()
    mark.touch()
    taken = []
    for _ in range(60):
        taken.append(np.ones(64 << 17))  # 64 MiB
        time.sleep(0.2)
    raise MemoryError(f"not restarted with {len(taken)} blocks")


def dies(item: int) -> int:
    if item == 2:
        os._exit(3)
    return item


def test_several_workers_a_job_and_a_poison_task(
    slurmctl: Any, make_cluster_file: Callable[..., Path], tmp_path: Path
) -> None:
    distributed = {**QUICK, "scheduler": {"allowed-failures": 1}}
    job = {"cores": 2, "processes": 2}
    file = make_cluster_file(tmp_path, job=job, profile={"jobs": 1}, distributed=distributed)
    with pytest.raises(WorkerLostError) as caught, connect("slurm-cpu", file) as client:  # noqa: PT012
        wait_until(lambda: n_slots(client) == 2)
        victim = client.run(job_of_worker).popitem()[1]
        slurmctl.cancel(victim)
        wait_until(lambda: victim not in client.run(job_of_worker, on_error="ignore").values() and n_slots(client) == 2)
        with recorded(client, tmp_path / "run"):
            list(run_tasks(client, dies, range(4), name="test-poison", label="Poison"))
    message = str(caught.value)
    assert "test-poison '2'" in message
    assert "took its worker with it 2 times" in message
    assert "exited with status 3" in message
    assert (tmp_path / "run" / "watch" / "1" / "performance-report.html").is_file()
    assert list((tmp_path / "run" / "watch" / "1" / "logs").glob("subspace-*.err"))
    assert read_sessions(tmp_path / "run")[0]["ended"] == "stopped by WorkerLostError"


def test_jobs_that_die_at_once_are_not_submitted_for_ever(
    slurmctl: Any, make_cluster_file: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watcher, "BACKOFF", (0.0, 0.0))
    prologue = ["echo no such module: python/9 >&2", "exit 1"]
    file = make_cluster_file(tmp_path, job={"job-script-prologue": prologue}, profile={"jobs": 1})
    with (
        pytest.raises(SubspaceError, match=r"(?s)3 Slurm jobs died.*no such module: python/9"),
        connect("slurm-cpu", file),
    ):
        pass
