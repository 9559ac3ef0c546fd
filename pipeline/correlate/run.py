"""Correlate two activation stores: the public call, from checks to the finished result.

::

    checks ─▶ plan ─▶ PARTIAL: halves, empty arrays ─▶ one task a tile (Dask) ─▶ merge ─▶ rename to OUT
                         ▲                                  │
                         └── an interrupted run resumes with the tiles that are not on disk
"""

from __future__ import annotations

import atexit
import hashlib
import json
import logging
import shutil
import socket
import tempfile
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr
import zarr.codecs
from distributed import Client
from numpy.typing import NDArray

from pipeline.correlate.grid import KnownB, key_of_rows
from pipeline.correlate.inputs import Inputs
from pipeline.correlate.job import Job, Store, load_arrays, release
from pipeline.correlate.measures import RULES
from pipeline.correlate.panel import (
    BINS,
    MATRIX,
    R_HELD_OUT,
    R,
    Summary,
    correlate_tile,
    join_tiles,
    measure_panel,
)
from pipeline.correlate.plan import CHUNK, MATRIX_ROWS, Cut, Plan, Resources, choose_kernel, make_plan
from pipeline.correlate.ranks import RankJob, RankPlan, plan_ranks, rank_store
from pipeline.correlate.resources import find_resources, parse_memory
from pipeline.correlate.result import label, write_result
from pipeline.correlate.rows import FEWEST_ROWS, log_halves, read_split
from pipeline.settings.base import keywords
from pipeline.settings.correlate import CorrelateSettings, Select
from pipeline.work.share import Share
from pipeline.work.workers import ClientSource, Planned, ensure_client, run_tasks, tell
from storage import (
    BudgetError,
    InputError,
    Manifest,
    claim,
    create_sparse_array,
    fingerprint,
    free_space,
    new_manifest,
    open_result,
)
from storage.errors import CorruptError, MissingInputError
from storage.files import remove_folder, write_text
from storage.json_files import read_json_object
from storage.lazy import source_of

logger = logging.getLogger(__name__)

STAGE = "correlate"
PLAN_FILE = "plan.json"
#: Share of the budget that a threshold is to fill which is worked out before all panels are done.
SAFETY = 0.8


