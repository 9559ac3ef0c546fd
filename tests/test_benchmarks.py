"""A small size of every benchmark runs, so that none can rot; no timing is asserted."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from benchmarks import harvest


def last_line(*arguments: str) -> dict[str, Any]:
    """Run ``python -m benchmarks.…`` and return the JSON object of its last line."""
    done = subprocess.run([sys.executable, "-m", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("kind", [["--active", "8"], ["--dense"]])
def test_correlate(kind: list[str]) -> None:
    result = last_line("benchmarks.correlate", "--rows", "3000", "--features", "300", "--top-k", "4", *kind)
    assert result["max_error"] < 1e-6
    assert result["seconds"] > 0
    assert result["peak_gb"] > 0
    assert "sgemm" in result["ratios"]
    assert result["command"].startswith("python -m benchmarks.correlate --rows 3000")


def test_harvest(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """In this process: each of the three ways would spend ten seconds on imports in one of its own."""

    def run_here(code: str, arguments: dict[str, Any]) -> dict[str, Any]:
        figures: dict[str, Any] = {"peak_gb": 1.0}
        exec(code, {"arguments": arguments, "figures": figures})
        return figures

    monkeypatch.setattr(harvest, "run_measured", run_here)
    monkeypatch.setattr(
        sys, "argv", ["harvest", "--tiny", "--documents", "40", "--repeats", "2", "--shard-rows", "256"]
    )
    harvest.main()
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["rows"] > 3 * 256
    assert result["max_error"] < 1e-6
    assert {"bare_loop", "full_model", "dense_size", "dense_write", "dense_read"} == set(result["ratios"])
    assert len(result["all_seconds"]["bare_loop"]) == 2
