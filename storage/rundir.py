"""Where an experiment's results stand below its run directory.

Beside them, as CSV, HTML or LaTeX, stand the tables: ``best_layer_{a,b}.csv``, ``scores.csv`` and ``.tex``,
``semantics.csv``, ``.html`` and ``.tex``, ``pairs.csv``, ``yardsticks.csv``, ``normalised.csv``.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from storage.errors import FormatError, InputError, MissingInputError
from storage.files import (
    EXPERIMENT,
    LOCK_SUFFIX,
    PARTIAL_SUFFIX,
    leftover_of,
    refuse_inside_of_store,
    write_text,
)
from storage.json_files import read_json_object
from storage.locks import is_held_here, lock, refuse_if_held

Side = Literal["a", "b"]
SIDES: tuple[Side, Side] = ("a", "b")

#: A side, or a site of A.
First = TypeVar("First", bound=str)


@dataclass(frozen=True)
class _File:
    """A path below a run directory, read like an attribute."""

    name: str
    __doc__: str

    def __get__(self, run: RunDirectory, owner: type) -> Path:
        return run.root / self.name


@dataclass(frozen=True)
class _Results(Generic[First]):
    """The paths of one kind of result, by side and site, or by the sites of A and B; called like a method."""

    folder: str
    __doc__: str
    joint: str = "/"

    def __get__(self, run: RunDirectory, owner: type) -> Callable[[First, str], Path]:
        return lambda first, second: run.root / self.folder / f"{first}{self.joint}{second}.zarr"


@dataclass(frozen=True)
class RunDirectory:
    """The paths of one run; nothing is created until something is written.

    Examples
    --------
    >>> run = RunDirectory(Path("runs/toy"))
    >>> run.correlation("layers.1", "layers.3").as_posix()
    'runs/toy/correlation/layers.1--layers.3.zarr'
    """

    root: Path

    @classmethod
    def of(cls, name: str, root: str | Path | None = None) -> RunDirectory:
        """Return the directory of an experiment: `root`, or ``runs/NAME`` where none is given."""
        return cls(Path(root) if root is not None else Path("runs") / name)

    @classmethod
    def around(cls, store: Path) -> tuple[RunDirectory, Side, str]:
        """Return the run directory that an activation store stands in, the store's side and its site.

        >>> run, side, site = RunDirectory.around(Path("runs/toy/activations/b/layers.1.zarr"))
        >>> run.root.as_posix(), side, site
        ('runs/toy', 'b', 'layers.1')
        """
        return cls(store.parent.parent.parent), "a" if store.parent.name == "a" else "b", store.stem

    corpus = _File("corpus.zarr", "The text.")
    rows = _File("rows.zarr", "The token rows that both models share.")
    models = _File("models.json", "What identifies both models and their dictionaries.")
    best_layer = _File("best_layer.zarr", "Each feature's best site of the other model, over all correlation results.")
    score_grid = _File("scores.zarr", "All scores of the grid, with p corrected for their number.")
    words = _File("semantics/words.zarr", "Embeddings of the words that features fire on.")
    semantics_table = _File("semantics.zarr", "The table of concepts × pairs of sites.")
    pairs_table = _File("pairs.csv", "Every matched pair, with the words that both features fire on.")
    yardsticks_table = _File("yardsticks.csv", "Every score beside each floor and ceiling.")
    normalised_table = _File("normalised.csv", "Every score between one floor and one ceiling.")
    report = _File("report.html", "The report.")
    report_manifest = _File("report.json", "What the report was made from.")
    concepts_page = _File("concepts.html", "The report's page of concepts.")
    explorer = _File("explorer", "The explorer's pages, where they are too large for the report.")
    usage = _File("usage", "What each stage took, time and memory; one JSON file for each session.")

    activations = _Results[Side]("activations", "Return the path of one site's activation store.")
    contexts = _Results[Side]("contexts", "Return the path of the top activating rows of one site's features.")
    non_concept = _Results[Side](
        "non_concept", "Return the path of which features stand for no concept, if a filter asks."
    )
    labels = _Results[Side](
        "labels", "Return the path of what a site's features are called, where the user has put it."
    )
    identity = _Results[str](
        "identity", "Return the path of what of each pair is beyond the token, where the user has put it.", "--"
    )
    concepts = _Results[Side]("concepts", "Return the path of one site's features by concept.")

    correlation = _Results[str]("correlation", "Return the path of the correlation of two sites.", "--")
    pairs = _Results[str]("pairs", "Return the path of the matched pairs of two sites.", "--")
    rematched = _Results[str](
        "rematched",
        "Return the path of the matchings of two sites with B's rows permuted, if they are asked for.",
        "--",
    )
    scores = _Results[str]("scores", "Return the path of the comparison of two sites: metrics and nulls.", "--")
    semantics = _Results[str]("semantics", "Return the path of the subspaces of meanings at two sites.", "--")
    yardsticks = _Results[str](
        "yardsticks",
        "Return the path of two sites beside their floors and ceilings, which stand in folders there.",
        "--",
    )

    def activations_folder(self, side: Side) -> Path:
        """Return the folder of all activation stores of one model."""
        return self.root / "activations" / side

    def write_experiment(self, experiment: dict[str, Any]) -> None:
        """Keep the validated experiment, so that later stages know the grid without its YAML file."""
        self.check()
        write_text(self.root / EXPERIMENT, json.dumps(experiment, indent=2, sort_keys=True) + "\n")

    def check(self, name: str | None = None) -> None:
        """Raise an InputError unless the folder is a run directory, or may become one.

        It may if it is absent, empty, or holds only what commands leave there before a run has begun, and is not inside
        of a store or result. With the `name` of an experiment, the run has to be its own: another's results stay.
        """
        refuse_inside_of_store(self.root, "give another --run-dir")
        if not self.root.is_dir():
            if os.path.lexists(self.root):
                raise InputError(f"{self.root} is a file, and a run directory is a folder: give another --run-dir")
            return
        names = [name for name in sorted(entry.name for entry in self.root.iterdir()) if not _belongs_to_a_run(name)]
        if names and not os.path.lexists(self.root / EXPERIMENT):
            shown = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
            raise InputError(
                f"{self.root} holds {shown} and is not a run directory (it has no {EXPERIMENT}): give another "
                "--run-dir, so that no other files are touched"
            )
        if foreign := [name for name in _MEMBERS if _is_foreign(self.root / name)]:
            raise InputError(
                f"{self.root / foreign[0]} was not written by this package, and a run writes there: move it away, or "
                "give another --run-dir"
            )
        if name is not None and (own := self._name()) not in (None, name):
            raise InputError(
                f"{self.root} is the run of the experiment {own!r}, and {name!r} would replace its results: give "
                f"another --run-dir, or the experiment the name {own!r}"
            )

    def _name(self) -> str | None:
        """Return the name of the experiment whose run it is; None where there is none yet, or its file is damaged."""
        with contextlib.suppress(FormatError, MissingInputError):
            name = self.read_experiment().get("name")
            return name if isinstance(name, str) else None
        return None

    def check_free(self, name: str | None = None) -> None:
        """Raise what :meth:`check` and :meth:`claim` would, before anything is started."""
        self.check(name)
        self._check_files()
        refuse_if_held(self.root / "run", name=self.root)

    def _check_files(self) -> None:
        from storage.derived import edited_files, foreign_files  # noqa: PLC0415 - all that writes; readers do without

        self.check()
        for names, what in (
            (edited_files(self.root), "was edited since this run wrote it"),
            (foreign_files(self.root), "was not written by this package"),
        ):
            if names:
                raise InputError(f"{self.root / names[0]} {what}, and a run would replace it: rename it, or delete it")

    @contextlib.contextmanager
    def claim(self) -> Iterator[None]:
        """Hold the run directory: nobody else runs there. Files that dead processes were writing are swept.

        Within a claim by the same thread, another one does nothing: its own files may be half written.

        InputError if the folder holds something else than a run, or files with the names of a run's that it did not
        write; BusyError if another process runs there.
        """
        from storage.derived import settle  # noqa: PLC0415 - with all that writes, which readers do without
        from storage.targets import sweep_below  # noqa: PLC0415

        if is_held_here(self.root / "run"):
            yield
            return
        self._check_files()
        self.root.mkdir(parents=True, exist_ok=True)
        with lock(self.root / "run", name=self.root):
            for folder in (self.root, self.usage):
                for stray in folder.glob(f"*{PARTIAL_SUFFIX}") if folder.is_dir() else ():
                    if leftover_of(stray.name) is not None:
                        stray.unlink(missing_ok=True)
            sweep_below(self.root)
            settle(self.root)
            yield

    def expected(self) -> list[list[Path]]:
        """Return the results that the experiment asks for, in the order in which they are made from each other.

        MissingInputError if the folder is not a run directory, FormatError if its experiment is damaged.
        """
        stores = self.sites()
        grid = [(a, b) for side_a, a in stores for side_b, b in stores if (side_a, side_b) == SIDES]
        return [
            [self.corpus],
            [self.rows],
            [self.activations(side, site) for side, site in stores],
            [self.contexts(side, site) for side, site in stores],
            *([of(*pair) for pair in grid] for of in (self.correlation, self.pairs)),
            *([[self.scores(*pair) for pair in grid]] if self.is_compared() else []),
            [self.report],
        ]

    def sites(self) -> list[tuple[Side, str]]:
        """Return the side and the name of every site of the experiment; errors are those of :meth:`expected`."""
        experiment = self.read_experiment()
        try:
            return [(side, str(site)) for side in SIDES for site in experiment[side]["sites"]]
        except (KeyError, TypeError) as error:
            raise FormatError(f"{self.root / EXPERIMENT} is damaged ({error!r}); {_WRITTEN_AGAIN}") from error

    def is_compared(self) -> bool:
        """Say whether the experiment asks for scores; errors as :meth:`expected`."""
        return self.read_experiment().get("compare", {}) is not None

    def is_stored(self) -> bool:
        """Say whether the activations come from stores, not from models; errors as :meth:`expected`."""
        return all("store" in self.read_experiment().get(side, {}) for side in SIDES)

    def read_experiment(self) -> dict[str, Any]:
        """Return what :meth:`write_experiment` kept; errors as :meth:`expected`."""
        file = self.root / EXPERIMENT
        if not file.is_file():
            raise MissingInputError(
                f"{self.root} is not a run directory (it has no {EXPERIMENT}); `subspace run` makes one"
            )
        return read_json_object(file, f"There is no {file}", _WRITTEN_AGAIN)


_WRITTEN_AGAIN = "`subspace run EXPERIMENT.yaml` writes it again"
#: What commands leave in a run directory before a run has begun: logs, the demo's text and weights, records, and what
#: a plan is made from.
_BEFORE_A_RUN = (
    *("logs", "jobs", "input", "watch", "watch.html", "watch.json", "usage", "models.json", "corpus.zarr", "rows.zarr"),
    "activations",
    EXPERIMENT,
)


#: What the JSON files of a run directory have as members, one of these at least: a run that died knows one model.
_MEMBERS: dict[str, tuple[str, ...]] = {
    EXPERIMENT: SIDES,
    "models.json": SIDES,
    "watch.json": ("sessions",),
    "report.json": ("manifest",),
}


def _is_foreign(file: Path) -> bool:
    """Say whether a JSON file is somebody else's, or no file; one that cannot be read was ours, and is damaged."""
    if not file.is_file():
        return os.path.lexists(file)
    try:
        content = json.loads(file.read_bytes())
    except (ValueError, RecursionError):
        return False
    return not isinstance(content, dict) or not any(member in content for member in _MEMBERS[file.name])


def _belongs_to_a_run(name: str) -> bool:
    plain = (leftover_of(name) or name).removesuffix(LOCK_SUFFIX).removesuffix(PARTIAL_SUFFIX)
    return plain in (*_BEFORE_A_RUN, "run")