@keywords(CorrelateSettings)
def correlate(
    a: str | Path | xr.Dataset,
    b: str | Path | xr.Dataset,
    settings: CorrelateSettings,
    *,
    out: str | Path | None = None,
    overwrite: bool = False,
    client: ClientSource = None,
    known_b: KnownB | None = None,
    halves: NDArray[np.int8] | None = None,
) -> xr.Dataset:
    """Correlate every feature of one store with every feature of another, exactly and out of core.

    Pearson's r over the rows that both stores share, from float64 sums. The full matrix is never held: what stays
    is the best partners of each feature, every pair above a threshold, and a histogram of all r. Features that do
    not vary, or fire in too few rows (``min_firing``), have no r: they are NaN, never ranked, and counted. Ties go
    to the lower id. The result does not depend on workers, panels or memory, and an interrupted run resumes
    where it was when it is called again.

    Parameters
    ----------
    a, b
        Two activation stores of the same rows: paths, or datasets from :func:`storage.open_activations`.
    settings
        Each setting of :class:`~pipeline.settings.correlate.CorrelateSettings` is a keyword; or all of them as one.
    out
        Where the result is to be; workers on other hosts must see it. By default a temporary folder that is deleted
        when Python exits.
    overwrite
        Whether a correlation at `out` that came from other stores may be replaced.
    client
        Where to run; by default threads of this process.
    known_b
        For many correlations with one B store, one after the other: what the previous one found out about B, changed
        in place for the next one; see :mod:`pipeline.correlate.grid`. It changes no result.
    halves
        The half of each row, int8, (token,): 0 is the selection half, 1 the held-out half, -1 is in neither. By
        default whole documents are assigned to halves, and rows that either store marks as sinks are in neither. Steps
        that split the rows again, as ``intervals`` does, do not know halves that were given.

    Returns
    -------
    xarray.Dataset
        Lazily read from `out`:

        ``best_b`` (feature_a, rank) int32, ``r_b``, ``r_heldout_b`` float64
            The best B features of each A feature, best first; -1 and NaN where there are no more.
        ``best_a`` (feature_b, rank) int32, ``r_a``, ``r_heldout_a`` float64
            The best A features of each B feature.
        ``r``, ``r_heldout`` (feature_a, feature_b) float64
            The kept pairs, as csr arrays (:func:`storage.read_csr` with ``name="r"``); 0 elsewhere.
        ``r_all`` (feature_a, feature_b) float32 or float16
            The whole matrix on the selection half, if `full`; NaN where r is not defined.
        ``histogram`` (bin) int64, ``bin_left``, ``bin_right`` float64
            How many pairs have r in [left, right); 1 itself is in the last bin. Undefined pairs are in none.
        ``mean_a``, ``std_a`` float64, ``n_active_a`` int64, ``defined_a`` bool (feature_a), and ``…_b`` (feature_b)
            Statistics on the selection half, of what the measure is made of: values, firing (0 or 1), or ranks less
            that of zero; the standard deviation divides by n. Not `defined`: no r by this measure.

    Raises
    ------
    RowMismatchError
        If the stores hold different rows.
    InputError
        If a setting is out of range, there are too few rows, or something else stands at `out`
        (:mod:`storage.targets`).
    BusyError
        If another process is writing at `out`.
    BudgetError
        If the work does not fit in memory, or so many pairs are kept that they do not; the message says what would.

    Examples
    --------
    >>> import tempfile, storage
    >>> folder = tempfile.mkdtemp()
    >>> x = np.random.default_rng(0).random((200, 5), dtype="f4")
    >>> storage.write_activations(f"{folder}/a.zarr", x)
    >>> storage.write_activations(f"{folder}/b.zarr", x[:, [3, 1, 4, 0, 2]])
    >>> cor = correlate(f"{folder}/a.zarr", f"{folder}/b.zarr", top_k=1, out=f"{folder}/cor.zarr")
    >>> cor["best_b"].values.ravel(), cor["r_b"].values.ravel()
    (array([3, 1, 4, 0, 2], dtype=int32), array([1., 1., 1., 1., 1.]))
    """
    budget = parse_memory(settings.memory)
    inputs, manifest = _checked(source_of(a), source_of(b), settings, halves)
    path = Path(out) if out is not None else _temporary_path()
    with claim(path, manifest, overwrite=overwrite) as target:
        if target.is_current():
            logger.info("%s is up to date", path)
            return open_result(path, stage=STAGE)
        _check_disk(inputs, settings, path)
        with ensure_client(client) as active:
            resources = find_resources(active, budget, settings.device)
            if out is None and resources.hosts != {socket.gethostname()}:
                raise InputError(
                    f"Workers run on {sorted(resources.hosts)}, which do not see this computer's temporary folder: "
                    "give out= on a file system that all of them share"
                )
            half = _split(inputs, settings) if halves is None else halves
            job = _begin(inputs, settings, half, target.begin().absolute(), resources, active, known_b=known_b)
            _run(job, _attributes(inputs, job, half), active, known_b)
            target.finish()
    return open_result(path, stage=STAGE)


def correlate_share(
    a: str | Path,
    b: str | Path,
    settings: CorrelateSettings,
    *,
    share: Share,
    out: str | Path,
    client: ClientSource = None,
) -> None:
    """Begin a correlation, or do a share of its panels, and leave it unfinished: :func:`correlate` finishes it.

    Parameters
    ----------
    a, b, settings, out, client
        As for :func:`correlate`; the memory is that of this process.
    share
        Which part. What begins the work cuts it for `share.count` processes like itself, and leaves on disk all that
        they have in common.

    Raises
    ------
    MissingInputError
        If the work is not begun, or was begun from other inputs or settings.
    BudgetError
        If the panels, as they were cut, do not fit in memory of this process.
    """
    budget = parse_memory(settings.memory)
    inputs, manifest = _checked(Path(a), Path(b), settings)
    with claim(out, manifest, overwrite=True, part=None if share.begins else str(share)) as target:
        if target.is_current():
            return
        partial = target.partial.absolute()
        if not share.begins and not (target.resumes() and _begun_cut(partial) is not None):
            raise MissingInputError(
                f"{out} is not prepared with these inputs and settings: run --until correlate "
                f"--share begin/{share.count} first, and let it end"
            )
        if share.begins:
            _check_disk(inputs, settings, Path(out))
        with ensure_client(client) as active:
            resources = find_resources(active, budget, settings.device)
            half = _split(inputs, settings)
            if share.begins:
                target.begin()
                resources = replace(resources, memory=resources.memory * share.count, processes=share.count)
            job = _begin(inputs, settings, half, partial, resources, active, begun=not share.begins)
            try:
                _measure(job, active)
                _correlate_tiles(job, active, share)
            finally:
                active.run(release, job.key, on_error="ignore")


