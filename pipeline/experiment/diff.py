"""Two or more runs side by side: which pairs of features agree, and how scores move, at each pair of sites.

Runs differ by a seed, a layer, a width or a checkpoint, and share the rest. What cannot be compared is named, and no
figure is made of it: pairs of features where the feature spaces are others, changes of scores where the text is
another, results that were not made from those beside them.
"""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xarray as xr

from pipeline.compare.score_grid import SCORE_COLUMNS, Sites, score_grid, scores_table
from pipeline.match.layers import best_partners
from pipeline.settings.experiment import Experiment, stored_experiment
from storage import fingerprint, make_result, new_manifest, open_result
from storage.errors import InputError, MissingInputError
from storage.manifest import CONTENT_HASH, read_attrs, read_manifest
from storage.provenance import RunInputs
from storage.rundir import SIDES, RunDirectory, Side

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)

STAGE = "diff"
#: What of an experiment says nothing about its figures.
UNTOLD = ("name", "a.label", "b.label", "report.pairs")
#: Settings that differ which a note names.
MOST_NAMED = 6
#: Characters of all runs' names that stand beside each other below a panel.
MOST_CHARACTERS = 45
MATCHING = ("n_pairs", "mean_r", "mean_r_heldout")
AGREEMENT = ("n_both", "n_same", "mean_r_same", "mean_r_changed")
#: Columns of :func:`diff_table`, after those of the scores of each run.
TABLE_COLUMNS = ("run", *SCORE_COLUMNS, "mean_r", "mean_r_heldout", "change")


@dataclass(frozen=True)
class _Run:
    """One run: where its results are, as far as they were made from each other, and what else it says."""

    directory: RunDirectory
    experiment: Experiment
    pairs: dict[Sites, Path]
    scores: dict[Sites, Path]
    left_out: list[str]

    @classmethod
    def open(cls, root: Path) -> _Run:
        directory = RunDirectory(root)
        experiment = stored_experiment(directory)
        inputs = RunInputs(directory, experiment.site_pairs)
        here: dict[str, dict[Sites, Path]] = {"pairs": {}, "scores": {}}
        left_out = []
        for folder in ["pairs", *["scores"] * (experiment.compare is not None)]:
            for sites in experiment.site_pairs:
                path = getattr(directory, folder)(*sites)
                if inputs.belongs(path):
                    here[folder][sites] = path
                else:
                    left_out.append(inputs.why_not(path) or f"{path.relative_to(root)} is not there yet")
        return cls(directory, experiment, **here, left_out=left_out)

    def space(self, side: Side, site: str) -> str:
        """Return what identifies the features of a site: model, module, dictionary and kind; or the store's content."""
        path = self.directory.activations(side, site)
        manifest = read_manifest(path)
        if manifest is None or "dictionary" not in manifest.inputs:
            return str(read_attrs(path).get(CONTENT_HASH))
        parts = [manifest.inputs["model"], manifest.inputs["dictionary"]]
        return "|".join([*parts, *(str(manifest.settings.get(key)) for key in ("module", "tensor", "kind"))])

    def text(self) -> tuple[str, str]:
        """Return the hashes of the text and of its rows."""
        attrs = read_attrs(self.directory.activations("a", self.experiment.a.sites[0]))
        return str(attrs.get("corpus_hash", attrs.get("row_hash"))), str(attrs.get("row_hash"))


