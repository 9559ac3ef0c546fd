"""What a run leaves about itself."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
from distributed import Client

from jobs.watch import recorder as watching
from jobs.watch.page import Sample, watch_page
from jobs.watch.recorder import FINISHED, Record, Recorder, _begin, read_sessions, recorded
from pipeline.work.workers import Advanced, Planned, Staged, run_tasks, tell


def same(item: int) -> int:
    return item


def fails(item: int) -> int:
    raise ValueError("on purpose")


def test_a_run_leaves_report_stream_page_and_record(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "SAMPLE_SECONDS", 0.01)
    with recorded(client, tmp_path) as recorder:
        tell(Planned("test-watch", 5_000_000_000))
        for _ in run_tasks(client, same, range(20), name="test-watch", label="Watched", rows=lambda _: 7):
            pass
        while not recorder.samples:
            time.sleep(0.01)
    folder = tmp_path / "watch" / "1"
    assert "test-watch" in (folder / "performance-report.html").read_text()
    assert "test-watch" in (folder / "task-stream.html").read_text()
    [session] = read_sessions(tmp_path)
    assert (session["tasks"], session["rows"], session["ended"]) == (20, 140, "finished")
    assert session["peak_memory"] > 0
    assert session["planned_memory"] >= 5_000_000_000
    assert session["workers_lost"] == session["seconds_lost"] == 0
    page = (tmp_path / "watch.html").read_text()
    assert "http-equiv" not in page  # it is finished, and is not loaded again
    assert "test-watch: 5" in page


def test_a_run_that_fails_leaves_them_too(client: Client, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="on purpose"), recorded(client, tmp_path):
        list(run_tasks(client, fails, range(3), name="test-fails", label="Fails", retries=0))
    assert (tmp_path / "watch" / "1" / "performance-report.html").is_file()
    assert read_sessions(tmp_path)[0]["ended"] == "stopped by ValueError"


def test_the_time_between_a_killed_session_and_the_next_is_lost(tmp_path: Path) -> None:
    killed = {"begun": "2020-01-01T00:00:00.000+00:00", "seconds": 60.0, "ended": None, "seconds_lost": 0.0}
    (tmp_path / "watch.json").write_text(json.dumps({"sessions": [killed]}))
    record, earlier = _begin(tmp_path)
    assert len(earlier) == 1
    assert record.seconds_between > 1e8
    assert record.seconds_lost == record.seconds_between
    (tmp_path / "watch.json").write_text(json.dumps({"sessions": [{**killed, "ended": "finished"}]}))
    assert _begin(tmp_path)[0].seconds_between == 0


def test_a_damaged_record_is_begun_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "watch.json").write_text("{")
    assert read_sessions(tmp_path) == []
    assert "is damaged" in caplog.text


def test_lost_workers_are_counted(client: Client, tmp_path: Path) -> None:
    recorder = Recorder(client, tmp_path, *_begin(tmp_path))
    for now, threads in ((0.0, 4), (10.0, 4), (20.0, 1), (30.0, 4)):
        recorder._count_missing(now, threads)
        recorder.samples.append(Sample(now, 0, 0, 0, 0, 0, threads))
    assert recorder.record.seconds_short == 7.5  # three of four threads for ten seconds
    compute = [{"action": "compute", "start": 1.0, "stop": 3.0}]
    stream = [{"key": ("harvest-shard-abc", i), "startstops": compute} for i in range(3)]
    lost: dict[str, Any] = {"action": "remove-worker", "expected": False}
    lost["processing-tasks"] = {("harvest-shard-abc", 7), ("harvest-shard-abc", 8)}
    later = time.time() + 1
    recorder._count_faults(stream, [(later, lost), (later, {"action": "add-worker"}), (0.0, lost)])
    assert (recorder.record.workers_lost, recorder.record.tasks_restarted) == (1, 2)
    assert recorder.record.seconds_twice == 2 * 2.0 / 4


def test_many_samples_are_thinned(client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "MOST_SAMPLES", 8)
    recorder = Recorder(client, tmp_path, *_begin(tmp_path))
    for _ in range(40):
        recorder.sample()
    assert len(recorder.samples) <= 9
    assert recorder.every > watching.SAMPLE_SECONDS


def test_a_record_that_cannot_be_written_does_not_spoil_the_run(
    client: Client, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "run").write_text("a file where the folder should be")
    with recorded(client, tmp_path / "run"):
        assert list(run_tasks(client, same, [1], name="test-full", label="Full")) == [(1, 1)]
    assert "is not complete" in caplog.text


def test_the_plan_is_on_top_of_what_a_process_held_before() -> None:
    assert Planned("x", 900, reserved=400).limit(before=0) == 900
    assert Planned("x", 900, reserved=400).limit(before=700) == 1200
    assert Planned("x", 900).limit(before=700) == 1600


def test_the_page_shows_stages_gaps_and_no_plan_that_is_unknown(client: Client, tmp_path: Path) -> None:
    recorder = Recorder(client, tmp_path, Record("2026-01-01T00:00:00+00:00"), [], title="pythia & co")
    names = ("harvest", "correlate", "report")
    recorder.on_event(Staged("harvest", names))
    recorder.on_event(Planned("harvest A", 5_000_000_000))
    recorder.stages[0].seconds, recorder.start = 0.0, recorder.start - 60
    recorder.on_event(Staged("correlate", names))
    recorder.on_event(Advanced("Tiles", 0, 8, 0.0))
    recorder.start -= 20
    recorder.on_event(Advanced("Tiles", 2, 8, 0.0))
    recorder.record.seconds = 80.0
    plans = [5e9, 5e9, float("nan"), float("nan"), 2e9]
    recorder.samples = [Sample(t, t, 1, 1.0, 1e9, plan, 2) for t, plan in zip((0, 1, 2, 3, 60), plans, strict=True)]
    recorder.write_page()
    page = (tmp_path / "watch.html").read_text()
    assert "<h1>pythia &amp; co</h1>" in page
    assert "Stage 2 of 3; 80 s so far" in page
    stages = re.findall(r'--done: (\d+)%"><b>(\w+)</b>([^<]*)<', page)
    assert stages[::2] == [("100", "harvest", "60 s"), ("0", "report", "")]
    assert stages[1][:2] == ("25", "correlate")
    assert stages[1][2] == "Tiles: 2 of 8, about 60 s left"
    *_, memory = re.findall(r"<svg.*?</svg>", page)
    assert memory.count('stroke="var(--first)"') == 2, "nothing was seen between 3 and 60 s"
    assert memory.count('stroke="var(--second)"') == 2, "the plan was not known between 1 and 60 s"
    assert "prefers-color-scheme: dark" in page
    recorder.record.ended = FINISHED
    recorder.write_page()
    assert "about 60 s left" not in (tmp_path / "watch.html").read_text()


def test_the_page_is_escaped_and_refreshes() -> None:
    samples = [Sample(float(i), 10.0 * i, i, 1e6, 1e9, 2e9, 2) for i in range(5)]
    page = watch_page("<run>", "a & b", samples, {"x": "<y>"}, refresh=10)
    assert "<run>" not in page
    assert "<y>" not in page
    assert 'content="10"' in page
    assert page.count("<polyline") == 6
