"""A small size of every benchmark runs, so that none can rot; no timing is asserted."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest


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


def test_peers() -> None:
    arguments = ["--rows", "1500", "--features", "200", "--small-rows", "800", "--small-features", "60"]
    result = last_line("benchmarks.peers", *arguments, "--active", "8", "--top-k", "4")
    assert len(result["ratios"]) == len(result["memory_ratios"]) == 5
    assert all(ratio > 0 for ratio in result["ratios"].values())
    assert result["max_error"] < 1e-9
    assert max(result["differences"].values()) < 1e-4
    assert result["differences"]["scipy sparse product"] < 1e-9
