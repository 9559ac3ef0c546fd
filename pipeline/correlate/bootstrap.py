"""How sure is r of a pair? Percentile intervals from a bootstrap over documents (Efron 1979; Davison & Hinkley 1997).

Documents are drawn with replacement, as many as there are, from the half that chose the pairs and from the held-out
half apart; r is measured on what is drawn. Tokens of one document depend on each other, so intervals over tokens would
be far too narrow. The same draws serve all pairs. An interval on the half that chose is around an r that was chosen
for being high: the held-out one is the one to quote.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from distributed import Client
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
from pipeline.settings.base import keywords
from pipeline.settings.correlate import MEASURE_NAMES, BootstrapSettings
from pipeline.work.workers import ensure_client
from storage import make_result, new_manifest

logger = logging.getLogger(__name__)

STAGE = "bootstrap"
#: Draws that are weighed at a time.
DRAWS = 50
#: With fewer documents in a half, percentile intervals are too narrow to rely on.
FEW_DOCUMENTS = 20
SUFFIXES = ("", "_heldout")


@keywords(BootstrapSettings)
def bootstrap(
    pairs: Pairs,
    a: str | Path,
    b: str | Path,
    settings: BootstrapSettings,
    *,
    out: str | Path | None = None,
    overwrite: bool = False,
    client: Client | None = None,
) -> xr.Dataset:
    """Return intervals for r of chosen pairs, from documents drawn with replacement.

    Both stores are read once for every block of pairs whose sums fit the memory: 40 bytes a document and pair. The
    result depends on the seed, not on workers or memory.

    Parameters
    ----------
    pairs
        A `match` result, a `correlate` result (its mutually best partners), or ids of A and of B.
    a, b
        The stores that they were found in.
    settings
        Each setting of :class:`~pipeline.settings.correlate.BootstrapSettings` is a keyword.
    out
        Where the result is written; a current one is left as it is. In memory only if absent.
    overwrite
        Whether a result at `out` that came from other inputs may be replaced.
    client
        Where to run; by default threads of this process.

    Returns
    -------
    xarray.Dataset
        Over ``pair``: ``feature_a``, ``feature_b`` int32; ``r``, ``r_low``, ``r_high`` float64 on the rows that
        chose, and ``r_heldout``, ``r_heldout_low``, ``r_heldout_high`` on the others, where there are any;
        ``n_undefined`` and ``n_undefined_heldout`` int64, the draws in which the pair had no r (they are left out of
        the interval; NaN if all are). Attributes ``n_documents`` and ``unit`` say how many documents, or blocks of
        rows, each half has, and ``note`` if that is few; ``heldout_note`` is that of the pairs.

    Raises
    ------
    InputError
        If a setting is out of range, the pairs are not of these stores, or the measure is of ranks.
    RowMismatchError
        If the stores hold different rows.
    BudgetError
        If the sums of 16 pairs do not fit the memory.

    Examples
    --------
    >>> import tempfile, storage
    >>> folder = tempfile.mkdtemp()
    >>> rng = np.random.default_rng(1)
    >>> x, place = rng.random((400, 3)), np.arange(400)
    >>> tokens = {"document": place // 8, "char_start": place, "char_end": place + 1}
    >>> storage.write_activations(f"{folder}/a.zarr", x, tokens=tokens)
    >>> storage.write_activations(f"{folder}/b.zarr", x + 0.3 * rng.random((400, 3)), tokens=tokens)
    >>> intervals = bootstrap(([0, 1], [0, 2]), f"{folder}/a.zarr", f"{folder}/b.zarr", runs=200)
    >>> bool(intervals.r_heldout_low[0] > 0.9), bool(intervals.r_heldout_low[1] < 0 < intervals.r_heldout_high[1])
    (True, True)
    """
    chosen, paths = read_pairs(pairs), (Path(a), Path(b))
    select = settings.select or chosen.attrs.get("select", "half")
    measure = chosen.measure(settings.measure)
    check_pairs(chosen, paths, measure)
    draws = settings.model_dump(include={"runs", "level", "seed"}) | chosen.note
    draws["split_seed"] = chosen.split_seed(settings.split_seed)
    manifest = new_manifest(STAGE, chosen.inputs(paths), draws | {"select": select, "measure": measure})

    def make() -> xr.Dataset:
        job = make_job(chosen, paths, select, measure, draws)
        with ensure_client(client) as active:
            extra = (64 * DRAWS * len(job.units().rows), 8 * 4 * settings.runs)
            r = run_blocks(job, bootstrap_block, active, settings.memory, extra, "Bootstrap")["r"]
        return _dataset(r, chosen, job)

    return make_result(out, manifest, make, overwrite=overwrite)


def bootstrap_block(i: int, job: PairJob) -> dict[str, NDArray[Any]]:
    """Task: r and its interval in each half, for the pairs of block `i`; (quantity, half, pair)."""
    units, pairs = job.units(), job.pairs(i)
    sums = sum_documents(job, pairs, units)
    r = [intervals(sums[units.half(h)], units.rows[units.half(h)], job, h) for h in range(job.n_halves)]
    return {"r": np.stack(r, axis=1)}


def intervals(sums: Floats, rows: NDArray[np.int64], job: PairJob, h: int) -> Floats:
    """Return r, the ends of its interval, and how many draws had no r, (4, pair), from the sums of one half."""
    level = job.settings["level"]
    whole = r_of_sums(job.measure, np.array([float(rows.sum())]), sums.sum(axis=0))
    drawn = draw(sums, rows.astype(np.float64), job, h)
    undefined = np.isnan(drawn).sum(axis=0)
    ends = np.full((2, sums.shape[1]), np.nan)
    # nanquantile goes through the pairs one by one
    for pairs, quantile in (
        (undefined == 0, np.quantile),
        ((undefined > 0) & (undefined < len(drawn)), np.nanquantile),
    ):
        ends[:, pairs] = quantile(drawn[:, pairs], [(1 - level) / 2, (1 + level) / 2], axis=0)
    return np.stack([whole, *ends, undefined])


def draw(sums: Floats, n: Floats, job: PairJob, h: int) -> Floats:
    """Return r in every draw, (draw, pair); NaN throughout where there is one unit, which says nothing of others.

    Matrix products are of one shape, a fixed number of draws and pairs, whatever the memory and the workers.
    """
    runs, n_units, n_pairs = job.settings["runs"], *sums.shape[:2]
    drawn = np.full((runs, n_pairs), np.nan)
    rng = np.random.default_rng([job.settings["seed"], h])
    for first in range(0, runs if n_units > 1 else 0, DRAWS):
        count = min(DRAWS, runs - first)
        weights = rng.multinomial(n_units, np.full(n_units, 1 / n_units), size=DRAWS).astype(np.float64)
        n_drawn = (weights @ n)[:, None]
        for at in range(0, n_pairs, PAIRS):
            products = weights @ sums[:, at : at + PAIRS].reshape(n_units, -1)
            r = r_of_sums(job.measure, n_drawn, products.reshape(DRAWS, -1, len(SUMS)))
            drawn[first : first + count, at : at + PAIRS] = r[:count]
    return drawn


def _dataset(r: Floats, chosen: ChosenPairs, job: PairJob) -> xr.Dataset:
    units = job.units()
    counts = [len(units.rows[units.half(h)]) for h in range(job.n_halves)]
    variables: dict[str, Any] = {"feature_a": ("pair", chosen.ids_a), "feature_b": ("pair", chosen.ids_b)}
    where = ("on the rows that chose the pair", "on the other rows")
    for h, suffix in enumerate(SUFFIXES[: job.n_halves]):
        names = (f"r{suffix}", f"r{suffix}_low", f"r{suffix}_high")
        for name, values in zip(names, r[:, h], strict=False):
            variables[name] = ("pair", values, {"long_name": f"{MEASURE_NAMES[job.measure]} {where[h]}"})
        variables[f"n_undefined{suffix}"] = ("pair", r[3, h].astype(np.int64))
    attrs = {**job.settings, "select": job.select, "measure": job.measure, "unit": units.kind, "n_documents": counts}
    if note := few_documents(counts, units.kind):
        attrs["note"] = note
        logger.warning("%s", note)
    return xr.Dataset(variables, attrs=attrs)


def few_documents(counts: list[int], kind: str) -> str:
    """Say so if a half has few documents, or none were known; else nothing.

    >>> few_documents([12, 40], "documents")
    'A half has only 12 documents: intervals from fewer than 20 are too narrow; harvest more documents'
    >>> few_documents([50, 50], "documents")
    ''
    """
    if min(counts) < FEW_DOCUMENTS:
        return (
            f"A half has only {min(counts)} {kind}: intervals from fewer than {FEW_DOCUMENTS} are too narrow; "
            "harvest more documents"
        )
    if kind.startswith("blocks"):
        return f"The stores know no documents: {kind} were drawn, and intervals are too narrow if texts are longer"
    return ""
