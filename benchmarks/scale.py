"""What a study of 1,000 workers would take, on paper: the project's own plan, with rates that were measured.

::

    python -m benchmarks.scale
    python -m benchmarks.scale --markdown      # the tables of docs/scale.md
    python -m benchmarks.scale --tokens 3e8 --features 32768 --sites 3 3 --workers 64
    python -m benchmarks.scale --measure       # the rates of a tile of this study, kept in benchmarks/results/cluster

Nothing is run (but with ``--measure``, a slab of one tile): sizes go through the functions by which runs plan
themselves (``pipeline.correlate``'s plan and forecast, the harvest's formula), and rates are those of the results kept
in ``benchmarks/results`` (a small cloud machine) or of ``--rates FILE``, as ``subspace plan --calibrate`` keeps them.
How often stores are read is counted by ``python -m benchmarks.cluster --reads``. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse

from benchmarks.table import RESULTS, insert
from pipeline.correlate.cost import CHOSEN_SHARE
from pipeline.correlate.forecast import CorrelateForecast, forecast_sizes, stored_bytes
from pipeline.correlate.job import Store
from pipeline.correlate.kernels.csr import by_feature
from pipeline.correlate.kernels.sparse import add_products
from pipeline.correlate.moments import Moments, add_extremes, finish_extremes, shift_and_add
from pipeline.correlate.plan import PAIR_BYTES, Plan, Resources, StoreSize
from pipeline.correlate.rates import Rates, load_rates
from pipeline.match.stage import MATCH_BYTES, MATCH_SECONDS
from pipeline.settings.correlate import CorrelateSettings
from storage import open_activations, write_activations
from storage.errors import BudgetError

PAGE = Path(__file__).parent.parent / "docs" / "scale.md"
#: Marks of the parts of the page that are made here.
SCALE, READS, OVERHEAD = "scale", "reads", "overhead"
#: A slab of the tile that is timed: rows, and features of its panel (fewer than a panel has) and of its strip.
SLAB_ROWS, PANEL, STRIP = 65_536, 1024, 32_768
#: Bytes of the driver for each row of the table of rows, and of coordinates for each row of a store on disk.
ROW_BYTES, COORDINATE_BYTES = 100, 12
#: Bytes of the driver of a correlation for each row: its half, and whether it is of one that is counted.
HALF_BYTES = 2
#: Bytes of a harvest's task for each stored value, and for the block that is encoded.
VALUE_BYTES, ENCODING_BYTES = 40, 256 << 20


@dataclass(frozen=True)
class Study:
    """What is to be done, and with what.

    Attributes
    ----------
    tokens, features, active
        Rows, features of every dictionary, and active features a row.
    sites
        Sites of A and of B; all pairs of them are compared.
    workers, memory, driver
        Worker processes of one thread, bytes of each, and bytes of the driver.
    bandwidth
        Bytes a second that the shared file system gives to all together.
    shard_rows, top_k
        Of the experiment.
    harvested, task
        Rows a second of one core through one model, and seconds that a task costs the scheduler (both measured).
    """

    tokens: int = 2_000_000_000
    features: int = 131_072
    active: int = 64
    sites: tuple[int, int] = (5, 8)
    workers: int = 1000
    memory: int = 16 * 10**9
    driver: int = 64 * 10**9
    bandwidth: float = 50e9
    shard_rows: int = 65_536
    top_k: int = 16
    harvested: float = 1290.0
    task: float = 0.001

    @property
    def n_pairs(self) -> int:
        """Pairs of sites."""
        return self.sites[0] * self.sites[1]

    def size(self) -> StoreSize:
        """Return the size of one store."""
        entries = np.full(self.features, self.tokens * self.active // self.features, np.int64)
        return StoreSize(sparse=True, value_bytes=4, entries=entries)


@dataclass(frozen=True)
class Stage:
    """A line of the table; bytes and seconds.

    Attributes
    ----------
    name
        The stage, and how it is cut.
    tasks, scheduler
        Tasks, and seconds that they cost the scheduler.
    moved, disk, memory, driver
        Bytes read and written on the shared file system, left on disk, held by a worker, and held by the driver.
    computing, moving
        Seconds on all workers, and seconds that the file system takes at least; the larger one tells.
    plan
        How a correlation is cut.
    """

    name: str
    tasks: int
    scheduler: float
    moved: float
    disk: float
    memory: float
    driver: float
    computing: float
    moving: float
    plan: Plan | None = None

    @property
    def seconds(self) -> float:
        """What the stage takes at least."""
        return max(self.scheduler, self.computing, self.moving)


def harvest_stage(study: Study) -> Stage:
    """Return what it takes to harvest both models, all sites of each in one pass.

    >>> harvest_stage(Study(tokens=10**6, sites=(1, 1), workers=2)).tasks
    32
    """
    tasks = 2 * -(-study.tokens // study.shard_rows)
    stored = stored_bytes(study.size(), study.tokens) + COORDINATE_BYTES * study.tokens
    disk = sum(study.sites) * stored
    rounds = -(-tasks // study.workers)
    return Stage(
        name="harvest",
        tasks=tasks,
        scheduler=tasks * study.task,
        moved=disk,
        disk=disk,
        memory=VALUE_BYTES * study.active * study.shard_rows * max(study.sites) + ENCODING_BYTES,
        driver=ROW_BYTES * study.tokens,
        computing=rounds * study.shard_rows / study.harvested,
        moving=disk / study.bandwidth,
    )


def correlate_stage(study: Study, rates: Rates, *, at_once: int) -> Stage | None:
    """Return what all pairs of sites take, `at_once` of them side by side.

    Each has its share of the workers, and a driver of its own.

    Returns
    -------
    Stage or None
        None where it does not fit the workers' memory.
    """
    each = max(1, study.workers // at_once)
    try:
        found = _forecast(study, rates, each)
    except BudgetError:
        return None
    rounds = -(-study.n_pairs // at_once)
    plan = found.plan
    measured, joined = 2 * plan.n_measured(study.features), plan.n_panels * (plan.n_strips > 1)
    tasks = study.n_pairs * (plan.n_tiles + measured + joined)
    moved = study.n_pairs * (found.read + between(study, plan))
    return Stage(
        name=f"correlate, {at_once} pairs at once: {plan.method}, {plan.shape}",
        tasks=tasks,
        scheduler=tasks * study.task,
        moved=moved,
        disk=study.n_pairs * found.disk,
        memory=plan.projected,
        driver=3 * PAIR_BYTES * study.top_k * study.features * 2 + HALF_BYTES * study.tokens,
        computing=rounds * found.seconds,
        moving=moved / study.bandwidth,
        plan=plan,
    )


def between(study: Study, plan: Plan) -> float:
    """Return the bytes that tiles of one correlation write for those that join them, and that these read again."""
    if plan.n_strips == 1:
        return 0.0
    lists = (plan.n_panels + plan.n_strips) * study.features * study.top_k
    return 2.0 * PAIR_BYTES * (lists + CHOSEN_SHARE * study.features**2)


def _forecast(study: Study, rates: Rates, workers: int) -> CorrelateForecast:
    size = study.size()
    return forecast_sizes(
        size,
        size,
        study.tokens,
        CorrelateSettings(top_k=study.top_k),
        Resources(workers * study.memory, workers),
        rates,
    )


def merge_stage(study: Study, correlated: Stage) -> Stage:
    """Return what the driver does behind the panels: it reads every panel's candidates for the B features."""
    panels = correlated.plan.n_panels if correlated.plan else 0
    n_bytes = study.n_pairs * panels * study.features * study.top_k * PAIR_BYTES
    return Stage(
        name="merge of the panels, in the driver",
        tasks=0,
        scheduler=0.0,
        moved=n_bytes,
        disk=0.0,
        memory=0.0,
        driver=correlated.driver,
        computing=n_bytes / 1e9,
        moving=n_bytes / study.bandwidth,
    )


