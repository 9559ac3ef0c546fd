"""Is what is on disk whole? Every chunk is read and everything that can be computed again is compared.

========================  =============================================================================
every group               metadata can be read; every file has the size and the checksum that it had when the
                          group was finished, none is missing or foreign; the attributes are those of then
every chunk               checksum (crc32c), decompression, shape
``csr`` chunks            ids strictly increasing inside a row, nothing outside of the array
activation stores         values finite, row hash, statistics, content hash
corpora                   content hash
run directories           what results were made from is there, and is what it was
a result that is given    which of its inputs are at hand, and whether they are what they were
========================  =============================================================================

>>> import tempfile, storage
>>> folder = Path(tempfile.mkdtemp())
>>> storage.write_activations(folder / "a.zarr", np.eye(9, 30))
>>> shard = folder / "a.zarr/activation/c/0/0"
>>> _ = shard.write_bytes(shard.read_bytes()[:-1] + b"!")
>>> for fault in verify(folder).faults:
...     print(fault.where, "-", fault.what[:9])
activation/c/0/0, shard 0 - The index
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from storage.codec import Panel
from storage.corpus import hash_of_text
from storage.damage import is_out_of_threads, reading
from storage.errors import BudgetError, CorruptError, FormatError, MissingInputError, SubspaceError
from storage.files import EXPERIMENT, PARTIAL_SUFFIX, leftover_of, local_path
from storage.identity import fingerprint
from storage.inventory import GROUP_FILE, Inventory, check_array, faults
from storage.kernels import rows_are_canonical
from storage.manifest import CONTENT_HASH, MANIFEST, Manifest, read_attrs, read_manifest
from storage.provenance import OTHER_INPUTS, TracedInput, trace_inputs
from storage.rows import IDENTITY, ROW_HASH, TOKEN_HASH, row_hash, token_hash
from storage.rundir import RunDirectory, Side
from storage.sparse_array import SparseLayout, is_csr_array, iter_chunks, read_layout, read_metadata
from storage.targets import CORPUS
from storage.writer import ACTIVATION, STATISTICS, ActivationWriter, coordinates, read_shard, statistics, survey

logger = logging.getLogger(__name__)

#: How far statistics may be from those computed again, relative to the largest value of a feature: other versions of
#: NumPy may add up in another order.
TOLERANCE = 1e-9
MOST_THREADS = 8
GONE = "the file is missing"
#: What Zarr and its codecs raise on damaged chunks.
DAMAGE = (ValueError, RuntimeError, OSError)


@dataclass(frozen=True)
class ExpectedResult:
    """A result that an experiment makes.

    Attributes
    ----------
    path
        Where it is, or will be.
    inputs
        Paths of the results that it is made from.
    recorded
        Returns the manifest that it has; None if there is none.
    manifest
        Returns the manifest that it would have if it were made from what is there now; None where only a model knows.
    """

    path: Path
    inputs: tuple[Path, ...]
    recorded: Callable[[], Manifest | None]
    manifest: Callable[[], Manifest] | None


#: Returns the results of a run directory, each behind those that it is made from.
Expect = Callable[[RunDirectory], Sequence[ExpectedResult]]


@dataclass(frozen=True)
class Fault:
    """Something that is not as it was written.

    Attributes
    ----------
    path
        The store or result.
    what
        What is wrong.
    file
        The file, below `path`; empty where it is not one file's fault.
    shard
        Number of the shard, counted along the first dimension.
    chunk
        Place of the chunk inside its shard.
    """

    path: str
    what: str
    file: str = ""
    shard: int | None = None
    chunk: tuple[int, ...] | None = None

    @property
    def where(self) -> str:
        """File, shard and chunk in words."""
        parts = [self.file]
        parts += [] if self.shard is None else [f"shard {self.shard}"]
        parts += [] if self.chunk is None else [f"chunk {', '.join(map(str, self.chunk))}"]
        return ", ".join(part for part in parts if part)

    def __str__(self) -> str:
        return f"{self.path}: {self.where}: {self.what}" if self.where else f"{self.path}: {self.what}"


@dataclass
class Verification:
    """What was looked at, and what was found.

    Attributes
    ----------
    checked
        Path → number of chunks, of every store, corpus and result.
    unfinished
        Unfinished work, and what dead processes left: it is not wrong, but nobody vouches for it either.
    missing
        What the experiment of a run directory asks for and is not made yet.
    inputs
        What became of the inputs of results that are not checked as parts of a whole run.
    faults
        Everything that is not as it was written.
    """

    checked: dict[str, int] = field(default_factory=dict)
    unfinished: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    inputs: list[TracedInput] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.faults

    def as_dict(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        faults = [asdict(fault) for fault in self.faults]
        inputs = [asdict(entry) for entry in self.inputs]
        passed = {"unfinished": self.unfinished, "missing": self.missing, "inputs": inputs}
        return {"ok": self.ok, "checked": self.checked, **passed, "faults": faults}


def verify(*paths: str | Path, threads: int | None = None, expect: Expect | None = None) -> Verification:
    """Check stores, corpora and results, or whole folders of them, such as a run directory.

    Shards are checked in parallel; a damaged part does not keep the rest from being checked. Memory: one decoded
    chunk a thread, and then, for the hash and the statistics of a store, one shard a thread and one more.

    Parameters
    ----------
    paths
        Stores, results, or folders that hold some at any depth.
    threads
        How many shards at a time; as many as there are cores, at most 8, if absent.
    expect
        Returns what a run directory should hold, in the order of making: :func:`pipeline.experiment.status.expected`.
        Without it, only what every run has is looked for, and only stores are compared with what they were made from.

    Returns
    -------
    Verification

    Raises
    ------
    MissingInputError
        If there is nothing at a path, or nothing in it that could be checked.
    """
    report = Verification()
    given = [local_path(path) for path in paths]
    groups = [group for path in given for group in _groups_below(path, report, expect)]
    with ThreadPoolExecutor(threads or min(MOST_THREADS, os.cpu_count() or 1)) as pool:
        for group in groups:
            _Check(group, pool, report).run()
    damaged = {fault.path for fault in report.faults}
    for result in (path for path in given if path in groups and str(path) not in damaged):
        traced = list(trace_inputs(result, groups))
        report.inputs += traced
        changed = [f"{entry.name} ({entry.path})" for entry in traced if entry.state == "changed"]
        if changed:
            report.faults.append(Fault(str(result), f"{OTHER_INPUTS}: {', '.join(changed)}"))
    return report


def _groups_below(path: Path, report: Verification, expect: Expect | None) -> Iterator[Path]:
    """Yield the Zarr groups at or below a path; note what is unfinished, missing, or no longer a group."""
    if path.is_file():
        raise MissingInputError(
            f"{path} is a file, and has no checksums to verify it by: verify the result or run that it was written from"
        )
    if not path.is_dir():
        raise MissingInputError(f"There is nothing to verify at {path}; give a store, a result, or a run directory")
    if path.name.endswith(PARTIAL_SUFFIX) or leftover_of(path.name) is not None:
        report.unfinished.append(str(path))
    elif (path / GROUP_FILE).exists():
        if _is_of_another_program(path):
            raise MissingInputError(
                f"{path} is a Zarr group that another program wrote: it has no checksums to verify it by"
            )
        yield path
    elif path.suffix == ".zarr":
        report.faults.append(Fault(str(path), GONE, GROUP_FILE))
    else:
        yield from _groups_in_folder(path, report, expect)


def _is_of_another_program(path: Path) -> bool:
    try:
        metadata = read_metadata(path)
        if Inventory.read(metadata, path) is not None:
            return False
        attrs = metadata.get("attributes", {})
    except (FormatError, AttributeError):
        return False  # damage is for the check to say
    return not {MANIFEST, CONTENT_HASH, "layout"} & {*attrs}


def _groups_in_folder(path: Path, report: Verification, expect: Expect | None) -> Iterator[Path]:
    n_before = len(report.unfinished) + len(report.faults)
    folders = [child for child in sorted(path.iterdir()) if child.is_dir()]
    inner = [group for child in folders for group in _groups_or_none(child, report, expect)]
    if (path / EXPERIMENT).is_file():
        _check_run(RunDirectory(path), report, expect)
    if not inner and len(report.unfinished) + len(report.faults) == n_before:
        raise MissingInputError(f"There is no store or result in {path}; give a store, a result, or a run directory")
    yield from inner


def _groups_or_none(path: Path, report: Verification, expect: Expect | None) -> list[Path]:
    try:
        return list(_groups_below(path, report, expect))
    except MissingInputError:
        return []


def _check_run(run: RunDirectory, report: Verification, expect: Expect | None) -> None:
    """Note a run's file that cannot be read, what is missing of its results, and what was made from something else."""
    try:
        stages = run.expected()
        results = [] if expect is None else expect(run)
    except FormatError as error:
        report.faults.append(Fault(str(run.root), str(error), EXPERIMENT))
        return
    needed = _needed(run, stages, results)
    paths = [path for stage in stages for path in stage] + [result.path for result in results]
    for path in dict.fromkeys([*paths, run.models]):
        if path.exists():
            if (path / GROUP_FILE).exists() and _is_of_another_program(path):
                report.faults.append(Fault(str(path), "another program wrote this file", GROUP_FILE))
            continue
        if path in needed:
            report.faults.append(Fault(str(path), "is missing, and results that were made from it are there"))
        elif path != run.models:
            report.missing.append(str(path))
    for side, site in () if run.is_stored() else run.sites():
        _check_place(run, side, site, report)
    for result in results:
        if result.manifest is not None and result.path.exists():
            _check_inputs(result, report)


