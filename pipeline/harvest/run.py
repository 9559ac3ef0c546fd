"""Rows → activation stores, through Dask.

::

    rows.zarr ──▶ calibrate: a few windows, all sites ──▶ sink threshold, FVU, L0 of every site (site_check)
        │
        └──▶ task i: every window that overlaps rows of shard i ──▶ model (one pass, stops at the deepest site)
                     ──▶ dictionary of each site ──▶ shard i of each site's store

A task owns one shard of rows in every store, so that tasks never wait for each other and a run resumes at the first
missing shard. Windows are batched by length within a shard, always in the same way, and torch uses one thread in a
task: a shard's bytes depend on neither the number of workers nor the order of tasks.

**Attention sinks.** Rows whose norm exceeds :data:`SINK_MULTIPLE` times the median norm of the calibration sample are
marked in ``sink``; they are stored, but left out of statistics and of everything downstream.

**Memory and disk** are stated in :mod:`pipeline.harvest.plan`, logged at the start, and held by tests: what a worker
takes grows with `shard_rows`, not with the corpus. Too small a disk is refused before the first shard. Beside that a
process holds the dictionaries and the model, up to one block behind the deepest site (the site check looks there).
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
import zarr
from distributed import Client
from numpy.typing import NDArray

from pipeline.harvest.dictionaries import Dictionary, Encoded
from pipeline.harvest.finite import Origin, require_finite, require_storable
from pipeline.harvest.manifests import identify_model, store_manifest
from pipeline.harvest.models import LoadedModel, shared
from pipeline.harvest.plan import SiteNeed, check_disk, predicted_bytes, task_bytes
from pipeline.harvest.pool import any_of_tokens, pool_tokens, runs
from pipeline.harvest.rows import make_rows
from pipeline.harvest.site_check import (
    SINK_MULTIPLE,
    Calibration,
    Sample,
    calibration_rows,
    check_model,
    dictionary_at,
    judge,
    places_around,
    refuse_bad_sites,
)
from pipeline.harvest.sites import Site
from pipeline.settings.harvest import ModelSettings, Pool, StoreSettings
from pipeline.work.share import Share
from pipeline.work.workers import Planned, ensure_client, in_order, run_tasks, tell
from storage import ActivationWriter, Manifest, fingerprint, is_current, open_corpus
from storage.errors import MissingInputError
from storage.files import partial_path
from storage.listing import size_on_disk
from storage.manifest import read_attrs
from storage.rows import TOKEN_COORDINATES
from storage.rundir import Side
from storage.targets import STORE, claim, same_work

__all__ = ["SINK_MULTIPLE", "harvest", "make_rows"]

logger = logging.getLogger(__name__)

Rows = NDArray[np.float32]


@dataclass(frozen=True)
class Job:
    """What every task of one harvest is told; small and picklable.

    Attributes
    ----------
    rows_path, side, model, store
        As given to :func:`harvest`.
    sites
        The sites to be harvested, by their names.
    tried
        Site → the places that the site check tries its dictionary on: what is read there, and what is to be explained.
    stores, manifests
        Site → the store to be written, and what it is made from; of all sites.
    """

    rows_path: str
    side: Side
    model: ModelSettings
    store: StoreSettings
    sites: dict[str, Site]
    tried: dict[str, list[tuple[Site, Site]]]
    stores: dict[str, Path]
    manifests: dict[str, Manifest]

    def dictionary(self, site: str, device: str = "cpu") -> Dictionary:
        """Return the dictionary of a site; it is loaded once a process. The driver may be without the workers' GPU."""
        return dictionary_at(self.model, self.sites[site], device)

    def loaded(self) -> LoadedModel:
        """Return the model with hooks at all sites, and where dictionaries are tried; it is loaded once a process."""
        around = {site.name: site for name in self.sites for place in self.tried[name] for site in place}
        return shared(self.model, (around | self.sites).values())