def diff(runs: Sequence[str | Path], out: str | Path | None = None, *, overwrite: bool = False) -> xr.Dataset:
    """Set runs side by side.

    Parameters
    ----------
    runs
        Run directories, two at least. Changes are from the first.
    out
        Where the result is written; a current one is left as it is. In memory only if absent.
    overwrite
        Whether a result at `out` that came from other inputs may be replaced.

    Returns
    -------
    xarray.Dataset
        Over (run, site_a, site_b), the sites of all runs: ``n_pairs``, ``mean_r`` and ``mean_r_heldout`` of the matched
        pairs; over (run, site_a, site_b, metric) and null too, what :func:`pipeline.compare.score_grid.score_grid`
        has; ``change``, by how much ``difference`` (the score above chance) is more than in the first run. Over (run,
        other, site_a, site_b), where both have the same feature spaces: ``n_both``, the features of A that both
        match; ``n_same``, those with the same partner; ``mean_r_same`` and ``mean_r_changed``, r in `run` of either
        kind. Over (run, feature), features of A at a pair of sites: ``partner`` int32, −1 if there is none, and ``r``.
        float64, NaN where there is nothing to compare. ``text(run)`` numbers different texts. The attribute ``notes``
        lists what is not comparable, and ``settings`` in what the experiments differ.

    Raises
    ------
    MissingInputError
        If one is no run directory, or no pair of sites is matched.
    InputError
        If fewer than two are given, or one twice.

    Examples
    --------
    >>> diff(["runs/seed-0", "runs/seed-1"]).n_same  # doctest: +SKIP
    """
    roots = [Path(run) for run in runs]
    if len({os.path.realpath(root) for root in roots}) < max(2, len(roots)):
        raise InputError(f"give two run directories at least, each once; not {', '.join(map(str, runs)) or 'none'}")
    opened = dict(zip(_labels(roots), map(_Run.open, roots), strict=True))
    if empty := [str(run.directory.root) for run in opened.values() if not run.pairs]:
        raise MissingInputError(f"{empty[0]} has no matched pairs yet; finish it with: subspace run EXPERIMENT.yaml")
    inputs = {
        f"{label}/{path.relative_to(run.directory.root).as_posix()}": fingerprint(path)
        for label, run in opened.items()
        for path in itertools.chain(run.pairs.values(), run.scores.values())
    }
    manifest = new_manifest(STAGE, inputs, {"runs": list(opened)})
    return make_result(out, manifest, lambda: _beside(opened).assign_attrs(manifest.to_attrs()), overwrite=overwrite)


def _labels(roots: Sequence[Path]) -> list[str]:
    """Return the names of the folders, or their paths where two have the same.

    >>> _labels([Path("runs/x"), Path("runs/y")]), _labels([Path("old/x"), Path("new/x")])
    (['x', 'y'], ['old/x', 'new/x'])
    """
    names = [Path(os.path.realpath(root)).name for root in roots]
    return names if len(set(names)) == len(names) else [root.as_posix() for root in roots]


def _beside(runs: Mapping[str, _Run]) -> xr.Dataset:
    parts = [_figures(run) for run in runs.values()]
    dims = ("site_a", "site_b", "metric", "null")
    union = {dim: list(dict.fromkeys(v for part in parts for v in part[dim].values.tolist())) for dim in dims}
    labels = xr.Variable("run", np.array(list(runs), object))
    table = xr.concat([part.reindex(union) for part in parts], labels, coords="minimal", compat="override")
    texts = [run.text() for run in runs.values()]
    numbers = [list(dict.fromkeys(text for text, _ in texts)).index(text) for text, _ in texts]
    same_text = xr.DataArray(np.array(numbers) == numbers[0], dims="run")
    table["change"] = (table["difference"] - table["difference"].isel(run=0)).where(same_text)
    table["text"] = "run", np.array(numbers)
    table = table.merge(_agreement(runs, union["site_a"], union["site_b"]))
    return table.assign_attrs(notes=list(_notes(runs, table, texts)), settings=list(_settings(runs)))


