"""Make the tables of docs/yardsticks.md from a finished run of the demo.

::

    subspace demo --run-dir demo-run --yardsticks
    python -m benchmarks.yardsticks demo-run     # benchmarks/results/demo/yardsticks.json, and the page from it
    python -m benchmarks.yardsticks              # the page again
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.table import RESULTS, ROOT, insert, update
from pipeline.report.verdict import number
from pipeline.report.vocabulary import quantity_name
from pipeline.report.yardsticks import (
    normalised_table,
    numbered_notes,
    open_yardsticks,
    yardsticks_findings,
    yardsticks_table,
)
from pipeline.settings.experiment import stored_experiment
from pipeline.work.usage import read_usage
from storage.rundir import RunDirectory

RESULT = RESULTS / "demo" / "yardsticks.json"
PAGE = ROOT / "docs" / "yardsticks.md"


def figures(run_dir: Path) -> dict[str, Any]:
    """Return what the page needs of a run."""
    run = RunDirectory(run_dir)
    config = stored_experiment(run)
    results = open_yardsticks(run, config.site_pairs)
    tables = {"normalised": normalised_table(results), "beside": yardsticks_table(results)}
    return {
        "command": "python -m benchmarks.yardsticks demo-run",
        "min_correlation": config.match.min_correlation,
        "seconds": sum(usage.seconds for usage in read_usage(run.usage) if usage.stage == "yardsticks"),
        **{name: table.astype(object).where(table.notna(), None).to_dict("records") for name, table in tables.items()},
    }


def render(page: str, result: dict[str, Any]) -> str:
    """Return the page's text with the tables of a result."""
    normalised, beside = (pd.DataFrame(result[name]) for name in ("normalised", "beside"))
    for name in ("normalised", "low", "high"):
        normalised[name] = normalised[name].astype(float)
    made = [*yardsticks_findings(normalised), f"Pairs have r of at least {result['min_correlation']:g}."]
    if result["seconds"]:  # 0 where no one session made all of it, or other work shared the cores
        made.append(f"Making all floors and ceilings took {result['seconds'] / 60:.0f} minutes.")
    page = insert(page, "yardsticks-made", " ".join(made))
    page = insert(page, "yardsticks-normalised", _normalised(normalised))
    return insert(page, "yardsticks-beside", _beside(beside))


def _cell(value: float, quantity: str) -> str:
    return number(value, 0 if quantity == "pairs" else 3)


def _normalised(table: pd.DataFrame) -> str:
    marks, notes = numbered_notes(table)
    lines = [
        "| A | B | score | pairs | value | floor | ceiling | normalised | 95 % | notes |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row, mark in zip(table.to_dict("records"), marks, strict=True):
        quantity = row["quantity"]
        cells = [
            row["site_a"],
            row["site_b"],
            quantity_name(quantity),
            "all" if quantity == "pairs" else row["n_pairs"],
        ]
        cells += [_cell(row[name], quantity) for name in ("score", "floor", "ceiling")]
        ends = " to ".join(number(row[name]) for name in ("low", "high")) if row["low"] == row["low"] else "–"
        lines.append(f"| {' | '.join(map(str, [*cells, number(row['normalised']), ends, mark]))} |")
    return "\n".join([*lines, *(["", *(f"{i}. {note}" for i, note in enumerate(notes, start=1))] if notes else [])])


def _beside(table: pd.DataFrame) -> str:
    quantities = list(dict.fromkeys(table["quantity"]))
    head = ["A", "B", "yardstick", "at pairs", *map(quantity_name, quantities)]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for (a, b, kind, name), rows in table.groupby(["site_a", "site_b", "kind", "yardstick"], sort=False):
        of = {row["quantity"]: row for row in rows.to_dict("records")}
        values = [
            f"{_cell(_float(of[q]['raw']), q)} · {_cell(_float(of[q]['value']), q)}" if q in of else ""
            for q in quantities
        ]
        lines.append(f"| {' | '.join([str(a), str(b), f'{kind}: {name}', str(rows['n_pairs'].iloc[0]), *values])} |")
    return "\n".join(lines)


def _float(value: float | None) -> float:
    return float("nan") if value is None else float(value)


def main() -> None:
    """Store the figures of a run, if one is given, and make the page again."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", nargs="?", type=Path)
    arguments = parser.parse_args()
    if arguments.run_dir is not None:
        RESULT.write_text(json.dumps(figures(arguments.run_dir), indent=1) + "\n", encoding="utf-8")
    update(PAGE, RESULT, render)


if __name__ == "__main__":
    main()