def harvest(  # noqa: PLR0917 - the stage's inputs, then its settings
    corpus_path: str | Path,
    rows_path: str | Path,
    model: ModelSettings,
    side: Side,
    store: StoreSettings,
    out_dir: str | Path,
    *,
    share: Share | None = None,
    client: Client | None = None,
) -> dict[str, Path]:
    """Write one activation store for each site of one model, in one pass over the text.

    Parameters
    ----------
    corpus_path
        The corpus that the rows were made from.
    rows_path
        The table of :func:`make_rows`.
    model
        The model, its sites and dictionaries.
    side
        Which side of the table the model is.
    store
        How activations are kept.
    out_dir
        Folder of the stores, ``SITE.zarr`` each.
    share
        Begin the stores, or write this share of their shards, and leave them unfinished; see
        :mod:`pipeline.work.share`.
    client
        Where the tasks run; threads of this process by default.

    Returns
    -------
    dict
        Site → path of its finished store. A store that is current is left as it is; a half-finished one is resumed.

    Raises
    ------
    InputError
        If a site or dictionary does not fit the model, a dictionary does not belong to its site (see
        :mod:`pipeline.harvest.site_check`), or an activation is not finite.
    """
    job = begin(corpus_path, rows_path, model, side, store, out_dir)
    part = None if share is None or share.begins else str(share)
    with contextlib.ExitStack() as claims:
        targets = {
            site: claims.enter_context(
                claim(job.stores[site], job.manifests[site], kind=STORE, overwrite=True, part=part)
            )
            for site in job.sites
        }
        # The claim has finished what a process left that died between its last shard and the renaming
        todo = {site: job.sites[site] for site, target in targets.items() if not target.is_current()}
        if todo:
            _harvest(dataclasses.replace(job, sites=todo), share, client)
    return job.stores


def _harvest(job: Job, share: Share | None, client: Client | None) -> None:
    """Write the stores of a job, or a share of their shards."""
    with ensure_client(client) as used:
        if share is not None and not share.begins:
            _write_share(job, share, used)
            return
        calibrations, decoders = measure(job, used)
        predicted = predict(job, calibrations, decoders)
        check_disk({site: job.stores[site] for site in job.sites}, predicted.disk)
        # model and dictionaries are loaded by now: this comes on top
        tell(Planned(f"harvest {job.side.upper()}", predicted.memory * max(used.nthreads().values(), default=1)))
        writers = {site: _create(job, site, calibrations[site], decoders[site]) for site in job.sites}
        if share is not None:
            return
        _write_shards(job, {site: calibrations[site].threshold for site in job.sites}, writers, used)
    for site, writer in writers.items():
        writer.finalise()
        _log_store(site, job.stores[site])


def begin(  # noqa: PLR0917 - as harvest
    corpus_path: str | Path,
    rows_path: str | Path,
    model: ModelSettings,
    side: Side,
    store: StoreSettings,
    out_dir: str | Path,
) -> Job:
    """Return what tasks are told, with the sites that are still to be harvested."""
    info, known = check_model(model), identify_model(model)
    stores = {site: Path(out_dir) / f"{site}.zarr" for site in model.sites}
    corpus, rows = open_corpus(corpus_path).hash, fingerprint(rows_path)
    manifests = {site: store_manifest(corpus, rows, known, site, side, model, store) for site in model.sites}
    sites = {name: site for name, site in info.sites.items() if not is_current(stores[name], manifests[name])}
    tried = {name: places_around(model, info, site) for name, site in sites.items()}
    return Job(str(rows_path), side, model, store, sites, tried, stores, manifests)


def measure(job: Job, client: Client) -> tuple[dict[str, Calibration], dict[str, Rows]]:
    """Run a sample of the text through the model: return what it says of each site, and each site's decoder.

    InputError if a dictionary does not belong to its site, and that is not allowed.
    """
    calibrations = _calibrate(job, client)
    refuse_bad_sites(calibrations, allowed=job.model.allow_bad_site)
    return calibrations, _decoders(job, client)


@dataclass(frozen=True)
class Prediction:
    """What a harvest will take.

    Attributes
    ----------
    n_rows, n_tokens
        Rows of each store, and tokens that the model reads.
    needs
        Site → what is known of its store.
    disk
        Site → bytes.
    memory
        Bytes of a task, beside the model and the dictionaries.
    """

    n_rows: int
    n_tokens: int
    needs: dict[str, SiteNeed]
    disk: dict[str, int]
    memory: int


