"""Raw units against the features of dictionaries, at the same sites, on the same text, by the same stages.

A second run is made from the first: ``dictionary: identity`` in place of the dictionaries, and nothing else, but that
concepts look at more top contexts. There are fewer units than features, and each fires on more; so each gets as many
times the contexts as a dictionary has more features than its site has units, as in the notes behind Lan et al. (arXiv
2410.06981).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from pipeline.experiment.diff import diff, diff_table
from pipeline.harvest.dictionary import IDENTITY
from pipeline.settings.experiment import Experiment, stored_experiment
from storage import open_activations, open_result
from storage.errors import InputError, MissingInputError
from storage.provenance import RunInputs
from storage.rundir import SIDES, RunDirectory

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: What the two runs are called, in tables.
KINDS = ("features", "units")
MATCHING = ("n_pairs", "share_paired", "mean_r", "mean_r_heldout")


def neurons_experiment(run: RunDirectory) -> Experiment:
    """Return the experiment of a run with raw units in place of dictionaries, and without clusters of pairs.

    Raises
    ------
    MissingInputError
        If it is no run directory, or its activations are not there.
    InputError
        If there are only activations, and no models.
    """
    experiment = stored_experiment(run)
    if experiment.is_stored:
        raise InputError(
            f"{run.root} was made from activation stores, and raw units are read from models: make an experiment of "
            "stores of the raw units, and give both runs to `subspace diff`"
        )
    more = expansion(run, experiment)
    sides: dict[str, Any] = {
        side: model.model_copy(update={"dictionary": IDENTITY, "kind": "post"})
        for side, model in experiment.models.items()
    }
    changes: dict[str, Any] = {"report": {"contexts": math.ceil(experiment.report.contexts * more)}}
    if (semantics := experiment.semantics) is not None and semantics.approaches:
        # clusters are not compared, and units have too few pairs for as many of them
        changes["semantics"] = {"clusters": 0}
        if hasattr(semantics.rule, "of"):
            scaled = semantics.rule.model_copy(update={"of": math.ceil(semantics.rule.of * more)})
            changes["semantics"]["rule"] = scaled
    else:
        sides["semantics"] = None
    sections = {name: getattr(experiment, name).model_copy(update=update) for name, update in changes.items()}
    return experiment.model_copy(update={**sides, **sections, "name": f"{experiment.name}-neurons"})


def expansion(run: RunDirectory, experiment: Experiment) -> float:
    """Return how many features a dictionary of a run has for each unit of its site, the most that any has; 1 at least.

    Raises
    ------
    MissingInputError
        If the activations of a site are not there.
    """
    factors = [1.0]
    for side, model in experiment.sides:
        for site in model.sites:
            with open_activations(run.activations(side, site)) as store:
                if "d_model" in store.sizes:
                    factors.append(store.sizes["feature"] / store.sizes["d_model"])
    return max(factors)


def neurons_table(features: RunDirectory, units: RunDirectory) -> pd.DataFrame:
    """Return a row for each pair of sites and of :data:`KINDS`: how well they match, and the geometry of the matched.

    ``n_pairs``; ``share_paired``, of the smaller number of features that ever vary; ``mean_r`` and ``mean_r_heldout``
    of the pairs; and for each metric its score above the first null, ``above_METRIC``, NaN where it is undefined: raw
    units of a residual stream are the axes of their space, and no two are nearer to each other than others.
    """
    runs = dict(zip(KINDS, (features, units), strict=True))
    beside = diff([run.root for run in runs.values()])
    kinds = dict(zip(beside["run"].values.tolist(), KINDS, strict=True))
    lines = diff_table(beside)
    keys = ["site_a", "site_b", "kind"]
    lines = lines.assign(kind=lines["run"].map(kinds))
    table = lines.drop_duplicates(keys)[[*keys, "n_pairs", "mean_r", "mean_r_heldout"]]
    smaller = [_smaller_side(runs[kind], a, b) for a, b, kind in table[keys].itertuples(index=False)]
    table = table.assign(share_paired=table["n_pairs"] / smaller)[[*keys, *MATCHING]]
    first = lines[lines["null"] == beside["null"].values[0]] if beside.sizes["null"] else lines.iloc[:0]
    above = first.pivot_table(index=keys, columns="metric", values="difference", sort=False, dropna=False)
    above = above.reindex(columns=beside["metric"].values).add_prefix("above_").reset_index()
    table = table.merge(above, on=keys, how="left")
    order = list(dict.fromkeys(zip(table["site_a"], table["site_b"], strict=True)))
    rank = [(order.index((a, b)), KINDS.index(kind)) for a, b, kind in table[keys].itertuples(index=False)]
    return table.iloc[sorted(range(len(rank)), key=rank.__getitem__)].reset_index(drop=True)


def _smaller_side(run: RunDirectory, site_a: str, site_b: str) -> int:
    correlation = open_result(run.correlation(site_a, site_b), "correlate")
    return min(int(correlation[f"defined_{side}"].sum()) for side in SIDES)


def concepts_beside(features: RunDirectory, units: RunDirectory) -> pd.DataFrame:
    """Return a row for each concept: what both runs have of it over all pairs of sites, pairs of the whole space.

    For each of :data:`KINDS`, ``pairs_KIND``, the pairs whose features both belong to it; ``tested_KIND``, the pairs of
    sites at which they are enough for a test; and ``coherence_KIND``, how alike the words are that their features fire
    on, the mean over sites by pairs, NaN without any. No rows where a run has looked for no concepts.
    """
    parts = {kind: _concepts(run) for kind, run in zip(KINDS, (features, units), strict=True)}
    if any(part is None for part in parts.values()):
        return pd.DataFrame(columns=["name"])
    columns = {f"{name}_{kind}": part[name] for kind, part in parts.items() if part is not None for name in part}
    return pd.DataFrame(columns).rename_axis("name").reset_index()


def _concepts(run: RunDirectory) -> pd.DataFrame | None:
    path = run.semantics_table
    inputs = RunInputs(run, stored_experiment(run).site_pairs)
    if not inputs.belongs(path):
        return None
    table = open_result(path, "semantics-table")
    names = ["name", "approach", "kind", "n_pairs", "coherence"]
    scored = table["score"].notnull().any("metric").values
    rows = pd.DataFrame({name: table[name].values for name in names}).assign(tested=scored)
    approach = rows["approach"].iloc[0]
    rows = rows[(rows["kind"] == "concept") & (rows["approach"] == approach)]
    weight = rows["n_pairs"].where(rows["coherence"].notna(), 0)
    sums = pd.DataFrame({
        "name": rows["name"], "pairs": rows["n_pairs"], "tested": rows["tested"].astype(np.int64),
        "sum": rows["coherence"].fillna(0) * weight, "weight": weight,
    }).groupby("name", sort=False).sum()  # fmt: skip
    coherence = sums["sum"] / sums["weight"].where(sums["weight"] > 0)
    return sums[["pairs", "tested"]].assign(coherence=coherence)


def statement(table: pd.DataFrame, concepts: pd.DataFrame, more: float) -> str:
    """Return what the tables say, in a sentence for each.

    Examples
    --------
    >>> lines = pd.DataFrame({"site_a": "x", "site_b": "y", "kind": KINDS, "n_pairs": [90, 20]})
    >>> lines = lines.assign(share_paired=[0.9, 0.5], mean_r=[0.6, 0.2], mean_r_heldout=[0.5, 0.1])
    >>> statement(lines, pd.DataFrame(columns=["name"]), 4.0).partition(",")[0]
    'Pairs of features have a higher mean held-out r than pairs of units at 1 of 1 pairs of sites (0.50 against 0.10)'
    """
    return " ".join(_sentences(table, concepts, more))


def _sentences(table: pd.DataFrame, concepts: pd.DataFrame, more: float) -> Iterator[str]:
    heldout = "mean_r_heldout" if table["mean_r_heldout"].notna().all() else "mean_r"
    r, shares = _by_kind(table, heldout), _by_kind(table, "share_paired")
    which, n = ("r", "held-out r")[heldout == "mean_r_heldout"], len(r)
    yield (
        f"Pairs of features have a higher mean {which} than pairs of units at {_wins(r)} of {n} pairs of sites "
        f"({_against(r, 2)}), and a larger share is paired at {_wins(shares)} of {n} "
        f"({_against(100 * shares, 0, ' %')})."
    )
    for metric in metrics_of(table):
        above = _by_kind(table, f"above_{metric}")
        if above["units"].isna().all():
            yield f"{metric} of raw units is undefined."
        else:
            yield f"{metric} is above chance by {_against(above, 3)}."
    if len(concepts):
        pairs = [int(concepts[f"pairs_{kind}"].sum()) for kind in KINDS]
        share = [p / table.loc[table["kind"] == kind, "n_pairs"].sum() for p, kind in zip(pairs, KINDS, strict=True)]
        tested = [int((concepts[f"tested_{kind}"] > 0).sum()) for kind in KINDS]
        yield (
            f"With {more:.1f} times as many top contexts for a unit, {pairs[0]:,} pairs of features belong to the "
            f"{len(concepts)} concepts ({share[0]:.2f} of all) and {pairs[1]:,} pairs of units ({share[1]:.2f}); "
            f"{tested[0]} and {tested[1]} of the concepts have pairs enough for a test somewhere."
        )


def metrics_of(table: pd.DataFrame) -> list[str]:
    """Return the metrics of :func:`neurons_table`."""
    return [str(name).removeprefix("above_") for name in table.columns if str(name).startswith("above_")]


def _by_kind(table: pd.DataFrame, column: str) -> pd.DataFrame:
    """Return a column of the table with a row for each pair of sites and a column for each kind."""
    lines = table.set_index(["site_a", "site_b"])
    return pd.concat([lines.loc[lines["kind"] == kind, column].rename(kind) for kind in KINDS], axis=1, join="inner")


def _wins(values: pd.DataFrame) -> int:
    return int((values["features"] > values["units"]).sum())


def _against(values: pd.DataFrame, digits: int, unit: str = "") -> str:
    """Return the ranges of both kinds."""
    ranges = []
    for kind in KINDS:
        low, high = (f"{round(end, digits) + 0.0:.{digits}f}" for end in (values[kind].min(), values[kind].max()))
        ranges.append((low if low == high else f"{low} to {high}") + unit)
    return " against ".join(ranges)


def plot_neurons(table: pd.DataFrame, concepts: pd.DataFrame) -> Figure:
    """Draw the share that is paired and r of the pairs at each pair of sites, and the pairs of each concept.

    Returns
    -------
    matplotlib.figure.Figure
        No global state of matplotlib is touched.
    """
    import matplotlib as mpl  # noqa: PLC0415 - slow to import, and only figures need it
    from matplotlib.figure import Figure  # noqa: PLC0415 - as above

    shown = concepts[(concepts.filter(like="pairs_") > 0).any(axis=1)] if len(concepts) else concepts
    shown = shown.sort_values("pairs_features") if len(shown) else shown
    widths = [1, 1, 1.5] if len(shown) else [1, 1]
    figure = Figure(figsize=(9.5, max(3.4, 0.13 * len(shown) + 1)), layout="constrained")
    panels = figure.subplots(1, len(widths), width_ratios=widths)
    places = {sites: n for n, sites in enumerate(dict.fromkeys(zip(table["site_a"], table["site_b"], strict=True)))}
    colours = dict(zip(KINDS, mpl.colormaps["viridis"]([0.25, 0.75]), strict=True))
    for kind in KINDS:
        part = table[table["kind"] == kind]
        at = [
            places[sites] + 0.16 * (2 * KINDS.index(kind) - 1) for sites in zip(part.site_a, part.site_b, strict=True)
        ]
        for axes, column in zip(panels, ("share_paired", "mean_r_heldout"), strict=False):
            axes.barh(at, part[column], 0.3, color=colours[kind], label=kind)
        if len(shown):
            panels[2].plot(shown[f"pairs_{kind}"], range(len(shown)), "o", ms=3.5, color=colours[kind], label=kind)
    panels[0].set(xlabel="share paired", yticks=range(len(places)))
    panels[0].set_yticklabels([f"{a}\n{b}" for a, b in places], fontsize=8)
    panels[1].set(xlabel="mean r, held out", yticks=[])
    for axes in panels[:2]:
        axes.invert_yaxis()
    if len(shown):
        panels[2].set(xlabel="pairs of a concept", xscale="symlog", xlim=(-0.2, None))
        panels[2].set_yticks(range(len(shown)), shown["name"], fontsize=6)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=2, fontsize=8)
    return figure


def check_finished(run: RunDirectory) -> None:
    """Raise a MissingInputError unless a run has matched pairs at every pair of sites."""
    for sites in stored_experiment(run).site_pairs:
        if not run.pairs(*sites).exists():
            raise MissingInputError(
                f"{run.pairs(*sites)} is not there yet; finish it with: subspace run EXPERIMENT.yaml"
            )