def _figures(run: _Run) -> xr.Dataset:
    """Return what one run says of its pairs of sites."""
    sides = [run.experiment.a.sites, run.experiment.b.sites]
    matching = {name: np.full([len(sites) for sites in sides], np.nan) for name in MATCHING}
    for (a, b), path in run.pairs.items():
        pairs = open_result(path, "match")
        here = sides[0].index(a), sides[1].index(b)
        means = (float(pairs[name].mean()) if name in pairs else np.nan for name in ("r", "r_heldout"))
        for name, value in zip(MATCHING, (pairs.sizes["pair"], *means), strict=True):
            matching[name][here] = value
    if run.scores:
        grid = score_grid(run.scores).drop_vars(["n_pairs", "power"])
    else:
        none = dict.fromkeys(("metric", "null"), np.array([], object))
        grid = xr.Dataset({"difference": (("metric", "null"), np.empty((0, 0)))}, none)
        grid = grid.expand_dims({f"site_{side}": sites for side, sites in zip(SIDES, sides, strict=True)})
    coords = {f"site_{side}": np.array(sites, object) for side, sites in zip(SIDES, sides, strict=True)}
    columns = {name: (("site_a", "site_b"), values) for name, values in matching.items()}
    return grid.drop_attrs().reindex(coords).assign(columns)


def _agreement(runs: Mapping[str, _Run], sites_a: Sequence[str], sites_b: Sequence[str]) -> xr.Dataset:
    """Return every feature's partner in every run, and how many partners two runs share."""
    shape = len(runs), len(runs), len(sites_a), len(sites_b)
    counted = {name: np.full(shape, np.nan) for name in AGREEMENT}
    columns: list[tuple[Sites, np.ndarray, np.ndarray]] = []
    for i, j in np.ndindex(*shape[2:]):
        sites = sites_a[i], sites_b[j]
        matched = {n: _partners(run.pairs[sites]) for n, run in enumerate(runs.values()) if sites in run.pairs}
        if not matched:
            continue
        most = max(len(partner) for partner, _ in matched.values())
        partner, r = np.full((len(runs), most), -1, np.int32), np.full((len(runs), most), np.nan)
        for n, (partner_of_run, r_of_run) in matched.items():
            partner[n, : len(partner_of_run)], r[n, : len(r_of_run)] = partner_of_run, r_of_run
        columns.append((sites, partner, r))
        spaces = {n: _spaces(run, sites) for n, run in enumerate(runs.values()) if n in matched}
        for one, other in itertools.permutations(matched, 2):
            if spaces[one] == spaces[other]:
                for name, value in _shared(partner[one], partner[other], r[one]).items():
                    counted[name][one, other, i, j] = value
    dims = ("run", "other", "site_a", "site_b")
    where = [np.repeat([sites[side] for sites, *_ in columns], [p.shape[1] for _, p, _ in columns]) for side in (0, 1)]
    return xr.Dataset(
        {name: (dims, values) for name, values in counted.items()}
        | {
            "partner": (("run", "feature"), np.concatenate([partner for _, partner, _ in columns], axis=1)),
            "r": (("run", "feature"), np.concatenate([r for *_, r in columns], axis=1)),
        },
        {
            "other": np.array(list(runs), object),
            "feature_site_a": ("feature", where[0].astype(object)),
            "feature_site_b": ("feature", where[1].astype(object)),
            "feature_a": ("feature", np.concatenate([np.arange(p.shape[1], dtype=np.int32) for _, p, _ in columns])),
        },
    )


def _partners(path: Path) -> tuple[np.ndarray, np.ndarray]:
    return best_partners(open_result(path, "match"), "a")


def _spaces(run: _Run, sites: Sites) -> tuple[str, ...]:
    return tuple(run.space(side, site) for side, site in zip(SIDES, sites, strict=True))


def _shared(partner: np.ndarray, other: np.ndarray, r: np.ndarray) -> dict[str, float]:
    """Return how many features both runs match, and how many with the same partner; and r of those and of the rest.

    >>> _shared(np.array([3, 4, -1, 5]), np.array([3, 5, 2, -1]), np.array([0.9, 0.5, np.nan, 0.7]))
    {'n_both': 2, 'n_same': 1, 'mean_r_same': 0.9, 'mean_r_changed': 0.5}
    """
    both = (partner >= 0) & (other >= 0)
    same = both & (partner == other)
    means = [float(r[at].mean()) if at.any() else np.nan for at in (same, both & ~same)]
    return dict(zip(AGREEMENT, (int(both.sum()), int(same.sum()), *means), strict=True))