def predict(job: Job, calibrations: dict[str, Calibration], decoders: dict[str, Rows]) -> Prediction:
    """Predict memory and disk from each site's mean number of active features and its decoder; the memory is logged."""
    table = zarr.open_group(job.rows_path, mode="r")
    n_rows = table["document"].shape[0]
    # a pooled row has at most the features of all its tokens
    tokens = table.attrs[f"n_pooled_{job.side}"] / n_rows
    needs = {
        site: SiteNeed(
            decoder.shape[0],
            min(calibrations[site].l0 * tokens, decoder.shape[0]),
            job.dictionary(site).layout,
            job.store.dtype,
            decoder,
        )
        for site, decoder in decoders.items()
    }
    coordinates = sum(size_on_disk(Path(job.rows_path) / name) for name in _coordinate_arrays(table, job.side).values())
    lengths = np.asarray(table[f"stop_{job.side}"][:] - table[f"first_{job.side}"][:])
    memory = task_bytes(needs, min(job.store.shard_rows, n_rows), job.model.batch_size * int(lengths.max()))
    logger.info("Memory: at most %.0f MB per task, besides model and dictionaries", memory / 1e6)
    disk = {site: predicted_bytes(need, n_rows, coordinates) for site, need in needs.items()}
    return Prediction(n_rows, int(lengths.sum()), needs, disk, memory)


def _create(job: Job, site: str, calibration: Calibration, decoder: Rows) -> ActivationWriter:
    """Start or resume a site's store."""
    dictionary, manifest = job.dictionary(site), job.manifests[site]
    tokens = _token_coordinates(job.rows_path, job.side)
    attrs = {
        "kind": dictionary.kind,
        "model": job.model.id,
        "model_revision": job.model.revision or manifest.inputs["model"],
        "model_dtype": job.model.dtype,
        "site": site,
        "module": job.sites[site].path,
        "tensor": job.sites[site].tensor,
        "dictionary": dictionary.id,
        "dictionary_config": dictionary.config,
        "corpus_hash": manifest.inputs["corpus"],
        "pool": read_pool(job.rows_path),
        "sink_threshold": calibration.threshold,
        "sink_multiple": SINK_MULTIPLE,
        "calibration": dataclasses.asdict(calibration),
    }
    ActivationWriter.create(
        job.stores[site],
        n_tokens=len(tokens["document"]),
        n_features=dictionary.n_features,
        tokens=tokens,
        decoder=decoder,
        attrs=attrs,
        dtype=job.store.dtype,
        layout=dictionary.layout,
        shard_rows=job.store.shard_rows,
        manifest=manifest,
        overwrite=True,
    )
    # The harvest's claim keeps others out. A writer with a hold would live on in the traceback of an interrupt
    return ActivationWriter.open(job.stores[site])


def read_pool(rows_path: str) -> Pool:
    """Return how the rows of a table are pooled."""
    pool: Pool = zarr.open_group(rows_path, mode="r").attrs["pool"]
    return pool


def _token_coordinates(rows_path: str, side: Side) -> dict[str, NDArray[Any]]:
    table = zarr.open_group(rows_path, mode="r")
    return {name: np.asarray(table[array][:]) for name, array in _coordinate_arrays(table, side).items()}


def _coordinate_arrays(table: zarr.Group, side: Side) -> dict[str, str]:
    """Return the names of the coordinates of a side's rows, and of the arrays of the table that hold them."""
    of_side = {"position": f"position_{side}", "token_id": f"token_id_{side}"}
    arrays = {name: of_side.get(name, name) for name in TOKEN_COORDINATES}
    return {name: array for name, array in arrays.items() if array in table}


# --- the model's pass over some windows -------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Windows:
    """The inputs of consecutive windows, and which of their tokens make the rows.

    Attributes
    ----------
    inputs
        Token ids of each window.
    rows
        For each window, the row of each token that enters one, counted from `first_row`; ascending.
    positions
        Position in the window of each of these tokens.
    first_row
        The first row asked for.
    """

    inputs: list[NDArray[np.int32]]
    rows: list[NDArray[np.int64]]
    positions: list[NDArray[np.int64]]
    first_row: int