def _needed(run: RunDirectory, stages: list[list[Path]], results: Sequence[ExpectedResult]) -> set[Path]:
    """Return the results that others which are there were made from."""
    needed = {path for i, stage in enumerate(stages) for path in stage if _any_exists(stages[i + 1 :])}
    harvested = (_stage_of(run.activations(side, site)) == "harvest" for side, site in run.sites())
    if not run.is_stored() and any(harvested):  # stores that were brought in know of no models
        needed.add(run.models)
    for result in reversed(results):
        if result.path.exists() or result.path in needed:
            needed |= {*result.inputs}
    return needed - {run.labels(side, site) for side, site in run.sites()}  # which only users make


def _stage_of(path: Path) -> str | None:
    """Return the stage that wrote what is at a path; None if nothing is, or its metadata is damaged."""
    try:
        manifest = read_manifest(path)
    except FormatError:
        return None
    return None if manifest is None else manifest.stage


def _any_exists(stages: Iterable[Iterable[Path]]) -> bool:
    return any(path.exists() for stage in stages for path in stage)


def _check_place(run: RunDirectory, side: Side, site: str, report: Verification) -> None:
    """Note a store that is another one's, or was made from another text."""
    store = run.activations(side, site)
    if (manifest := read_manifest(store)) is None:
        return
    made = str(read_attrs(store).get("site", site)), str(manifest.settings.get("side", side))
    if made != (site, side):
        report.faults.append(Fault(str(store), f"is the store of {made[0]} of side {made[1]}"))
    changed = []
    for name, path in (("corpus", run.corpus), ("rows", run.rows)):
        with contextlib.suppress(FormatError, MissingInputError):  # which the check of that one says
            if manifest.inputs.get(name, now := fingerprint(path)) != now:
                changed.append(name)
    if changed:
        report.faults.append(Fault(str(store), f"{OTHER_INPUTS}: {', '.join(changed)}"))


