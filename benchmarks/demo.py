"""Take what the README and the page of the demo say of it from a finished run.

::

    subspace demo --run-dir demo-run
    python -m benchmarks.demo demo-run     # benchmarks/results/demo/demo.json, all pages from it, and the picture
    python -m benchmarks.demo              # the pages again

The sentences are those of the report (:func:`pipeline.report.statements.statements`); none is typed, and a test checks
that both have what the stored figures say. The README has the first of them.
"""

from __future__ import annotations

import argparse
import io
import json
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pandas as pd
from PIL import Image

from benchmarks.explorer import launched, open_report
from benchmarks.table import README, RESULTS, ROOT, insert, update
from pipeline.report.results import open_run
from pipeline.report.statements import Tables, statements
from pipeline.report.verdict import number, significance
from pipeline.report.vocabulary import NAMES, quantity_name

RESULT = RESULTS / "demo" / "demo.json"
PICTURE, WIDTH, HEIGHT = ROOT / "docs" / "images" / "demo-report.png", 1280, 1560
#: Leaves the answer on the page, and below it the explorer.
SHOWN = """() => {
  const left_out = "main > section:not(#verdict, #explorer), #verdict .short, .licences";
  for (const one of document.querySelectorAll(left_out)) one.style.display = "none";
  scrollTo(0, 0);
}"""
PAGE = ROOT / "docs" / "demo.md"
STATISTICS, VOCABULARY = ROOT / "docs" / "statistics.md", "demo-vocabulary"
SENTENCES, SHORT, PAIRS = "demo", "demo-short", "demo-pairs"
#: The table shows so many pairs, of features that fire on at least so many different words, and so many words.
MOST_PAIRS, FEWEST_WORDS = 10, 3


def figures(run_dir: Path) -> dict[str, Any]:
    """Return what is needed of a run."""
    run = open_run(run_dir)
    sites = run.experiment.site_pairs[-1]
    pairs = pd.read_csv(run_dir / "pairs.csv")
    pairs = pairs[(pairs["site_a"] == sites[0]) & (pairs["site_b"] == sites[1])]
    for side in "ab":
        pairs[f"words_{side}"] = [_words(json.loads(tokens)) for tokens in pairs[f"tokens_{side}"]]
    several = (pairs["words_a"].str.len() >= FEWEST_WORDS) & (pairs["words_b"].str.len() >= FEWEST_WORDS)
    best = pairs[several].assign(least=pairs[["r", "r_heldout"]].min(axis=1)).nlargest(MOST_PAIRS, "least")
    return {
        "command": "python -m benchmarks.demo demo-run",
        "documents": len(run.corpus),
        "rows": int(run.rows.sizes["token"]),
        "sites": list(sites),
        "pairs": best[["words_a", "words_b", "r", "r_heldout"]].to_dict("records"),
        "tables": Tables.of(run).to_records(),
    }


def take_picture(report: Path, sites: list[str]) -> None:
    """Write the picture of the report for the README; needs Chromium and playwright."""
    address = f"#{urlencode({'a': sites[0], 'b': sites[1], 'q': 'est'})}"
    with launched() as browser:
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, reduced_motion="reduce")
        open_report(page, report, address)
        page.evaluate(SHOWN)
        taken = page.screenshot()
    with Image.open(io.BytesIO(taken)) as image:
        image.convert("RGB").quantize(256, Image.Quantize.FASTOCTREE).save(PICTURE, optimize=True)


def _words(tokens: list[str]) -> list[str]:
    """Return the words among tokens, each once whatever its case.

    >>> _words(["Take", "take", ":", "taken"])
    ['Take', 'taken']
    """
    first = {token.casefold(): token for token in reversed(tokens) if token.isalnum() and len(token) > 1}
    return [token for token in tokens if first.get(token.casefold()) == token]


def render(page: str, result: dict[str, Any]) -> str:
    """Return the page of the demo with the sentences and the table of a result."""
    page = insert(page, SENTENCES, _listed(result, statements(Tables.from_records(result["tables"]))))
    head = [f"| A, `{result['sites'][0]}`, fires on | B, `{result['sites'][1]}` | r | held out |", "|---|---|---|---|"]
    rows = [
        f"| {', '.join(pair['words_a'])} | {', '.join(pair['words_b'])} | {number(pair['r'])} | "
        f"{number(pair['r_heldout'])} |"
        for pair in result["pairs"]
    ]
    return insert(page, PAIRS, "\n".join(head + rows))


def render_readme(page: str, result: dict[str, Any]) -> str:
    """Return the README with the answer, and the sentence on significance."""
    tables = Tables.from_records(result["tables"])
    findings = [statements(tables)[0], *significance(tables.scores)]
    return insert(page, SHORT, _listed(result, findings))


def _listed(result: dict[str, Any], sentences: Iterable[str]) -> str:
    lead = f"On {result['rows']:,} tokens of {result['documents']:,} texts:"
    filled = [
        textwrap.fill(sentence, 118, initial_indent="* ", subsequent_indent="  ", break_on_hyphens=False)
        for sentence in sentences
    ]
    return "\n".join([lead, "", *filled])


def render_vocabulary(page: str, result: dict[str, Any]) -> str:
    """Return the page of statistics with what both nulls leave, at the last sites."""
    table = Tables.from_records(result["tables"]).vocabulary
    rows = table[(table["site_a"] == result["sites"][0]) & (table["site_b"] == result["sites"][1])]
    lines = [
        "| | real | same text permuted | expected if that is all | documents permuted | beyond the vocabulary | 95 % |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows.itertuples():
        above = "" if row.quantity in NAMES else ", above shuffled pairings"
        real, token, low, high, document = (
            number(value, row.digits) for value in (row.real, row.token, row.token_low, row.token_high, row.document)
        )
        beyond, least, most = (number(value, 2) for value in (row.beyond, row.beyond_low, row.beyond_high))
        name = f"{quantity_name(row.quantity)}{above}"
        lines.append(f"| {name} | {real} | {token} | {low} to {high} | {document} | {beyond} | {least} to {most} |")
    return insert(page, VOCABULARY, "\n".join(lines))


def main() -> None:
    """Read the command line; store the figures of a run, and write both pages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", type=Path, help="a finished run of the demo")
    given = parser.parse_args()
    if given.run is not None:
        RESULT.parent.mkdir(parents=True, exist_ok=True)
        result = figures(given.run)
        RESULT.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        take_picture(given.run / "report.html", result["sites"])
    update(PAGE, RESULT, render)
    update(README, RESULT, render_readme)
    update(STATISTICS, RESULT, render_vocabulary)


if __name__ == "__main__":
    main()