def _read_windows(rows_path: str, side: Side, rows: slice) -> _Windows:
    """Read every window that overlaps the rows."""
    table = zarr.open_group(rows_path, mode="r")
    window = np.asarray(table["window_of_row"][rows])
    position = np.asarray(table[f"position_{side}"][rows], np.int64)
    first_window, stop_window = int(window[0]), int(window[-1]) + 1
    first = np.asarray(table[f"first_{side}"][first_window:stop_window])
    stop = np.asarray(table[f"stop_{side}"][first_window:stop_window])
    slots = np.asarray(table[f"input_{side}"][int(first[0]) : int(stop[-1])])
    edges = np.searchsorted(window, np.arange(first_window, stop_window + 1))
    spans = list(itertools.pairwise(edges))
    numbers, positions = [np.arange(i, j) for i, j in spans], [position[i:j] for i, j in spans]
    if f"pooled_{side}" in table:
        pooled = np.asarray(table[f"pooled_{side}"][int(first[0]) : int(stop[-1])])
        masks = [pooled[i - first[0] : j - first[0]] for i, j in zip(first, stop, strict=True)]
        before = _last_position_before(table, side, rows.start, first_window)
        numbers, positions = _tokens_of_rows(masks, numbers, positions, before)
    return _Windows(
        inputs=[slots[i - first[0] : j - first[0]] for i, j in zip(first, stop, strict=True)],
        rows=numbers,
        positions=positions,
        first_row=rows.start,
    )


def _last_position_before(table: zarr.Group, side: Side, row: int, window: int) -> int:
    """Return where the row before `row` ends in `window`; −1 if that row is in another window."""
    if row == 0 or int(table["window_of_row"][row - 1]) != window:
        return -1
    return int(table[f"position_{side}"][row - 1])


def _tokens_of_rows(
    masks: Sequence[NDArray[np.bool_]],
    numbers: Sequence[NDArray[np.int64]],
    positions: Sequence[NDArray[np.int64]],
    before: int,
) -> tuple[list[NDArray[np.int64]], list[NDArray[np.int64]]]:
    """Return, for each window, the row and the position of every token that is pooled into one of the rows.

    `numbers` and `positions` are of the rows' last tokens; of the first window, only what lies behind `before`.
    """
    parts: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
    for mask, number, position in zip(masks, numbers, positions, strict=True):
        slots = np.flatnonzero(mask)
        slots = slots[slots > (-1 if parts else before)]
        row = np.searchsorted(position, slots)
        inside = row < len(position)
        parts.append((number[row[inside]], slots[inside]))
    return [rows for rows, _ in parts], [slots for _, slots in parts]


def batches(lengths: Sequence[int], size: int, *, padded: bool = True) -> list[list[int]]:
    """Group items of like length, so that little is padded; the same lengths always give the same groups.

    Unless `padded`, the items of a group are equally long.

    Examples
    --------
    >>> batches([5, 1, 4, 1], 2)
    [[0, 2], [1, 3]]
    >>> batches([5, 1, 4, 1], 2, padded=False)
    [[0], [2], [1, 3]]
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    alike = [order] if padded else [list(group) for _, group in itertools.groupby(order, key=lambda i: lengths[i])]
    return [group[i : i + size] for group in alike for i in range(0, len(group), size)]


def _run_windows(
    windows: _Windows, model: LoadedModel, size: int
) -> Iterator[tuple[NDArray[np.int64], dict[str, Rows]]]:
    """Run batches of windows; yield tokens' row numbers and, for each site, activations float32 (tokens, d_model)."""
    lengths = [len(ids) for ids in windows.inputs]
    padded = len(set(lengths)) == 1 or not model.padding_matters
    for batch in batches(lengths, size, padded=padded):
        rows = np.concatenate([windows.rows[i] for i in batch])
        if not len(rows):
            continue
        where = np.repeat(np.arange(len(batch)), [len(windows.rows[i]) for i in batch])
        position = np.concatenate([windows.positions[i] for i in batch])
        values = model.reader(*_padded([windows.inputs[i] for i in batch], model))
        yield rows, {site: value[where, position].cpu().numpy() for site, value in values.items()}


