"""Tidy tables of a run: one row an observation, ready for pandas, R or a spreadsheet.

Every table is made from stored results; nothing is computed again but sums, means and the correction of p-values for
the number of tests.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from pipeline.compare.score_grid import SCORE_COLUMNS, score_grid
from pipeline.compare.score_grid import scores_table as table_of_grid
from pipeline.report.explorer import Explorer, reading_order
from pipeline.report.results import Run, Site, SitePair
from pipeline.work.usage import StageUsage, read_usage, worth_showing
from storage.rundir import SIDES, Side


def observations(table: pd.DataFrame) -> Iterator[Any]:
    """Yield the rows of a table as named tuples; what their fields hold, pandas does not tell a type checker."""
    return iter(table.itertuples())


def scores_table(run: Run) -> pd.DataFrame:
    """Return every metric at every pair of sites beside each of its nulls, with p corrected over all of them.

    Columns: :data:`pipeline.compare.score_grid.SCORE_COLUMNS`; no rows where the experiment leaves scores out.
    """
    if run.experiment.compare is None:
        return pd.DataFrame(columns=list(SCORE_COLUMNS))
    return table_of_grid(score_grid({(pair.a.name, pair.b.name): pair.paths["scores"] for pair in run.site_pairs}))


def n_matched(pair: SitePair) -> int:
    """Return how many pairs of features were matched."""
    return int(pair.pairs.sizes["pair"])


def matching_table(run: Run) -> pd.DataFrame:
    """Return what correlation and matching found, one row for each pair of sites.

    ``n_pairs`` of ``possible`` (the smaller number of features that ever vary), the mean r of the pairs on the rows
    that chose them and on the held-out documents, the share ``replicated`` of pairs that reach the minimum r there too
    (undefined counts as no), the mean r of all pairs of features (what a pair drawn at random would have), and the
    median best r of an A feature on both halves. Held-out figures are NaN where all rows chose; ``heldout_in_choice``
    says whether held-out r took part in the choice of the pairs, and is biased for them. Where the pairs were checked
    on other text, ``r_check_mean`` and ``rows_check`` are of that.
    """
    return pd.DataFrame.from_records([_matching_record(pair) for pair in run.site_pairs])


def _matching_record(pair: SitePair) -> dict[str, Any]:
    correlation = pair.correlation
    varying = [int(correlation[f"defined_{side}"].sum()) for side in SIDES]
    best, best_heldout = best_r(pair)
    return {
        "site_a": pair.a.name,
        "site_b": pair.b.name,
        "n_pairs": n_matched(pair),
        "possible": min(varying),
        "r_mean": float(pair.pairs["r"].to_series().mean()),
        "r_heldout_mean": float(pair.pairs["r_heldout"].to_series().mean()),
        "replicated": _share_replicated(pair),
        "r_random": mean_of_all(correlation),
        "best_r_median": median(best),
        "best_r_heldout_median": median(best_heldout),
        "rows_select": int(correlation.attrs["n_rows_select"]),
        "rows_heldout": int(correlation.attrs.get("n_rows_heldout", 0)),
        "heldout_in_choice": pair.heldout_in_choice,
        **_of_other_text(pair),
    }


def _of_other_text(pair: SitePair) -> dict[str, Any]:
    if "r_check" not in pair.pairs:
        return {}
    mean = float(pair.pairs["r_check"].to_series().mean())
    return {"r_check_mean": mean, "rows_check": int(pair.pairs.attrs["n_rows_check"])}


def _share_replicated(pair: SitePair) -> float:
    heldout = pair.pairs["r_heldout"].values
    if np.isnan(heldout).all():
        return float("nan")
    return float(np.mean(heldout >= pair.pairs.attrs["min_correlation"]))


def best_r(pair: SitePair) -> tuple[np.ndarray, np.ndarray]:
    """Return each A feature's best r, and the r of the same two features on held-out documents (NaN if none)."""
    best = pair.correlation["r_b"].isel(rank=0).values
    if "r_heldout_b" not in pair.correlation:
        return best, np.full_like(best, np.nan)
    return best, pair.correlation["r_heldout_b"].isel(rank=0).values


def uses(pair: SitePair) -> np.ndarray:
    """Return of how many A features each B feature that varies is the best match, int64."""
    best, r = (pair.correlation[name].isel(rank=0).values for name in ("best_b", "r_b"))
    counts = np.bincount(best[np.isfinite(r)], minlength=pair.correlation.sizes["feature_b"])
    uses_of_b: np.ndarray = counts[pair.correlation["defined_b"].values]
    return uses_of_b


def mean_of_all(correlation: xr.Dataset) -> float:
    """Return the mean r over all pairs of features, from the middles of the histogram's bins."""
    counts = correlation["histogram"].values
    middles = (correlation["bin_left"].values + correlation["bin_right"].values) / 2
    return float(np.dot(counts, middles) / counts.sum()) if counts.sum() else float("nan")


def median(values: np.ndarray) -> float:
    """Return the median of the values that are defined; NaN if none is."""
    defined = values[np.isfinite(values)]
    return float(np.median(defined)) if len(defined) else float("nan")


def short_name(source: str) -> str:
    """Return a hub id as it is, and of a path on this machine its last two parts.

    >>> short_name("openai-community/gpt2"), short_name("/home/me/models/smol/")
    ('openai-community/gpt2', 'models/smol')
    """
    return "/".join(Path(source).parts[-2:]) if Path(source).is_absolute() else source


