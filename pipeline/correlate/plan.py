"""How the work is cut: which kernel, how wide the panels, how much memory, decided before anything is computed.

A task owns a tile, a panel of A features against a strip of B features, and its results leave it reduced::

                 strip 0    strip 1
               ┌──────────┬──────────┐
      panel 0  │ task 0   │ task 1   │  ──▶ top-k of its A features, candidates for the B features' top-k,
               ├──────────┼──────────┤      kept pairs, histogram
      panel 1  │ task 2   │ task 3   │
               └──────────┴──────────┘

A strip is all of B, unless narrower ones take fewer bytes from the stores: every tile reads its panel and its strip, so
n tiles in a square read 2·√n stores in all, and n panels against all of B read n + 1.

Three methods share this layout. *Resident*: the rows of a strip fit in memory (where it is all of B, once for each
process); a panel needs little more. *Streaming*: rows of both come in slabs, and a tile of float64 sums waits for the
last one. *Dense*: as streaming, with matrix products of dense slabs in place of scattered ones.

On a worker with a GPU tiles are on the GPU: those of the dense method, and of the others where the products take
longer on the CPU than the tiles take to come back. A plan fits both memories.

Everything here is arithmetic on sizes; :func:`make_plan` is a pure function.

>>> size = StoreSize(sparse=True, value_bytes=4, entries=np.full(4096, 1000))
>>> plan = make_plan(size, size, 100_000, CorrelateSettings(), Resources(10**9))
>>> plan.method, plan.panel, plan.n_panels
('resident', 2048, 2)
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.correlate.cost import Rates
from pipeline.correlate.kernels.dense import FEATURES
from pipeline.settings.correlate import CorrelateSettings, DeviceName, Kernel
from storage.errors import BudgetError, InputError

Method = Literal["resident", "streaming", "dense"]
Where = Literal["cpu", "cuda"]
Way = tuple[Method, Where]

#: Memory of a process before it holds any data: interpreter, libraries, compiled kernels, scheduler (measured).
RESERVED = 440 * 10**6
#: What compiling the kernels takes besides, where no earlier run has left them in the cache (measured).
COMPILING = 120 * 10**6
#: What CUDA's context and libraries take of the host's memory in a process that uses a GPU: an upper bound.
CUDA = 10**9
#: Rows of chunks as stores are written by default: panels of this width read no chunk twice.
CHUNK = 4096
#: Rows of a chunk of the whole matrix, where it is kept: so many are written at a time.
MATRIX_ROWS = 256
#: Partners beyond top_k that the dense kernel keeps until their r is final.
SPARE = 8
#: Entries of a slab of sparse rows that are aimed at.
SLAB_ENTRIES = 4_000_000
#: Rows of a dense slab, and features of B that are made dense at once. Fixed, so that sums do not depend on the plan.
DENSE_ROWS, DENSE_FEATURES = 8192, 2048
#: Buffers of the matrix library and of the decoder of dense chunks, for each task (measured).
DENSE_BUFFERS = 48 * 10**6
#: Narrowest and widest panel of the sparse kernel, and the width below which reading A by panels costs more than
#: streaming B.
NARROWEST, WIDEST, COMFORTABLE = 16, 8 * CHUNK, 256
#: Share of the bytes that panels against all of B would read, which tiles must stay below to be worth it: panels are
#: more and smaller tasks.
WORTH_STRIPS = 0.75
#: Share of the pairs of a tile that may be kept, and the number that always may.
KEPT_SHARE, KEPT_AT_LEAST = 0.05, 500_000
#: Share of the budget that all kept pairs may take when they are loaded for matching, and bytes of a pair then.
MATCHING_SHARE, MATCHING_BYTES = 0.5, 40
#: Bytes of a pair in a list: id (int32), r and held-out r (float64).
PAIR_BYTES = 20
#: Bytes of a kept pair while the tiles of a panel are joined.
JOINED_BYTES = 64
#: Bytes of a pair that is computed again, with its places on both sides and what is written of it (measured).
RESCORED_BYTES = 130
#: Features that are correlated with all others again in one pass over the rows.
RESCORED_AT_ONCE = 64
#: Sums that come back from a GPU at a time, for each half, and what its matrix library takes of its memory.
FETCHED, GPU_BUFFERS = 2**23, 64 * 2**20


DEFAULT = Rates()


@dataclass(frozen=True)
class Resources:
    """What the workers have that may be used.

    Attributes
    ----------
    memory
        Bytes, of all processes together.
    processes
        Worker processes.
    threads
        Tasks that one of them runs at once, at most.
    reserved
        Bytes that one takes before it holds any data.
    hosts
        Names of the hosts that they run on.
    gpu
        Bytes that each process may take of its GPU's memory; None unless every process has a GPU that may be used.
    """

    memory: int
    processes: int = 1
    threads: int = 1
    reserved: int = RESERVED
    hosts: frozenset[str] = frozenset()
    gpu: int | None = None

    @property
    def slots(self) -> int:
        """Tasks that run at once."""
        return self.processes * self.threads

    @property
    def allowed(self) -> int:
        """Bytes that each process may take."""
        return self.memory // self.processes


@dataclass(frozen=True)
class StoreSize:
    """What the plan needs to know of a store.

    Attributes
    ----------
    sparse
        Whether its rows are kept as csr.
    value_bytes
        Bytes of a value in memory: 4 or 8.
    entries
        (feature,) how many rows each feature is active in.
    piece_rows
        Rows that are read at a time where they are made dense: those of a chunk on disk.
    piece_features
        Features that are read at a time then: those of a chunk; None for all that are wanted.
    """

    sparse: bool
    value_bytes: int
    entries: NDArray[np.int64]
    piece_rows: int = CHUNK
    piece_features: int | None = None

    @property
    def n_features(self) -> int:
        """How many features the store has."""
        return len(self.entries)

    @property
    def n_entries(self) -> int:
        """Entries of all features."""
        return int(self.entries.sum())

    def heaviest(self, panel: int) -> int:
        """Return the entries of the heaviest panel of so many features."""
        return int(self._of_panels(panel).max())

    def _of_panels(self, width: int) -> NDArray[np.int64]:
        """Return the entries of panels of so many features."""
        return np.diff(self._before[np.append(np.arange(0, self.n_features, width), self.n_features)])

    @cached_property
    def _before(self) -> NDArray[np.int64]:
        """Entries of all features before each one, and of all."""
        return np.concatenate([[0], np.cumsum(self.entries)])

    def heaviest_strip(self, width: int) -> StoreSize:
        """Return the size of the heaviest strip of so many features, as a store of its own."""
        first = width * int(self._of_panels(width).argmax())
        entries = self.entries[first : first + width]
        missing = min(width, self.n_features) - len(entries)  # the last strip is narrower: count it as a whole one
        return replace(self, entries=np.concatenate([entries, np.full(missing, entries.max())]))


class Cut(NamedTuple):
    """How wide tiles are: A features of a panel, B features of a strip."""

    panel: int
    strip: int


@dataclass(frozen=True)
class Plan:
    """How a correlation is cut, and what it takes.

    Attributes
    ----------
    method
        ``resident``, ``streaming`` (both the sparse kernel) or ``dense``.
    cut
        A features of a tile, and B features.
    n_panels, n_strips
        How many panels and strips there are; as many tiles as their product.
    panel_b
        Features that are measured, or, of B, made dense, at a time.
    slab_rows
        Rows that are read at a time.
    kept_per_tile, kept
        Kept pairs that a tile, and the whole result, may have.
    projected
        Peak memory of each process, bytes.
    allowed
        Memory that each process may take, bytes.
    device
        Where tiles are, and what is added to them: ``cpu``, or ``cuda``, a GPU.
    gpu_projected, gpu_allowed
        Peak of the GPU's memory that each process takes, and what it may take, bytes; 0 without one.
    touched
        Whether only pairs with products are reduced; the others follow from the statistics of their features.
    """

    method: Method
    cut: Cut
    n_panels: int
    n_strips: int
    panel_b: int
    slab_rows: int
    kept_per_tile: int
    kept: int
    projected: int
    allowed: int
    device: Where = "cpu"
    gpu_projected: int = 0
    gpu_allowed: int = 0
    touched: bool = False

    @property
    def fits(self) -> bool:
        """Whether what is projected is allowed."""
        return self.projected <= self.allowed and self.gpu_projected <= self.gpu_allowed

    @property
    def panel(self) -> int:
        """A features of a tile."""
        return self.cut.panel

    @property
    def strip(self) -> int:
        """B features of a tile."""
        return self.cut.strip

    @property
    def n_tiles(self) -> int:
        """How many tiles there are, each of them a task."""
        return self.n_panels * self.n_strips

    @property
    def shape(self) -> str:
        """How the work is cut, in words."""
        panels = f"{self.n_panels} panels of {self.panel} features"
        return panels if self.n_strips == 1 else f"{panels} × {self.n_strips} strips of {self.strip}"

    def reads(self, processes: int) -> tuple[int, int]:
        """Return how often A and B are read by so many processes."""
        return _reads(self.method, self.n_panels, self.n_strips, processes)

    def n_measured(self, n_features: int) -> int:
        """Return how many tasks measure a side of so many features."""
        return 0 if self.method == "resident" else -(-n_features // self.panel_b)

    @property
    def kernel(self) -> Literal["sparse", "dense"]:
        """The kernel of the method."""
        return "dense" if self.method == "dense" else "sparse"


def nth_slice(i: int, step: int, length: int) -> slice:
    """Return slice `i` of those of a step that cover a length.

    >>> nth_slice(2, 4, length=10)
    slice(8, 10, None)
    """
    return slice(i * step, min((i + 1) * step, length))


def slices(start: int, stop: int, step: int) -> Iterator[slice]:
    """Yield slices of a step that cover a range.

    >>> list(slices(2, 7, 3))
    [slice(2, 5, None), slice(5, 7, None)]
    """
    return (slice(first, min(first + step, stop)) for first in range(start, stop, step))


def choose_kernel(
    a: StoreSize, b: StoreSize, n_rows: int, kernel: Kernel = "auto", device: DeviceName = "auto"
) -> Literal["sparse", "dense"]:
    """Return the kernel to use: the one asked for, or the faster one by a cost model.

    The sparse kernel works on every product of two entries in a row, the dense one on every product of two values.
    The rates are those of :class:`~pipeline.correlate.cost.Rates` as it comes, and of CPUs, unless a GPU is insisted
    on: the same stores get the same kernel on every machine, and a finished result stays valid.

    Raises
    ------
    InputError
        If the sparse kernel is asked for and a store is dense, or there is no such kernel.

    Examples
    --------
    >>> thin = StoreSize(True, 4, np.full(100, 10))
    >>> choose_kernel(thin, thin, n_rows=1000)
    'sparse'
    """
    if kernel not in ("auto", "sparse", "dense"):
        raise InputError(f"There is no kernel {kernel!r}; it is 'auto', 'sparse' or 'dense'")
    both_sparse = a.sparse and b.sparse
    if kernel == "sparse" and not both_sparse:
        raise InputError("The sparse kernel needs two stores of layout csr, and one is dense; use kernel='auto'")
    if kernel != "auto":
        return kernel
    where: Where = "cuda" if device == "cuda" else "cpu"
    faster = sparse_seconds(a, b, n_rows, where) < dense_seconds(a, b, n_rows, where)
    return "sparse" if both_sparse and faster else "dense"


def sparse_seconds(a: StoreSize, b: StoreSize, n_rows: int, where: Where = "cpu", rates: Rates = DEFAULT) -> float:
    """Estimate the seconds of the products of the sparse kernel, on one core or on a GPU."""
    return sparse_products(a, b, n_rows) * rates.on(where).crowded


def dense_seconds(a: StoreSize, b: StoreSize, n_rows: int, where: Where = "cpu", rates: Rates = DEFAULT) -> float:
    """Estimate the same for the dense kernel: products, and their way into tiles."""
    rates, slabs = rates.on(where), -(-n_rows // DENSE_ROWS)
    return float(a.n_features) * b.n_features * (n_rows * rates.dense_product + slabs * rates.tile)


def sparse_products(a: StoreSize, b: StoreSize, n_rows: int) -> float:
    """Return how many products of two entries in a row there are, were they spread evenly."""
    return float(a.n_entries) * b.n_entries / n_rows


def make_plan(
    a: StoreSize,
    b: StoreSize,
    n_rows: int,
    settings: CorrelateSettings,
    resources: Resources,
    *,
    cut: Cut | None = None,
) -> Plan:
    """Cut the work to fit in memory; `cut` is how, if that is already decided (work that is resumed).

    Raises
    ------
    BudgetError
        If nothing fits; the message has what is projected, allowed and reserved, in GB for each process.
    """
    kernel = choose_kernel(a, b, n_rows, settings.kernel, settings.device)
    shape = _Shape(a, b, n_rows, settings, resources, kernel)
    ways = _ways(kernel, shape)
    if cut is not None:
        plans = [_plan(way, cut, shape) for way in ways]
        fitting = next((plan for plan in plans if plan.fits), None)
    else:
        plans = [_plan(way, Cut(width, b.n_features), shape) for way, width in _choices(ways, a, resources.slots)]
        fitting = _with_strips(next((plan for plan in plans if plan.fits), None), ways, shape)
    if fitting is None:
        raise BudgetError(_refusal(plans, resources))
    return fitting


def _with_strips(panels: Plan | None, ways: list[Way], shape: _Shape) -> Plan | None:
    """Return the fastest plan with strips, if it reads so much less that it is worth it; else panels against all of B.

    One process that keeps all of B reads it once. Where no panels fit, strips of rows in memory are not tried:
    streaming needs less.
    """
    if panels is None:
        ways, limit = [way for way in ways if way[0] != "resident"], np.inf
    else:
        ways, limit = [(panels.method, panels.device)], WORTH_STRIPS * _entries_read(panels.method, panels.cut, shape)
        if panels.method == "resident" and shape.resources.processes == 1:
            return panels
    for way in ways:
        plans = (_plan(way, cut, shape) for cut in sorted(_cuts(shape), key=lambda cut: _busiest(way, cut, shape)))
        plan = next((plan for plan in plans if plan.fits), None)
        if plan is not None and _entries_read(way[0], plan.cut, shape) < limit:
            return plan
    return panels


def _reads(method: Method, n_panels: int, n_strips: int, processes: int) -> tuple[int, int]:
    """Return how often A and B are read by so many processes, each of which keeps all of B where that is resident."""
    of_b = processes if method == "resident" and n_strips == 1 else n_panels
    if method == "resident":
        return n_strips, of_b
    again = method == "dense"  # what was rounded is computed again, by panels against all of B
    return n_strips + 1 + again, of_b + 1 + again * n_panels


def _entries_read(method: Method, cut: Cut, shape: _Shape) -> float:
    """Return how many entries are read in all; panels narrower than a chunk read it several times."""
    (n_panels, n_strips), a, b = shape.n_tiles(cut), shape.a, shape.b
    of_a, of_b = _reads(method, n_panels, n_strips, shape.resources.processes)
    return of_a * max(1.0, min(CHUNK, a.n_features) / cut.panel) * a.n_entries + of_b * float(b.n_entries)


def _cuts(shape: _Shape) -> Iterator[Cut]:
    """Yield cuts with several strips: whole chunks wide, but for panels that must be narrower."""
    n_a, n_b = shape.a.n_features, shape.b.n_features
    panels = [*_whole_chunks(n_a), *(CHUNK >> i for i in range(1, 5))]
    strips = [width for width in _whole_chunks(n_b) if width < n_b]
    return (Cut(*widths) for widths in itertools.product(panels, strips))


def _busiest(way: Way, cut: Cut, shape: _Shape, rates: Rates = DEFAULT) -> float:
    """Estimate the seconds of reading, and of products, in the slot that has most to do."""
    (n_panels, n_strips), a, b, (method, device) = shape.n_tiles(cut), shape.a, shape.b, way
    of_a, of_b = (min(1.0, width / size.n_features) for width, size in zip(cut, (a, b), strict=True))
    read = min(1.0, max(cut.panel, CHUNK) / a.n_features) * a.n_entries + of_b * b.n_entries
    products = (dense_seconds if method == "dense" else sparse_seconds)(a, b, shape.n_rows, device, rates)
    tile = read * (rates.value if method == "dense" else rates.entry) + of_a * of_b * products
    return -(-n_panels * n_strips // shape.resources.slots) * tile


def _whole_chunks(n_features: int) -> list[int]:
    """Return the widths, whole chunks of a store, by which features are cut into different numbers of parts.

    >>> _whole_chunks(20_000)
    [20480, 12288, 8192, 4096]
    """
    n_chunks = -(-n_features // CHUNK)
    return sorted({CHUNK * -(-n_chunks // parts) for parts in range(1, n_chunks + 1)}, reverse=True)


def _ways(kernel: Literal["sparse", "dense"], shape: _Shape) -> list[Way]:
    """Return methods and devices, the best first: a GPU where it is faster, or insisted on."""
    ways: list[Way] = []
    device, gpu = shape.settings.device, shape.resources.gpu
    for method in _methods(kernel):
        if gpu is not None and (device == "cuda" or gpu_is_faster(method, shape)):
            ways.append((method, "cuda"))
        if gpu is None or device != "cuda":
            ways.append((method, "cpu"))
    return ways


def _choices(ways: list[Way], a: StoreSize, slots: int) -> list[tuple[Way, int]]:
    """Return ways and widths to try, the best first: a narrow panel only where no comfortable one fits."""
    comfortable: list[tuple[Way, int]] = []
    narrow: list[tuple[Way, int]] = []
    for way in ways:
        widths = list(_widths(way[0], a.n_features, slots))
        for width in widths:
            fits = width >= min(COMFORTABLE, widths[0])
            (comfortable if fits else narrow).append((way, width))
    return comfortable + narrow


def gpu_is_faster(method: Method, shape: _Shape, rates: Rates = DEFAULT) -> bool:
    """Return whether products on a GPU, with tiles that come back, take less time than on the cores of its process.

    The dense kernel gains always. The sparse one moves :data:`~pipeline.correlate.cost.SECTORS` bytes a product.
    """
    if method == "dense":
        return True
    seconds = rates.product if method == "resident" else rates.streamed
    products = sparse_products(shape.a, shape.b, shape.n_rows)
    entries = shape.a.n_entries + shape.b.n_entries
    back = tile_bytes(shape.a.n_features, shape) + 8 * entries
    return products * rates.gpu_product + back * rates.gpu_copy < products * seconds / shape.resources.threads


def _methods(kernel: Literal["sparse", "dense"]) -> list[Method]:
    return ["dense"] if kernel == "dense" else ["resident", "streaming"]


def _widths(method: Method, n_features: int, slots: int) -> Iterator[int]:
    """Yield widths of panels to try, the best first.

    Of resident panels there are to be four for each slot, so that none idles for long, or two where four would be
    narrower than a chunk; wider ones pass less often over the lists of all B features. A streaming or dense one is as
    wide as possible, one for each slot: every panel reads all of B.
    """
    wide, few = (4 * slots, 2 * slots) if method == "resident" else (slots, slots)
    narrowest = FEATURES if method == "dense" else NARROWEST
    width = WIDEST
    while width > narrowest and -(-n_features // width) < (wide if width > CHUNK else few):
        width //= 2
    while width >= narrowest:
        yield width
        width //= 2


def _refusal(plans: list[Plan], resources: Resources) -> str:
    """Say what the plan that takes least would need, of the host's memory or of the GPU's."""
    on_host = [plan for plan in plans if plan.gpu_projected <= plan.gpu_allowed]
    if not on_host:
        least = min(plans, key=lambda plan: plan.gpu_projected)
        return (
            f"The correlation does not fit the GPU: panels of {least.panel} features need "
            f"{least.gpu_projected / 1e9:.2f} GB of its memory in each worker process (projected), and "
            f"{least.gpu_allowed / 1e9:.2f} GB is allowed. Let nothing else use the GPU, run one thread for each, or "
            "use device='cpu'"
        )
    plan = min(on_host, key=lambda plan: plan.projected)
    gb = [f"{number / 1e9:.2f} GB" for number in (plan.projected, plan.allowed, resources.reserved)]
    return (
        f"The correlation does not fit: it needs at least {gb[0]} in each worker process (projected), and "
        f"{gb[1]} is allowed, of which {gb[2]} is reserved for the interpreter and libraries. Raise memory to at "
        f"least {plan.projected * resources.processes / 1e9:.2f} GB in total, or lower top_k"
    )


@dataclass(frozen=True)
class _Shape:
    """Sizes that the memory depends on."""

    a: StoreSize
    b: StoreSize
    n_rows: int
    settings: CorrelateSettings
    resources: Resources
    kernel: Literal["sparse", "dense"]

    @property
    def n_halves(self) -> int:
        """Sums are taken for so many halves of the rows."""
        return self.settings.n_halves

    def n_tiles(self, cut: Cut) -> tuple[int, int]:
        """Return how many panels and strips there are."""
        return -(-self.a.n_features // cut.panel), -(-self.b.n_features // cut.strip)

    @property
    def b_features(self) -> int:
        """B features that are made dense at once."""
        return min(DENSE_FEATURES, self.b.n_features)

    def entries(self, width: int, slab_rows: int) -> tuple[float, float]:
        """Return the entries of a slab: of the heaviest panel of A, and of all of B."""
        share = min(1.0, slab_rows / self.n_rows)
        return self.a.heaviest(width) * share, self.b.n_entries * share

    def met(self, width: int) -> int:
        """Return how many products the heaviest panel of A has in one half, were they spread evenly."""
        return int(self.a.heaviest(width) / max(1, self.n_rows) * self.b.n_entries / self.n_halves)

    @cached_property
    def placed_b(self) -> int:
        """B features that have a place in the kernels' output, at most: those that fire often enough, in either half.

        Half as many rows may select as one would think, since documents differ in length.
        """
        fewest = self.settings.fewest_firing(self.n_rows // self.n_halves // 2)
        return int(np.count_nonzero(self.b.entries >= fewest))

    @cached_property
    def touched(self) -> bool:
        """Whether only pairs with products are reduced by the sparse kernel."""
        return self.settings.full is None and touched_is_faster(self)

    @property
    def top_k(self) -> int:
        """Places of a list while r is not final."""
        return self.settings.top_k + SPARE * (self.kernel == "dense")

    @property
    def kept(self) -> int:
        """Kept pairs that can be loaded for matching later on."""
        return int(self.resources.memory * MATCHING_SHARE) // MATCHING_BYTES


def _plan(way: Way, cut: Cut, shape: _Shape) -> Plan:
    """Project the peak memory of a process, and of its GPU, for one method and width of panels and strips."""
    method, device = way
    width, strip = min(cut.panel, shape.a.n_features), min(cut.strip, shape.b.n_features)
    n_panels, n_strips = shape.n_tiles(Cut(width, strip))
    tile = shape if n_strips == 1 else replace(shape, b=shape.b.heaviest_strip(strip))
    threads = shape.resources.threads
    pairs = width * max(tile.placed_b, 1)  # all of B may be rare
    touched = method != "dense" and shape.touched
    kept = min(pairs, max(int(KEPT_SHARE * pairs), KEPT_AT_LEAST), max(shape.kept, 1))
    if touched:
        kept = min(kept, max(tile.met(width), KEPT_AT_LEAST))
    slab_rows = DENSE_ROWS if method == "dense" else _slab_rows(width, tile)
    task = _lists(width, kept, tile) + _WORK[way](width, slab_rows, tile)
    if method == "dense":
        task = max(task, _rescoring(width, n_strips * kept, shape))
    gpu = GPU_BUFFERS + threads * _GPU_WORK[method](width, slab_rows, tile) if device == "cuda" else 0
    strips = _statistics(tile) + (_resident(tile) if method == "resident" else 0)
    halves = 2 * shape.n_rows if method == "resident" else 0  # the others read them slab by slab
    shared = halves + (strips if n_strips == 1 else threads * strips)
    if n_strips > 1:
        task = max(task, _joining(width, n_strips * kept, shape))
    projected = shape.resources.reserved + max(shared + threads * task, _merge(shape))
    return Plan(
        method=method,
        cut=Cut(width, strip),
        n_panels=n_panels,
        n_strips=n_strips,
        panel_b=DENSE_FEATURES if method == "dense" else CHUNK,
        slab_rows=slab_rows,
        kept_per_tile=kept,
        kept=shape.kept,
        projected=projected,
        allowed=shape.resources.allowed,
        device=device,
        gpu_projected=gpu,
        gpu_allowed=(shape.resources.gpu or 0) if device == "cuda" else 0,
        touched=touched,
    )


def touched_is_faster(shape: _Shape, rates: Rates = DEFAULT) -> bool:
    """Return whether it takes less time to mark what has products and to reduce that than to reduce all pairs.

    Of the B features that fire too rarely to meet enough A features, lists are completed one by one.
    """
    settings = shape.settings
    fewest = settings.fewest_firing(shape.n_rows // shape.n_halves) * shape.n_halves
    a, b = (size.entries[size.entries >= max(1, fewest)] for size in (shape.a, shape.b))
    products = float(a.sum()) * float(b.sum()) / max(1, shape.n_rows) / shape.n_halves
    met = b * (a.sum() / max(1, shape.n_rows) / shape.n_halves)
    completed = np.count_nonzero(met < 2 * settings.top_k) * settings.top_k * rates.completed
    seconds = products * rates.touched + completed
    return bool(seconds < products * rates.product + float(len(a)) * len(b) * rates.pair)


def _slab_rows(width: int, shape: _Shape) -> int:
    """Return a number of rows, whole chunks of them, that has about `SLAB_ENTRIES` entries on the fuller side."""
    fullest = max(shape.a.heaviest(width), shape.b.n_entries) / shape.n_rows
    chunks = round(SLAB_ENTRIES / max(fullest, 1.0) / CHUNK)
    return CHUNK * min(max(chunks, 1), 16)


def _statistics(shape: _Shape) -> int:
    """Return the bytes of the moments of all B features (eight arrays and what is derived from them)."""
    return 8 * 16 * shape.n_halves * shape.b.n_features


def _lists(width: int, kept: int, shape: _Shape) -> int:
    """Return the bytes of top-k lists and their copy, kept pairs (collected, joined, encoded), and working memory."""
    top = (width + 2 * shape.placed_b) * shape.top_k * PAIR_BYTES
    buffer = kept_buffer(shape.placed_b) * PAIR_BYTES
    matrix = 16 * MATRIX_ROWS * shape.b.n_features if (shape.settings.full is not None) else 0
    return top + buffer + int(2.2 * kept * PAIR_BYTES) + 80 * shape.placed_b + matrix


def _joining(width: int, kept: int, shape: _Shape) -> int:
    """Return the bytes of what the tiles of a panel found, and of what is made of it."""
    lists = (2 * width + 2 * shape.placed_b) * shape.top_k * PAIR_BYTES
    return lists + min(kept, shape.kept) * JOINED_BYTES


def kept_buffer(n_features_b: int) -> int:
    """Return how many kept pairs a panel gathers before they are moved out of the kernel: some rows at least."""
    return max(4 * n_features_b, 2**16)


def _resident(shape: _Shape) -> int:
    """Return the bytes of all rows of B, at the moment when slabs of values are joined."""
    return shape.b.n_entries * (_id_bytes(shape.b.n_features) + 2 * shape.b.value_bytes) + 16 * shape.n_rows


def _id_bytes(n_features: int) -> int:
    return 2 if n_features <= 2**16 else 4


def _slabs(width: int, slab_rows: int, shape: _Shape) -> tuple[int, int]:
    """Return the bytes of rows of both sides as they are read (int32 ids, values, decoded chunks) with narrower ids."""
    a, b = (
        int(n * (8 + 2 * size.value_bytes)) + 24 * slab_rows
        for n, size in zip(shape.entries(width, slab_rows), (shape.a, shape.b), strict=True)
    )
    return a, b


def _work_resident(width: int, slab_rows: int, shape: _Shape) -> int:
    """Return the bytes of one panel of A: read by slabs, joined, and turned to columns."""
    slab, b_slab = _slabs(width, slab_rows, shape)
    panel = shape.a.heaviest(width) * (6 + 2 * shape.a.value_bytes)
    return panel + 16 * shape.n_rows + max(slab, b_slab // shape.resources.threads)


def _work_resident_on_gpu(width: int, slab_rows: int, shape: _Shape) -> int:
    """Return the same with the sums that come back from the GPU, and a slab of the panel by features."""
    slab, _ = shape.entries(width, slab_rows)
    return _work_resident(width, slab_rows, shape) + int(slab * (4 + shape.a.value_bytes)) + _fetched(shape)


def _fetched(shape: _Shape) -> int:
    """Return the bytes of the sums that come back from a GPU at a time, twice: one block goes while the next comes."""
    return 2 * 8 * fetched_rows(shape.placed_b) * shape.placed_b * shape.n_halves


def fetched_rows(n_features_b: int) -> int:
    """Return how many rows of a tile come back from a GPU at a time."""
    return max(1, FETCHED // max(1, n_features_b))


def _work_streaming_on_gpu(width: int, slab_rows: int, shape: _Shape) -> int:
    """Return the same as :func:`_work_streaming` with a few rows of the tile in place of all."""
    return _work_streaming(width, slab_rows, shape) - tile_bytes(width, shape) + _fetched(shape)


def _work_streaming(width: int, slab_rows: int, shape: _Shape) -> int:
    """Return the bytes of a tile of sums for each half, and a slab of both sides."""
    slab, _ = shape.entries(width, slab_rows)
    columns = int(slab) * (4 + shape.a.value_bytes) + 16 * shape.n_halves * width
    return tile_bytes(width, shape) + 2 * sum(_slabs(width, slab_rows, shape)) + columns


def tile_bytes(width: int, shape: _Shape) -> int:
    """Return the bytes of the sums of products of a panel with all B features, float64, for each half."""
    return 8 * width * shape.placed_b * shape.n_halves


def _work_dense(width: int, slab_rows: int, shape: _Shape) -> int:
    """Return the bytes of the tile, of a standardised slab of each side, of a block being read, and of a product."""
    rows = min(slab_rows, shape.n_rows)
    slabs = 4 * rows * (width + shape.b_features)
    product = 8 * min(width, FEATURES) * shape.b_features
    return _dense_tile(width, shape) + slabs + _blocks(width, rows, shape) + product + DENSE_BUFFERS


def _dense_tile(width: int, shape: _Shape) -> int:
    """Return the bytes of the sums of a dense panel: of the rows that choose alone."""
    return tile_bytes(width, shape) // shape.n_halves


def _blocks(width: int, rows: int, shape: _Shape) -> int:
    """Return the bytes of a block of dense rows of either side, as it is read: a chunk, or csr rows made dense."""
    sides = ((shape.a, width), (shape.b, shape.b_features))
    return 3 * max(
        min(size.piece_rows, rows) * min(columns, size.piece_features or columns) * size.value_bytes
        for size, columns in sides
    )


def _rescoring(width: int, kept: int, shape: _Shape) -> int:
    """Return the bytes of what is computed again: pairs that are listed or kept, and rows of both sides in float64."""
    listed = shape.top_k * (width + shape.b.n_features)
    rows = min(shape.a.piece_rows, shape.n_rows)
    turned = 8 * rows * (width + shape.b_features)
    sums = 8 * shape.n_halves * RESCORED_AT_ONCE * max(width, shape.b.n_features) * 3
    return RESCORED_BYTES * (listed + kept) + turned + _blocks(width, rows, shape) + sums + DENSE_BUFFERS


_WORK: dict[Way, Callable[[int, int, _Shape], int]] = {
    ("resident", "cpu"): _work_resident,
    ("resident", "cuda"): _work_resident_on_gpu,
    ("streaming", "cpu"): _work_streaming,
    ("streaming", "cuda"): _work_streaming_on_gpu,
    ("dense", "cpu"): _work_dense,
    ("dense", "cuda"): _work_dense,
}


def _gpu_sparse(width: int, slab_rows: int, shape: _Shape) -> int:
    """Return the bytes on a GPU of the tiles of a panel, and of two slabs of both sides: CuPy keeps the one before."""
    of_a, of_b = shape.entries(width, slab_rows)
    a = int(of_a) * (4 + shape.a.value_bytes) + 8 * shape.n_halves * width
    b = int(of_b) * (_id_bytes(shape.b.n_features) + shape.b.value_bytes) + 8 * slab_rows
    return tile_bytes(width, shape) + 2 * (a + b)


def _gpu_dense(width: int, slab_rows: int, shape: _Shape) -> int:
    """Return the bytes on a GPU: tile, standardised slabs, a block as it passes, a product, operands in float64."""
    features, rows = shape.b_features, min(slab_rows, shape.n_rows)
    slabs = 4 * rows * (width + 2 * features)
    pieces = [
        min(size.piece_rows, rows) * columns * (3 * size.value_bytes + 4)
        for size, columns in ((shape.a, width), (shape.b, features))
    ]
    block = min(width, FEATURES)
    return _dense_tile(width, shape) + slabs + 2 * max(pieces) + 8 * (block * features + rows * (block + features))


_GPU_WORK: dict[Method, Callable[[int, int, _Shape], int]] = {
    "resident": _gpu_sparse,
    "streaming": _gpu_sparse,
    "dense": _gpu_dense,
}


def _merge(shape: _Shape) -> int:
    """Return the bytes of the top-k lists of all features of both sides, their copy on the way to disk, and keys."""
    copies = 4 if shape.top_k > shape.settings.top_k else 3  # keys are of lists that are not final yet
    return copies * (shape.a.n_features + shape.b.n_features) * shape.top_k * PAIR_BYTES