def _padded(inputs: Sequence[NDArray[np.int32]], model: LoadedModel) -> tuple[Any, Any]:
    """Return ids and attention mask (batch, longest), padded on the right with any valid id: it is masked."""
    import torch

    longest = max(len(ids) for ids in inputs)
    ids = torch.zeros((len(inputs), longest), dtype=torch.long)
    mask = torch.zeros((len(inputs), longest), dtype=torch.long)
    for i, token_ids in enumerate(inputs):
        ids[i, : len(token_ids)] = torch.from_numpy(token_ids.astype(np.int64))
        mask[i, : len(token_ids)] = 1
    return ids.to(model.device), mask.to(model.device)


def _one_thread() -> None:
    """Let torch use one thread in this thread: Dask runs tasks in parallel, and sums keep one order."""
    import torch

    torch.set_num_threads(1)


# --- calibration ------------------------------------------------------------------------------------------------------


def _calibrate(job: Job, client: Client) -> dict[str, Calibration]:
    """Run evenly spaced windows and judge each site by them."""
    spans = calibration_rows(np.asarray(zarr.open_group(job.rows_path, mode="r")["window_of_row"][:]))
    label = f"calibrate {job.side.upper()}"
    tasks = run_tasks(client, _sample, list(enumerate(spans)), name="calibrate", label=label, args=(job,))
    windows = list(in_order((number, sample) for (number, _), sample in tasks))
    samples = {place: Sample.join([window[place] for window in windows]) for place in windows[0]}
    calibrations = {}
    for name, site in job.sites.items():
        own, *around = [(read.name, samples[read.name, explained.name]) for read, explained in job.tried[name]]
        calibrations[name] = judge(site, own[1], dict(around), job.dictionary(name))
    return calibrations


def _sample(item: tuple[int, slice], job: Job) -> dict[tuple[str, str], Sample]:
    """Sample the rows of one window wherever a dictionary is tried: what is read, and is to be explained; one task."""
    _one_thread()
    windows = _read_windows(job.rows_path, job.side, item[1])
    numbers, values = next(_run_windows(windows, job.loaded(), job.model.batch_size))
    for site in job.sites:
        require_finite(values[site], item[1].start + numbers, site, Origin(job.rows_path, job.side, job.model))
    places = {(read.name, explained.name) for name in job.sites for read, explained in job.tried[name]}
    return {(read, explained): Sample.of(values[read], values[explained]) for read, explained in sorted(places)}


def _decoders(job: Job, client: Client) -> dict[str, Rows]:
    """Return the decoder rows of every site; those of hidden neurons are the model's own weights, read by a worker."""
    decoders = {site: job.dictionary(site).decoder for site in job.sites}
    neurons = [site for site, decoder in decoders.items() if decoder is None]
    label = f"decoders {job.side.upper()}"
    read = (
        dict(run_tasks(client, _down_projection, neurons, name="decoder", label=label, args=(job,))) if neurons else {}
    )
    return {site: read[site] if decoder is None else decoder for site, decoder in decoders.items()}


def _down_projection(site: str, job: Job) -> Rows:
    """Return the weights that hidden neurons write with, (neurons, d_model); one task."""
    return job.loaded().reader.down_projection(job.sites[site])


# --- shards -----------------------------------------------------------------------------------------------------------


def _write_share(job: Job, share: Share, client: Client) -> None:
    """Write a share of the shards of stores that another process has begun, from the same inputs and settings."""
    for site in job.sites:
        if not same_work(partial_path(job.stores[site]), job.manifests[site]):
            raise MissingInputError(
                f"{job.stores[site]} is not prepared with these inputs and settings: run --until harvest --share "
                f"begin/{share.count} first, and let it end"
            )
    thresholds = {site: float(read_attrs(partial_path(job.stores[site]))["sink_threshold"]) for site in job.sites}
    writers = {site: ActivationWriter.open(job.stores[site]) for site in job.sites}
    _write_shards(job, thresholds, writers, client, share)


