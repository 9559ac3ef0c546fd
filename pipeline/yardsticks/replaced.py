"""Yardsticks that read the run's text with something else in the place of a model, a dictionary, or the windows.

::

    floor      A′ × B′        RUN/yardsticks/NAME/{activations,correlation,pairs}
    ceiling    A × A′         RUN/yardsticks/NAME/a/{correlation,pairs}
               B × B′         RUN/yardsticks/NAME/b/{correlation,pairs}

A side that nothing replaces is the run's own.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import xarray as xr
from distributed import Client

from pipeline.correlate.stage import correlation_task
from pipeline.harvest.stage import LaterModel, contexts_task, harvest_task, rows_task
from pipeline.match.stage import pairs_task
from pipeline.semantics.stage import non_concept_tasks
from pipeline.settings.experiment import Experiment
from pipeline.settings.harvest import ModelSettings
from pipeline.work.task import Task
from pipeline.yardsticks.base import Matching, Sites, Yardstick
from storage import open_result
from storage.errors import InputError
from storage.rundir import SIDES, RunDirectory, Side


@dataclass(frozen=True)
class Place(RunDirectory):
    """Where results of a yardstick stand: a run directory with the text of the run.

    Attributes
    ----------
    run
        The run, whose rows are read too, unless `own_rows`.
    stores
        Where the stores of A and of B stand, and which side they are of there; its own where it is empty.
    """

    run: RunDirectory
    stores: tuple[tuple[RunDirectory, Side], ...] = ()
    own_rows: bool = False

    @property
    def corpus(self) -> Path:  # type: ignore[override] # the run directory's is read like this one
        """The text."""
        return self.run.corpus

    @property
    def rows(self) -> Path:  # type: ignore[override] # as above
        """The token rows that both models share."""
        return self.root / "rows.zarr" if self.own_rows else self.run.rows

    def activations(self, side: Side, site: str) -> Path:
        """Return the path of one site's activation store."""
        run, its_side = self._origin(side)
        return run.activations(its_side, site)

    def contexts(self, side: Side, site: str) -> Path:
        """Return the path of the top activating rows of one site's features."""
        run, its_side = self._origin(side)
        return run.contexts(its_side, site)

    def non_concept(self, side: Side, site: str) -> Path:
        """Return the path of which features stand for no concept."""
        run, its_side = self._origin(side)
        return run.non_concept(its_side, site)

    def _origin(self, side: Side) -> tuple[RunDirectory, Side]:
        return self.stores[SIDES.index(side)] if self.stores else (RunDirectory(self.root), side)


