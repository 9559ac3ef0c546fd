"""Where an experiment's results stand below its run directory.

======================================  ===============================================================
``corpus.zarr``                         the text
``rows.zarr``                           the token rows that both models share
``activations/{a,b}/SITE.zarr``         activation stores
``models.json``                         what identifies both models and their dictionaries
``contexts/{a,b}/SITE.zarr``            top activating rows of every feature
``non_concept/{a,b}/SITE.zarr``         features that stand for no concept, where a filter asks for them
``labels/{a,b}/SITE.zarr``              what features are called, where `subspace labels` has put it
``correlation/SITE_A--SITE_B.zarr``     top-k, kept pairs, statistics
``best_layer.zarr``, ``….csv``         each feature's best site of the other model
``pairs/SITE_A--SITE_B.zarr``           matched pairs
``scores/SITE_A--SITE_B.zarr``          metrics and nulls
``scores.zarr``, ``….csv``, ``….tex``  all of these, with p corrected for their number
``concepts/{a,b}/SITE.zarr``            which features belong to which concept
``semantics/SITE_A--SITE_B.zarr``       subspaces of meanings, their scores and nulls
``semantics/words.zarr``                embeddings of the words that features fire on
``semantics.zarr``, ``….csv, .html, .tex``  the table of concepts × pairs of sites
``report.html``, ``concepts.html``, ``*.csv``  the report
``report.json``                         what it was made from
``explorer/``                           its explorer, where that is too large for the report
``usage/*.json``                        what each stage took, time and memory, session by session
======================================  ===============================================================
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from storage.errors import FormatError, InputError, MissingInputError
from storage.files import (
    LOCK_SUFFIX,
    PARTIAL_SUFFIX,
    is_stray_file,
    leftover_of,
    refuse_inside_of_store,
    write_text,
)
from storage.json_files import read_json_object
from storage.locks import lock

Side = Literal["a", "b"]
SIDES: tuple[Side, Side] = ("a", "b")

EXPERIMENT = "experiment.json"


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

    @property
    def corpus(self) -> Path:
        """The text."""
        return self.root / "corpus.zarr"

    @property
    def rows(self) -> Path:
        """The token rows."""
        return self.root / "rows.zarr"

    @property
    def models(self) -> Path:
        """What identifies both models and their dictionaries."""
        return self.root / "models.json"

    def activations_folder(self, side: Side) -> Path:
        """Return the folder of all activation stores of one model."""
        return self.root / "activations" / side

    def activations(self, side: Side, site: str) -> Path:
        """Return the path of one site's activation store."""
        return self.activations_folder(side) / f"{site}.zarr"

    def contexts(self, side: Side, site: str) -> Path:
        """Return the path of the top activating rows of one site's features."""
        return self.root / "contexts" / side / f"{site}.zarr"

    def non_concept(self, side: Side, site: str) -> Path:
        """Return the path of what says which features of a site stand for no concept."""
        return self.root / "non_concept" / side / f"{site}.zarr"

    def labels(self, side: Side, site: str) -> Path:
        """Return the path of the labels of a site's features, where the user has put them."""
        return self.root / "labels" / side / f"{site}.zarr"

    def correlation(self, site_a: str, site_b: str) -> Path:
        """Return the path of the correlation result of two sites."""
        return self._of_pair("correlation", site_a, site_b)

    @property
    def best_layer(self) -> Path:
        """Each feature's best site of the other model, over the grid of correlation results."""
        return self.root / "best_layer.zarr"

    def pairs(self, site_a: str, site_b: str) -> Path:
        """Return the path of the matched pairs of two sites."""
        return self._of_pair("pairs", site_a, site_b)

    def scores(self, site_a: str, site_b: str) -> Path:
        """Return the path of the comparison of two sites."""
        return self._of_pair("scores", site_a, site_b)

    def concepts(self, side: Side, site: str) -> Path:
        """Return the path of one site's features by concept."""
        return self.root / "concepts" / side / f"{site}.zarr"

    def semantics(self, site_a: str, site_b: str) -> Path:
        """Return the path of the subspaces of meanings at two sites."""
        return self._of_pair("semantics", site_a, site_b)

    @property
    def words(self) -> Path:
        """Embeddings of the words that features fire on."""
        return self.root / "semantics" / "words.zarr"

    @property
    def semantics_table(self) -> Path:
        """The table of concepts × pairs of sites; as CSV, HTML and LaTeX beside it."""
        return self.root / "semantics.zarr"

    @property
    def score_grid(self) -> Path:
        """Return the path of all scores of the grid, with p corrected for their number."""
        return self.root / "scores.zarr"

    @property
    def report(self) -> Path:
        """The report."""
        return self.root / "report.html"

    @property
    def report_manifest(self) -> Path:
        """What the report was made from."""
        return self.root / "report.json"

    @property
    def concepts_page(self) -> Path:
        """The report's page of concepts."""
        return self.root / "concepts.html"

    @property
    def explorer(self) -> Path:
        """The explorer's pages, where they are too large for the report."""
        return self.root / "explorer"

    @property
    def usage(self) -> Path:
        """What each stage took, time and memory, session by session."""
        return self.root / "usage"

    def _of_pair(self, stage: str, site_a: str, site_b: str) -> Path:
        return self.root / stage / f"{site_a}--{site_b}.zarr"

    def write_experiment(self, experiment: dict[str, Any]) -> None:
        """Keep the validated experiment, so that later stages know the grid without its YAML file."""
        self.check()
        write_text(self.root / EXPERIMENT, json.dumps(experiment, indent=2, sort_keys=True) + "\n")

    def check(self) -> None:
        """Raise an InputError unless the folder is a run directory, or may become one.

        It may if it is absent, empty, or holds only what commands leave there before a run has begun, and is not inside
        of a store or result.
        """
        refuse_inside_of_store(self.root, "give another --run-dir")
        if not self.root.is_dir():
            if os.path.lexists(self.root):
                raise InputError(f"{self.root} is a file, and a run directory is a folder: give another --run-dir")
            return
        names = [name for name in sorted(entry.name for entry in self.root.iterdir()) if not _belongs_to_a_run(name)]
        if names and not (self.root / EXPERIMENT).is_file():
            shown = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
            raise InputError(
                f"{self.root} holds {shown} and is no run directory (it has no {EXPERIMENT}): nothing is written among "
                "other files; give another --run-dir"
            )

    @contextlib.contextmanager
    def claim(self) -> Iterator[None]:
        """Hold the run directory: nobody else runs there. Files that dead processes were writing are swept.

        InputError if the folder holds something else than a run, BusyError if another process runs there.
        """
        self.check()
        self.root.mkdir(parents=True, exist_ok=True)
        with lock(self.root / "run"):
            for folder in (self.root, self.usage):
                for stray in folder.glob(f"*{PARTIAL_SUFFIX}") if folder.is_dir() else ():
                    if is_stray_file(stray.name):
                        stray.unlink(missing_ok=True)
            from storage.targets import sweep_below  # noqa: PLC0415 - with all that writes, which readers do without

            sweep_below(self.root)
            yield

    def expected(self) -> list[list[Path]]:
        """Return the results that the experiment asks for, in the order in which they are made from each other.

        MissingInputError if the folder is no run directory, FormatError if its experiment is damaged.
        """
        stores = self.sites()
        grid = [(a, b) for side_a, a in stores for side_b, b in stores if (side_a, side_b) == SIDES]
        return [
            [self.corpus],
            [self.rows],
            [self.activations(side, site) for side, site in stores],
            [self.contexts(side, site) for side, site in stores],
            *([of(*pair) for pair in grid] for of in (self.correlation, self.pairs, self.scores)),
            [self.report],
        ]

    def sites(self) -> list[tuple[Side, str]]:
        """Return the side and the name of every site of the experiment; errors are those of :meth:`expected`."""
        experiment = self.read_experiment()
        try:
            return [(side, str(site)) for side in SIDES for site in experiment[side]["sites"]]
        except (KeyError, TypeError) as error:
            raise FormatError(f"{self.root / EXPERIMENT} is damaged ({error!r}); {_WRITTEN_AGAIN}") from error

    def read_experiment(self) -> dict[str, Any]:
        """Return what :meth:`write_experiment` kept; errors as :meth:`expected`."""
        file = self.root / EXPERIMENT
        if not file.is_file():
            raise MissingInputError(
                f"{self.root} is no run directory (it has no {EXPERIMENT}); `subspace run` makes one"
            )
        return read_json_object(file, f"There is no {file}", _WRITTEN_AGAIN)


_WRITTEN_AGAIN = "`subspace run EXPERIMENT.yaml` writes it again"
#: What commands leave in a run directory before a run has begun: logs, the demo's text and weights, records.
_BEFORE_A_RUN = (
    *("logs", "jobs", "input", "watch", "watch.html", "watch.json", "usage", "models.json", "corpus.zarr", "rows.zarr"),
    EXPERIMENT,
)


def _belongs_to_a_run(name: str) -> bool:
    plain = (leftover_of(name) or name).removesuffix(LOCK_SUFFIX).removesuffix(PARTIAL_SUFFIX)
    return plain in (*_BEFORE_A_RUN, "run")
