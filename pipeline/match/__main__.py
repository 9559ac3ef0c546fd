"""``python -m pipeline.match C.zarr --out PAIRS.zarr``: from correlations to pairs of features."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

import pipeline
from pipeline.settings.match import HELDOUT_NOTE, MatchSettings, heldout_note_of
from pipeline.work.options import options
from pipeline.work.outputs import claim_outputs
from pipeline.work.script import AsJson, Overwrite, run_script, show, wide_console
from storage.errors import InputError

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

    from pipeline.text.top_tokens import TopTokens

#: Hubs in the JSON, where --hubs does not say how many.
DEFAULT_HUBS = 10
#: Columns of the table of all methods, and how they are headed.
COLUMNS = {
    "pairs": "pairs",
    "mean_r": "mean r",
    "median_r": "median r",
    "total_r": "total r",
    "mean_r_heldout": "held out",
    "matched_a": "A matched",
    "matched_b": "B matched",
    "share_unique": "used once",
    "share_mutual": "mutual",
    "most_uses_a": "most uses A",
    "most_uses_b": "most uses B",
}


Contexts = Annotated[
    tuple[Path, Path] | None, typer.Option(metavar="A B", help="Contexts of both sides, to inspect tokens.")
]
Stores = Annotated[tuple[Path, Path] | None, typer.Option(metavar="A B", help="Activation stores of both sides.")]
Corpus = Annotated[Path | None, typer.Option(help="The text.")]
NonConcept = Annotated[
    tuple[Path, Path] | None,
    typer.Option(
        metavar="A B", help="Results of `non-concept` for both sides; needed by the filter non_concept:by=data."
    ),
]


@options(MatchSettings)
def command(
    correlation: Annotated[Path, typer.Argument(help="Result of `correlate`.", show_default=False)],
    settings: MatchSettings,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="PATH", help="Path of the result; not needed with --all.")
    ] = None,
    contexts: Contexts = None,
    stores: Stores = None,
    corpus: Corpus = None,
    non_concept: NonConcept = None,
    hubs: Annotated[int, typer.Option(min=0, help="Show the N most-used features of each side.")] = 0,
    check_on: Annotated[
        tuple[Path, Path] | None,
        typer.Option(
            metavar="A B", help="Stores of the same features on other text, on which r of the pairs is computed too."
        ),
    ] = None,
    csv: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write the pairs to this CSV file.")] = None,
    all_: Annotated[bool, typer.Option("--all", help="Print all methods side by side; write nothing.")] = False,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Match features one to one (or many to one) by their stored correlations."""
    text: dict[str, Any] = {"contexts": contexts, "stores": stores, "corpus": corpus, "non_concept": non_concept}
    if all_:
        from pipeline.match.diagnostics import compare_methods

        show_all(compare_methods(correlation, settings, **text), as_json=as_json)
        return
    if out is None:
        raise InputError("Give a path for the pairs with --out PAIRS.zarr, or compare all methods with --all")
    with claim_outputs(table=csv, columns="feature_a,feature_b,r,r_heldout,", overwrite=overwrite) as outputs:
        text |= {"check_on": check_on, "overwrite": overwrite}
        pairs = pipeline.match(correlation, settings, out=out, beside=outputs, **text)
        if csv is not None:
            outputs.write_table(pair_table(pairs))
    _show_pairs(pairs, out, _tops(contexts, stores, corpus) if hubs else None, hubs, as_json=as_json)


def pair_table(pairs: xr.Dataset) -> pd.DataFrame:
    """Return the pairs as a table, one row a pair, best first: features, r, held-out r, ranks and uses.

    Where held-out r took part in the choice of the pairs, a column ``heldout_in_choice`` says so.
    """
    table = pairs.drop_dims(["id_a", "id_b"]).reset_coords(drop=True).to_dataframe()
    return table.assign(heldout_in_choice=True) if HELDOUT_NOTE in pairs.attrs else table


def _tops(
    contexts: tuple[Path, Path] | None, stores: tuple[Path, Path] | None, corpus: Path | None
) -> dict[str, TopTokens] | None:
    if contexts is None or stores is None or corpus is None:
        return None
    from pipeline.text.top_tokens import top_tokens

    return dict(zip("ab", top_tokens(contexts, stores[0], corpus), strict=True))


def _show_pairs(pairs: xr.Dataset, out: Path, tops: dict[str, TopTokens] | None, n_hubs: int, *, as_json: bool) -> None:
    from pipeline.match.diagnostics import diagnose

    found = diagnose(pairs, tops, n_hubs or DEFAULT_HUBS)
    summary = {"result": str(out), "pairs": found["pairs"], "mean_r": found["mean_r"]}
    summary |= {name: found[name] for name in ("mean_r_heldout", "share_unique", "share_mutual")}
    summary |= {name: pairs.attrs[name] for name in ("mean_r_check", "n_rows_check") if name in pairs.attrs}
    summary |= heldout_note_of(found)
    if as_json:
        fates = {f"fates_{side}": pairs.attrs[f"fates_{side}"] for side in "ab"}
        show({**summary, **found, **fates, "filters": pairs.attrs["filters"]}, as_json=True)
        return
    for report in pairs.attrs["filters"]:
        summary[f"{report['name']}, {report['when']}"] = (
            f"{report['pairs_dropped']} of {report['pairs_before']} dropped"
        )
    show(summary, as_json=False)
    for side in "ab" if n_hubs else "":
        Console().print(_hub_table(side, found[f"hubs_{side}"]))


def _hub_table(side: str, hubs: list[dict[str, Any]]) -> Table:
    table = Table("feature", "pairs", "mean r", "fires on", title=f"most used features of {side.upper()}")
    for hub in hubs:
        tokens = ", ".join(dict.fromkeys(repr(token) for token in hub.get("tokens", [])))
        table.add_row(str(hub["feature"]), f"{hub['uses']:,}", f"{hub['mean_r']:.3f}", tokens)
    return table


def show_all(methods: xr.Dataset, *, as_json: bool) -> None:
    """Print one line for each method."""
    lines = [
        {"method": str(method), **{name: methods[name].values[i].item() for name in COLUMNS}}
        for i, method in enumerate(methods["matching"].values)
    ]
    if as_json:
        show({"min_correlation": methods.attrs["min_correlation"], "methods": lines, **methods.attrs}, as_json=True)
        return
    table = Table(title=f"r ≥ {methods.attrs['min_correlation']}")
    for name in ("method", *COLUMNS.values()):
        table.add_column(name, justify="left" if name == "method" else "right")
    for line in lines:
        cells = (_cell(value) for value in list(line.values())[1:])
        table.add_row(line["method"], *cells)
    table.caption = methods.attrs.get(HELDOUT_NOTE)
    wide_console().print(table)


def _cell(value: float) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return "–" if np.isnan(value) else f"{value:,.3f}"


if __name__ == "__main__":
    run_script(command)
