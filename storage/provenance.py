"""Whether the inputs of a result are still there, and still what it was made from.

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

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from storage.errors import FormatError, MissingInputError
from storage.files import EXPERIMENT
from storage.identity import fingerprint
from storage.inventory import GROUP_FILE
from storage.listing import groups_below
from storage.manifest import CONTENT_HASH, MANIFEST, read_attrs, read_manifest

#: ``same``: it is what the result was made from. ``changed``: something else is at its path now. ``gone``: nothing is.
#: ``unknown``: it is not at hand, and its path is not recorded.
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
    "unknown": "is not checked: no path is recorded (name a store or result beside this one)",
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
    known = {identity: path for path in [*_of_the_same_run(result), *at_hand] if (identity := _recorded(path))}
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


def _is(path: Path, identity: str) -> bool:
    try:
        return fingerprint(path) == identity
    except (FormatError, MissingInputError):
        return False
