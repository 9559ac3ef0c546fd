"""All scores of an experiment as one labelled dataset, corrected for their number: as data, CSV and LaTeX.

Every pair of sites has a result of its own (:func:`pipeline.compare`). Here they are stacked over (site_a, site_b,
metric, null). A grid is many tests: with 55 pairs of layers and three metrics, eight of 165 p-values lie below 0.05 by
chance alone. So p is corrected over the whole grid, apart for each null, since each null asks a question of its own.

>>> values = {"score": ("metric", [0.7]), "p": (("null", "metric"), [[0.01]]), "n_pairs": 50}
>>> one = xr.Dataset(values, {"metric": ["rsa"], "null": ["shuffled"]})
>>> grid = score_grid({("layers.1", "layers.1"): one, ("layers.1", "layers.2"): one.assign(p=one.p * 4)})
>>> grid.p_holm.sel(metric="rsa", null="shuffled").values.tolist()
[[0.02, 0.04]]
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from pipeline.compare.statistics import EFFECT_RUNS, LEVEL, benjamini_hochberg, calibrated, holm, max_p, power_note
from storage import Manifest, fingerprint, make_result, new_manifest, open_result
from storage.derived import write_derived
from storage.errors import FormatError, MissingInputError
from storage.provenance import RunInputs
from storage.rundir import RunDirectory

STAGE = "scores"
Sites = tuple[str, str]

#: Variables of a comparison over metric, and over null and metric.
OF_METRIC = ("score", "low", "high")
OF_NULL = ("null_mean", "null_std", "null_q05", "null_q95", "difference", "z", "p")
#: What is computed of all runs of all pairs of sites together.
OF_GRID = ("calibrated", "p_max")
#: How many runs of a null were asked for, and how many p rests on.
RUNS = ("null_runs", "p_runs")
#: Columns of :func:`scores_table`, the content of ``scores.csv``.
SCORE_COLUMNS = (
    "site_a", "site_b", "metric", "null", *OF_METRIC, *OF_NULL, "p_holm", "p_bh", *OF_GRID, "max_runs", "tests",
    "n_pairs", "null_runs", "p_runs", "note",
)  # fmt: skip
#: Beyond so many rows a LaTeX table is set over several pages.
LONG_TABLE = 40


def score_grid(
    results: Mapping[Sites, str | Path | xr.Dataset], out: str | Path | None = None, *, overwrite: bool = False
) -> xr.Dataset:
    """Stack the scores of many pairs of sites, and correct their p-values.

    Parameters
    ----------
    results
        Results of :func:`pipeline.compare`, or their paths, by the sites of A and B. Pairs of sites that are missing
        from the grid, and metrics or nulls that a result lacks, are NaN.
    out
        Where the grid is written; a current one is left as it is. In memory only if absent; needs paths.
    overwrite
        Whether a result at `out` that came from other inputs may be replaced.

    Returns
    -------
    xarray.Dataset
        Over (site_a, site_b, metric): ``score``, ``low``, ``high`` float64 and ``note``, text. Over (site_a, site_b,
        metric, null): ``null_mean``, ``null_std``, ``null_q05``, ``null_q95``, ``difference``, ``z``, ``p``,
        ``p_holm``, ``p_bh``, ``calibrated`` and ``p_max`` float64 (the last two by
        :func:`~pipeline.compare.statistics.calibrated` and :func:`~pipeline.compare.statistics.max_p` over the pairs
        of sites); ``null_runs`` int64, the runs that were asked for, and ``p_runs`` int64, those that p rests on: fewer
        where a null ended early, 0 where there is no p. Over (metric, null): ``max_runs`` int64, the runs that
        ``p_max`` rests on: the fewest that a pair of sites has, or the first 100 where a null ended early. Over
        (site_a, site_b): ``n_pairs`` int64. Over null: ``tests`` int64, the p-values that were corrected together, and
        ``power``, text: says so where no score could have become significant.

    Raises
    ------
    MissingInputError
        If there is no result, or a path leads nowhere.
    FormatError
        If a result is of an older release.
    """
    if not results:
        raise MissingInputError("There are no scores yet: no pair of sites has been compared")
    manifest = grid_manifest({sites: one for sites, one in results.items() if not isinstance(one, xr.Dataset)})

    def make() -> xr.Dataset:
        opened = {sites: _load(one) for sites, one in results.items()}
        return _with_maximum(_corrected(_stack(opened)), opened).assign_attrs(manifest.to_attrs())

    return make_result(out, manifest, make, overwrite=overwrite)


def grid_manifest(results: Mapping[Sites, str | Path], identify: Callable[[str | Path], str] = fingerprint) -> Manifest:
    """Return what a grid depends on; `identify` returns the fingerprint of what is, or will be, at a path."""
    return new_manifest(
        STAGE,
        {f"{a}--{b}": identify(path) for (a, b), path in results.items()},
        {"level": LEVEL, "columns": list(OF_GRID)},
    )


def _load(one: str | Path | xr.Dataset) -> xr.Dataset:
    ds = one if isinstance(one, xr.Dataset) else open_result(one, "compare")
    if "null" not in ds.dims:
        raise FormatError(
            f"{one} is a comparison of an older release, without named nulls: make it again (`subspace run`)"
        )
    runs = xr.full_like(ds["p"], ds.sizes.get("run", 0), np.int64)
    return _with_p_runs(ds.assign(null_runs=runs)).load()


def _with_p_runs(ds: xr.Dataset) -> xr.Dataset:
    """Add the runs that p rests on where there are none: in earlier releases no null ended early."""
    return ds if "p_runs" in ds else ds.assign(p_runs=ds["null_runs"].where(ds["p"].notnull(), 0))


def _stack(opened: Mapping[Sites, xr.Dataset]) -> xr.Dataset:
    labels: dict[str, list[str]] = {
        "site_a": _union([a] for a, _ in opened),
        "site_b": _union([b] for _, b in opened),
        "metric": _union(ds["metric"].values.tolist() for ds in opened.values()),
        "null": _union(ds["null"].values.tolist() for ds in opened.values()),
    }
    dims = {
        **dict.fromkeys(OF_METRIC, ("site_a", "site_b", "metric")),
        **dict.fromkeys((*OF_NULL, *RUNS), ("site_a", "site_b", "metric", "null")),
        "n_pairs": ("site_a", "site_b"),
    }
    coords = {name: np.array(values, object) for name, values in labels.items()}
    shapes = {name: [len(labels[dim]) for dim in each] for name, each in dims.items()}
    grid = xr.Dataset({name: (dims[name], np.full(shapes[name], np.nan)) for name in dims}, coords)
    grid["note"] = (dims["score"], np.full(shapes["score"], "not compared", object))
    for (a, b), ds in opened.items():
        here: dict[str, Any] = {"site_a": a, "site_b": b, "metric": ds["metric"].values}
        grid["n_pairs"].loc[{"site_a": a, "site_b": b}] = int(ds["n_pairs"])
        grid["note"].loc[here] = ds["note"].values if "note" in ds else ""
        for name in (*OF_METRIC, *OF_NULL, *RUNS):
            if name in ds:
                place = here | ({"null": ds["null"].values} if "null" in dims[name] else {})
                grid[name].loc[place] = ds[name].transpose(*dims[name][2:]).values
    counts = {name: grid[name].fillna(0).astype(np.int64) for name in ("n_pairs", *RUNS)}
    return grid.assign(counts)


def _union(lists: Iterable[Sequence[str]]) -> list[str]:
    """Return all labels once, in the order in which they first occur."""
    return list(dict.fromkeys(itertools.chain.from_iterable(lists)))


def _corrected(grid: xr.Dataset) -> xr.Dataset:
    """Add p corrected over the grid, apart for each null, and whether there were runs enough for that."""
    p = grid["p"].values
    adjusted = {"p_holm": np.empty_like(p), "p_bh": np.empty_like(p)}
    tests, power = [], []
    for i in range(p.shape[-1]):
        adjusted["p_holm"][..., i], adjusted["p_bh"][..., i] = holm(p[..., i]), benjamini_hochberg(p[..., i])
        defined = np.isfinite(p[..., i])
        tests.append(int(defined.sum()))
        runs = grid["null_runs"].values[..., i][defined]
        power.append(power_note(tests[-1], int(runs.min(initial=2**62))))
    columns = {name: (grid["p"].dims, values) for name, values in adjusted.items()}
    return grid.assign(columns).assign(
        tests=("null", np.array(tests, np.int64)), power=("null", np.array(power, object))
    )


def _with_maximum(grid: xr.Dataset, opened: Mapping[Sites, xr.Dataset]) -> xr.Dataset:
    """Add calibrated scores, and p against the maximum over the pairs of sites, for each metric and null."""
    dims = ("site_a", "site_b", "metric", "null")
    columns = {name: np.full([grid.sizes[dim] for dim in dims], np.nan) for name in OF_GRID}
    max_runs = np.zeros([grid.sizes[dim] for dim in dims[2:]], np.int64)
    for at in np.ndindex(*max_runs.shape):
        metric, null = str(grid["metric"].values[at[0]]), str(grid["null"].values[at[1]])
        here = grid.sel(metric=metric, null=null)
        drawn = {sites: _drawn(one, metric, null) for sites, one in opened.items()}
        drawn = {sites: runs for sites, runs in drawn.items() if len(runs)}
        if not drawn:
            continue
        n_runs = min(map(len, drawn.values()))
        scores = np.array([float(here["score"].sel(site_a=a, site_b=b)) for a, b in drawn])
        runs = np.stack([values[:n_runs] for values in drawn.values()])
        p, heights = max_p(scores, runs), calibrated(scores, runs)
        max_runs[at] = n_runs
        for (a, b), *values in zip(drawn, heights, p, strict=True):
            place = grid.get_index("site_a").get_loc(a), grid.get_index("site_b").get_loc(b), *at
            for column, value in zip(columns.values(), values, strict=True):
                column[place] = value
    added = {name: (dims, values) for name, values in columns.items()} | {"max_runs": (dims[2:], max_runs)}
    return grid.assign(added)


def _drawn(one: xr.Dataset, metric: str, null: str) -> np.ndarray:
    """Return the scores of a null's runs, (run,), of a result: the first ones only where it ended early."""
    if "null_score" not in one or metric not in one["metric"] or null not in one["null"]:
        return np.empty(0)
    values = one["null_score"].sel(metric=metric, null=null).values
    n_runs = int(np.count_nonzero(np.isfinite(values)))
    return np.asarray(values[: n_runs if n_runs == len(values) else min(n_runs, EFFECT_RUNS)], np.float64)