def fate_table(run: Run) -> pd.DataFrame:
    """Return what became of every feature: one row for each pair of sites, side and fate, with its count."""
    records = []
    for pair in run.site_pairs:
        for side in SIDES:
            fates = pair.pairs[f"fate_{side}"]
            for value, meaning in zip(*_flags(fates), strict=True):
                count = int((fates == value).sum())
                key = {"site_a": pair.a.name, "site_b": pair.b.name, "side": side}
                records.append({**key, "fate": meaning, "features": count})
    return pd.DataFrame.from_records(records, columns=["site_a", "site_b", "side", "fate", "features"])


def _flags(fates: xr.DataArray) -> tuple[list[int], list[str]]:
    """Return the values and meanings of a flag variable (CF conventions: meanings separated by blanks)."""
    meanings = fates.attrs["flag_meanings"]
    names = meanings.split() if isinstance(meanings, str) else list(meanings)
    return [int(value) for value in fates.attrs["flag_values"]], names


def sites_table(run: Run) -> pd.DataFrame:
    """Return what is known of every site: model, dictionary, rows, sinks, dead features, faithfulness.

    ``active`` is the mean number of active features in a row; ``fvu`` the fraction of variance that the dictionary
    leaves unexplained, NaN where the store does not record it.
    """
    return pd.DataFrame.from_records([_site_record(run, site) for side in SIDES for site in run.sites[side]])


def _site_record(run: Run, site: Site) -> dict[str, Any]:
    store, attrs = site.store, site.store.attrs
    calibration = attrs.get("calibration", {})
    n_active = store["n_active"].values
    sinks = int(store["sink"].sum())
    rows = int(store.sizes["token"])
    return {
        "side": site.side.upper(),
        "site": site.name,
        "model": short_name(run.model(site.side)),
        "dictionary": short_name(str(attrs.get("dictionary", ""))),
        "kind": str(attrs.get("kind", "")),
        "features": int(store.sizes["feature"]),
        "dead": int((n_active == 0).sum()),
        "rows": rows,
        "sink_rows": sinks,
        "active": float(n_active.sum() / max(1, rows - sinks)),
        "fvu": float(calibration.get("fvu", np.nan)),
        "fvu_with_sinks": float(calibration.get("fvu_with_sinks", np.nan)),
        "content_hash": str(attrs.get("content_hash", "")),
    }


#: The columns of :func:`usage_table`.
USAGE_COLUMNS = tuple(field.name for field in dataclasses.fields(StageUsage))


def usage_table(run: Run) -> pd.DataFrame:
    """Return what every stage took in each session that worked on it: cluster, time, memory as planned and measured.

    The columns are the fields of :class:`pipeline.work.usage.StageUsage`; NaN where there was no plan or measurement.
    Empty where the run directory keeps no record.
    """
    shown = worth_showing(read_usage(run.directory.usage))
    table = pd.DataFrame.from_records([dataclasses.asdict(usage) for usage in shown], columns=USAGE_COLUMNS)
    return table.astype(dict.fromkeys(("planned", "peak", "peak_sum", "peak_driver"), "float64"))


def text_facts(run: Run) -> dict[str, str]:
    """Return what is recorded of the text and its rows, in words, by name; what was not recorded is left out."""
    attrs, n_rows = run.rows.attrs, run.rows.sizes["token"]
    facts = {"Text": short_name(str(run.corpus.attrs.get("source", run.experiment.corpus.path)))}
    facts["Documents"] = f"{len(run.corpus):,}"
    facts["Rows"] = f"{n_rows:,}"
    if "window" in run.rows.sizes:
        facts["Rows"] += f", in {run.rows.sizes['window']:,} windows"
    for side in SIDES:
        if tokens := attrs.get(f"n_tokens_{side}"):
            facts[f"Tokens of {side.upper()}"] = f"{tokens:,}; {n_rows / tokens:.1%} of them end a row"
    left_out = {"special tokens in the text": "n_special", "ends outside of every window": "n_outside"}
    counts = [f"{attrs[key]:,} {what}" for what, key in left_out.items() if key in attrs]
    return {**facts, "Left out": ", ".join(counts)} if counts else facts


def pairs_table(run: Run, explorer: Explorer) -> pd.DataFrame:
    """Return every matched pair of features with what both fire on, those worth quoting first.

    Sorted by the lower of the two r, one-word pairs last. ``n_active_a`` and ``n_active_b`` are the rows on which each
    feature is active.
    """
    texts = explorer.texts()
    table = pd.concat(
        [_pairs_frame(pair, texts, explorer.one_word(pair)) for pair in run.site_pairs], ignore_index=True
    )
    order = reading_order(table["r"].to_numpy(), table["r_heldout"].to_numpy(), table["one_word"].to_numpy())
    return table.iloc[order]


def _pairs_frame(pair: SitePair, texts: dict[tuple[Side, str], pd.DataFrame], one_word: np.ndarray) -> pd.DataFrame:
    names = [name for name in ("feature_a", "feature_b", "r", "r_heldout", "r_check") if name in pair.pairs]
    frame = pd.DataFrame({name: pair.pairs[name].values for name in names})
    frame.insert(0, "site_a", pair.a.name)
    frame.insert(1, "site_b", pair.b.name)
    for side in SIDES:
        frame[f"n_active_{side}"] = pair.site(side).store["n_active"].values[frame[f"feature_{side}"]]
    frame["one_word"] = one_word
    for column in ("tokens", "context"):
        for side in SIDES:
            text = texts[side, pair.site(side).name][column]
            frame[f"{column}_{side}"] = text.reindex(frame[f"feature_{side}"]).to_numpy()
    return frame.assign(heldout_in_choice=True) if pair.heldout_in_choice else frame