def _check_inputs(result: ExpectedResult, report: Verification) -> None:
    """Note a result whose inputs are others than those that are there now.

    An input that only one of the two knows is no fault: an earlier release, or another setting, made do without it.
    """
    recorded = result.recorded()
    if recorded is None or result.manifest is None:
        return
    try:
        now = result.manifest()
    except SubspaceError as error:  # an input is missing or damaged, which its own check says
        logger.info("What %s was made from is not compared: %s", result.path, error)
        return
    names = sorted(recorded.inputs.keys() & now.inputs.keys())
    changed = [name for name in names if recorded.inputs[name] != now.inputs[name]]
    if changed:
        report.faults.append(Fault(str(result.path), f"{OTHER_INPUTS}: {', '.join(changed)}"))


class _Check:
    """The check of one group."""

    def __init__(self, path: Path, pool: ThreadPoolExecutor, report: Verification) -> None:
        self.path = path
        self.pool = pool
        self.report = report
        self.n_faults = len(report.faults)
        self.has_inventory = False

    def run(self) -> None:
        self.report.checked[str(self.path)] = 0
        metadata: dict[str, Any] = {}
        arrays: list[str] = []
        with self._noting("the metadata cannot be read", GROUP_FILE):
            metadata = read_metadata(self.path)
            self.has_inventory = Inventory.read(metadata, self.path) is not None
            arrays = self._check_metadata(metadata)
        if not metadata:
            return
        for name in arrays:
            with self._noting("the array cannot be read", f"{name}/{GROUP_FILE}"):
                self._check_array(name)
        with self._noting("the inventory cannot be read", GROUP_FILE):
            self._check_files(metadata)
        if len(self.report.faults) == self.n_faults:  # what is computed again from damaged parts would say nothing new
            with self._noting("the content cannot be read"):
                self._check_content(metadata["attributes"])

    @contextlib.contextmanager
    def _noting(self, what: str, file: str = "") -> Iterator[None]:
        """Note whatever is raised inside as a fault, so that the rest is checked."""
        try:
            with reading(self.path / file):
                yield
        except FormatError as error:
            self._fault(f"{what}: {error}", file)

    def _fault(self, what: str, file: str = "", **place: Any) -> None:
        self.report.faults.append(Fault(str(self.path), what, file, **place))

    def _check_metadata(self, metadata: dict[str, Any]) -> list[str]:
        """Compare the arrays' own metadata with the consolidated copy; return the arrays that can be checked."""
        stored = metadata.get("attributes", {}).get(MANIFEST)
        if stored is not None and Manifest.from_attrs(metadata["attributes"]).fingerprint != stored.get("fingerprint"):
            self._fault("the manifest has another fingerprint than it says", GROUP_FILE)
        consolidated = (metadata.get("consolidated_metadata") or {}).get("metadata", {})
        names = sorted({*consolidated, *(file.parent.name for file in self.path.glob(f"*/{GROUP_FILE}"))})
        good = []
        lengths: dict[str, tuple[int, str]] = {}
        for name in names:
            with self._noting("the metadata cannot be read", f"{name}/{GROUP_FILE}"):
                self._check_dimensions(name, lengths)
                good.append(name)
        return good

    def _check_files(self, metadata: dict[str, Any]) -> None:
        """Compare the files with the inventory; one with a fault that is more exact is not named again."""
        known = {fault.file for fault in self.report.faults if fault.path == str(self.path)}
        for name, what in faults(self.path, checksums=True, metadata=metadata):
            if name not in known:
                numbers = name.split("/c/", 1)[-1].split("/")
                self._fault(what, name, shard=int(numbers[0]) if numbers[0].isdigit() else None)

    def _check_dimensions(self, name: str, lengths: dict[str, tuple[int, str]]) -> None:
        """Arrays that share a dimension must agree on its length, which the first of them puts into `lengths`."""
        try:
            metadata = read_metadata(self.path / name)
        except MissingInputError as error:
            raise CorruptError(str(error)) from error
        if metadata["node_type"] != "array":
            return
        dimensions = metadata.get("dimension_names") or [None] * len(metadata["shape"])
        for dimension, length in zip(dimensions, metadata["shape"], strict=True):
            known, first = lengths.setdefault(dimension, (length, name)) if dimension is not None else (length, name)
            if known != length:
                self._fault(f"{dimension} has {length} entries, but {known} in {first}", f"{name}/{GROUP_FILE}")

    def _check_array(self, name: str) -> None:
        try:
            # a pipe would be waited for, before the inventory could name it
            check_array(self.path / name, is_vouched_for=self.has_inventory)
            check: Any = _CsrArray(self.path, name) if is_csr_array(self.path, name) else _DenseArray(self.path, name)
        except (*DAMAGE, BudgetError) as error:
            if is_out_of_threads(error):
                raise
            self._fault(f"the array cannot be opened: {error}", f"{name}/zarr.json")
            return
        for n_chunks, problems in in_order(self.pool, check, check.shards()):
            self.report.checked[str(self.path)] += n_chunks
            self.report.faults += problems

    def _check_content(self, attrs: dict[str, Any]) -> None:
        if "layout" in attrs:
            self._check_store(attrs)
        elif attrs.get("format") == CORPUS:
            self._check_corpus(attrs)

    def _check_store(self, attrs: dict[str, Any]) -> None:
        """Compute row hash, statistics and content hash again, from one shard after the other."""
        group = zarr.open_group(str(self.path), mode="r")
        columns = coordinates(self.path)
        if ROW_HASH in attrs and row_hash(columns) != attrs[ROW_HASH]:
            self._fault("the coordinates do not have the row hash of the attributes", ", ".join(IDENTITY))
        if TOKEN_HASH in attrs and token_hash(columns) != attrs[TOKEN_HASH]:
            self._fault("the coordinates do not have the token hash of the attributes", "position, token_id, group")
        if lost := [name for name in ("sink", *STATISTICS) if name not in group]:
            self._fault(f"the store has no {', '.join(lost)}")
            return
        writer = ActivationWriter.from_disk(self.path, self.path)
        shards = in_order(self.pool, lambda i: read_shard(writer, self.path, i), range(writer.n_shards))
        moments, content_hash = survey(writer, self.path, shards)
        if content_hash != attrs.get(CONTENT_HASH):
            self._fault(f"the content has the hash {content_hash}, the attributes say {attrs.get(CONTENT_HASH)}")
        scale = np.maximum(np.abs(moments.maximum), np.abs(moments.mean)) + moments.std
        for name, values in statistics(moments).items():
            different = _differ(group[name][...], values, scale)
            if len(different):
                shown = ", ".join(map(str, different[:5]))
                self._fault(f"{len(different)} features have another {name} than their values: {shown}", name)

    def _check_corpus(self, attrs: dict[str, Any]) -> None:
        if (computed := hash_of_text(self.path)) != attrs[CONTENT_HASH]:
            self._fault(f"the text has the hash {computed}, the attributes say {attrs[CONTENT_HASH]}", "text, offsets")