def _notes(runs: Mapping[str, _Run], table: xr.Dataset, texts: Sequence[tuple[str, str]]) -> Iterator[str]:
    """Yield what of which run is not compared, and why."""
    first, *others = runs
    for label, run in runs.items():
        for reason in run.left_out:
            yield f"{label}: left out: {reason}"
    metrics = {label: _metrics(run) for label, run in runs.items()}
    for n, label in enumerate(others, start=1):
        if texts[n][0] != texts[0][0]:
            yield f"{label} read another text than {first}: no change of its scores is given"
        elif texts[n][1] != texts[0][1]:
            yield f"{label} cut the text into other rows than {first}"
        if metrics[label] != metrics[first]:
            apart = ", ".join(sorted(metrics[label] ^ metrics[first]))
            yield f"{label} and {first} do not both have: {apart}"
        shared = [sites for sites in runs[label].pairs if sites in runs[first].pairs]
        if not shared:
            yield f"{label} has no pair of sites of {first}: nothing of it is a change from there"
            continue
        agreed = table["n_both"].isel(run=0, other=n)
        apart_at = [f"{a} – {b}" for a, b in shared if np.isnan(agreed.sel(site_a=a, site_b=b))]
        if apart_at:
            where = "" if len(apart_at) == len(shared) else f" at {', '.join(apart_at)}"
            yield f"{label} has other features than {first}{where}: only scores are compared there, no pairs"


def _metrics(run: _Run) -> set[str]:
    """Return each metric and null that a run was compared by."""
    settings = run.experiment.compare
    return set() if settings is None else {f"{m} ({null})" for m in settings.metrics for null in settings.nulls}


def _settings(runs: Mapping[str, _Run]) -> Iterator[str]:
    """Yield in what each experiment differs from the first."""
    flat = [pd.json_normalize(run.experiment.model_dump(mode="json")).iloc[0].to_dict() for run in runs.values()]
    for label, settings in zip(list(runs)[1:], flat[1:], strict=True):
        keys = [key for key in {**flat[0], **settings} if key not in UNTOLD]
        changed = [key for key in keys if str(flat[0].get(key)) != str(settings.get(key))]
        more = f", and {len(changed) - MOST_NAMED} more" if len(changed) > MOST_NAMED else ""
        listed = ", ".join(f"{key}: {_short(settings.get(key))}" for key in changed[:MOST_NAMED])
        yield f"{label}: {listed}{more}" if changed else f"{label}: the same settings"


def _short(value: Any, longest: int = 40) -> str:
    text = str(value)
    return text if len(text) <= longest else f"…{text[-longest:]}"


def diff_table(beside: xr.Dataset) -> pd.DataFrame:
    """Return a row for each run, pair of sites, metric and null: the columns are :data:`TABLE_COLUMNS`.

    Where a run was not compared, or no run was, its pairs of sites have a row without a metric.
    """
    matching = beside[list(MATCHING)].to_dataframe().dropna(subset="n_pairs").reset_index()
    matching["n_pairs"] = matching["n_pairs"].astype(np.int64)
    frames = []
    for run in beside["run"].values if "score" in beside else ():
        grid = beside.sel(run=run).drop_dims(["other", "feature"]).drop_vars(["run", "text", *MATCHING])
        table = scores_table(grid.assign(n_pairs=np.int64(0), power="")).drop(columns="n_pairs")
        frames.append(table.assign(run=run))
    if not frames:
        return matching.reindex(columns=list(TABLE_COLUMNS))
    keys = ["site_a", "site_b", "metric", "null"]
    change = beside["change"].to_dataframe().reset_index()[["run", *keys, "change"]]
    scores = pd.concat(frames, ignore_index=True).merge(change, on=["run", *keys])
    table = matching.merge(scores, on=["run", "site_a", "site_b"], how="left")
    return table[list(TABLE_COLUMNS)]