def match_stage(study: Study) -> Stage:
    """Return what greedy matching of all pairs takes, one after the other in the driver."""
    kept = CHOSEN_SHARE * study.features**2
    return Stage(
        name="match, in the driver",
        tasks=0,
        scheduler=0.0,
        moved=study.n_pairs * kept * 16,
        disk=study.n_pairs * study.features * 40.0,
        memory=0.0,
        driver=kept * MATCH_BYTES,
        computing=study.n_pairs * kept * MATCH_SECONDS,
        moving=study.n_pairs * kept * 16 / study.bandwidth,
    )


def plan_on_paper(study: Study, rates: Rates, at_once: Sequence[int] = (1, 10, 40)) -> list[Stage]:
    """Return the stages; the correlation several times, cut in different ways.

    Examples
    --------
    >>> small = Study(tokens=300_000, features=32_768, active=32, sites=(1, 1), workers=2, memory=2 * 10**9)
    >>> [stage.name.split(",")[0] for stage in plan_on_paper(small, Rates(), at_once=(1,))]
    ['harvest', 'correlate', 'merge of the panels', 'match']
    """
    stages = [harvest_stage(study)]
    for count in at_once:
        found = correlate_stage(study, rates, at_once=count)
        if found is not None:
            stages += [found, merge_stage(study, found)]
    return [*stages, match_stage(study)]


