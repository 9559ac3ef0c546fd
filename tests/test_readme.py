"""What the README shows is true: its example runs, and its table is what the benchmarks printed."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks import demo
from benchmarks.table import PERFORMANCE, README, load_results, render
from jobs.cli import app

TEXT = README.read_text(encoding="utf-8")


def test_the_python_example_runs(tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    mean_r = float(done.stdout.split()[0])
    assert mean_r > 0.999, "B has the features of A, in another order"


def test_the_shell_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The verbs over paths, on the stores that the Python example writes."""
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
    stores = code.split("cor = ")[0]
    subprocess.run([sys.executable, "-c", stores], cwd=tmp_path, check=True)
    lines = [line for line in TEXT.splitlines() if re.match(r"subspace (correlate|match|compare) ", line)]
    assert len(lines) == 3
    monkeypatch.chdir(tmp_path)
    for line in lines:
        shown = CliRunner().invoke(app, shlex.split(line, comments=True)[1:])
        assert shown.exit_code == 0, shown.output


def test_the_performance_table_is_made_from_results() -> None:
    shown = TEXT.split(f"<!-- {PERFORMANCE} -->")[1].split(f"<!-- /{PERFORMANCE} -->")[0].strip()
    assert load_results()
    assert shown == render(load_results())


def test_what_is_said_of_the_demo_is_made_from_its_result() -> None:
    result = json.loads(demo.RESULT.read_text(encoding="utf-8"))
    assert demo.render(TEXT, result) == TEXT
    for page in (README, *(README.parent / "docs").glob("*.md")):
        typed = re.sub(r"<!-- demo -->.*?<!-- /demo -->", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        assert f"{result['rows']:,}" not in typed, "figures of the demo stand in one place"


def test_the_links_lead_somewhere() -> None:
    targets = [target for target in re.findall(r"\]\(([^)#]+)\)", TEXT) if "://" not in target]
    assert targets
    assert not [target for target in targets if not (README.parent / target).exists()]