def best_sites(table: pd.DataFrame) -> pd.DataFrame:
    """Return of :func:`scores_table` the row of each metric and null with the highest calibrated score."""
    defined = table.dropna(subset="calibrated")
    return defined.loc[defined.groupby(["metric", "null"], sort=False)["calibrated"].idxmax()]


def scores_table(grid: xr.Dataset) -> pd.DataFrame:
    """Return a grid as a tidy table, :data:`SCORE_COLUMNS`: a row for each compared pair of sites, metric and null."""
    flat = _with_p_runs(grid.drop_vars("power")).load()
    wide = xr.broadcast(flat)[0].to_dataframe(dim_order=["site_a", "site_b", "metric", "null"]).reset_index()
    compared = wide["note"] != "not compared"
    return wide.loc[compared, list(SCORE_COLUMNS)].reset_index(drop=True)


def power_notes(grid: xr.Dataset) -> dict[str, str]:
    """Return, for each null with too few runs, what to do."""
    notes = zip(grid["null"].values.tolist(), grid["power"].values.tolist(), strict=True)
    return {null: note for null, note in notes if note}


def to_latex(table: pd.DataFrame) -> str:
    r"""Return the table of scores as LaTeX, for ``\usepackage{booktabs,longtable}``; bold where Holm's p is below 0.05.

    Parameters
    ----------
    table
        From :func:`scores_table`.
    """
    shown = written_table(table).drop(columns="above it")
    if (shown["interval"] == "").all():
        shown = shown.drop(columns="interval")
    significant = (table["p_holm"] < LEVEL).to_numpy()
    style = shown.style.hide(axis="index").format(escape="latex").format_index(escape="latex", axis="columns")
    bold = np.where(significant, "font-weight: bold", "").tolist()
    style = style.apply(lambda _: pd.Series(bold), subset=["score"], axis=0)
    text: str = style.to_latex(
        hrules=True,
        convert_css=True,
        column_format="llll" + "r" * (len(shown.columns) - 4),
        environment="longtable" if len(shown) > LONG_TABLE else None,
    )
    return text.replace("±", r"$\pm$").replace("–", "--")