def agreement_table(beside: xr.Dataset) -> pd.DataFrame:
    """Return a row for two runs and a pair of sites where both have the same features: :data:`AGREEMENT`, their share.

    The last column, ``share_same``, is ``n_same`` ÷ ``n_both``; NaN where no feature is matched in both.
    """
    table = beside[list(AGREEMENT)].to_dataframe().dropna(subset="n_both").reset_index()
    counts = table[["n_both", "n_same"]].astype(np.int64)
    return table.assign(**counts, share_same=counts["n_same"] / counts["n_both"].where(counts["n_both"] > 0))


def plot_diff(beside: xr.Dataset) -> Figure:
    """Draw scores run by run, a line for each pair of sites, and the score above chance against mean r over the grid.

    Returns
    -------
    matplotlib.figure.Figure
        A row of two panels for each metric, by its first null. No global state of matplotlib is touched.

    Raises
    ------
    MissingInputError
        If no run has scores.
    """
    import matplotlib as mpl  # noqa: PLC0415 - slow to import, and only figures need it
    from matplotlib.figure import Figure  # noqa: PLC0415 - as above

    if not beside.sizes["metric"]:
        raise MissingInputError("there are no scores to draw: no run was compared")
    metrics = beside["metric"].values.tolist()
    shown = beside.isel(null=0)
    figure = Figure(figsize=(8.2, 2.7 * len(metrics)), layout="constrained")
    panels = figure.subplots(len(metrics), 2, squeeze=False)
    colours = mpl.colormaps["viridis"](np.linspace(0.05, 0.85, beside.sizes["run"]))
    for (of_runs, of_grid), metric in zip(panels, metrics, strict=True):
        _draw_runs(of_runs, shown.sel(metric=metric), metric)
        _draw_grid(of_grid, shown.sel(metric=metric), metric, colours)
    if len(of_grid.get_legend_handles_labels()[1]) > 1:
        panels[0, 1].legend(fontsize=8, title="run", title_fontsize=8)
    if len(of_runs.get_legend_handles_labels()[1]) <= 8:
        panels[0, 0].legend(fontsize=7)
    return figure


def _draw_runs(axes: Axes, scores: xr.Dataset, metric: str) -> None:
    """Draw each pair of sites as a line over the runs, with intervals; dashed, what chance scores."""
    places = np.arange(scores.sizes["run"])
    for a, b in itertools.product(scores["site_a"].values, scores["site_b"].values):
        line = scores.sel(site_a=a, site_b=b)
        score = line["score"].values
        if np.isnan(score).all():
            continue
        colour = axes.plot(places, score, marker="o", ms=4, lw=1, label=f"{a} – {b}")[0].get_color()
        axes.vlines(places, line["low"].values, line["high"].values, color=colour, lw=1)
        axes.plot(places, line["null_mean"].values, marker="_", ms=8, lw=0.8, ls="--", color=colour)
    crowded = sum(map(len, scores["run"].values)) > MOST_CHARACTERS
    axes.set_xticks(places, scores["run"].values, fontsize=8, rotation=20 if crowded else 0)
    axes.set(ylabel=f"{metric} (dashed: chance)", xlim=(-0.4, len(places) - 0.6))


def _draw_grid(axes: Axes, scores: xr.Dataset, metric: str, colours: Any) -> None:
    for run, colour in zip(scores["run"].values, colours, strict=True):
        line = scores.sel(run=run)
        axes.scatter(line["mean_r"], line["difference"], s=18, color=colour, label=str(run))
    axes.axhline(0, color="0.7", lw=0.8)
    axes.set(xlabel="mean r of the pairs", ylabel=f"{metric} above chance")
