"""Following a run: a line whenever it gets on, and its exit status."""

from __future__ import annotations

import datetime as dt
import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from jobs.cluster.slurm import Job, failures
from jobs.watch import follow as following
from jobs.watch.follow import Progress, follow
from jobs.watch.recorder import Record
from storage.errors import InputError, SubspaceError


def session(**values: Any) -> dict[str, Any]:
    return Record(dt.datetime.now(dt.UTC).isoformat(), **values).to_json()


def write(folder: Path, **values: Any) -> None:
    part = folder / "watch.json.new"
    part.write_text(json.dumps({"sessions": [session(**values)]}))
    part.replace(folder / "watch.json")


def test_a_line_for_each_change_until_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "LOOK", 0.01)

    def run() -> None:
        for i in (1, 2):
            write(tmp_path, state=f"harvest A: {i} of 2", tasks=i, threads=4)
            time.sleep(0.1)
        write(tmp_path, state="harvest A: 2 of 2", tasks=2, threads=4, seconds=9.0, ended="finished")

    write(tmp_path)
    thread = threading.Thread(target=run)
    thread.start()
    lines = [str(progress) for progress in follow(tmp_path)]
    thread.join()
    assert lines[-3:] == [
        "harvest A: 1 of 2 · 0 rows, 1 tasks · 4 threads",
        "harvest A: 2 of 2 · 0 rows, 2 tasks · 4 threads",
        "finished after 9 s · 0 rows, 2 tasks · 4 threads",
    ]


def test_when_a_run_is_over() -> None:
    now = dt.datetime.now(dt.UTC)
    assert not Progress(session(), []).is_over(now)
    killed = Progress(session(), [])
    assert killed.is_over(now + dt.timedelta(seconds=61))
    assert not killed.succeeded
    waiting, failed = Job("7", "PENDING", "", "Priority"), Job("8", "FAILED", "n1", "NonZeroExitCode")
    assert not Progress(None, [failed, waiting]).is_over(now)
    assert Progress(None, [failed]).is_over(now)
    assert not Progress(None, [failed]).succeeded
    assert Progress(session(ended="finished"), []).succeeded
    assert not Progress(session(ended="stopped by InputError"), [failed]).succeeded
    earlier = session(ended="finished")
    assert not Progress(earlier, [failed]).succeeded, "the session is of the run before"
    assert Progress(earlier, [failed, Job("9", "COMPLETED", "n1", "None")]).succeeded, "the job behind it did its share"
    assert Progress(earlier, [Job("9", "UNKNOWN", "", "")]).succeeded
    assert str(Progress(None, [failed, waiting])) == "jobs: 1 FAILED, 1 PENDING"


def test_where_slurm_cannot_be_asked_the_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver waits in the queue behind an earlier session; squeue fails twice, and then it is over."""
    monkeypatch.setattr(following, "LOOK", 0.01)
    write(tmp_path, tasks=1, seconds=0.1, ended="finished")
    time.sleep(0.2)
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "submitted.json").write_text(json.dumps([{"job": "17", "command": "sbatch"}]))
    calls = tmp_path / "calls"
    (tmp_path / "squeue").write_text(
        f"#!/bin/sh\necho x >> {calls}\n[ $(wc -l < {calls}) -le 2 ] && {{ echo timed out >&2; exit 1; }}\n"
        f"[ $(wc -l < {calls}) -le 4 ] && echo '17|PENDING||Priority' || echo '17|COMPLETED|n1|None'\n"
    )
    (tmp_path / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    lines = list(follow(tmp_path))
    first, *rest = map(str, lines)
    assert first.startswith("Slurm could not be asked: `squeue")
    assert rest == ["jobs: 1 PENDING", "jobs: 1 COMPLETED"]
    assert lines[-1].succeeded
    calls.unlink()
    monkeypatch.setattr(following, "PATIENCE", 0.0)
    with pytest.raises(SubspaceError, match=r"^Whether the run goes on is not known: .*Slurm could not be asked"):
        list(follow(tmp_path))


def test_nothing_to_follow(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Nothing was run or submitted"):
        next(follow(tmp_path))


def test_the_exit_code_stands_before_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "scontrol").write_text("#!/bin/sh\necho 'JobId=8 JobState=FAILED ExitCode=3:0 NodeList=n1'\n")
    (tmp_path / "scontrol").chmod(0o755)
    (tmp_path / "subspace-driver-8.log").write_text("out of budget")
    monkeypatch.setenv("PATH", str(tmp_path))
    first, *log = failures([Job("8", "FAILED", "n1", "NonZeroExitCode")], tmp_path)
    assert first == "--- job 8 on n1: FAILED (NonZeroExitCode), exit code 3"
    assert log[-1] == "    out of budget"
