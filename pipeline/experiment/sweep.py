"""How the number of pairs, their r, and the scores depend on the minimum r and on how often a feature may be used.

A result that holds at one threshold only is no result: the sweep shows all of them, as data and as a figure.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from pipeline.compare.run import compare
from pipeline.match.diagnostics import summarise
from pipeline.match.edges import read_edges
from pipeline.match.filters import Candidates, TextInputs, heldout_note
from pipeline.match.run import check_inputs, make_pairs
from pipeline.settings.base import keywords
from pipeline.settings.match import MatchSettings, SweepSettings
from pipeline.work.outputs import NO_OUTPUTS, Outputs
from pipeline.work.workers import ClientSource, ensure_client
from storage import fingerprint, make_result, new_manifest, open_result
from storage.errors import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)

STAGE = "sweep"
FIGURES = ("pairs", "mean_r", "mean_r_heldout", "share_unique", "most_uses_b")
SCORES = ("score", "null_mean", "null_std", "p")


@keywords(SweepSettings)
def sweep(
    cor: str | Path,
    settings: SweepSettings,
    *,
    contexts: tuple[str | Path, str | Path] | None = None,
    stores: tuple[str | Path, str | Path] | None = None,
    corpus: str | Path | None = None,
    non_concept: tuple[str | Path, str | Path] | None = None,
    out: str | Path | None = None,
    beside: Outputs = NO_OUTPUTS,
    overwrite: bool = False,
    client: ClientSource = None,
) -> xr.Dataset:
    """Match, and compare if metrics are asked for, at every combination of minimum r and maximum uses.

    The kept pairs are read once. Memory is that of one matching and one comparison.

    Parameters
    ----------
    cor
        The correlation result.
    settings
        Each setting of :class:`~pipeline.settings.match.SweepSettings` is a keyword; or all of them as one.
    contexts, stores, corpus, non_concept
        As in :func:`pipeline.match`; the stores, with decoder rows, for scores too.
    out
        Path of the result; an up-to-date one is left unchanged. Without it, the result is only in memory.
    beside
        Files written from the result: if one may not be replaced, the result is not made.
    overwrite
        Whether a result at `out` that came from other inputs may be replaced.
    client
        Where comparisons run; threads of this process by default.

    Returns
    -------
    xarray.Dataset
        Over ``min_correlation`` and ``max_uses``: ``pairs``, ``mean_r``, ``mean_r_heldout``, ``share_unique``,
        ``most_uses_b``; and over ``metric`` too: ``score``, ``null_mean``, ``null_std``, ``p``. An attribute
        ``heldout_note`` where a filter reads held-out r.

    Raises
    ------
    InputError
        If a setting is wrong, a minimum is below what was kept, or metrics are asked for without stores.
    """
    if settings.metrics and stores is None:
        raise InputError("Scores need the decoder rows: give the stores of A and B (--stores A B), or no metrics")
    correlation, points = open_result(cor, "correlate"), list(settings.points())
    text = check_inputs(cor, correlation, points, TextInputs.of(contexts, stores, corpus, non_concept))
    scoring = settings.model_dump(include={"metrics", "null_runs", "seed"})
    inputs = {"correlation": fingerprint(cor)}
    if settings.metrics and stores is not None:
        inputs |= {side: fingerprint(path) for side, path in zip("ab", stores, strict=True)}
    manifest = new_manifest(STAGE, inputs, {"choices": [point.record() for point in points], **scoring})

    def make() -> xr.Dataset:
        lines = []
        with ensure_client(client) as used:
            for pairs in _matchings(cor, correlation, points, text):
                lines.append(summarise(pairs))
                if settings.metrics and stores is not None:
                    scores = compare(pairs, *stores, **scoring, client=used).sel(null="shuffled")
                    lines[-1] |= {name: scores[name].values for name in SCORES}
        return _dataset(lines, settings).assign_attrs(method=settings.method, **heldout_note(points[0].filters))

    return make_result(out, manifest, beside.checked_before(make), overwrite=overwrite)


def _matchings(
    cor: str | Path, correlation: xr.Dataset, points: Sequence[MatchSettings], text: TextInputs | None
) -> Iterator[xr.Dataset]:
    """Yield the pairs of every matching; the kept pairs are read once, from the lowest minimum on."""
    edges = read_edges(cor, correlation, points[0].min_correlation)
    for settings in points:
        at = np.flatnonzero(edges.r >= settings.min_correlation)
        pairs = make_pairs(Candidates(str(cor), correlation, edges.take(at), text), settings)
        mean = f", mean r {pairs.mean_r:.4g}" if pairs.n_pairs else ""
        logger.info("r ≥ %g: %d pairs%s", settings.min_correlation, pairs.n_pairs, mean)
        yield pairs


def _dataset(lines: list[dict[str, Any]], settings: SweepSettings) -> xr.Dataset:
    coords: dict[str, Any] = {
        "min_correlation": list(settings.min_correlations),
        "max_uses": list(settings.max_uses),
        "metric": settings.metrics,
    }
    dims, shape = ("min_correlation", "max_uses"), (len(settings.min_correlations), len(settings.max_uses))
    columns: dict[str, Any] = {
        name: (dims, np.array([np.nan if line[name] is None else line[name] for line in lines]).reshape(shape))
        for name in FIGURES
    }
    if not settings.metrics:
        return xr.Dataset(columns, {name: coords[name] for name in dims})
    scores = {
        name: ((*dims, "metric"), np.array([line[name] for line in lines]).reshape(*shape, -1)) for name in SCORES
    }
    return xr.Dataset(columns | scores, coords)


def plot_sweep(result: xr.Dataset) -> Figure:
    """Draw a sweep: pairs, mean r, and each score with its null, against the minimum r; one line for each maximum use.

    Returns
    -------
    matplotlib.figure.Figure
        Save it with ``savefig("sweep.svg")``; no global state of matplotlib is touched.
    """
    import matplotlib as mpl  # noqa: PLC0415 - slow to import, and only figures need it
    from matplotlib.figure import Figure  # noqa: PLC0415 - as above

    panels = list(_panels(result))
    figure = Figure(figsize=(3.4 * len(panels), 2.9), layout="constrained")
    colours = mpl.colormaps["viridis"](np.linspace(0.1, 0.8, result.sizes["max_uses"]))
    for axes, (title, values, null) in zip(np.atleast_1d(figure.subplots(1, len(panels))), panels, strict=True):
        for i, (n, colour) in enumerate(zip(result["max_uses"].values.tolist(), colours, strict=True)):
            label = f"at most {n}"
            axes.plot(result["min_correlation"], values.isel(max_uses=i), marker="o", ms=3, color=colour, label=label)
            if null is not None:
                axes.plot(result["min_correlation"], null.isel(max_uses=i), ls="--", lw=1, color=colour)
        axes.set(title=title, xlabel="minimum r")
    figure.axes[0].legend(title="uses of a feature", fontsize=8)
    return figure


def _panels(result: xr.Dataset) -> Iterator[tuple[str, xr.DataArray, xr.DataArray | None]]:
    yield "pairs", result["pairs"], None
    yield "mean r", result["mean_r"], None
    if "score" in result:
        for metric in result["metric"].values.tolist():
            scores = result.sel(metric=metric)
            yield f"{metric} (dashed: null)", scores["score"], scores["null_mean"]
