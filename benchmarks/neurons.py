"""Raw units against the features of dictionaries, in the demo: what `subspace neurons` finds.

::

    subspace neurons demo-run
    python -m benchmarks.neurons demo-run demo-run-neurons > benchmarks/results/demo/neurons.json
    python -m benchmarks.neurons --table       # the tables of docs/compare.md, from the stored result
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.table import RESULTS, ROOT, insert, update
from pipeline.experiment.neurons import KINDS, concepts_beside, expansion, neurons_table, statement
from pipeline.settings.experiment import stored_experiment
from storage.rundir import RunDirectory

RESULT, PAGE = RESULTS / "demo" / "neurons.json", ROOT / "docs" / "compare.md"
SITES, CONCEPTS, STATEMENT = "neurons-sites", "neurons-concepts", "neurons-statement"
#: Concepts of the table: those with the most pairs of either kind.
SHOWN = 12


def measure(features: RunDirectory, units: RunDirectory) -> dict[str, Any]:
    """Return the tables and the sentence of two finished runs."""
    table, concepts = neurons_table(features, units), concepts_beside(features, units)
    more = expansion(features, stored_experiment(features))
    lines = {
        name: json.loads(frame.to_json(orient="records", double_precision=6))
        for name, frame in (("sites", table), ("concepts", concepts))
    }
    least = stored_experiment(features).match.min_correlation
    return {"name": "neurons", "command": "subspace neurons demo-run", "min_r": least, "expansion": more, **lines}


def page_with_tables(page: str, result: dict[str, Any]) -> str:
    """Return a page with both tables and the sentence."""
    table, concepts = (pd.DataFrame(result[name]) for name in ("sites", "concepts"))
    said = statement(table, concepts, result["expansion"])
    sites = f"The demo, of pairs with r ≥ {result['min_r']}:\n\n{render_sites(result['sites'])}"
    parts = {SITES: sites, CONCEPTS: render_concepts(result["concepts"]), STATEMENT: said}
    for mark, text in parts.items():
        page = insert(page, mark, text)
    return page


def render_sites(lines: Sequence[dict[str, Any]]) -> str:
    """Return a line for each pair of sites and kind, in Markdown."""
    metrics = [name for name in lines[0] if name.startswith("above_")]
    names = "".join(f" `{name.removeprefix('above_')}` above chance |" for name in metrics)
    head = [f"| A | B | of | pairs | share paired | mean r | held out |{names}", "|---" * (7 + len(metrics)) + "|"]
    rows = []
    for line in lines:
        figures = [line[name] for name in ("share_paired", "mean_r", "mean_r_heldout", *metrics)]
        cells = " | ".join("undefined" if value is None else f"{round(value, 3) + 0.0:.3f}" for value in figures)
        rows.append(f"| {line['site_a']} | {line['site_b']} | {line['kind']} | {line['n_pairs']:,} | {cells} |")
    return "\n".join(head + rows)


def render_concepts(lines: Sequence[dict[str, Any]]) -> str:
    """Return a line for each of the concepts with most pairs, and one for all others, in Markdown."""
    ordered = sorted(lines, key=lambda line: -sum(line[f"pairs_{kind}"] for kind in KINDS))
    names = "".join(f" {what} of {kind} |" for what in ("pairs", "pairs of sites with enough") for kind in KINDS)
    rows = [(line["name"].replace("_", " "), [line]) for line in ordered[:SHOWN]]
    rows.append((f"the other {len(ordered) - SHOWN}", ordered[SHOWN:]))
    head = [f"| concept |{names}", "|---" * 5 + "|"]
    columns = [f"{key}_{kind}" for key in ("pairs", "tested") for kind in KINDS]
    cells = [" | ".join(f"{sum(one[column] for one in group):,}" for column in columns) for _, group in rows]
    return "\n".join(head + [f"| {name} | {line} |" for (name, _), line in zip(rows, cells, strict=True)])


def main() -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path, help="the run with dictionaries, and that of raw units")
    parser.add_argument("--table", action="store_true", help="make the tables of the page from the stored result")
    given = parser.parse_args()
    if given.table:
        update(PAGE, RESULT, page_with_tables)
        return
    features, units = map(RunDirectory, given.runs)
    print(json.dumps(measure(features, units)))


if __name__ == "__main__":
    main()