def _differ(stored: NDArray[Any], computed: NDArray[Any], scale: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return where two statistics are not the same, NaN being the same as NaN."""
    same = np.abs(stored - computed) <= TOLERANCE * np.nan_to_num(scale)
    return np.flatnonzero(~(same | (np.isnan(stored) & np.isnan(computed))))


def in_order(pool: ThreadPoolExecutor, task: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
    """Yield ``task(item)`` in the order of the items; no more are under way than the pool has threads, and one."""
    waiting: deque[Future[Any]] = deque()
    left = iter(items)
    for item in itertools.islice(left, pool._max_workers):
        waiting.append(pool.submit(task, item))
    while waiting:
        result = waiting.popleft().result()
        waiting.extend(pool.submit(task, item) for item in itertools.islice(left, 1))
        yield result


class _CsrArray:
    """Checks the shards of a ``csr`` array; called with a shard's number, returns its chunks' number and faults."""

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name = path, name
        self.layout = read_layout(path, name)

    def shards(self) -> Iterable[int]:
        return range(self.layout.n_shards)

    def __call__(self, i: int) -> tuple[int, list[Fault]]:
        file = f"{self.name}/c/{i}/0"
        if not self.layout.shard_file(i).exists():
            return 0, [Fault(str(self.path), GONE, file, i)] if self.layout.all_shards else []
        n_chunks, faults = 0, []
        try:
            for place, content in iter_chunks(self.layout, i):
                n_chunks += 1
                faults += [Fault(str(self.path), what, file, i, place) for what in self._problems(i, place, content)]
        except CorruptError as error:
            faults.append(Fault(str(self.path), str(error), file, i))
        return n_chunks, faults

    def _problems(self, i: int, place: tuple[int, int], content: Panel | CorruptError) -> Iterator[str]:
        if isinstance(content, CorruptError):
            yield str(content)
            return
        indptr = np.concatenate([[0], np.cumsum(content.lengths, dtype=np.int64)])
        if not rows_are_canonical(indptr, content.ids.astype(np.int32)):
            yield "column ids are not strictly increasing inside a row"
        if _outside(self.layout, i, place, content):
            yield "entries lie outside of the array"
        values = content.bits.view(self.layout.dtype.newbyteorder("<"))
        if self.name == ACTIVATION and not np.isfinite(values).all():
            yield "values are not finite numbers"


def _outside(layout: SparseLayout, i: int, place: tuple[int, int], content: Panel) -> bool:
    rows = layout.shape[0] - i * layout.shard_rows - place[0] * layout.chunk[0]
    columns = layout.shape[1] - place[1] * layout.chunk[1]
    return bool(content.lengths[max(rows, 0) :].any() or (content.ids >= columns).any())


class _DenseArray:
    """Checks the shards of any other array, chunk by chunk, through Zarr."""

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name = path, name
        self.array = zarr.open_array(str(path / name), mode="r")
        self.outer: tuple[int, ...] = self.array.shards or self.array.chunks

    def shards(self) -> Iterable[tuple[int, ...]]:
        sizes = zip(self.array.shape, self.outer, strict=True)
        return itertools.product(*(range(-(-length // step)) for length, step in sizes))

    def __call__(self, shard: tuple[int, ...]) -> tuple[int, list[Fault]]:
        file = "/".join([self.name, "c", *map(str, shard)])
        number = shard[0] if shard else 0
        if not (self.path / file).exists():
            return 0, []  # it may be a chunk of fill values: the inventory knows
        problems = {place: what for place in self._chunks(shard) if (what := self._problem(shard, place))}
        n_chunks = max(1, len(list(self._chunks(shard))))
        if len(set(problems.values())) == 1 and len(problems) == n_chunks:  # the index, or the only chunk
            problems = {(): next(iter(problems.values()))}
        path = str(self.path)
        return n_chunks, [Fault(path, what, file, number, at or None) for at, what in problems.items()]

    def _chunks(self, shard: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
        """Yield the places of the chunks of a shard that lie inside of the array."""
        sizes = zip(self.array.shape, self.outer, self.array.chunks, shard, strict=True)
        return itertools.product(
            *(range(-(-min(outer, length - i * outer) // chunk)) for length, outer, chunk, i in sizes)
        )

    def _problem(self, shard: Sequence[int], place: Sequence[int]) -> str:
        starts = [
            i * outer + at * chunk
            for i, outer, at, chunk in zip(shard, self.outer, place, self.array.chunks, strict=True)
        ]
        where = tuple(slice(start, start + chunk) for start, chunk in zip(starts, self.array.chunks, strict=True))
        try:
            values = np.asarray(self.array[where])
        except DAMAGE as error:
            if is_out_of_threads(error):
                raise
            return f"the chunk cannot be read: {error}"
        if self.name in (ACTIVATION, "decoder") and not np.isfinite(values).all():
            return "values are not finite numbers"
        return ""