class Replaced(Yardstick):
    """A yardstick that harvests something else in the place of one side or both."""

    def check(self, config: Experiment) -> None:
        """Raise an InputError if there is no model that could read the text again."""
        if config.is_stored:
            raise InputError(
                f"the yardstick {self.name} reads the text with a model, and the experiment has stores alone: leave it "
                "out, and name those that need no model (--yardstick token --yardstick document)"
            )
        if not self.sides:
            raise InputError(f"the yardstick {self.name} has nothing to replace: give a or b, or both")

    @property
    def sides(self) -> Sequence[Side]:
        """The sides that are replaced."""
        return SIDES

    def replaced(self, model: ModelSettings, side: Side, stores: dict[str, Path]) -> ModelSettings:
        """Return what is harvested in the place of a model, whose finished stores are given by their sites."""
        raise NotImplementedError(type(self).__name__)

    def windows(self, config: Experiment) -> int:
        """Return the longest window in tokens."""
        return config.corpus.max_length

    def tasks(self, config: Experiment, run: RunDirectory) -> Iterator[Task]:
        """Yield the tasks: rows if windows are others, the harvest, and the matching of all pairs that are compared."""
        for task in self._tasks(_variant(config), run):
            # nothing is known of stores that are not there: forecasts leave yardsticks out, and shares too
            yield replace(task, what=f"{self.name} {task.what}".strip(), cost=None, share=None)

    def _tasks(self, config: Experiment, run: RunDirectory) -> Iterator[Task]:
        place, length = self._place(config, run), self.windows(config)
        if place.own_rows:
            corpus = config.corpus.model_copy(update={"max_length": length})
            yield self.same_rows(rows_task(config.model_copy(update={"corpus": corpus}), place), run, place)
        for side in self.sides:
            yield harvest_task(config, place, side, self._later(config, run, side))
            for site in config.models[side].sites if config.match.needs_contexts else ():
                yield contexts_task(config, place, side, site)
        replaced = {side.upper() for side in self.sides}
        yield from (task for task in non_concept_tasks(config, place) if task.what.partition(" ")[0] in replaced)
        for compared, where, pairs in self._comparisons(config, run):
            for sites in pairs:
                yield correlation_task(compared, where, sites)
                yield pairs_task(compared, where, *sites)

    def results(self, config: Experiment, run: RunDirectory, sites: Sites) -> list[Path]:
        """Return the pairs of the floor, or those of either side."""
        return [where.pairs(*of) for where, of in self._at(config, run, sites)]

    def matchings(self, config: Experiment, run: RunDirectory, sites: Sites) -> list[Matching]:
        """Return the matching of a floor, or that of each side of a ceiling."""
        return [
            Matching.read(where.pairs(*of), (where.activations("a", of[0]), where.activations("b", of[1])))
            for where, of in self._at(config, run, sites)
        ]

    def _place(self, config: Experiment, run: RunDirectory) -> Place:
        root = run.root / "yardsticks" / self.name
        return Place(root, run, own_rows=self.windows(config) != config.corpus.max_length)

    def _comparisons(self, config: Experiment, run: RunDirectory) -> Iterator[tuple[Experiment, Place, list[Sites]]]:
        """Yield what is correlated: both sides as they are called, where that stands, and which sites."""
        place = self._place(config, run)
        if self.kind == "floor":
            origins = tuple((place if side in self.sides else run, side) for side in SIDES)
            yield config, Place(place.root, run, origins), config.site_pairs
            return
        for side in self.sides:
            model = config.models[side]
            where = Place(place.root / side, run, ((run, side), (place, side)))
            compared = config.model_copy(update={"a": model, "b": model})
            yield compared, where, [(site, site) for site in model.sites]

    def _at(self, config: Experiment, run: RunDirectory, sites: Sites) -> Iterator[tuple[Place, Sites]]:
        for _, where, _ in self._comparisons(config, run):
            if self.kind == "floor":
                yield where, sites
            else:
                site = sites[SIDES.index(where.stores[0][1])]
                yield where, (site, site)

    def _later(self, config: Experiment, run: RunDirectory, side: Side) -> LaterModel:
        model = config.models[side]
        stores = {site: run.activations(side, site) for site in model.sites}
        make = functools.cache(lambda: self.replaced(model, side, stores))
        return LaterModel(model.sites, make, tuple(stores.values()))

    def same_rows(self, task: Task, run: RunDirectory, place: Place) -> Task:
        """Return the task of rows that raises unless the rows are those of the run, and the windows others."""

        def make(client: Client) -> None:
            task.run(client)
            ours, theirs = (open_result(rows, "rows") for rows in (run.rows, place.rows))
            if not _equal(ours, theirs, ("document", "char_start", "char_end")):
                raise InputError(
                    f"the yardstick {self.name} needs the rows of the run, and has {theirs.sizes['token']:,} where the "
                    f"run has {ours.sizes['token']:,}: its windows are shorter than what some rows stand for; leave it "
                    "out of the yardsticks"
                )
            if _equal(ours, theirs, ("window_document", "window_start", "window_end")):
                raise InputError(
                    f"the yardstick {self.name} reads the same windows as the run: documents, or a model's context, "
                    "are shorter than half of corpus.max_length; leave it out of the yardsticks"
                )

        return replace(task, run=make)


def _equal(ours: xr.Dataset, theirs: xr.Dataset, names: Sequence[str]) -> bool:
    return all(np.array_equal(ours[name].values, theirs[name].values) for name in names)


def _variant(config: Experiment) -> Experiment:
    """Return the experiment as yardsticks are run: without what is measured on other text, and with any dictionary."""
    match = config.match.model_copy(update={"check_on": None})
    return config.allowing_bad_sites().model_copy(update={"match": match})
