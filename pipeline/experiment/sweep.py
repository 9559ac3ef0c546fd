"""How the number of pairs, their r, and the scores depend on the minimum r and on how often a feature may be used.

A result that holds at one threshold only is no result: the sweep shows all of them, as data and as a figure.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from distributed import Client

from pipeline.compare.run import compare
from pipeline.match.diagnostics import summarise
from pipeline.match.edges import read_edges
from pipeline.match.filters import Candidates, TextInputs
from pipeline.match.run import Choice, check_choice, make_pairs
from pipeline.settings.registries import takes_max_uses
from pipeline.work.workers import ensure_client
from storage import fingerprint, make_result, new_manifest, open_result
from storage.errors import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)

STAGE = "sweep"
FIGURES = ("pairs", "mean_r", "mean_r_heldout", "share_unique", "most_uses_b")
SCORES = ("score", "null_mean", "null_std", "p")


def sweep(
    cor: str | Path,
    *,
    min_correlations: Sequence[float],
    max_uses: Sequence[int] = (1,),
    method: str = "unique",
    filters: Sequence[Any] = (),
    contexts: tuple[str | Path, str | Path] | None = None,
    stores: tuple[str | Path, str | Path] | None = None,
    corpus: str | Path | None = None,
    metrics: Sequence[str] = (),
    null_runs: int = 100,
    seed: int = 0,
    out: str | Path | None = None,
    overwrite: bool = False,
    client: Client | None = None,
) -> xr.Dataset:
    """Match, and compare if metrics are asked for, at every combination of minimum r and maximum uses.

    The kept pairs are read once. Memory is that of one matching and one comparison.

    Parameters
    ----------
    cor
        The correlation result.
    min_correlations
        Smallest r of a pair, each at least the ``keep_above`` of the correlation.
    max_uses
        With ``unique``: how many A features may share a B feature. With other methods: features that are the best of
        more features of the other side are dropped before matching.
    method, filters, contexts, stores, corpus
        As in :func:`pipeline.match`.
    metrics
        As in :func:`pipeline.compare`; needs `stores` with decoder rows.
    null_runs, seed
        Of the comparison.
    out
        Where the result is written; a current one is left as it is. In memory only if absent.
    overwrite
        Whether a result at `out` that came from other inputs may be replaced.
    client
        Where comparisons run; threads of this process by default.

    Returns
    -------
    xarray.Dataset
        Over ``min_correlation`` and ``max_uses``: ``pairs``, ``mean_r``, ``mean_r_heldout``, ``share_unique``,
        ``most_uses_b``; and over ``metric`` too: ``score``, ``null_mean``, ``null_std``, ``p``.

    Raises
    ------
    InputError
        If a list is empty, a minimum is below what was kept, or metrics are asked for without stores.
    """
    minimums, uses = _axes(min_correlations, max_uses)
    if metrics and stores is None:
        raise InputError("Scores need the decoder rows: give the stores of A and B (--stores A B), or no metrics")
    correlation = open_result(cor, "correlate")
    choices = [
        check_choice(
            str(cor), correlation, method=method, minimum=minimum, **_ask(method, n, filters),
            contexts=contexts, stores=stores, corpus=corpus,
        )
        for minimum in minimums
        for n in uses
    ]  # fmt: skip
    scoring: dict[str, Any] = {"metrics": list(metrics), "null_runs": null_runs, "seed": seed}
    inputs = {"correlation": fingerprint(cor)}
    if metrics and stores is not None:
        inputs |= {side: fingerprint(path) for side, path in zip("ab", stores, strict=True)}
    manifest = new_manifest(STAGE, inputs, {"choices": [choice.settings() for choice, _ in choices], **scoring})

    def make() -> xr.Dataset:
        lines = []
        with ensure_client(client) as used:
            for pairs in _matchings(str(cor), correlation, minimums[0], choices):
                lines.append(summarise(pairs))
                if metrics and stores is not None:
                    scores = compare(pairs, *stores, **scoring, client=used).sel(null="shuffled")
                    lines[-1] |= {name: scores[name].values for name in SCORES}
        return _dataset(lines, minimums, uses, metrics).assign_attrs(method=method)

    return make_result(out, manifest, make, overwrite=overwrite)


def _axes(min_correlations: Sequence[float], max_uses: Sequence[int]) -> tuple[list[float], list[int]]:
    minimums, uses = sorted(set(map(float, min_correlations))), sorted(set(map(int, max_uses)))
    if not minimums or not uses or uses[0] < 1:
        raise InputError("Give at least one minimum r, and maximum uses of at least 1")
    return minimums, uses


def _matchings(
    cor: str, correlation: xr.Dataset, lowest: float, choices: Sequence[tuple[Choice, TextInputs | None]]
) -> Iterator[xr.Dataset]:
    """Yield the pairs of every choice; the kept pairs are read once, from the lowest minimum on."""
    edges = read_edges(cor, correlation, lowest)
    for choice, text in choices:
        at = np.flatnonzero(edges.r >= choice.minimum)
        pairs = make_pairs(Candidates(cor, correlation, edges.take(at), text), choice)
        logger.info("r ≥ %g: %d pairs, mean r %s", choice.minimum, pairs.n_pairs, pairs.mean_r)
        yield pairs


def _ask(method: str, n: int, filters: Sequence[Any]) -> dict[str, Any]:
    """Return ``max_uses`` and the filters with which a method is asked for at most `n` uses."""
    if takes_max_uses(method):
        return {"max_uses": n, "filters": list(filters)}
    return {"max_uses": 1, "filters": [*filters, {"name": "max_uses", "n": n}]}


def _dataset(lines: list[dict[str, Any]], minimums: list[float], uses: list[int], metrics: Sequence[str]) -> xr.Dataset:
    shape = len(minimums), len(uses)
    dims = ("min_correlation", "max_uses")
    columns: dict[str, Any] = {
        name: (dims, np.array([np.nan if line[name] is None else line[name] for line in lines]).reshape(shape))
        for name in FIGURES
    }
    if metrics:
        columns |= {
            name: ((*dims, "metric"), np.array([line[name] for line in lines]).reshape(*shape, -1)) for name in SCORES
        }
    coords: dict[str, Any] = {"min_correlation": minimums, "max_uses": uses}
    return xr.Dataset(columns, coords | ({"metric": list(metrics)} if metrics else {}))


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
            one = result.sel(metric=metric)
            yield f"{metric} (dashed: null)", one["score"], one["null_mean"]


def steps(text: str) -> list[float]:
    """Return the numbers of ``0.1,0.2,0.5`` or of ``0.1:0.5:0.1``, both ends included.

    >>> steps("0.1:0.3:0.1"), steps("1,2,5")
    ([0.1, 0.2, 0.3], [1.0, 2.0, 5.0])
    """
    try:
        if ":" not in text:
            return [float(part) for part in text.split(",")]
        first, last, step = (float(part) for part in text.split(":"))
        # rounded, since 0.1 + 2 · 0.1 is not 0.3
        return [round(first + i * step, 10) for i in range(math.floor((last - first) / step + 1e-9) + 1)]
    except (ValueError, ZeroDivisionError) as error:
        raise InputError(f"{text!r} is no list of numbers ({error}); write 0.1,0.2,0.5 or FIRST:LAST:STEP") from error