def _checked(
    a: Path, b: Path, settings: CorrelateSettings, halves: NDArray[np.int8] | None = None
) -> tuple[Inputs, Manifest]:
    """Return the inputs of a correlation, and what its result depends on."""
    inputs = Inputs.open(a, b).measured_by(settings.measure)
    kernel = choose_kernel(*inputs.sizes, inputs.n_rows, settings.kernel, settings.device)
    hashes = {side: fingerprint(store.path) for side, store in zip("ab", inputs.stores, strict=True)}
    more: dict[str, Any] = {"full": settings.full} if settings.full else {}
    if halves is not None:
        check_halves(halves, inputs.n_rows, settings.select)
        more["halves"] = hashlib.sha256(halves.tobytes()).hexdigest()
    return inputs, new_manifest(STAGE, hashes, _recorded(settings, kernel) | more)


def check_halves(halves: NDArray[np.int8], n_rows: int, select: Select) -> None:
    """Raise an InputError unless `halves` says of each row in which half it counts, with enough rows in each.

    >>> check_halves(np.array([0, 0, 1, -1], np.int8), 4, "half")
    Traceback (most recent call last):
    storage.errors.InputError: halves has 1 rows of half 1; correlation needs at least 2
    """
    if halves.shape != (n_rows,) or halves.dtype != np.int8:
        raise InputError(f"halves must be int8 of shape ({n_rows},), not {halves.dtype} of shape {halves.shape}")
    wanted = (0, 1) if select == "half" else (0,)
    if not np.isin(halves, (-1, *wanted)).all():
        raise InputError(f"halves must hold -1 and {' and '.join(map(str, wanted))} alone, with select={select!r}")
    for half in wanted:
        if (rows := int(np.count_nonzero(halves == half))) < FEWEST_ROWS:
            raise InputError(f"halves has {rows} rows of half {half}; correlation needs at least {FEWEST_ROWS}")


def _recorded(settings: CorrelateSettings, kernel: str) -> dict[str, Any]:
    """Return the settings that decide the result, with the kernel that was chosen."""
    of_result = {"top_k", "keep_above", "select", "measure", "min_firing"}
    if settings.select == "half":
        of_result |= {"split_seed"}
    return settings.model_dump(include=of_result) | {"kernel": kernel}


def correlation_manifest(a: Path, b: Path, settings: CorrelateSettings) -> Manifest:
    """Return what the correlation of two finished stores depends on; the kernel is the one that suits them."""
    return _checked(a, b, settings)[1]