def _write_shards(
    job: Job,
    thresholds: dict[str, float],
    writers: dict[str, ActivationWriter],
    client: Client,
    share: Share | None = None,
) -> None:
    """Write every missing shard of every store, or those of a share, one task for all sites of a shard."""
    missing = {site: set(writer.missing()) for site, writer in writers.items()}
    if share is not None:
        mine = set(share.of(range(max(writer.n_shards for writer in writers.values()))))
        missing = {site: numbers & mine for site, numbers in missing.items()}
    shards = sorted(set().union(*missing.values()))
    items = [(shard, tuple(site for site in writers if shard in missing[site])) for shard in shards]
    label = f"harvest {job.side.upper()}"
    any_writer = next(iter(writers.values()))

    def rows(item: tuple[int, tuple[str, ...]]) -> float:
        part = any_writer.shard_slice(item[0])
        return float(part.stop - part.start)

    arguments = (job, thresholds)
    for _ in run_tasks(
        client, _harvest_shard, items, name="harvest-shard", label=label, args=arguments, per_slot=1, rows=rows
    ):
        pass  # the shards are on disk


def _harvest_shard(item: tuple[int, tuple[str, ...]], job: Job, thresholds: dict[str, float]) -> None:
    """Run every window of one shard and write the shard of each site; one task."""
    shard, sites = item
    writers = {site: ActivationWriter.open(job.stores[site]) for site in sites}
    any_writer = writers[sites[0]]
    collected = run_rows(job, any_writer.shard_slice(shard), sites, thresholds, any_writer.dtype)
    for site in sites:
        writers[site].write_shard(shard, *collected.pop(site).finish())


def run_rows(
    job: Job, rows: slice, sites: tuple[str, ...], thresholds: dict[str, float], dtype: np.dtype[Any]
) -> dict[str, _Collected]:
    """Run every window that overlaps some rows; return what each site's dictionary makes of them.

    `thresholds` are the norms above which a row is a sink; what `dtype`, the type of the stores, cannot hold is an
    error.
    """
    _one_thread()
    pool, origin = read_pool(job.rows_path), Origin(job.rows_path, job.side, job.model)
    collected = {
        site: _Collected(job.dictionary(site, job.model.device), thresholds[site], pool, rows.stop - rows.start)
        for site in sites
    }
    windows = _read_windows(job.rows_path, job.side, rows)
    for numbers, values in _run_windows(windows, job.loaded().only(sites), job.model.batch_size):
        for site in sites:
            require_finite(values[site], rows.start + numbers, site, origin)
            encoded = collected[site].add(numbers, values[site])
            require_storable(encoded, rows.start + numbers[runs(numbers)[0]], site, origin, dtype)
    return collected


class _Collected:
    """Encoded rows of one shard, gathered in the order of batches and given back in the order of rows.

    Memory: dense rows once, in their places; sparse rows three times while they are put in order.
    """

    def __init__(self, dictionary: Dictionary, threshold: float, pool: Pool, n_rows: int) -> None:
        self._dictionary = dictionary
        self._threshold = threshold
        self._pool = pool
        self._numbers: list[NDArray[np.int64]] = []
        self._sparse: list[sp.csr_array] = []
        self._dense = np.empty((n_rows if dictionary.layout == "dense" else 0, dictionary.n_features), np.float32)
        self._sink = np.zeros(n_rows, bool)

    def add(self, numbers: NDArray[np.int64], tokens: Rows) -> Encoded:
        """Encode tokens, pool those of one row, and note which rows are sinks: those with a token that is one."""
        rows = numbers[runs(numbers)[0]]
        encoded = pool_tokens(self._dictionary.encode(tokens), numbers, self._pool)
        self._sink[rows] = any_of_tokens(np.linalg.norm(tokens, axis=1) > self._threshold, numbers)
        if self._dictionary.layout == "dense":
            self._dense[rows] = encoded
        else:
            self._numbers.append(rows)
            self._sparse.append(encoded)
        return encoded

    def finish(self) -> tuple[Encoded, NDArray[np.bool_]]:
        """Return the shard's activations and sink marks; once only."""
        if self._dictionary.layout == "dense":
            return self._dense, self._sink
        order = np.argsort(np.concatenate(self._numbers))
        stacked = sp.vstack(self._sparse, format="csr")
        self._sparse.clear()
        return stacked[order], self._sink


def _log_store(site: str, path: Path) -> None:
    """Say how many rows a store has and how many of them are sinks."""
    sink = np.asarray(zarr.open_group(path, mode="r")["sink"][:])
    logger.info("%s: %d rows, %d of them attention sinks (left out downstream)", site, len(sink), int(sink.sum()))
