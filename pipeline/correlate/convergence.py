"""Has enough text been harvested? How r of the found pairs, and how many of them hold, change as documents come in.

r of each pair is measured on an eighth, a quarter, half and all of the documents of either half, each set within the
next (in the order of a hash of the document's number, so none is "first"). Where the last doubling changes next to
nothing, more text would not either. The pairs are those found on all rows: this asks whether their r has settled, not
whether other pairs would have been found.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from pipeline.correlate.documents import (
    PAIRS,
    SUMS,
    PairJob,
    Pairs,
    Units,
    check_pairs,
    make_job,
    r_of_sums,
    read_pairs,
    run_blocks,
    sum_documents,
)
from pipeline.correlate.rows import splitmix64
from pipeline.settings.base import keywords
from pipeline.settings.correlate import MEASURE_NAMES, ConvergenceSettings
from pipeline.work.outputs import NO_OUTPUTS, Outputs
from pipeline.work.workers import ClientSource, ensure_client
from storage import make_result, new_manifest

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STAGE = "convergence"
FRACTIONS = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
HALVES = ("select", "heldout")
#: The verdict is "enough" if the last doubling changes the number of good pairs by no more than this share, and the
#: held-out r of the middle pair by no more than this.
GOOD_CHANGE, R_CHANGE = 0.05, 0.02
#: Fewest documents of a half in a set that r is measured on.
FEWEST_DOCUMENTS = 4


@keywords(ConvergenceSettings)
def convergence(
    pairs: Pairs,
    a: str | Path,
    b: str | Path,
    settings: ConvergenceSettings,
    *,
    out: str | Path | None = None,
    beside: Outputs = NO_OUTPUTS,
    overwrite: bool = False,
    client: ClientSource = None,
) -> xr.Dataset:
    """Measure r of chosen pairs on growing, nested sets of documents, and say whether the text is enough.

    Nothing is correlated again: both stores are read once for every block of pairs whose sums fit in memory, 40 bytes
    per document and pair. The result does not depend on workers or memory.

    Parameters
    ----------
    pairs
        A `match` result, a `correlate` result (its mutual best pairs), or ids of A and of B.
    a, b
        The stores that they were found in.
    settings
        Each setting of :class:`~pipeline.settings.correlate.ConvergenceSettings` is a keyword.
    out
        Path of the result; an up-to-date one is left unchanged. Without it, the result is only in memory.
    beside
        Files written from the result: if one may not be replaced, the result is not made.
    overwrite
        Whether a result at `out` that came from other inputs may be replaced.
    client
        Where to run; by default threads of this process.

    Returns
    -------
    xarray.Dataset
        Over ``size``, the sets from the smallest to all: ``fraction`` float64, ``n_documents`` and ``n_rows`` int64
        (of both halves), ``n_good`` int64. Over (size, half): ``mean_r``; over (size, half, pair): ``r``, NaN where
        not defined. ``half`` is ``select`` and ``heldout``. Attributes: ``verdict`` (``enough``, ``not enough`` or
        ``cannot tell``), ``explanation`` and ``rule`` in words; ``heldout_note`` is that of the pairs.

    Raises
    ------
    InputError
        If the pairs are not of these stores, or the measure is of ranks.
    RowMismatchError
        If the stores hold different rows.
    BudgetError
        If the sums of 16 pairs do not fit in memory.

    Examples
    --------
    >>> import tempfile, storage
    >>> folder = tempfile.mkdtemp()
    >>> rng = np.random.default_rng(0)
    >>> x, place = rng.random((4000, 3)), np.arange(4000)
    >>> tokens = {"document": place // 20, "char_start": place, "char_end": place + 1}
    >>> storage.write_activations(f"{folder}/a.zarr", x, tokens=tokens)
    >>> storage.write_activations(f"{folder}/b.zarr", x + 0.3 * rng.random((4000, 3)), tokens=tokens)
    >>> curve = convergence(([0, 1, 2], [0, 1, 2]), f"{folder}/a.zarr", f"{folder}/b.zarr", threshold=0.5)
    >>> curve.n_rows.values.tolist(), curve.n_good.values.tolist(), curve.verdict
    ([260, 500, 1000, 2000, 4000], [3, 3, 3, 3, 3], 'enough')
    """
    chosen, paths = read_pairs(pairs), (Path(a), Path(b))
    measure = chosen.measure(settings.measure)
    check_pairs(chosen, paths, measure)
    threshold = settings.threshold
    if threshold is None:
        threshold = float(chosen.attrs.get("min_correlation", chosen.attrs.get("keep_above", 0.1)))
    rule = {"threshold": threshold, "measure": measure, "split_seed": chosen.split_seed(settings.split_seed)}
    rule |= chosen.note
    manifest = new_manifest(STAGE, chosen.inputs(paths), rule)

    def make() -> xr.Dataset:
        job = make_job(chosen, paths, "half", measure, rule)
        with ensure_client(client) as active:
            extra = (64 * len(job.units().rows), 8 * 4 * len(FRACTIONS))
            r = run_blocks(job, convergence_block, active, settings.memory, extra, "Convergence")["r"]
        ids = {f"feature_{side}": ("pair", getattr(chosen, f"ids_{side}")) for side in "ab"}
        return _dataset(r, job, threshold).assign(ids)

    return make_result(out, manifest, beside.checked_before(make), overwrite=overwrite)


def members(units: Units) -> NDArray[np.bool_]:
    """Return which units are in each set, (size, unit); sets that would be too small are left out."""
    chosen = np.zeros((len(FRACTIONS), len(units.rows)), bool)
    enough = np.ones(len(FRACTIONS), bool)
    for h in range(len(HALVES)):
        here = np.arange(len(units.rows))[units.half(h)]
        in_order = here[np.argsort(splitmix64(units.number[here]), kind="stable")]
        for size, fraction in enumerate(FRACTIONS):
            count = int(np.ceil(fraction * len(here)))
            chosen[size, in_order[:count]] = True
            enough[size] &= count >= FEWEST_DOCUMENTS or fraction == 1
    return chosen[enough]


def convergence_block(i: int, job: PairJob) -> dict[str, NDArray[Any]]:
    """Task: r of the pairs of block `i` in each set and half; (size, half, pair)."""
    units, pairs = job.units(), job.pairs(i)
    sums = sum_documents(job, pairs, units)
    weights = members(units).astype(np.float64)
    r = np.empty((len(weights), len(HALVES), sums.shape[1]))
    for h in range(len(HALVES)):
        here = units.half(h)
        n = (weights[:, here] @ units.rows[here])[:, None]
        for at in range(0, sums.shape[1], PAIRS):
            part = np.ascontiguousarray(sums[here, at : at + PAIRS])
            whole = weights[:, here] @ part.reshape(len(part), -1)
            r[:, h, at : at + PAIRS] = r_of_sums(job.measure, n, whole.reshape(len(weights), -1, len(SUMS)))
    return {"r": r}


def _dataset(r: NDArray[np.float64], job: PairJob, threshold: float) -> xr.Dataset:
    units = job.units()
    sets = members(units)
    good = (r >= threshold).all(axis=1).sum(axis=-1)
    counted = ~np.isnan(r)
    mean = np.where(counted, r, 0).sum(axis=-1) / np.maximum(counted.sum(axis=-1), 1)
    verdict, explanation = judge(r, good, threshold, units.kind)
    attrs = {
        **job.settings,
        "unit": units.kind,
        "verdict": verdict,
        "explanation": explanation,
        "rule": f"enough: from half of the text to all of it, the number of pairs with r ≥ {threshold:g} in both "
        f"halves changes by no more than {GOOD_CHANGE:.0%}, and held-out r by a median of no more than "
        f"{R_CHANGE}",
    }
    label = {"long_name": f"{MEASURE_NAMES[job.measure]} on this set of documents"}
    n_rows = sets @ units.rows
    fraction = np.array(FRACTIONS[len(FRACTIONS) - len(sets) :])
    return xr.Dataset(
        {
            "fraction": ("size", fraction),
            "n_documents": ("size", sets.sum(axis=1)),
            "n_rows": ("size", n_rows),
            "n_good": ("size", good, {"long_name": f"pairs with r ≥ {threshold:g} in both halves"}),
            "mean_r": (("size", "half"), np.where(counted.any(axis=-1), mean, np.nan), label),
            "r": (("size", "half", "pair"), r, label),
        },
        coords={"half": list(HALVES)},
        attrs=attrs,
    )


def judge(r: NDArray[np.float64], good: NDArray[np.integer], threshold: float, kind: str) -> tuple[str, str]:
    """Return the verdict and its reason in words; `r` is (size, half, pair), `good` how many pairs reach the threshold.

    >>> r = np.full((2, 2, 3), 0.5)
    >>> judge(r, np.array([3, 3]), 0.3, "documents")[0]
    'enough'
    >>> judge(r[:1], np.array([3]), 0.3, "documents")[0]
    'cannot tell'
    """
    if len(r) < 2:
        return "cannot tell", f"Half of the text has fewer than {FEWEST_DOCUMENTS} {kind} in a half; harvest more"
    if not good[-1]:
        return "cannot tell", f"No pair reaches r ≥ {threshold:g} in both halves; try a lower threshold"
    apart = np.abs(r[-1, 1] - r[-2, 1])
    moved = float(np.median(apart[~np.isnan(apart)])) if not np.isnan(apart).all() else np.inf
    change = (int(good[-1]) - int(good[-2])) / int(good[-1])
    enough = abs(change) <= GOOD_CHANGE and moved <= R_CHANGE
    words = (
        f"With half of the text, {good[-2]:,} pairs reach r ≥ {threshold:g} in both halves; with all of it, "
        f"{good[-1]:,} ({change:+.1%}). Held-out r changes by a median of {moved:.3f}. "
    )
    closing = "More text would hardly change these pairs." if enough else "r has not stabilised: harvest more text."
    return ("enough" if enough else "not enough"), words + closing


def plot_convergence(ds: xr.Dataset) -> Figure:
    """Draw how the number of good pairs and their mean r grow with rows.

    Parameters
    ----------
    ds
        From :func:`convergence`.

    Returns
    -------
    matplotlib.figure.Figure
        Save it with ``savefig("convergence.svg")``; no global state of matplotlib is touched.
    """
    from matplotlib.figure import Figure  # noqa: PLC0415 - slow to import, and only figures need it

    figure = Figure(figsize=(8, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    rows = ds["n_rows"].values
    left.plot(rows, ds["n_good"].values, marker="o", color="#1f6f8b")
    left.set(xlabel="rows", ylabel=ds["n_good"].attrs["long_name"], xscale="log", ylim=(0, None))
    for half, label, colour in zip(HALVES, ("where chosen", "held out"), ("#999999", "#1f6f8b"), strict=True):
        right.plot(rows, ds["mean_r"].sel(half=half).values, marker="o", label=label, color=colour)
    right.set(xlabel="rows", ylabel="mean r of the pairs", xscale="log")
    right.legend(frameon=False)
    figure.suptitle(f"Text: {ds.attrs['verdict']}", fontsize=11)
    return figure