def _temporary_path() -> Path:
    folder = tempfile.mkdtemp(prefix="subspace-correlate-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder) / "correlation.zarr"


def _run(job: Job, attrs: dict[str, Any], client: Client, known_b: KnownB | None) -> None:
    """Do what is not on disk yet, so that the folder holds the whole result."""
    try:
        if known_b is not None:
            known_b.bring(job)
        _measure(job, client)
        _correlate_tiles(job, client)
        if known_b is not None:
            known_b.keep(job)
        write_result(job, attrs, client)
    finally:
        client.run(release, job.key, on_error="ignore")


def _split(inputs: Inputs, settings: CorrelateSettings) -> NDArray[np.int8]:
    """Return the half of each row, before anything is written: too few documents are refused here."""
    paths = inputs.stores[0].path, inputs.stores[1].path
    split = read_split(*paths, settings.select, seed=settings.split_seed)
    if settings.select == "half":
        log_halves(split, seed=settings.split_seed)
    return split.half


def _begin(  # noqa: PLR0917 - what is correlated, how, and where
    inputs: Inputs,
    settings: CorrelateSettings,
    half: NDArray[np.int8],
    folder: Path,
    resources: Resources,
    client: Client,
    *,
    begun: bool = False,
    known_b: KnownB | None = None,
) -> Job:
    """Return the job, with what its tasks share on disk, such as the half of each row.

    `begun`: other processes work on it too, so what is on disk stays as it is.
    """
    plan = _plan(inputs, settings, resources, folder, begun=begun)
    job = Job(
        key=f"{folder}-{uuid.uuid4().hex}",
        a=inputs.stores[0],
        b=inputs.stores[1],
        plan=plan,
        settings=settings,
        folder=folder,
        b_key="" if known_b is None else key_of_rows(inputs.stores[1], half, settings),
    )
    _prepare(job, half)
    if RULES[settings.measure].ranked:
        job = _ranked(job, inputs, resources, client, begun=begun)
    return job


def _ranked(job: Job, inputs: Inputs, resources: Resources, client: Client, *, begun: bool) -> Job:
    """Return the job on the ranks of both stores, which are made where they are not on disk yet, unless `begun`."""
    ranks: dict[Path, Store] = {}
    for store, cut in zip(inputs.stores, _rank_plans(inputs, job.plan, resources), strict=True):
        if store.path not in ranks:
            rank_job = RankJob(
                store=store,
                folder=job.panels / f"ranks-{len(ranks)}",
                n_rows=inputs.n_rows,
                plan=cut,
                halves=job.halves_file,
                n_halves=job.settings.n_halves,
            )
            if not begun:
                rank_store(rank_job, client, f"Ranking {store.path.name}")
            ranks[store.path] = rank_job.ranks
    return replace(job, a=ranks[job.a.path], b=ranks[job.b.path])


def _rank_plans(inputs: Inputs, plan: Plan, resources: Resources) -> list[RankPlan]:
    """Return how both stores are ranked."""
    return [
        plan_ranks(
            replace(size, value_bytes=store.value_bytes),
            n_rows=inputs.n_rows,
            plan=plan,
            resources=resources,
            name=str(store.path),
        )
        for store, size in zip(inputs.stores, inputs.sizes, strict=True)
    ]


def _plan(inputs: Inputs, settings: CorrelateSettings, resources: Resources, folder: Path, *, begun: bool) -> Plan:
    """Return the plan; unfinished work keeps its tiles where they fit, and whether or not if `begun`."""

    def make(cut: Cut | None) -> Plan:
        return make_plan(*inputs.sizes, inputs.n_rows, settings, resources, cut=cut)

    cut = _begun_cut(folder)
    plan = make(cut if begun else None)
    if cut is not None and cut != plan.cut:
        try:
            plan = make(cut)
        except BudgetError:
            logger.info("The panels of %s no longer fit in memory: starting again", folder)
            remove_folder(folder / "panels")
    _announce(plan, inputs, settings, resources)
    return plan


def _announce(plan: Plan, inputs: Inputs, settings: CorrelateSettings, resources: Resources) -> None:
    """Say what will be done in which memory; what cannot be ranked is refused here, before anything is on disk."""
    density = [
        size.n_entries / size.n_features / max(inputs.n_rows, 1) * 100 if size.sparse else 100.0
        for size in inputs.sizes
    ]
    gpu = ""
    if plan.device == "cuda":
        gpu = f", and at most {plan.gpu_projected / 1e9:.2f} of {plan.gpu_allowed / 1e9:.2f} GB of its GPU's memory"
    logger.info(
        "Correlating %d × %d features over %d rows (densities %.3g %% and %.3g %%): %s kernel, %s; %s, at most %.2f of "
        "%.2f GB in each worker process%s",
        inputs.stores[0].n_features, inputs.stores[1].n_features, inputs.n_rows, *density, plan.kernel, plan.method,
        plan.shape, plan.projected / 1e9, plan.allowed / 1e9, gpu,
    )  # fmt: skip
    most = plan.projected
    if RULES[settings.measure].ranked:
        ranking = max(cut.projected for cut in _rank_plans(inputs, plan, resources))
        logger.info("Both sides are ranked first, in at most %.2f GB in each worker process", ranking / 1e9)
        most = max(most, ranking)
    tell(Planned("Correlating", most, resources.reserved))


def _begun_cut(folder: Path) -> Cut | None:
    """Return the tiles of unfinished work, or None if there is none."""
    file = folder / "panels" / PLAN_FILE
    if not file.is_file():
        return None
    remedy = f"delete {folder} and correlate again"
    content = read_json_object(file, f"There is no {file}", remedy)
    widths = [width for name in Cut._fields if isinstance(width := content.get(name), int) and width >= 1]
    if len(widths) < len(Cut._fields):
        raise CorruptError(f"{file} does not say how wide panels and strips are; {remedy}")
    return Cut(*widths)


def _prepare(job: Job, half: NDArray[np.int8]) -> None:
    """Write what the tasks share; work that has begun is left as it is."""
    if (job.panels / PLAN_FILE).is_file():
        return
    remove_folder(job.panels)
    # A group of its own, else Zarr warns of a folder that it does not know
    zarr.create_group(str(job.panels), zarr_format=3)
    for name in (R, R_HELD_OUT)[: job.settings.n_halves]:
        create_sparse_array(
            job.folder,
            name,
            (job.a.n_features, job.b.n_features),
            np.float64,
            dims=("feature_a", "feature_b"),
            attrs=label(name, job.settings.measure),
            shard_rows=job.plan.panel,
            chunk=(min(CHUNK, job.plan.panel), CHUNK),
        )
    if job.settings.full is not None:
        _create_matrix(job)
    np.save(job.halves_file, half, allow_pickle=False)
    # Last, since it says that the rest is there
    write_text(job.panels / PLAN_FILE, json.dumps(job.plan.cut._asdict()))


def _create_matrix(job: Job) -> None:
    """Create the whole matrix; a tile writes whole chunks of it."""
    zarr.open_group(str(job.folder), mode="a").create_array(
        MATRIX,
        shape=(job.a.n_features, job.b.n_features),
        dtype=job.settings.full,
        chunks=(min(MATRIX_ROWS, job.plan.panel), min(CHUNK, job.plan.strip)),
        compressors=(zarr.codecs.ZstdCodec(level=1), zarr.codecs.Crc32cCodec()),
        fill_value=np.nan,
        dimension_names=("feature_a", "feature_b"),
        attributes=label(R, job.settings.measure),
        overwrite=True,
    )


def _check_disk(inputs: Inputs, settings: CorrelateSettings, path: Path) -> None:
    """Refuse a whole matrix that the disk cannot hold."""
    if settings.full is None:
        return
    a, b = inputs.sizes
    needed, (free, _) = a.n_features * b.n_features * np.dtype(settings.full).itemsize, free_space(path)
    if needed > free:
        raise BudgetError(
            f"The whole matrix takes up to {needed / 1e9:.2f} GB at {path} (projected), and {free / 1e9:.2f} GB is "
            "free there: leave out full (--full), which matching does not need, or give another place"
        )


def _measure(job: Job, client: Client) -> None:
    """Put what tiles need to know of all features before they begin on disk, where no tile finds it out by itself."""
    if job.plan.method == "resident" or not _missing_tiles(job):
        return
    sides = {"a": job.a} if job.all_moments_file.is_file() else {"a": job.a, "b": job.b}
    panels = [(side, i) for side, store in sides.items() for i in range(-(-store.n_features // job.plan.panel_b))]
    missing = [panel for panel in panels if not job.measured_file(*panel).is_file()]
    for _ in run_tasks(client, measure_panel, missing, name="correlate-moments", label="Statistics", args=(job,)):
        pass


def _missing_tiles(job: Job) -> list[int]:
    """Return the tiles whose results are not on disk, neither on their own nor with their panel."""
    left = sorted(set(range(job.plan.n_panels)) - set(job.done()))
    return [t for i in left for t in job.tiles_of(i) if not job.tile_file(t).is_file()]


def _correlate_tiles(job: Job, client: Client, share: Share | None = None) -> None:
    """Run the tiles, or a share of them, that are not on disk; stop when the kept pairs outgrow their budget.

    Panels whose tiles are all on disk are finished.
    """
    plan, missing = job.plan, _missing_tiles(job)
    n_done = plan.n_tiles - len(missing)
    if n_done:
        what = "panels" if plan.n_strips == 1 else "tiles"
        logger.info("%d of %d %s are already done", n_done, plan.n_tiles, what)
    tally = Tally(job)
    tally.add_what_is_on_disk()
    mine = range(plan.n_tiles) if share is None else share.of(range(plan.n_tiles))
    n_rows = np.load(job.halves_file, mmap_mode="r", allow_pickle=False).size
    rows_a_tile = n_rows / plan.n_tiles  # though each tile reads them all: the sum is right
    tasks = run_tasks(
        client,
        correlate_tile,
        sorted(set(mine) & set(missing)),
        name="correlate-panel",
        label="Correlating",
        args=(job,),
        rows=lambda _: rows_a_tile,
    )
    for _, summary in tasks:
        tally.add(summary)
    missing = _missing_tiles(job)
    whole = sorted(set(range(plan.n_panels)) - set(job.done()) - {t // plan.n_strips for t in missing})
    if share is None and whole:
        for _ in run_tasks(client, join_tiles, whole, name="correlate-join", label="Joining", args=(job,)):
            pass


class Tally:
    """Counts kept pairs as tiles finish, and stops the run when there are too many."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.n_pairs = 0
        self.n_kept = 0
        self.histogram = np.zeros(BINS, np.int64)

    def add_what_is_on_disk(self) -> None:
        """Take in the panels, and the tiles of other panels, that are done."""
        job, done = self.job, set(self.job.done())
        files = {job.panel_file(i): slice(0, job.b.n_features) for i in done}
        left = (t for i in range(job.plan.n_panels) if i not in done for t in job.tiles_of(i))
        files |= {job.tile_file(t): job.strip(t % job.plan.n_strips) for t in left if job.tile_file(t).is_file()}
        for file, strip in files.items():
            arrays = load_arrays(file)
            n_pairs = arrays["row_id"].shape[0] * (strip.stop - strip.start)
            self.add(Summary(n_pairs, int(arrays["n_kept"]), arrays["histogram"], overflow=False))

    def add(self, summary: Summary) -> None:
        """Take in a tile.

        Raises
        ------
        BudgetError
            If the pairs kept so far, or those of this tile, are more than the plan allows.
        """
        self.n_pairs += summary.n_pairs
        self.n_kept += summary.n_kept
        self.histogram += summary.histogram
        plan, n_a, n_b = self.job.plan, self.job.a.n_features, self.job.b.n_features
        if summary.overflow:
            n_pairs = min(plan.panel, n_a) * min(plan.strip, n_b)
            self._stop(summary, summary.n_pairs / n_pairs, plan.kept_per_tile, "in one tile")
        elif self.n_kept > plan.kept:
            so_far = Summary(self.n_pairs, self.n_kept, self.histogram, overflow=True)
            self._stop(so_far, self.n_pairs / (n_a * n_b), plan.kept, "in total")

    def _stop(self, so_far: Summary, share_done: float, budget: int, where: str) -> None:
        threshold = threshold_that_fits(so_far.histogram, SAFETY * budget * share_done)
        advice = f"keep_above={threshold:.3f} should fit" if threshold is not None else "no threshold would fit"
        raise BudgetError(
            f"Too many pairs have r ≥ {self.job.settings.keep_above}: about {so_far.n_kept / share_done:.0f} are to be "
            f"expected {where}, and {budget} fit in memory that is allowed. {advice}; or raise memory"
        )


def threshold_that_fits(histogram: NDArray[np.int64], budget: float) -> float | None:
    """Return the lowest bin edge above which no more than `budget` pairs lie; None if even the last bin has more.

    >>> histogram = np.zeros(2000, np.int64)
    >>> histogram[[1100, 1500, 1999]] = 5, 3, 1
    >>> threshold_that_fits(histogram, 4)
    0.101
    """
    above = np.cumsum(histogram[::-1])[::-1]
    fits = np.flatnonzero(above <= budget)
    return None if not len(fits) else float(np.round(2 * fits[0] / len(histogram) - 1, 6))


def _attributes(inputs: Inputs, job: Job, half: NDArray[np.int8]) -> dict[str, Any]:
    """Return the attributes of the result that are known before it is computed."""
    attrs = {
        **inputs.attrs,
        **_recorded(job.settings, job.plan.kernel),
        "n_rows_select": int(np.count_nonzero(half == 0)),
        "n_rows_heldout": int(np.count_nonzero(half == 1)),
        "n_rows_excluded": int(np.count_nonzero(half < 0)),
    }
    if "site_a" in attrs and "site_b" in attrs:
        attrs["sites"] = [attrs["site_a"], attrs["site_b"]]
    return attrs
