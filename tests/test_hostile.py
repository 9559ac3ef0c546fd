"""A sample of the benchmark of hostile settings, imports and damages: what it counts must be nothing."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from benchmarks.hostile.__main__ import PAGE, RESULT, render
from benchmarks.table import insert

SHARES = {"settings": "0.06", "imports": "0.08", "damages": "0.02"}


@pytest.mark.parametrize("group", SHARES)
def test_nobody_sees_a_traceback_and_nothing_hangs(group: str) -> None:
    command = [sys.executable, "-m", "benchmarks.hostile", "--groups", group, "--share", SHARES[group], "--seed", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    counts = found["groups"][group]
    assert counts["cases"] > 12
    wrong = {fault: n for fault, n in counts.items() if fault != "cases" and n}
    assert not wrong, found["wrong"]


def test_the_page_says_what_the_result_does() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert insert(page, "hostile", render(json.loads(RESULT.read_text(encoding="utf-8")))) == page
