"""A run directory, opened for reading: which site pairs are finished, and their lazily read results."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import xarray as xr

from pipeline.settings.experiment import Experiment, stored_experiment
from pipeline.settings.match import HELDOUT_NOTE
from storage import Corpus, open_activations, open_corpus, open_result
from storage.errors import FormatError, MissingInputError
from storage.provenance import RunInputs
from storage.rundir import RunDirectory, Side

#: Folder of each stage that has one result for each pair of sites, and the stage's name in its manifest.
PAIR_STAGES = {"correlation": "correlate", "pairs": "match"}
#: Unfinished pairs of sites that an error names.
MOST_NAMED = 3


@dataclass(frozen=True)
class Site:
    """One model at one site: its activation store and the top contexts of its features."""

    side: Side
    name: str
    path: Path
    contexts_path: Path
    store: xr.Dataset
    contexts: xr.Dataset


@dataclass(frozen=True)
class SitePair:
    """The results of one cell of the grid A.sites × B.sites; what was not asked for, or is not finished, is None."""

    a: Site
    b: Site
    paths: dict[str, Path]
    correlation: xr.Dataset
    pairs: xr.Dataset
    scores: xr.Dataset | None = None
    rematched: xr.Dataset | None = None

    @property
    def heldout_in_choice(self) -> bool:
        """Whether held-out r took part in the choice of the pairs."""
        return HELDOUT_NOTE in self.pairs.attrs

    def site(self, side: Side) -> Site:
        """Return the site of one side."""
        return self.a if side == "a" else self.b


@dataclass(frozen=True)
class Run:
    """A run directory with at least one finished pair of sites; `inputs` knows which of its results belong together."""

    directory: RunDirectory
    experiment: Experiment
    corpus: Corpus
    rows: xr.Dataset
    sites: dict[Side, list[Site]]
    site_pairs: list[SitePair]
    unfinished: list[str]
    inputs: RunInputs

    def model(self, side: Side) -> str:
        """Return the label of one side's model, or its id as its activations record it."""
        configured = dict(self.experiment.sides)[side]
        known = self.sites[side][0].store.attrs.get("model")
        return configured.label or str(known or getattr(configured, "model", f"activations {side.upper()}"))

    @property
    def heldout_note(self) -> str:
        """What is to be said beside held-out r, if it took part in the choice of pairs; else empty."""
        return next((str(pair.pairs.attrs[HELDOUT_NOTE]) for pair in self.site_pairs if pair.heldout_in_choice), "")

    def site(self, side: Side, name: str) -> Site:
        """Return one site of a side by its name."""
        return next(site for site in self.sites[side] if site.name == name)


def result_paths(config: Experiment, run: RunDirectory) -> Iterator[Path]:
    """Yield the path of every result that the report of a whole run is made from."""
    yield from (run.corpus, run.rows, run.best_layer)
    if config.compare is not None:
        yield run.score_grid
    for side, model in config.sides:
        for site in model.sites:
            yield from (run.activations(side, site), run.contexts(side, site), run.labels(side, site))
            if config.semantics is not None:
                yield run.concepts(side, site)
    of_pairs = {
        run.scores: config.compare,
        run.rematched: config.rematch,
        run.semantics: config.semantics,
        run.yardsticks: config.yardsticks,
    }
    for pair in config.site_pairs:
        yield from (run.correlation(*pair), run.pairs(*pair))
        yield from (of(*pair) for of, section in of_pairs.items() if section is not None)
    if config.semantics is not None:
        yield run.semantics_table


def open_run(run_dir: str | Path) -> Run:
    """Open the results in a run directory; pairs of sites with a missing stage are named in ``unfinished``.

    So are those with a result that was made from others than are there now, which is not shown. Sites and pairs are in
    the order of the experiment. A missing text, site, or the lack of any finished pair is a MissingInputError.
    """
    directory = RunDirectory(Path(run_dir))
    if not directory.root.is_dir():
        raise MissingInputError(f"No run directory at {directory.root}; make one with: subspace run EXPERIMENT.yaml")
    experiment = stored_experiment(directory)
    for path in (directory.corpus, directory.rows):
        _require(path, directory)
    sites = {side: [_open_site(directory, side, name) for name in model.sites] for side, model in experiment.sides}
    inputs = RunInputs(directory, experiment.site_pairs)
    stages = PAIR_STAGES | ({} if experiment.compare is None else {"scores": "compare"})
    site_pairs, unfinished = _open_site_pairs(directory, sites, stages, inputs)
    if not site_pairs:
        raise MissingInputError(
            f"{directory.root} has no pair of sites with all of {', '.join(stages)} made from each other "
            f"({'; '.join(unfinished[:MOST_NAMED])}); finish it with: subspace run EXPERIMENT.yaml"
        )
    rows = xr.open_zarr(directory.rows)
    return Run(directory, experiment, open_corpus(directory.corpus), rows, sites, site_pairs, unfinished, inputs)


def _open_site(directory: RunDirectory, side: Side, name: str) -> Site:
    path, contexts_path = directory.activations(side, name), directory.contexts(side, name)
    _require(path, directory)
    _require(contexts_path, directory)
    return Site(side, name, path, contexts_path, open_activations(path), open_result(contexts_path, "contexts"))


def _open_site_pairs(
    directory: RunDirectory, sites: dict[Side, list[Site]], stages: dict[str, str], inputs: RunInputs
) -> tuple[list[SitePair], list[str]]:
    finished, unfinished = [], []
    for a, b in itertools.product(sites["a"], sites["b"]):
        paths = {folder: getattr(directory, folder)(a.name, b.name) for folder in stages}
        reason = next(filter(None, map(inputs.why_not, (*paths.values(), a.contexts_path, b.contexts_path))), "")
        if all(path.exists() for path in paths.values()) and not reason:
            results = {folder: open_result(paths[folder], stage) for folder, stage in stages.items()}
            if "scores" in results:
                _check_current(results["scores"], paths["scores"])
            if inputs.belongs(rematched := directory.rematched(a.name, b.name)):
                results["rematched"] = open_result(rematched, "rematch")
            finished.append(SitePair(a, b, paths, **results))
        else:
            why = f" ({reason}; `subspace run` makes it again)" if reason else ""
            unfinished.append(f"{a.name} – {b.name}{why}")
    return finished, unfinished


def _check_current(scores: xr.Dataset, path: Path) -> None:
    if "null_score" not in scores:
        raise FormatError(
            f"{path} is a comparison of an earlier version; make it again with: subspace run EXPERIMENT.yaml"
        )


def _require(path: Path, directory: RunDirectory) -> None:
    if not path.exists():
        raise MissingInputError(
            f"The report needs {path.relative_to(directory.root)}, which {directory.root} does not hold; finish it "
            "with: subspace run EXPERIMENT.yaml"
        )
