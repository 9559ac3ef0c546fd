"""How certain is r of a pair? Intervals from the influence of each document, in each half apart.

Tokens of one document depend on each other, so documents are the units. r of a pair is a function of sums over
documents; its influence function gives its variance on Fisher's scale, atanh r, and Student's t with as many degrees of
freedom as *effective* documents carry the pair, less one, gives the interval (:mod:`pipeline.correlate.influence`).

What counts is the documents in which the pair fires, not those of the text. At nominal .95, on pairs of the demo that
co-fire in 11 to 20 of 98 documents, percentile intervals from documents drawn with replacement cover r in .88 of all
cases, and normal ones in .87. These cover it in .94. Jackknife variances are as good, and need more passes; bootstrap-t
covers .92, needs draws, and is as good only if it is widened to the same quantiles. ``docs/statistics.md`` has a table
from ``benchmarks/document_calibration.py``.

An interval on the half that chose is around an r that was chosen for being high: the held-out one is the one to quote.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from pipeline.correlate.documents import (
    PAIRS,
    SUMS,
    ChosenPairs,
    Floats,
    PairJob,
    Pairs,
    check_pairs,
    make_job,
    r_of_sums,
    read_pairs,
    run_blocks,
    sum_documents,
)
from pipeline.correlate.influence import FEWEST_EFFECTIVE, effective_number, fisher_interval
from pipeline.correlate.measures import RULES
from pipeline.settings.base import keywords
from pipeline.settings.correlate import MEASURE_NAMES, IntervalSettings, Measure
from pipeline.work.workers import ClientSource, ensure_client
from storage import make_result, new_manifest

logger = logging.getLogger(__name__)

STAGE = "intervals"
SUFFIXES = ("", "_heldout")
#: (document, pair) arrays that are held at a time for a block of pairs.
ARRAYS = 16


@keywords(IntervalSettings)
def intervals(
    pairs: Pairs,
    a: str | Path,
    b: str | Path,
    settings: IntervalSettings,
    *,
    out: str | Path | None = None,
    overwrite: bool = False,
    client: ClientSource = None,
) -> xr.Dataset:
    """Return intervals for r of chosen pairs, with documents as the units.

    Both stores are read once for every block of pairs whose sums fit in memory: 40 bytes per document and pair. The
    result does not depend on workers or memory.

    Parameters
    ----------
    pairs
        A `match` result, a `correlate` result (its mutual best pairs), or ids of A and of B.
    a, b
        The stores that they were found in.
    settings
        Each setting of :class:`~pipeline.settings.correlate.IntervalSettings` is a keyword.
    out
        Path of the result; an up-to-date one is left unchanged. Without it, the result is only in memory.
    overwrite
        Whether a result at `out` that came from other inputs may be replaced.
    client
        Where to run; by default threads of this process.

    Returns
    -------
    xarray.Dataset
        Over ``pair``: ``feature_a``, ``feature_b`` int32; ``r``, ``r_low``, ``r_high`` float64 on the rows that
        chose, and ``r_heldout``, ``r_heldout_low``, ``r_heldout_high`` on the others, where there are any;
        ``n_effective`` and ``n_effective_heldout`` float64, how many documents carry the pair, and ``n_cofiring`` and
        ``n_cofiring_heldout`` int64, in how many both features fire. With fewer than two effective documents there is
        no interval: NaN. Attributes ``n_documents`` and ``unit`` say how many documents, or blocks of rows, each half
        has, and ``note`` what is missing; ``heldout_note`` is that of the pairs.

    Raises
    ------
    InputError
        If a setting is out of range, the pairs are not of these stores, or the measure is of ranks.
    RowMismatchError
        If the stores hold different rows.
    BudgetError
        If the sums of 16 pairs do not fit in memory.

    Examples
    --------
    >>> import tempfile, storage
    >>> folder = tempfile.mkdtemp()
    >>> rng = np.random.default_rng(1)
    >>> x, place = rng.random((400, 3)), np.arange(400)
    >>> tokens = {"document": place // 8, "char_start": place, "char_end": place + 1}
    >>> storage.write_activations(f"{folder}/a.zarr", x, tokens=tokens)
    >>> storage.write_activations(f"{folder}/b.zarr", x + 0.3 * rng.random((400, 3)), tokens=tokens)
    >>> found = intervals(([0, 1], [0, 2]), f"{folder}/a.zarr", f"{folder}/b.zarr")
    >>> bool(found.r_heldout_low[0] > 0.9), bool(found.r_heldout_low[1] < 0 < found.r_heldout_high[1])
    (True, True)
    """
    chosen, paths = read_pairs(pairs), (Path(a), Path(b))
    select = settings.select or chosen.attrs.get("select", "half")
    measure = chosen.measure(settings.measure)
    check_pairs(chosen, paths, measure)
    recorded = {"level": settings.level, "split_seed": chosen.split_seed(settings.split_seed)} | chosen.note
    manifest = new_manifest(STAGE, chosen.inputs(paths), recorded | {"select": select, "measure": measure})

    def make() -> xr.Dataset:
        job = make_job(chosen, paths, select, measure, recorded)
        with ensure_client(client) as active:
            extra = (8 * ARRAYS * PAIRS * len(job.units().rows), 8 * 5 * job.n_halves)
            estimates = run_blocks(job, intervals_block, active, settings.memory, extra, "Intervals")["estimates"]
        return _dataset(estimates, chosen, job)

    return make_result(out, manifest, make, overwrite=overwrite)


def intervals_block(i: int, job: PairJob) -> dict[str, NDArray[Any]]:
    """Task: estimates in each half for the pairs of block `i`; (quantity, half, pair)."""
    units, pairs = job.units(), job.pairs(i)
    sums = sum_documents(job, pairs, units)
    halves = [
        # of the same pairs together whatever the memory, so that sums are added in one order
        np.concatenate([_estimate(sums[half, at : at + PAIRS], units.rows[half], job) for at in _blocks(sums)], axis=1)
        for half in map(units.half, range(job.n_halves))
    ]
    return {"estimates": np.stack(halves, axis=1)}


def _blocks(sums: Floats) -> range:
    return range(0, sums.shape[1], PAIRS)


def _estimate(sums: Floats, rows: NDArray[np.int64], job: PairJob) -> Floats:
    """Return r, the ends of its interval, effective and co-firing documents of some pairs in a half, (5, pair)."""
    n = rows.astype(np.float64)[:, None]
    r = r_of_sums(job.measure, n.sum(axis=0), sums.sum(axis=0))
    influence = influence_on_r(job.measure, n, sums)
    squares = (influence**2).sum(axis=0)
    n_effective = effective_number(squares, (influence**4).sum(axis=0))
    ends = fisher_interval(r, squares * len(n) / max(1, len(n) - 1), n_effective, job.settings["level"])
    if RULES[job.measure].overlap:
        ends = np.maximum(ends, 0.0)
    return np.stack([r, *ends, n_effective, np.count_nonzero(sums[..., 4], axis=0)])


def influence_on_r(measure: Measure, n: Floats, sums: Floats) -> Floats:
    """Return each document's influence on r of all of them, (document, pair); NaN where r is not defined.

    Parameters
    ----------
    measure
        What r is.
    n
        (document, 1) rows.
    sums
        (document, pair, 5), as :func:`~pipeline.correlate.documents.sum_documents` makes them.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> x, y = rng.random((2, 50))
    >>> sums, n = np.stack([x, y, x * x, y * y, x * y], axis=-1)[:, None], np.ones((50, 1))
    >>> weights = n + 1e-6 * (np.arange(50) == 7)[:, None]
    >>> r, r_more = (r_of_sums("pearson", w.sum(axis=0), (w[..., None] * sums).sum(axis=0))[0] for w in (n, weights))
    >>> bool(np.isclose((r_more - r) / 1e-6, influence_on_r("pearson", n, sums)[7, 0], rtol=1e-3))
    True
    """
    r = r_of_sums(measure, n.sum(axis=0), sums.sum(axis=0))
    x, y, xx, yy, xy = (sums[..., i] for i in SUMS)
    if RULES[measure].overlap:
        either = x + y - xy
        return _ratio(xy - r * either, either.sum(axis=0))
    if RULES[measure].centred:
        mean_x, mean_y = x.sum(axis=0) / n.sum(), y.sum(axis=0) / n.sum()
        xy = xy - mean_x * y - mean_y * x + n * mean_x * mean_y
        xx, yy = xx - 2 * mean_x * x + n * mean_x**2, yy - 2 * mean_y * y + n * mean_y**2
    var_x, var_y = xx.sum(axis=0), yy.sum(axis=0)
    return _ratio(xy, np.sqrt(var_x * var_y)) - r / 2 * (_ratio(xx, var_x) + _ratio(yy, var_y))


def _ratio(values: Floats, of: Floats) -> Floats:
    return np.divide(values, of, out=np.full_like(values, np.nan), where=of > 0)


def _dataset(estimates: Floats, chosen: ChosenPairs, job: PairJob) -> xr.Dataset:
    units = job.units()
    variables: dict[str, Any] = {"feature_a": ("pair", chosen.ids_a), "feature_b": ("pair", chosen.ids_b)}
    where = ("on the rows used for selection", "on the held-out rows")
    for h, suffix in enumerate(SUFFIXES[: job.n_halves]):
        names = (f"r{suffix}", f"r{suffix}_low", f"r{suffix}_high")
        for name, values in zip(names, estimates[:, h], strict=False):
            variables[name] = ("pair", values, {"long_name": f"{MEASURE_NAMES[job.measure]} {where[h]}"})
        variables[f"n_effective{suffix}"] = ("pair", estimates[3, h], {"long_name": f"effective {units.kind}"})
        variables[f"n_cofiring{suffix}"] = ("pair", estimates[4, h].astype(np.int64))
    counts = [len(units.rows[units.half(h)]) for h in range(job.n_halves)]
    attrs = {**job.settings, "select": job.select, "measure": job.measure, "unit": units.kind, "n_documents": counts}
    if note := missing_intervals(estimates[0, -1], estimates[1, -1], units.kind):
        attrs["note"] = note
        logger.warning("%s", note)
    return xr.Dataset(variables, attrs=attrs)


def missing_intervals(r: Floats, low: Floats, kind: str) -> str:
    """Say how many pairs have r, but no interval, or that no documents were known; else nothing.

    >>> missing_intervals(np.array([0.5, 0.7]), np.array([0.2, np.nan]), "documents")
    '1 of 2 pairs have fewer than 2 effective documents, so no interval; harvest more documents'
    >>> missing_intervals(np.array([0.5, np.nan]), np.array([0.2, np.nan]), "documents")
    ''
    """
    notes = []
    if few := np.count_nonzero(np.isfinite(r) & np.isnan(low)):
        notes.append(
            f"{few} of {len(r)} pairs have fewer than {FEWEST_EFFECTIVE:g} effective {kind}, so no interval; "
            "harvest more documents"
        )
    if kind.startswith("blocks"):
        notes.append(f"The stores know no documents: {kind} stand for them, too narrow if texts are longer")
    return ". ".join(notes)
