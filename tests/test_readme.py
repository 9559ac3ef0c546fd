"""What the README and the first pages show is true: examples run, tables and sentences are made from results."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from benchmarks import demo, demo_traps
from benchmarks.table import PAGE, PERFORMANCE, README, load_results, render
from jobs.cli import app

TEXT = README.read_text(encoding="utf-8")
DOCS = README.parent / "docs"


def test_the_python_example_runs(tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (DOCS / "quickstart.md").read_text("utf-8"), flags=re.DOTALL)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    mean_r = float(done.stdout.split()[0])
    assert mean_r > 0.999, "B has the features of A, in another order"


def write_arrays(folder: Path) -> None:
    """Write what the pages on own activations begin with: two arrays of the same tokens, decoder rows, the tokens."""
    rng = np.random.default_rng(0)
    words = [" rain", " storm", " judge", " court", " goal", " the", " of", " and", " in", " was"]
    documents = [["The", *rng.choice(words, 29).tolist()] for _ in range(24)]
    (folder / "tokens.jsonl").write_text("".join(json.dumps(tokens) + "\n" for tokens in documents))
    fires = [np.isin([*" ".join(words).split(), "The"], word.strip()) for word in words]
    row = np.array([[*words, "The"].index(token) for tokens in documents for token in tokens])
    for name, width in (("a", 12), ("b", 10)):
        active = np.stack([fires[j % 10][row] * rng.uniform(1, 2, len(row)) for j in range(width)], axis=1)
        np.save(folder / f"{name}.npy", active.astype("f4"))
        np.save(folder / f"W_{name}.npy", rng.normal(size=(width, 4)))


@pytest.mark.parametrize("page", ["README.md", "docs/own-activations.md"])
def test_own_activations_come_to_a_report_without_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, page: str
) -> None:
    """The commands as they stand on the page, up to the report with its contexts."""
    text = (README.parent / page).read_text(encoding="utf-8")
    (experiment,) = re.findall(r"```yaml\n(name: own\n.*?)```", text, flags=re.DOTALL)
    (commands,) = re.findall(r"```bash\n(subspace import a.npy --tokens [^`]*subspace run[^`]*)```", text)
    lines = [shlex.split(line, comments=True) for line in commands.splitlines()]
    assert len(lines) == 3
    (tmp_path / "own.yaml").write_text(experiment)
    write_arrays(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "transformers", None)
    for _, *arguments in lines:
        shown = CliRunner().invoke(app, arguments)
        assert shown.exit_code == 0, shown.output
    pairs = pd.read_csv("runs/own/pairs.csv")
    assert (pairs.r > 0.9).sum() >= 9, "both have a feature for each word"
    assert {json.loads(tokens)[0] for tokens in pairs.tokens_a} >= {"rain", "judge", "was"}
    assert pairs.context_a.str.contains("⟦rain⟧").any()
    assert "⟦" not in (report := Path("runs/own/report.html").read_text(encoding="utf-8"))
    assert "site-a-0" in report, "the explorer's packs are in the page"
    assert ("compare: null" in report) == ("compare: null" in experiment)


def test_the_performance_table_is_made_from_results() -> None:
    text = PAGE.read_text(encoding="utf-8")
    shown = text.split(f"<!-- {PERFORMANCE} -->")[1].split(f"<!-- /{PERFORMANCE} -->")[0].strip()
    assert load_results()
    assert shown == render(load_results())


def test_what_is_said_of_the_demo_is_made_from_its_result() -> None:
    result = json.loads(demo.RESULT.read_text(encoding="utf-8"))
    statistics = demo.STATISTICS.read_text(encoding="utf-8")
    for render_page, text in (
        (demo.render_readme, TEXT),
        (demo.render, demo.PAGE.read_text(encoding="utf-8")),
        (demo.render_vocabulary, statistics),
    ):
        assert render_page(text, result) == text
    traps = json.loads(demo_traps.RESULT.read_text(encoding="utf-8"))
    for path, render_traps in (
        (demo_traps.METHOD, demo_traps.render),
        (demo_traps.SEMANTICS, demo_traps.render_semantics),
    ):
        text = path.read_text(encoding="utf-8")
        assert render_traps(text, traps) == text
    words = traps["words"]
    assert words["passed"] <= 0.1 * words["lists"]
    for page in (README, *DOCS.glob("*.md")):
        typed = re.sub(r"<!-- (demo\S*) -->.*?<!-- /\1 -->", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        assert f"{result['rows']:,}" not in typed, "figures of the demo stand in one place"


def test_the_readme_is_short() -> None:
    assert len(TEXT.split()) < 900


def test_the_links_lead_somewhere() -> None:
    targets = [target for target in re.findall(r"\]\(([^)#]+)\)", TEXT) if "://" not in target]
    assert targets
    assert not [target for target in targets if not (README.parent / target).exists()]
