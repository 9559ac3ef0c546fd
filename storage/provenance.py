"""Whether the inputs of a result are still there, and still what it was made from; and which results belong together.

A manifest holds hashes of inputs and no paths, since folders are moved and copied. An input is looked for among the
groups that are at hand, in the run directory that the result is in, and where the result says that it was.

>>> import tempfile, numpy as np, storage, xarray as xr
>>> folder = Path(tempfile.mkdtemp())
>>> storage.write_activations(folder / "a.zarr", np.eye(9, 30))
>>> manifest = storage.new_manifest("example", {"a": storage.fingerprint(folder / "a.zarr")}, {})
>>> storage.write_result(xr.Dataset({"n": 9}), folder / "r.zarr", manifest)
>>> [(entry.name, entry.state) for entry in trace_inputs(folder / "r.zarr", [folder / "a.zarr"])]
[('a', 'same')]
>>> [(entry.name, entry.state) for entry in trace_inputs(folder / "r.zarr")]
[('a', 'unknown')]
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from storage.errors import FormatError, MissingInputError
from storage.files import EXPERIMENT
from storage.identity import fingerprint, hash_of_pairs
from storage.inventory import GROUP_FILE
from storage.listing import groups_below
from storage.manifest import CONTENT_HASH, MANIFEST, read_attrs, read_manifest
from storage.rundir import SIDES, RunDirectory

logger = logging.getLogger(__name__)

OTHER_INPUTS = "was made from other inputs than the present ones"

#: ``same``: it is what the result was made from. ``changed``: something else is at its path now. ``gone``: nothing is.
#: ``unknown``: nothing at hand has its hash, and its path is not recorded.
InputState = Literal["same", "changed", "gone", "unknown"]


@dataclass(frozen=True)
class TracedInput:
    """An input of a result.

    Attributes
    ----------
    result
        The result.
    name
        What the manifest calls the input.
    path
        Where it is, or was when the result was made; empty where that is not known.
    state
        See :data:`InputState`.
    """

    result: str
    name: str
    path: str
    state: InputState

    def __str__(self) -> str:
        what = f"{self.name} ({self.path})" if self.path else self.name
        return f"{self.result}: {what} {_WORDS[self.state]}"


_WORDS: Mapping[InputState, str] = {
    "same": "is what it was made from",
    "changed": "is another one than it was made from",
    "gone": "is not checked: nothing is there now",
    "unknown": "is not checked: no path is recorded, and nothing at hand has its hash (give its path next to this one)",
}


def trace_inputs(result: Path, at_hand: Iterable[Path] = ()) -> Iterator[TracedInput]:
    """Yield what became of every input of a result that is a group.

    Parameters
    ----------
    result
        A result; one without a readable manifest has no inputs.
    at_hand
        Groups that may be inputs.
    """
    manifest = read_manifest(result)
    if manifest is None or not manifest.inputs:
        return
    groups = [*_of_the_same_run(result), *at_hand]
    known = {identity: path for path in groups if (identity := _recorded(path))}
    scored = manifest.inputs.get("pairs")
    if scored is not None and scored not in known:  # scores depend on which features are paired, and no more
        known |= {identity: path for path in groups if (identity := _recorded_pairs(path))}
    paths = _recorded_paths(read_attrs(result))
    for name, identity in manifest.inputs.items():
        if (path := known.get(identity)) is not None and _is(path, identity):
            yield TracedInput(str(result), name, str(path), "same")
        elif (path := paths.get(name)) is None:
            yield TracedInput(str(result), name, "", "unknown")
        else:
            there = path.exists()
            state: InputState = "gone" if not there else "same" if _is(path, identity) else "changed"
            yield TracedInput(str(result), name, str(path), state)


class RunInputs:
    """Which results of a run were made from those that stand in it now; what reads several of them asks here.

    A run that was stopped, or folders that were exchanged, leave results side by side of which one was not made from
    the other. Only manifests are read, and the features of pairs; answers are kept, and every result that does not
    belong is logged once. An input that is missing or damaged is not compared.

    Parameters
    ----------
    run
        The run directory.
    site_pairs
        Its pairs of sites.

    Examples
    --------
    >>> import tempfile, numpy as np, storage, xarray as xr
    >>> run = RunDirectory(Path(tempfile.mkdtemp()))
    >>> storage.write_activations(run.activations("a", "x"), np.eye(9, 30))
    >>> manifest = storage.new_manifest("contexts", {"activations": "of another store"}, {})
    >>> storage.write_result(xr.Dataset({"n": 9}), run.contexts("a", "x"), manifest)
    >>> RunInputs(run, [("x", "y")]).belongs(run.contexts("a", "x"))
    False
    """

    def __init__(self, run: RunDirectory, site_pairs: Iterable[tuple[str, str]]) -> None:
        self._run = run
        self._places = _input_places(run, list(site_pairs))
        self._reasons: dict[Path, str] = {}
        self._fingerprint = functools.cache(fingerprint)

    def belongs(self, path: Path) -> bool:
        """Say whether a result is there, and it and all that it was made from belong to what is there now."""
        return path.exists() and not self.why_not(path)

    def why_not(self, path: Path) -> str:
        """Return which result was made from other inputs than the present ones; empty where none was."""
        if path not in self._reasons:
            self._reasons[path] = self._mismatch(path)
        return self._reasons[path]

    def _mismatch(self, path: Path) -> str:
        manifest = read_manifest(path)
        recorded = {} if manifest is None else manifest.inputs
        places = {name: place for name, place in self._places.get(path, {}).items() if name in recorded}
        if upstream := next(filter(None, map(self.why_not, places.values())), ""):
            return upstream
        changed = [self._name(place) for name, place in places.items() if self._is_another(place, recorded[name])]
        if not changed:
            return ""
        reason = f"{self._name(path)} {OTHER_INPUTS} ({', '.join(changed)})"
        logger.warning("%s is left out, with what was made from it: %s; `subspace run` makes it again", path, reason)
        return reason

    def _is_another(self, place: Path, identity: str) -> bool:
        try:
            return place.exists() and identity != self._fingerprint(place) and identity != hash_of_pairs(place)
        except FormatError as error:  # reading it says so too
            logger.info("%s is not compared with what was made from it: %s", place, error)
            return False

    def _name(self, path: Path) -> str:
        return path.relative_to(self._run.root).as_posix()


def _input_places(run: RunDirectory, site_pairs: list[tuple[str, str]]) -> dict[Path, dict[str, Path]]:
    """Return where the inputs of each result of a run stand, by the names that they have in manifests."""
    places = {run.rows: {"corpus": run.corpus}}
    for pair in site_pairs:
        of_sites: dict[str, Path] = {}
        for side, site in zip(SIDES, pair, strict=True):
            store, contexts = run.activations(side, site), run.contexts(side, site)
            places[store] = {"corpus": run.corpus, "rows": run.rows}
            places[contexts] = {"activations": store}
            concepts, non_concept = run.concepts(side, site), run.non_concept(side, site)
            places[concepts] = places[non_concept] = {"contexts": contexts, "activations": store, "corpus": run.corpus}
            of_sites |= {f"store_{side}": store, f"contexts_{side}": contexts}
            of_sites |= {f"concepts_{side}": concepts, f"non_concept_{side}": non_concept}
        stores: dict[str, Path] = {side: of_sites[f"store_{side}"] for side in SIDES}
        places[run.correlation(*pair)] = {**stores}
        matched = {"correlation": run.correlation(*pair), "corpus": run.corpus, **of_sites}
        places[run.pairs(*pair)] = matched
        places[run.scores(*pair)] = {"pairs": run.pairs(*pair), **stores}
        places[run.rematched(*pair)] = {"pairs": run.pairs(*pair), **matched}
        places[run.yardsticks(*pair)] = {"pairs": run.pairs(*pair)}
        places[run.semantics(*pair)] = {"pairs": run.pairs(*pair), "words": run.words, **matched}
    gathered = (run.score_grid, run.scores), (run.best_layer, run.correlation), (run.semantics_table, run.semantics)
    return places | {path: {f"{a}--{b}": of(a, b) for a, b in site_pairs} for path, of in gathered}


def _recorded_paths(attrs: Mapping[str, Any]) -> dict[str, Path]:
    inputs = attrs.get("inputs")
    return {name: Path(path) for name, path in inputs.items()} if isinstance(inputs, dict) else {}


def _of_the_same_run(result: Path) -> Iterator[Path]:
    """Yield the groups of the run directory that a result is in."""
    run = next((folder for folder in result.absolute().parents if (folder / EXPERIMENT).is_file()), None)
    if run is not None:
        yield from groups_below(run, GROUP_FILE)


def _recorded(path: Path) -> str | None:
    """Return the identity that a group says it has."""
    try:
        attrs = read_attrs(path)
    except (FormatError, MissingInputError):
        return None
    return attrs.get(CONTENT_HASH) or (attrs.get(MANIFEST) or {}).get("fingerprint")


def _recorded_pairs(path: Path) -> str | None:
    try:
        return hash_of_pairs(path)
    except (FormatError, MissingInputError):
        return None


def _is(path: Path, identity: str) -> bool:
    try:
        return fingerprint(path) == identity or hash_of_pairs(path) == identity
    except (FormatError, MissingInputError):
        return False
