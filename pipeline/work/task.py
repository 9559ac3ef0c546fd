"""Tasks: what a stage makes, from what, how, and whether it is made already.

A stage tells its tasks for an experiment and a run directory; to run, to show the status and to forecast are loops
over them::

    stage ──tasks(experiment, run directory)──▶ Task: targets, each with the manifest it should have; inputs; run; cost
                                                  │
                          Assessment ◀────────────┘    expected manifest beside the recorded one ──▶ state, and why

A task's expected manifest comes from the function that the stage itself uses when it writes the result, so that the
two cannot disagree. Inputs enter a manifest by their fingerprints. The fingerprint of most results is that of their
manifest, and known before they are made; that of a corpus and of an activation store is the hash of its content. What
depends on such content *waits* until it is made: it is made again only if the content has changed.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from distributed import Client

from pipeline.settings.experiment import Experiment
from pipeline.work.share import Share
from pipeline.work.workers import n_slots
from storage import fingerprint, open_activations, read_manifest
from storage.errors import CorruptError, SubspaceError
from storage.files import partial_path
from storage.inventory import is_intact
from storage.manifest import Manifest
from storage.rundir import RunDirectory

logger = logging.getLogger(__name__)

#: Why nothing is there where nothing was made.
NEW = "not there yet"
State = Literal["current", "outdated", "damaged", "unfinished", "missing", "waiting"]
#: Returns the fingerprint of what is, or will be, at a path.
Identify = Callable[[str | Path], str]
#: Returns the manifest that a target should have.
Expect = Callable[[Identify], Manifest]

#: Longest description of a value in a reason, in characters, and most reasons that are given.
LONGEST_VALUE, MOST_REASONS = 60, 4


class NotMadeError(SubspaceError):
    """An input has to be made before it is known what becomes of that which depends on it."""


@dataclass(frozen=True)
class StoreForecast:
    """What is known of an activation store before it is written: width, and features that are active in a row."""

    n_features: int
    active: float
    sparse: bool


@dataclass
class Outlook:
    """What costs are estimated from; a task adds what those behind it need.

    The workers are those of `client`. `stores` are the activation stores that are not written yet, and `kept` the pairs
    that correlations will keep which are not made yet, by path; `resources` and `rates` are memory, processors and
    speed of the workers, as the stage that uses them knows them; `gpu` is what each is assumed to have.
    """

    client: Client
    stores: dict[Path, StoreForecast] = field(default_factory=dict)
    kept: dict[Path, float] = field(default_factory=dict)
    resources: Any = None
    rates: Any = None
    gpu: Any = None

    @property
    def n_slots(self) -> int:
        """Tasks that run at once."""
        return n_slots(self.client)

    def n_features(self, store: Path) -> int:
        """Return how many features a store has, or will have."""
        known = self.stores.get(store)
        return int(open_activations(store).sizes["feature"]) if known is None else known.n_features


@dataclass(frozen=True)
class Cost:
    """What a task will take.

    Attributes
    ----------
    seconds
        On the workers at hand.
    rows, tasks
        Rows that it reads, and Dask tasks that it is cut into.
    flops, read, disk, memory
        Floating-point operations; bytes read, left on disk, and held by each worker process at most.
    note
        How it is done, where that is chosen by the forecast.
    """

    seconds: float
    rows: int = 0
    tasks: int = 1
    flops: float = 0.0
    read: float = 0.0
    disk: float = 0.0
    memory: float = 0.0
    note: str = ""


def no_progress(_: Path) -> str:
    """Return nothing: the work is not made of parts that can be counted."""
    return ""


@dataclass(frozen=True)
class Task:
    """One piece of work of a stage, with the results that it leaves on disk.

    Attributes
    ----------
    name, what
        The kind of result, and the model, site or pair of sites.
    targets
        Path of each result → the manifest that it should have.
    inputs
        Paths of the results that it is made from.
    run
        Makes all targets that are not current; a half-finished one resumes at its first missing part.
    tables
        Files that people open, which are written beside the targets.
    opens
        Those of the inputs on whose content the expected manifest depends, so that they must be current.
    by_content
        Whether the targets' fingerprints are hashes of their content, unknown before they are made.
    prepares
        Whether the stage's other tasks can be neither planned nor shared before this one is done.
    of_sites
        Whether the targets are of several sites, and named like them.
    cost
        What it will take; None where that is next to nothing.
    share
        Begins the task, or does a share of it; see :mod:`pipeline.work.share`.
    progress
        Says how many parts of the unfinished work in a folder are done.
    recorded
        Reads the manifest of a target, None if there is none.
    """

    name: str
    what: str
    targets: Mapping[Path, Expect]
    inputs: tuple[Path, ...]
    run: Callable[[Client], object]
    tables: tuple[Path, ...] = ()
    opens: tuple[Path, ...] = ()
    by_content: bool = False
    prepares: bool = False
    of_sites: bool = False
    cost: Callable[[Outlook], Cost] | None = None
    share: Callable[[Share, Client], object] | None = None
    progress: Callable[[Path], str] = no_progress
    recorded: Callable[[Path], Manifest | None] = read_manifest

    def what_of(self, path: Path) -> str:
        """Return the model, site or pair of sites of a target."""
        return f"{self.what} {path.stem}" if self.of_sites else self.what


@dataclass(frozen=True)
class Stage:
    """A stage of an experiment.

    Attributes
    ----------
    name
        As users write it.
    tasks
        Yields its tasks, each behind those whose results it reads.
    check
        Raises if something that the experiment names is missing or does not fit, before anything is computed.
    around
        A context for all tasks of the stage in one run.
    before
        Of a stage from outside: the name of the stage that is to follow it.
    """

    name: str
    tasks: Callable[[Experiment, RunDirectory], Iterable[Task]]
    check: Callable[[Experiment], object] | None = None
    around: Callable[[Client], contextlib.AbstractContextManager[object]] = contextlib.nullcontext
    before: str = "report"


@dataclass(frozen=True)
class Item:
    """The state of one result.

    Attributes
    ----------
    stage, what
        The kind of result, and the model, site or pair of sites.
    path
        Where it is, or will be.
    state
        ``current``: a run leaves it as it is. ``outdated``, ``damaged``: a run makes it again. ``unfinished``: a run
        goes on with it, or writes its tables. ``missing``: a run makes it. ``waiting``: whether a run makes it again
        depends on what is made before.
    why
        What has changed, is missing, or is done already; empty where it is current.
    """

    stage: str
    what: str
    path: Path
    state: State
    why: str = ""

    @property
    def label(self) -> str:
        """Its name for people."""
        return f"{self.stage} {self.what}".rstrip()

    @property
    def task_line(self) -> str:
        """What a run says when it begins to make it."""
        if self.state == "missing" and self.why == NEW:
            return f"Making {self.label}"
        return f"{self.label} is {self.state}{f': {self.why}' if self.why else ''}"


class Assessment:
    """Knows which of some tasks are done, what a run would make, and why.

    Only manifests are compared, and nothing is written. Answers are kept: see :meth:`finish`.

    Parameters
    ----------
    tasks
        Each behind those whose results it reads. What they read beside is taken as it is on disk.
    """

    def __init__(self, tasks: Iterable[Task]) -> None:
        self._makers = {path: task for task in tasks for path in task.targets}
        self._expected: dict[Path, Manifest | SubspaceError] = {}
        self._items: dict[Path, Item] = {}

    def items(self) -> list[Item]:
        """Return the state of all results."""
        return [self.item(path) for path in self._makers]

    def item(self, path: Path) -> Item:
        """Return the state of one result."""
        if path not in self._items:
            task = self._makers[path]
            self._items[path] = Item(task.name, task.what_of(path), path, *self._state(task, path))
        return self._items[path]

    def is_current(self, task: Task) -> bool:
        """Return whether all results of a task are as they should be."""
        return all(self.item(path).state == "current" for path in task.targets)

    def finish(self, tasks: Iterable[Task], client: Client) -> None:
        """Run those of the tasks that are not current, in their order."""
        for task in tasks:
            todo = [item for item in map(self.item, task.targets) if item.state != "current"]
            for item in todo:
                logger.info("%s", item.task_line)
            if todo:
                task.run(client)
                # nothing behind it has been looked at yet
                for path in task.targets:
                    self._items.pop(path, None)
                    self._expected.pop(path, None)

    def identify(self, path: str | Path) -> str:
        """Return the fingerprint of what is at `path`, or will be after a run; NotMadeError if not known yet."""
        path = Path(path)
        task = self._makers.get(path)
        if task is None:
            return fingerprint(path)
        expected = self._expect(path)
        recorded = task.recorded(path)
        if recorded is not None and recorded.fingerprint == expected.fingerprint:
            return fingerprint(path)
        if task.by_content:
            raise NotMadeError(f"waits for {task.name} {task.what_of(path)}".rstrip())
        return expected.fingerprint

    def _expect(self, path: Path) -> Manifest:
        """Return the manifest that a result should have."""
        if path not in self._expected:
            task = self._makers[path]
            try:
                self._require_current(task.opens)
                self._expected[path] = task.targets[path](self.identify)
            except SubspaceError as error:
                self._expected[path] = error
        known = self._expected[path]
        if isinstance(known, SubspaceError):
            raise known
        return known

    def _require_current(self, paths: Iterable[Path]) -> None:
        for item in self._not_current(paths):
            if item.state == "waiting":
                self._expect(item.path)  # raises what it waits for itself
            raise NotMadeError(f"waits for {item.label}")

    def _not_current(self, paths: Iterable[Path]) -> Iterator[Item]:
        """Yield the state of those of some results that a run has to make first."""
        items = (self.item(path) for path in paths if path in self._makers)
        return (item for item in items if item.state != "current")

    def _state(self, task: Task, path: Path) -> tuple[State, str]:
        recorded = task.recorded(path)
        if recorded is None:
            return self._unfinished(task, path)
        if damage := _damage(path):
            return "damaged", damage
        try:
            expected = self._expect(path)
        except SubspaceError as error:
            return "waiting", str(error)
        if recorded.fingerprint == expected.fingerprint:
            gone = ", ".join(table.name for table in task.tables if not table.exists())
            return ("unfinished", f"{gone} is gone") if gone else ("current", "")
        reasons = list(self._reasons(task, recorded, expected))
        more = [f"and {len(reasons) - MOST_REASONS} more"] if len(reasons) > MOST_REASONS else []
        return "outdated", "; ".join([*reasons[:MOST_REASONS], *more])

    def _unfinished(self, task: Task, path: Path) -> tuple[State, str]:
        """Return the state of a result that is not there: unfinished if a run goes on with what is."""
        first = next(self._not_current(task.inputs), None)
        why = NEW if first is None else f"waits for {first.label}"
        partial = partial_path(path)
        begun = read_manifest(partial)
        if begun is None:
            return "missing", why
        try:
            expected = self._expect(path)
        except SubspaceError as error:
            return "unfinished", f"{task.progress(partial) or 'unfinished work is there'}; {error}"
        if begun.fingerprint == expected.fingerprint:
            return "unfinished", task.progress(partial) or "unfinished work is there"
        return "missing", f"unfinished work is there, but {'; '.join(self._reasons(task, begun, expected))}"

    def _reasons(self, task: Task, recorded: Manifest, expected: Manifest) -> Iterator[str]:
        """Yield a line for each thing that a result was made with or from and that is another one now."""
        if recorded.stage != expected.stage:
            yield f"it is a result of {recorded.stage}"
        yield from differences(recorded.settings, expected.settings)
        names = {*recorded.inputs, *expected.inputs}
        changed = sorted(name for name in names if recorded.inputs.get(name) != expected.inputs.get(name))
        before = [f"{item.label} is {item.state}" for item in self._not_current(task.inputs)]
        if changed:
            yield from before or (f"{name} is not the one that it was made from" for name in changed)


def _damage(path: Path) -> str:
    """Return what is not as the inventory of a result says; empty where nothing is wrong. The report is a file."""
    try:
        if path.is_dir():
            is_intact(path)
    except CorruptError as error:
        return str(error)
    return ""


def differences(then: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield a line for each setting that differs, those inside of others by their full names.

    Examples
    --------
    >>> list(differences({"top_k": 4, "rule": {"of": 5}}, {"top_k": 4, "rule": {"of": 6}, "full": "float16"}))
    ['rule.of is 6, and was 5', 'full is float16, and was not set']
    """
    for name in dict.fromkeys(itertools.chain(then, now)):
        before, after = then.get(name), now.get(name)
        if before == after:
            continue
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            yield from differences(before, after, f"{prefix}{name}.")
            continue
        texts = ["not set" if value is None else str(value) for value in (after, before)]
        short = max(map(len, texts)) <= LONGEST_VALUE
        yield f"{prefix}{name} is {texts[0]}, and was {texts[1]}" if short else f"{prefix}{name} has changed"