def written_table(table: pd.DataFrame) -> pd.DataFrame:
    """Return the numbers of :func:`scores_table` as people read them; undefined ones are empty."""
    names = {"A": "site_a", "B": "site_b", "metric": "metric", "null": "null"}
    written: dict[str, list[str]] = {name: table[column].tolist() for name, column in names.items()}
    written["pairs"] = [f"{n:,}" for n in table["n_pairs"]]
    number = "{:z.3f}".format
    written["score"] = _each(table, number, "score")
    written["interval"] = _each(table, "{:z.3f} – {:z.3f}".format, "low", "high")
    written["chance"] = _each(table, "{:z.3f} ± {:.3f}".format, "null_mean", "null_std")
    for name, column in {
        "above it": "difference",
        "calibrated": "calibrated",
        "p": "p",
        "p (Holm)": "p_holm",
        "p (max)": "p_max",
    }.items():
        written[name] = _each(table, number, column)
    if (table["p_runs"] < table["null_runs"]).any():
        written["runs"] = _each(table, "{:,.0f}".format, "p_runs")
    return pd.DataFrame(written)


def _each(table: pd.DataFrame, write: Callable[..., str], *columns: str) -> list[str]:
    return ["" if np.isnan(row[0]) else write(*row) for row in table[list(columns)].to_numpy(np.float64)]