def breaks(study: Study, stages: Sequence[Stage]) -> list[str]:
    """Return what does not fit, or takes longer for another reason than its arithmetic.

    >>> breaks(Study(tokens=10**6, driver=10**12), [harvest_stage(Study(tokens=10**6))])
    []
    """
    found = []
    for stage in stages:
        if stage.driver > study.driver:
            found.append(f"{stage.name}: the driver would hold {giga(stage.driver)}, and has {giga(study.driver)}")
        if stage.memory > study.memory:
            found.append(f"{stage.name}: a worker would hold {giga(stage.memory)}, and has {giga(study.memory)}")
        if stage.moving > stage.computing:
            found.append(
                f"{stage.name}: {giga(stage.moved)} through the file system take {hours(stage.moving)}, the arithmetic "
                f"{hours(stage.computing)}"
            )
        if stage.scheduler > 0.1 * stage.seconds:
            found.append(f"{stage.name}: the scheduler is busy {hours(stage.scheduler)} of {hours(stage.seconds)}")
        if "driver" in stage.name and stage.computing > 3600:
            found.append(f"{stage.name}: {hours(stage.computing)} in one process, while the workers wait")
    return found


def giga(n_bytes: float) -> str:
    """Return bytes for people.

    >>> giga(2.5e9), giga(7.2e14)
    ('2.5 GB', '720 TB')
    """
    for limit, unit in ((1e15, "PB"), (1e12, "TB"), (1e9, "GB")):
        if n_bytes >= limit:
            return f"{n_bytes / limit:.3g} {unit}"
    return f"{n_bytes / 1e6:.3g} MB"


def hours(seconds: float) -> str:
    """Return a duration for people.

    >>> hours(30), hours(7200)
    ('30 s', '2 h')
    """
    return f"{seconds:.0f} s" if seconds < 600 else f"{seconds / 3600:.3g} h"


