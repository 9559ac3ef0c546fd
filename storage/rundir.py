"""Where an experiment's results stand below its run directory.

======================================  ===============================================================
``corpus.zarr``                         the text
``rows.zarr``                           the token rows that both models share
``activations/{a,b}/SITE.zarr``         activation stores
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
``explorer/``                           its explorer, where that is too large for the report
``usage/*.json``                        what each stage took, time and memory, session by session
======================================  ===============================================================
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from storage.errors import MissingInputError
from storage.json_files import read_json_object

Side = Literal["a", "b"]

_EXPERIMENT = "experiment.json"


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

    @property
    def corpus(self) -> Path:
        """The text."""
        return self.root / "corpus.zarr"

    @property
    def rows(self) -> Path:
        """The token rows."""
        return self.root / "rows.zarr"

    def activations(self, side: Side, site: str) -> Path:
        """Return the path of one site's activation store."""
        return self.root / "activations" / side / f"{site}.zarr"

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
        self.root.mkdir(parents=True, exist_ok=True)
        temporary = self.root / f"{_EXPERIMENT}.partial"
        temporary.write_text(json.dumps(experiment, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        temporary.replace(self.root / _EXPERIMENT)

    def read_experiment(self) -> dict[str, Any]:
        """Return what :meth:`write_experiment` kept.

        Raises
        ------
        MissingInputError
            If the folder is no run directory.
        FormatError
            If the file is damaged.
        """
        file = self.root / _EXPERIMENT
        if not file.is_file():
            raise MissingInputError(
                f"{self.root} is no run directory (it has no {_EXPERIMENT}); `subspace run` makes one"
            )
        return read_json_object(file, f"There is no {file}", "`subspace run EXPERIMENT.yaml` writes it again")
