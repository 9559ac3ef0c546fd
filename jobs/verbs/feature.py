"""``subspace feature``: everything that a run knows of one feature."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

import pipeline
from jobs.verbs.shading import shaded
from pipeline.report.tables import short_name
from pipeline.text.spans import readable
from pipeline.work.script import AsJson, show, text_table

#: Characters of a line where the output is no terminal.
WIDTH = 80
#: Figures of a partner, by what their column is called, as far as the run has them.
FIGURES = {"r": "r", "r_heldout": "held out", "r_check": "check", "excess": "excess", "best_r_q": "q"}


def command(
    run: Annotated[Path, typer.Argument(help="Run directory.", show_default=False)],
    site: Annotated[str, typer.Argument(help="Site of the feature; a:NAME or b:NAME if both sides have it.")],
    number: Annotated[int, typer.Argument(metavar="ID", help="Feature id.", show_default=False)],
    contexts: Annotated[int, typer.Option(min=1, help="Top contexts to show.")] = 5,
    candidates: Annotated[int, typer.Option(min=1, help="Candidates to show for each site of the other side.")] = 5,
    as_json: AsJson = False,
) -> None:
    """Show what a run knows about one feature: contexts, partners, rival candidates and concepts."""
    found = pipeline.feature(run, site, number, contexts=contexts, candidates=candidates)
    if as_json:
        show(found.as_dict(), as_json=True)
        return
    console = Console(width=None if Console().is_terminal else WIDTH)
    origin = (short_name(text) for text in (found.model, found.dictionary) if text)
    console.print(Text(readable(f"{found.side}:{found.site}  {', '.join(origin)}".rstrip())))
    if found.fires is not None:
        console.print(shaded(dataclasses.replace(found.fires, sampled=()), readable(found.label)))
    else:
        console.print(Text(f"feature {found.feature}  {readable(found.label)}".rstrip(), style="bold"))
    console.print(_partners(found.partners))
    for meaning in dict.fromkeys(_meanings(found.partners)):
        console.print(Text(meaning))
    for of_site, table in found.candidates.groupby("site", sort=False):
        console.print(_candidates(str(of_site), table, found.site))
    for line in _rest(found):
        console.print(Text(readable(line)))


def _partners(partners: pd.DataFrame) -> Table:
    figures = {name: title for name, title in FIGURES.items() if name in partners and partners[name].notna().any()}
    titles = ("site", "fate", "partner", "place", *figures.values(), "it fires on")
    rows = []
    for row in partners.to_dict("records"):
        matched = row["partner"] >= 0
        # places are counted from 1, by people
        place = f"{row['rank'] + 1:.0f} / {row['rank_back'] + 1:.0f}" if matched else ""
        name = str(row["partner"]) if matched else ""
        values = [_number(row[figure]) for figure in figures]
        rows.append((row["site"], row["fate"].replace("_", " "), name, place, *values, _said(row)))
    return _narrow(text_table(titles, rows, title="partners", right={"partner", "place", *figures.values()}))


def _narrow(table: Table) -> Table:
    """Have a table take no more room than its texts need."""
    table.box, table.title_justify, table.show_edge = box.SIMPLE_HEAD, "left", False
    first = table.columns[0]
    # names of sites stay whole, if they are not very long
    first.overflow, first.min_width = "fold", min(28, max((len(str(cell)) for cell in first.cells), default=0))
    return table


def _meanings(partners: pd.DataFrame) -> Iterator[str]:
    """Yield what the fates of a feature without a partner mean."""
    for row in partners.to_dict("records"):
        if row["partner"] < 0 and row["meaning"]:
            yield f"{row['fate'].replace('_', ' ')}: {row['meaning']}"


def _candidates(site: str, table: pd.DataFrame, own_site: str) -> Table:
    titles = ("candidate", "r", "held out", f"matched at {own_site}", "it fires on")
    rows = []
    for row in table.to_dict("records"):
        taken = f"{row['matched_with']} ({_number(row['matched_r'])})" if row["matched_with"] >= 0 else "–"
        figures = _number(row["r"]), _number(row["r_heldout"])
        rows.append((str(row["candidate"]), *figures, taken, _said(row)))
    return _narrow(text_table(titles, rows, title=f"candidates at {site}", right=set(titles[:-1])))


def _said(row: Mapping[Any, Any]) -> str:
    """Return what another feature is called and fires on, fit for a terminal."""
    return readable(": ".join(text for text in (row["label"], row["tokens"]) if text))


def _number(value: float) -> str:
    return f"{value:z.3f}" if np.isfinite(value) else "–"


def _rest(found: Any) -> Iterator[str]:
    """Yield a line for each of what later stages know, and for what is not made yet."""
    if len(found.concepts):
        yield f"concepts   {_listed(_concept(row) for row in found.concepts.to_dict('records'))}"
    if len(found.subspaces):
        table = found.subspaces.assign(tested=np.where(found.subspaces["tested"], "", ", not tested"))
        lines = (f"{row['name']} ({row['approach']}, {row['site']}{row['tested']})" for row in table.to_dict("records"))
        yield f"subspaces  {_listed(lines)}"
    if found.non_concept:
        yield f"no concept {found.non_concept}"
    if found.missing:
        yield f"not made   {_listed(found.missing)}"


def _concept(row: Mapping[Any, Any]) -> str:
    member = "" if row["member"] else "not a member: "
    return f"{row['concept']} ({member}{row['hits']} of its top contexts, PMI {row['pmi']:.2f})"


def _listed(texts: Iterable[str]) -> str:
    return ", ".join(texts)