def table_paths(directory: RunDirectory) -> tuple[Path, Path]:
    """Return where the tables of a run's scores are, as CSV and as LaTeX."""
    return directory.score_grid.with_suffix(".csv"), directory.score_grid.with_suffix(".tex")


def save_scores(directory: RunDirectory, site_pairs: Sequence[Sites], inputs: RunInputs | None = None) -> xr.Dataset:
    """Write ``scores.zarr``, ``scores.csv`` and ``scores.tex`` of a run, and return its grid; see :func:`score_grid`.

    Pairs of sites without a result are left out, and those whose result was made from others than are there now:
    `inputs` knows them.

    Raises
    ------
    MissingInputError
        If none has a result that belongs.
    """
    inputs = inputs or RunInputs(directory, site_pairs)
    paths = {sites: directory.scores(*sites) for sites in site_pairs}
    results = {sites: path for sites, path in paths.items() if inputs.belongs(path)}
    if not results and (reasons := list(filter(None, map(inputs.why_not, paths.values())))):
        raise MissingInputError(f"There are no scores of the present results: {reasons[0]}; run `subspace run` again")
    # The tables come before the result, since that says that all of it is there
    table = scores_table(score_grid(results))
    for path, text in zip(table_paths(directory), (table.to_csv(index=False), to_latex(table)), strict=True):
        write_derived(path, text)
    return score_grid(results, directory.score_grid, overwrite=True)