def render(study: Study, stages: Sequence[Stage]) -> str:
    """Return the tables in Markdown."""
    lines = [
        f"{study.tokens:,} tokens × {study.features:,} features ({study.active} active) × {study.n_pairs} pairs of "
        f"sites ({study.sites[0]} × {study.sites[1]}); {study.workers:,} workers of one core and "
        f"{giga(study.memory)}, a driver of {giga(study.driver)}, a file system of {giga(study.bandwidth)} per second.",
        "",
        "| stage | tasks | scheduler | moved | on disk | a worker | the driver | computing | moving |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for one in stages:
        sizes = " | ".join(giga(n) if n else "" for n in (one.moved, one.disk, one.memory, one.driver))
        lines.append(
            f"| {one.name} | {one.tasks or ''} | {hours(one.scheduler) if one.tasks else ''} | {sizes} | "
            f"{hours(one.computing)} | {hours(one.moving)} |"
        )
    lines += ["", "Where it breaks:", "", *(f"- {one}" for one in breaks(study, stages) or ["nowhere"])]
    return "\n".join(lines)


def measured(results: Path = RESULTS) -> dict[str, Any]:
    """Return what the kept results say: rows a second of one core, and seconds of a task."""
    found: dict[str, Any] = {}
    harvest, cluster = results / "harvest.json", results / "cluster" / "overhead.json"
    if harvest.is_file():
        content = json.loads(harvest.read_text(encoding="utf-8"))
        found["harvested"] = content["rows_per_second"]["harvest"] / content["threads"]
    if cluster.is_file():
        found["task"] = json.loads(cluster.read_text(encoding="utf-8"))["seconds_a_task"]
    return found


def measure_tile(study: Study, folder: Path, repeats: int = 5) -> dict[str, float]:
    """Return the rates of a streaming tile of a study, in seconds of a thread: a product, and an entry that is read.

    A slab of rows of a panel and of a strip is read, counted, shifted and multiplied by the functions that tiles do it
    with. The sums are far larger than the caches, as those of a whole tile are.
    """
    rng, sides = np.random.default_rng(0), []
    for name, width in (("a", PANEL), ("b", STRIP)):
        density = study.active / study.features
        values = scipy.sparse.random_array((SLAB_ROWS, width), density=density, format="csr", dtype=np.float32, rng=rng)
        write_activations(folder / name, values, overwrite=True)
        sides.append((Store.of(folder / name, open_activations(folder / name)), width))
    half, tiles = (rng.random(SLAB_ROWS) < 0.5).astype(np.int8), np.zeros((2, PANEL, STRIP))
    n = np.bincount(half, minlength=2)
    rates: dict[str, float] = {"entry": np.inf, "streamed": np.inf}
    for _ in range(repeats):
        start, slabs = time.thread_time(), []
        for store, width in sides:
            moments = Moments.empty(n, width)
            rows = store.read_rows(slice(0, SLAB_ROWS))
            add_extremes(moments, (rows, half))
            finish_extremes(moments)
            slabs.append(shift_and_add(moments, (rows, half), moments.places()))
        columns = by_feature(slabs[0], half, PANEL, 2)
        read = time.thread_time()
        for h, tile in enumerate(tiles):
            add_products(tile, h, columns, slabs[1])
        products = float(np.diff(slabs[0].start) @ np.diff(slabs[1].start))
        rates["entry"] = min(rates["entry"], (read - start) / sum(len(slab.value) for slab in slabs))
        rates["streamed"] = min(rates["streamed"], (time.thread_time() - read) / products)
    return rates


def by_formula(run: dict[str, Any]) -> float:
    """Return how many stores square tiles would read: 2 · √workers, or what the sums that fit a worker allow.

    >>> by_formula({"method": "streaming", "workers": 4, "panels": 4, "strips": 4})
    8.0
    """
    if run["method"] == "resident":  # no sums wait
        return float(2 * np.sqrt(run["workers"]))
    return float(2 * max(np.sqrt(run["workers"]), np.sqrt(run["panels"] * run["strips"])))


def render_reads(result: dict[str, Any]) -> str:
    """Return what ``python -m benchmarks.cluster --reads`` counted, in Markdown.

    >>> run = {"method": "resident", "memory": 4.0, "workers": 16, "panels": 4, "strips": 4, "stores": 8.0}
    >>> result = {"rows": 100, "features": 64, "active": 8, "reads": [{**run, "planned": 8}]}
    >>> print(render_reads(result).splitlines()[-1])
    | resident, 4 GB | 16 | 4 × 4 | 8.0 | 8 | 8.00 | 1.00 |
    """
    lines = [
        f"{result['rows']:,} rows × {result['features']:,} features ({result['active']} active) against as many, in "
        "sizes of a store. The last column leaves out the two that streaming reads before its tiles.",
        "",
        "| method, a worker | workers | panels × strips | square tiles | planned | counted | counted ÷ square |",
        "|---|---|---|---|---|---|---|",
    ]
    for run in result["reads"]:
        square, before = by_formula(run), 2 * (run["method"] == "streaming")
        lines.append(
            f"| {run['method']}, {run['memory']:g} GB | {run['workers']} | {run['panels']} × {run['strips']} | "
            f"{square:.1f} | {run['planned']} | {run['stores']:.2f} | {(run['stores'] - before) / square:.2f} |"
        )
    return "\n".join(lines)


def render_overhead(result: dict[str, Any]) -> str:
    """Return what ``python -m benchmarks.cluster`` found, in Markdown.

    >>> seconds, over = {"panels": 7.0, "whole": 8.0}, {"panels": 0.1, "whole": 0.12}
    >>> found = {"bare, 2 processes": seconds, "dask, 2 processes": seconds}
    >>> result = {"all_seconds": found, "overheads": {"dask, 2 processes": over}, "seconds_a_task": 0.006, "cpus": 2}
    >>> print(render_overhead({**result, "rows": 1000, "features": 64, "active": 8}).splitlines()[-1])
    | 2 processes | 7.0 | 7.0 | +10 % | 8.0 | 8.0 | +12 % |
    """
    lines = [
        f"{result['rows']:,} rows × {result['features']:,} features ({result['active']} active) against as many, on "
        f"{result['cpus']} cores; a task that does nothing takes {1000 * result['seconds_a_task']:.1f} ms.",
        "",
        "| workers | panels, bare, s | with Dask, s | over | whole, bare, s | with Dask, s | over |",
        "|---|---|---|---|---|---|---|",
    ]
    seconds = result["all_seconds"]
    for name, over in result["overheads"].items():
        bare, with_dask = seconds[name.replace("dask", "bare")], seconds[name]
        cells = (f"{bare[part]:.1f} | {with_dask[part]:.1f} | {100 * over[part]:+.0f} %" for part in over)
        lines.append(f"| {name.removeprefix('dask, ')} | {' | '.join(cells)} |")
    return "\n".join(lines)


def page_of(text: str, tables: str, results: Path = RESULTS) -> str:
    """Return the text of ``docs/scale.md`` with its tables renewed."""
    parts = {SCALE: tables}
    for mark, render_part in ((READS, render_reads), (OVERHEAD, render_overhead)):
        content = (results / "cluster" / f"{mark}.json").read_text(encoding="utf-8")
        parts[mark] = render_part(json.loads(content))
    for mark, part in parts.items():
        text = insert(text, mark, part)
    return text


def rates_of(results: Path = RESULTS) -> Rates:
    """Return the rates of the package, with those that ``--measure`` kept."""
    return dataclasses.replace(Rates(), **json.loads((results / "cluster" / "tile.json").read_text(encoding="utf-8")))


def main() -> None:
    """Read the command line, reckon, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=float, default=Study.tokens)
    parser.add_argument("--features", type=int, default=Study.features)
    parser.add_argument("--active", type=int, default=Study.active)
    parser.add_argument("--sites", type=int, nargs=2, default=Study.sites)
    parser.add_argument("--workers", type=int, default=Study.workers)
    parser.add_argument("--rates", type=Path, help="folder with the rates of your machine; the package's by default")
    parser.add_argument("--measure", action="store_true", help="time a slab of a tile, and keep the rates")
    parser.add_argument("--markdown", action="store_true", help="write the tables of docs/scale.md")
    given = vars(parser.parse_args())
    rates, markdown, measure = (given.pop(name) for name in ("rates", "markdown", "measure"))
    given |= {"tokens": int(given["tokens"]), "sites": tuple(given["sites"])}
    study = Study(**given, **measured())
    if measure:
        with tempfile.TemporaryDirectory(prefix="benchmark-scale-") as folder:
            measured_rates = measure_tile(study, Path(folder))
        (RESULTS / "cluster" / "tile.json").write_text(json.dumps(measured_rates, indent=1) + "\n", encoding="utf-8")
    found = plan_on_paper(study, (load_rates(rates) if rates else None) or rates_of())
    tables = render(study, found)
    if markdown:
        PAGE.write_text(page_of(PAGE.read_text(encoding="utf-8"), tables), encoding="utf-8")
    print(tables)
    result: dict[str, Any] = {"name": "scale", "study": dataclasses.asdict(study)}
    print(json.dumps({**result, "stages": [dataclasses.asdict(stage) for stage in found]}))


if __name__ == "__main__":
    main()
