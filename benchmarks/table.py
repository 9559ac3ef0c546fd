"""Make the table of `docs/benchmarks.md` from the JSON lines that benchmarks printed.

Run a benchmark, keep its last line, and make the table again::

    python -m benchmarks.correlate --rows 300000 | tail -n 1 > benchmarks/results/correlate.json
    python -m benchmarks.table

The table is never typed; a test checks that it is what the results say.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
README = ROOT / "README.md"
#: The page of the table, and the mark there.
PAGE = ROOT / "docs" / "benchmarks.md"
PERFORMANCE = "performance"


def load_results(folder: Path = RESULTS) -> list[dict[str, Any]]:
    """Return the JSON objects of a folder, ordered by file name."""
    return [json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("*.json"))]


def render(results: list[dict[str, Any]]) -> str:
    """Return the table in Markdown: a row for each result.

    >>> one = {"command": "python -m benchmarks.x", "seconds": 8.04, "peak_gb": 1.5, "ratios": {"sgemm": 0.002}}
    >>> print(render([one]).splitlines()[-1])
    | `python -m benchmarks.x` | 8.0 | 1.50 | – | sgemm: 1/500 |
    """
    lines = [
        "| command | seconds | peak GB, all processes | largest error of r | our time ÷ the peer's |",
        "|---|---|---|---|---|",
    ]
    return "\n".join(lines + [_row(result) for result in results])


def _row(result: dict[str, Any]) -> str:
    error = result.get("max_error")
    ratios = ", ".join(f"{peer}: {_ratio(value)}" for peer, value in result.get("ratios", {}).items())
    cells = [
        f"`{result['command']}`",
        f"{result['seconds']:.1f}",
        f"{result['peak_gb']:.2f}",
        "–" if error is None else f"{error:.0e}",
        ratios or "–",
    ]
    return f"| {' | '.join(cells)} |"


def _ratio(value: float) -> str:
    return f"1/{1 / value:,.0f}" if value < 0.1 else f"{value:.2f}"


def percent(share: float, digits: int = 0) -> str:
    """Return a share as it is written in prose.

    >>> percent(0.695), percent(0.004, 1)
    ('70 %', '0.4 %')
    """
    return f"{100 * share:.{digits}f} %"


def insert(page: str, part: str, text: str) -> str:
    """Return a page's text with something between the marks of a part.

    >>> insert("a <!-- x -->old<!-- /x --> b", "x", "new").splitlines()
    ['a <!-- x -->', 'new', '<!-- /x --> b']
    """
    begin, end = f"<!-- {part} -->", f"<!-- /{part} -->"
    before, rest = page.split(begin)
    return f"{before}{begin}\n{text}\n{end}{rest.split(end)[1]}"


def update(page: Path, result: Path, render_page: Callable[[str, Any], str]) -> None:
    """Make the tables of a page again, by a function of its text and of a stored result."""
    stored = json.loads(result.read_text(encoding="utf-8"))
    page.write_text(render_page(page.read_text(encoding="utf-8"), stored), encoding="utf-8")


def main() -> None:
    """Rewrite the table."""
    page = insert(PAGE.read_text(encoding="utf-8"), PERFORMANCE, render(load_results()))
    PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
