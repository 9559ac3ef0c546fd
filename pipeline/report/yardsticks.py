"""Scores between a floor and a ceiling: the tables of a run, and the sentence that follows from them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pandas as pd
import xarray as xr

from pipeline.report.verdict import listed, span
from pipeline.report.vocabulary import quantity_name
from storage import open_result
from storage.derived import write_derived
from storage.provenance import RunInputs
from storage.rundir import RunDirectory

SITES = ("site_a", "site_b")
#: A row for each pair of sites, quantity and yardstick.
BESIDE = (*SITES, "quantity", "kind", "yardstick", "matchings", "n_pairs", "raw", "value", "least", "most")
#: A row for each pair of sites and quantity.
BETWEEN = (
    *(*SITES, "quantity", "floor_name", "ceiling_name", "n_pairs", "score", "floor", "ceiling"),
    *("normalised", "low", "high", "note"),
)


def open_yardsticks(
    run: RunDirectory, site_pairs: list[tuple[str, str]], inputs: RunInputs | None = None
) -> dict[tuple[str, str], xr.Dataset]:
    """Open the yardsticks of those pairs of sites that have them and were made from what is there now."""
    inputs = inputs or RunInputs(run, site_pairs)
    paths = {sites: run.yardsticks(*sites) for sites in site_pairs}
    return {sites: open_result(path, "yardsticks").load() for sites, path in paths.items() if inputs.belongs(path)}


def yardsticks_table(results: dict[tuple[str, str], xr.Dataset]) -> pd.DataFrame:
    """Return every score beside every floor and ceiling, at the same number of pairs.

    ``raw`` is the run's, ``value`` the mean of ``matchings`` of the yardstick, which are draws of a floor, or sides of
    a ceiling; ``least`` and ``most`` of them. The quantity ``pairs`` counts all pairs; ``decoder_cosine`` is of
    ceilings whose decoders are of one space.
    """
    records = [record for sites, result in results.items() for record in _beside(sites, result)]
    return pd.DataFrame.from_records(records, columns=list(BESIDE))


def _beside(sites: tuple[str, str], result: xr.Dataset) -> Iterator[dict[str, Any]]:
    for name in result["yardstick"].values.tolist():
        of_yardstick = result.sel(yardstick=name)
        shared = {"site_a": sites[0], "site_b": sites[1], "kind": of_yardstick["kind"].item()}
        shared |= {"yardstick": of_yardstick["title"].item()}
        shared |= {key: int(of_yardstick[key]) for key in ("matchings", "n_pairs")}
        for quantity in result["quantity"].values.tolist():
            at = of_yardstick.sel(quantity=quantity)
            yield {**shared, "quantity": quantity} | {key: at[key].item() for key in ("raw", "value", "least", "most")}
        cosine = of_yardstick["decoder_cosine"].item()
        if not math.isnan(cosine):
            yield {**shared, "quantity": "decoder_cosine", "value": cosine}


def normalised_table(results: dict[tuple[str, str], xr.Dataset]) -> pd.DataFrame:
    """Return every score between one floor and one ceiling: (score - floor) / (ceiling - floor), with its interval.

    All three are of ``n_pairs`` pairs, drawn whatever their r, but for the quantity ``pairs``, the number of all.
    ``note`` says why a value or its interval is missing, or what is wrong with it; several notes stand between "; ".
    """
    records = [
        {
            "site_a": sites[0],
            "site_b": sites[1],
            "quantity": quantity,
            "floor_name": _title(result, "floor"),
            "ceiling_name": _title(result, "ceiling"),
            "n_pairs": int(result["n_compared"]),
            **{
                name: result[name].sel(quantity=quantity).item()
                for name in ("score", "floor", "ceiling", "normalised", "low", "high", "note")
            },
        }
        for sites, result in results.items()
        if result.attrs["floor"] is not None and result.attrs["ceiling"] is not None
        for quantity in result["quantity"].values.tolist()
    ]
    return pd.DataFrame.from_records(records, columns=list(BETWEEN))


def numbered_notes(table: pd.DataFrame) -> tuple[list[str], list[str]]:
    """Return the numbers of the notes of each row of a :func:`normalised_table`, as text, and the notes.

    >>> numbered_notes(pd.DataFrame({"note": ["", "below the floor", "no interval; below the floor"]}))
    (['', '1', '2, 1'], ['below the floor', 'no interval'])
    """
    of_rows = [[note for note in str(notes).split("; ") if note] for notes in table["note"]]
    numbers = {note: i for i, note in enumerate(dict.fromkeys(note for row in of_rows for note in row), start=1)}
    return [", ".join(str(numbers[note]) for note in row) for row in of_rows], list(numbers)


def _title(result: xr.Dataset, kind: str) -> str:
    return str(result["title"].sel(yardstick=result.attrs[kind]).item())


def save_yardsticks(run: RunDirectory, results: dict[tuple[str, str], xr.Dataset]) -> None:
    """Write ``yardsticks.csv`` and ``normalised.csv`` of a run."""
    for path, table in ((run.yardsticks_table, yardsticks_table), (run.normalised_table, normalised_table)):
        write_derived(path, table(results).to_csv(index=False))


def yardsticks_findings(table: pd.DataFrame) -> list[str]:
    """Return the sentence on where scores lie between floor and ceiling, as a list; empty where there is no table.

    Parameters
    ----------
    table
        From :func:`normalised_table`.
    """
    scores = table[table["quantity"] != "pairs"] if len(table) else table
    if scores.empty:
        return []
    floor, ceiling = scores[["floor_name", "ceiling_name"]].iloc[0]
    defined = scores[scores["normalised"].notna()]
    where = f"between a floor ({floor}) and a ceiling ({ceiling}) at the same number of pairs"
    if defined.empty:
        return [f"Where the scores lie {where} cannot be said: {scores['note'].iloc[0].removeprefix('undefined: ')}."]
    shares = [
        f"{quantity_name(str(quantity))} {span(100 * rows['normalised'], 0)} %"
        for quantity, rows in defined.groupby("quantity", sort=False)
    ]
    missing = len(scores) - len(defined)
    rest = f" {missing} of {len(scores)} are undefined." if missing else ""
    return [f"Of the way {where}, the scores go: {listed(shares)}.{rest}"]
