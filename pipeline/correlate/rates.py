"""How long a correlation will take: a few rates of this machine, times the work that the plan counts.

The rates that come with the package are in :mod:`pipeline.correlate.cost`. ``subspace plan --calibrate`` measures those
of the machine at hand, with every core at work, and keeps them in the cache folder.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.sparse
from threadpoolctl import threadpool_limits

from pipeline.correlate.cost import CHOSEN_SHARE, SECTORS, Rates
from pipeline.correlate.kernels import dense, scatter
from pipeline.correlate.kernels.csr import Columns, Rows, by_feature
from pipeline.correlate.kernels.device import Device, find_device
from pipeline.correlate.kernels.exact import add_pairs
from pipeline.correlate.kernels.reduce import COPIES, Half, Kept, Output, Side, empty_best, make_side, scratch
from pipeline.correlate.kernels.sparse import add_products, correlate_resident
from pipeline.correlate.kernels.touched import correlate_touched, make_order
from pipeline.correlate.plan import DENSE_ROWS, Plan, StoreSize, kept_buffer, sparse_products
from storage import read_csr, read_dense, write_activations
from storage.errors import CorruptError
from storage.files import write_text
from storage.json_files import read_json_object

logger = logging.getLogger(__name__)

__all__ = ["Rates", "load_rates", "measure_rates", "predict_seconds", "save_rates"]

RATES_FILE = "rates.json"
#: Size of the sparse panels that are timed.
_ROWS, _FEATURES, _WIDTH = 20_000, 16_384, 256


def load_rates(folder: Path) -> Rates | None:
    """Return the rates that :func:`save_rates` put in a folder, or None."""
    file = folder / RATES_FILE
    if not file.is_file():
        return None
    known = {field.name for field in dataclasses.fields(Rates)}
    remedy = "`subspace plan --calibrate` writes it again"
    stored = read_json_object(file, f"There is no {file}", remedy)
    if not all(isinstance(value, int | float) and value > 0 for name, value in stored.items() if name in known):
        raise CorruptError(f"{file} holds rates that are not positive numbers; {remedy}")
    return Rates(**{name: float(value) for name, value in stored.items() if name in known})


def save_rates(rates: Rates, folder: Path) -> Path:
    """Keep rates in a folder; return the file."""
    write_text(folder / RATES_FILE, json.dumps(dataclasses.asdict(rates), indent=1))
    return folder / RATES_FILE


def predict_seconds(
    plan: Plan, a: StoreSize, b: StoreSize, *, n_rows: int, n_halves: int, slots: int, rates: Rates
) -> float:
    """Return how long a correlation will take, from stores on disk to the result on disk, with so many tasks at once.

    >>> from pipeline.correlate.plan import Resources, make_plan
    >>> from pipeline.settings.correlate import CorrelateSettings
    >>> size = StoreSize(sparse=True, value_bytes=4, entries=np.full(4096, 1000))
    >>> plan = make_plan(size, size, 100_000, CorrelateSettings(), Resources(10**9))
    >>> predict_seconds(plan, size, size, n_rows=100_000, n_halves=2, slots=1, rates=Rates()) < 60
    True
    """
    work = _WORK[plan.method](plan, a, b, (n_rows, n_halves), rates.on(plan.device))
    if plan.touched:  # products of the half that selects; those of the other are for few pairs
        pairs = sparse_products(a, b, n_rows) / n_halves * max(0.0, rates.touched - rates.product)
    else:
        pairs = a.n_features * b.n_features * rates.pair
    if plan.device == "cuda":
        pairs += _copied(plan, a, b, n_rows, 1 if plan.method == "dense" else n_halves) * rates.gpu_copy
    # Tiles run in rounds: with three tiles on two slots, the second round leaves one idle
    rounds = -(-plan.n_tiles // slots) / plan.n_tiles
    measuring = max(1, min(slots, plan.n_measured(a.n_features) + plan.n_measured(b.n_features)))
    return rates.start + work.serial + work.shared / measuring + (work.tiles + pairs) * rounds


@dataclass(frozen=True)
class _Work:
    """Seconds on one core: what one thread does while others wait, what all do before tiles, what tiles do."""

    serial: float
    shared: float
    tiles: float


def _resident(plan: Plan, a: StoreSize, b: StoreSize, rows: tuple[int, int], rates: Rates) -> _Work:
    products = sparse_products(a, b, rows[0])
    tiles = plan.n_strips * a.n_entries * rates.entry + products * rates.product
    if plan.n_strips == 1:
        return _Work(b.n_entries * rates.entry, 0.0, tiles)
    return _Work(0.0, 0.0, tiles + plan.n_panels * b.n_entries * rates.entry)


def _streaming(plan: Plan, a: StoreSize, b: StoreSize, rows: tuple[int, int], rates: Rates) -> _Work:
    products = sparse_products(a, b, rows[0])
    reads = plan.n_strips * a.n_entries + plan.n_panels * b.n_entries
    before = (a.n_entries + b.n_entries) * rates.entry
    return _Work(0.0, before, reads * rates.entry + products * rates.streamed)


def _dense(plan: Plan, a: StoreSize, b: StoreSize, rows: tuple[int, int], rates: Rates) -> _Work:
    n_rows, n_halves = rows
    values_a, values_b = n_rows * a.n_features, n_rows * b.n_features
    pairs, n_slabs = a.n_features * b.n_features, -(-n_rows // DENSE_ROWS)
    products = pairs * (n_slabs * rates.tile + n_rows / n_halves * rates.dense_product)
    # Standardising for every tile, and re-scoring for every panel
    reads = (plan.n_strips + 1) * values_a + 2 * plan.n_panels * values_b
    held_out = pairs * CHOSEN_SHARE * (n_rows - n_rows / n_halves) * rates.chosen
    return _Work(0.0, (values_a + values_b) * rates.value, reads * rates.value + products + held_out)


_WORK: dict[str, Callable[[Plan, StoreSize, StoreSize, tuple[int, int], Rates], _Work]] = {
    "resident": _resident,
    "streaming": _streaming,
    "dense": _dense,
}


def _copied(plan: Plan, a: StoreSize, b: StoreSize, n_rows: int, n_tiles: int) -> float:
    """Return the bytes that pass between the host and its GPU: rows there, for each tile, and sums back."""
    bytes_a, bytes_b = (
        n_rows * size.n_features * size.value_bytes
        if plan.method == "dense"
        else size.n_entries * (4 + size.value_bytes)
        for size in (a, b)
    )
    return plan.n_strips * bytes_a + plan.n_panels * bytes_b + 8.0 * a.n_features * b.n_features * n_tiles


def measure_rates(threads: int) -> Rates:
    """Measure the rates of this machine with so many threads at work at once; takes some 10 seconds.

    Memory is at most 300 MB for each thread.
    """
    with threadpool_limits(1, user_api="blas"), tempfile.TemporaryDirectory(prefix="subspace-rates-") as folder:
        stores = _write_stores(Path(folder))
        rates = _measure_sparse(threads) | _measure_dense(threads) | _measure_reading(threads, *stores)
        rates |= _measure_gpu(find_device("auto"))
    return dataclasses.replace(Rates(), **rates)


def _seconds(threads: int, function: Callable[[int], object], repeats: int = 3) -> float:
    """Return the seconds of one call while every thread makes one; the best of some tries, after one to warm up."""
    best = float("inf")
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(repeats + 1):
            start = time.perf_counter()
            list(pool.map(function, range(threads)))
            best = min(best, time.perf_counter() - start)
    return best


def _random_csr(rows: int, features: int, active: int) -> scipy.sparse.csr_array:
    rng = np.random.default_rng(0)
    ids = np.sort(
        rng.integers(0, features // active, (rows, active)) + np.arange(active) * (features // active), axis=1
    )
    values = rng.random(rows * active, dtype=np.float32)
    return scipy.sparse.csr_array((values, ids.ravel(), np.arange(0, rows * active + 1, active)), (rows, features))


@dataclass(frozen=True)
class _SparseCase:
    """A panel of random sparse features, to be timed."""

    columns: Columns
    b: Rows
    half: Half
    n_products: int

    @classmethod
    def random(cls, active: int) -> _SparseCase:
        csr = _random_csr(_ROWS, _FEATURES, active)
        part = csr[:, :_WIDTH].tocsr()
        a, b = (Rows(side.indptr.astype(np.int64), side.indices.astype(np.uint16), side.data) for side in (part, csr))
        half = Half(1.0 / _ROWS, _side(part), _side(csr), 0.0)
        return cls(by_feature(a, np.zeros(_ROWS, np.int8), _WIDTH, 1), b, half, part.nnz * active)

    def resident(self, threads: int) -> float:
        halves = self.half, self.half

        def panel(_: int) -> int:
            return correlate_resident(self.columns, self.b, 0, 0, halves, False, _output(), scratch(_FEATURES, 16))

        return _seconds(threads, panel)

    def touched(self, threads: int) -> float:
        halves, order = (self.half, self.half), make_order(self.half.b.level, self.half.b.scale)
        rooms = [(_output(), scratch(_FEATURES, 16)) for _ in range(threads)]

        def panel(i: int) -> int:
            return correlate_touched(self.columns, self.b, 0, 0, halves, False, order, *rooms[i])

        return _seconds(threads, panel)

    def streaming(self, threads: int) -> float:
        tiles = [np.zeros((_WIDTH, _FEATURES)) for _ in range(threads)]
        return _seconds(threads, lambda i: add_products(tiles[i], 0, self.columns, self.b))


def _measure_sparse(threads: int) -> dict[str, float]:
    """Time panels of few and of many active features: pairs dominate the one, products the other."""
    few, some, many = _SparseCase.random(8), _SparseCase.random(32), _SparseCase.random(256)
    seconds = few.resident(threads), many.resident(threads)
    product = max((seconds[1] - seconds[0]) / (many.n_products - few.n_products), 1e-10)
    pair = max(seconds[0] - few.n_products * product, 0.0) / (_WIDTH * _FEATURES)
    touched = some.touched(threads) / some.n_products
    return {
        "product": product,
        "pair": pair,
        "touched": touched,
        "streamed": many.streaming(threads) / many.n_products,
    }


def _side(csr: scipy.sparse.csr_array) -> Side:
    """Return the statistics of the features of a matrix."""
    total = np.asarray(csr.sum(axis=0), np.float64).ravel()
    variance = np.asarray(csr.multiply(csr).sum(axis=0), np.float64).ravel() - total**2 / csr.shape[0]
    scale = np.where(variance > 0, np.maximum(variance, 1e-9) ** -0.5, 0.0)
    return make_side(total, variance, scale, 1.0 / csr.shape[0])


def _output() -> Output:
    """Return room for the results of a panel, late in a run: lists are full, and few r are let in."""
    size = kept_buffer(_FEATURES)
    kept = Kept(np.zeros(_WIDTH, np.int64), np.empty(size, np.int32), np.empty(size), np.empty(size))
    bar = np.full(_FEATURES, 0.5)
    histogram, matrix = np.zeros((COPIES, 2001), np.int64), np.empty((0, _FEATURES), np.float32)
    return Output(empty_best(_WIDTH, 16), empty_best(_FEATURES, 16), bar, 0.5, kept, histogram, matrix)


def _measure_dense(threads: int) -> dict[str, float]:
    rows, width = 4096, 2048
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((rows, width), dtype=np.float32) for _ in "ab")
    tiles = [np.zeros((width, width)) for _ in range(threads)]
    whole = _seconds(threads, lambda i: dense.add_products(np, tiles[i], a, b))
    thin = _seconds(threads, lambda i: dense.add_products(np, tiles[i], a[:64], b[:64]))
    pairs = width * width
    product = (whole - thin) / (pairs * (rows - 64))
    return {
        "dense_product": product,
        "tile": max(thin / pairs - 64 * product, 1e-11),
        "chosen": _measure_chosen(threads),
    }


def _measure_chosen(threads: int) -> float:
    rng, width, rows, n_pairs = np.random.default_rng(0), 2048, 512, 20_000
    x, y = (rng.standard_normal((width, rows)) for _ in "ab")
    at_x, at_y = np.sort(rng.integers(0, width, n_pairs)), rng.integers(0, width, n_pairs)
    sums = np.zeros((threads, n_pairs))
    return _seconds(threads, lambda i: add_pairs(sums[i], x, y, at_x, at_y)) / (n_pairs * rows)


def _measure_gpu(device: Device) -> dict[str, float]:
    """Time sparse and dense products, and a copy to the host, on the GPU of this process, if it has one."""
    if device.name == "cpu":
        return {}
    case = _SparseCase.random(256)
    tile = device.xp.zeros((_WIDTH, _FEATURES), dtype=device.xp.float64)
    a, b = (device.put(np.ones((4096, width), np.float32)) for width in (2048, 2048))
    square = device.xp.zeros((2048, 2048), dtype=device.xp.float64)

    def finished(work: Callable[[], object]) -> float:
        """Time work and the copy of one number, which waits for it."""
        return _seconds(1, lambda _: (work(), device.get(tile[:1, :1]), device.get(square[:1, :1])))

    sparse = finished(lambda: scatter.add_products(device, [tile], case.columns, case.b))
    full = finished(lambda: dense.add_products(device.xp, square, a, b))
    return {
        "gpu_byte": sparse / case.n_products / SECTORS,
        "gpu_dense_product": full / (4096 * square.size),
        "gpu_copy": finished(lambda: device.get(tile)) / tile.nbytes,
    }


def _write_stores(folder: Path) -> tuple[Path, Path]:
    sparse, full = folder / "sparse.zarr", folder / "dense.zarr"
    write_activations(sparse, _random_csr(16_384, 32_768, 64))
    write_activations(full, np.random.default_rng(0).standard_normal((8192, 2048), dtype=np.float32), layout="dense")
    return sparse, full


def _measure_reading(threads: int, sparse: Path, full: Path) -> dict[str, float]:
    out = [np.empty((8192, 2048), np.float32) for _ in range(threads)]
    scale, rows = np.ones(2048, np.float32), np.arange(8192)

    def standardised(i: int) -> None:
        dense.standardise(np, read_dense(full), rows, (scale, scale), out[i])

    return {
        # Counting, joining, shifting and turning to columns take four times as long as decoding (measured)
        "entry": 5 * _seconds(threads, lambda _: read_csr(sparse)) / (16_384 * 64),
        "value": _seconds(threads, standardised) / out[0].size,
    }
