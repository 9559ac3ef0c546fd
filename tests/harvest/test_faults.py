"""A worker and the driver are killed on the way: run again, and every byte is that of an undisturbed harvest."""

from __future__ import annotations

from benchmarks.harvest_faults import benchmark


def test_killed_processes_change_no_byte(tmp_path):
    """The short version of ``python -m benchmarks.harvest_faults``, which kills more, and schedulers too."""
    result = benchmark(documents=150, kills={"worker": 1, "driver": 1}, seed=0, folder=tmp_path, workers=1)
    assert len(result["killed"]) == 2
    assert result["identical"]
    assert result["left_behind"] == []
    assert result["computed_twice"] <= 2, "no more than what was in flight"
