"""Activations that are there already, in the place of a harvest: their stores, the text, and the table of rows.

The run directory gets the stores as they are, byte for byte; on one file system their files are links to the same
bytes, which takes no space. What is written there is never written into, only replaced.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import xarray as xr
from distributed import Client
from numpy.typing import NDArray

from pipeline.settings.experiment import Experiment
from pipeline.work.task import Identify, Task
from storage import (
    Corpus,
    Manifest,
    claim,
    fingerprint,
    make_result,
    new_manifest,
    open_activations,
    open_corpus,
    read_manifest,
)
from storage.errors import InputError, RowMismatchError
from storage.files import local_path
from storage.rows import TOKEN_COORDINATES, check_same_rows
from storage.rundir import RunDirectory, Side
from storage.targets import STORE

ROWS_STAGE = "rows"


def stored_tasks(config: Experiment, run: RunDirectory) -> Iterator[Task]:
    """Yield the tasks: the stores of both sides, the text, and the table of rows."""
    for side, settings in config.stored.items():
        for site in settings.sites:
            source, out = local_path(settings.store_of(site)), run.activations(side, site)
            yield Task(
                "store",
                f"{side.upper()} {site}",
                {out: functools.partial(_store_manifest, source)},
                (),
                functools.partial(_bring, source, out),
                by_content=True,
                prepares=True,
            )

    def make_corpus(_: Client) -> None:
        from pipeline.harvest.corpus import build_corpus

        build_corpus(config.corpus, run.corpus, keep_empty=True)

    def corpus_manifest(_: Identify) -> Manifest:
        from pipeline.harvest import manifests

        return manifests.corpus_manifest(config.corpus, None, keep_empty=True)

    stores = {
        (side, site): run.activations(side, site) for side, stored in config.stored.items() for site in stored.sites
    }
    yield Task("corpus", "", {run.corpus: corpus_manifest}, (), make_corpus, by_content=True, prepares=True)
    yield Task(
        "rows",
        "",
        {run.rows: functools.partial(_rows_manifest, run.corpus, stores)},
        (run.corpus, *stores.values()),
        lambda _: table_of_rows(run.corpus, stores, run.rows),
        prepares=True,
    )


def check_stored(config: Experiment) -> None:
    """Raise unless the stores of an experiment are there, and have what its stages read.

    Raises
    ------
    MissingInputError
        If there is no store.
    InputError
        If one has no places in the text, or no decoder rows where something compares them; with the command that
        adds them.
    """
    # what a rematch scores is left out where there are no decoder rows, with a warning
    readers = [name for name in ("compare", "semantics") if getattr(config, name) is not None]
    for side, settings in config.stored.items():
        for site in settings.sites:
            _check_store(f"{side} {site}", local_path(settings.store_of(site)), readers)


def _check_store(name: str, path: Path, readers: list[str]) -> None:
    with open_activations(path) as store:
        variables = set(store.variables)
    if "char_start" not in variables:
        raise InputError(
            f"{path} ({name}) does not say where its rows are in the text: import it again with --tokens TABLE, whose "
            "columns are document and token, or document, char_start and char_end"
        )
    if readers and "decoder" not in variables:
        leave_out = " and ".join(f"`{reader}: null`" for reader in readers)
        raise InputError(
            f"{path} ({name}) has no decoder rows, which {' and '.join(readers)} need{'s' * (len(readers) == 1)}: "
            f"import it again with --decoder W_dec.npy, or write {leave_out} into the experiment; "
            "`subspace compare-activations` compares the activations themselves"
        )


def _store_manifest(source: Path, _: Identify) -> Manifest:
    """Return the manifest of a store, which its copy is to have."""
    open_activations(source).close()  # says what is wrong with it
    manifest = read_manifest(source)
    if manifest is None:
        raise InputError(f"{source} does not say what it was made from: write it again with storage.write_activations")
    return manifest


def _bring(source: Path, out: Path, _: Client) -> None:
    """Put a store into the run directory as it is."""
    with claim(out, _store_manifest(source, fingerprint), kind=STORE, overwrite=True) as target:
        if not target.is_current():
            with target.building() as folder:
                shutil.copytree(source, folder, copy_function=_link_or_copy)
                target.replace(folder)


def _link_or_copy(source: str, target: str) -> None:
    """Give a file a second name; where the file system cannot, copy it, with its time of modification."""
    with contextlib.suppress(OSError):
        os.link(os.path.realpath(source), target)
        return
    shutil.copy2(source, target)


def _rows_manifest(corpus: Path, stores: Mapping[tuple[Side, str], Path], identify: Identify) -> Manifest:
    inputs = {f"{side} {site}": identify(path) for (side, site), path in stores.items()}
    return new_manifest(ROWS_STAGE, {"corpus": identify(corpus), **inputs}, {})


def table_of_rows(corpus: Path, stores: Mapping[tuple[Side, str], Path], out: Path) -> xr.Dataset:
    """Write the table of rows that stores have in common, after checking that they are places in the text.

    Parameters
    ----------
    corpus
        The text.
    stores
        All stores, by side and site.
    out
        Where the table goes.

    Raises
    ------
    RowMismatchError
        If two stores differ in their rows, or a row is no place in the text; the message names it.

    Notes
    -----
    Memory: the coordinates of the rows, and the length of each document.
    """
    first, *others = stores.values()
    manifest = _rows_manifest(corpus, stores, fingerprint)

    def make() -> xr.Dataset:
        for other in others:
            check_same_rows(first, other)
        text = open_corpus(corpus)
        with open_activations(first) as store:
            columns = {name: store[name].values for name in TOKEN_COORDINATES if name in store.variables}
        _check_places(columns, text, first)
        return xr.Dataset(
            {name: ("token", values) for name, values in columns.items()},
            attrs={"n_rows": len(columns["document"]), "corpus_hash": text.hash, **manifest.to_attrs()},
        )

    return make_result(out, manifest, make, overwrite=True)


def _check_places(columns: Mapping[str, NDArray[np.integer]], corpus: Corpus, store: Path) -> None:
    """Raise unless every row is a place in the text."""
    document, end = columns["document"], columns["char_end"]
    lengths = np.fromiter(map(len, corpus.iter_texts(range(len(corpus)))), np.int64, len(corpus))
    outside = np.flatnonzero(document >= len(lengths))
    if len(outside):
        row = outside[0]
        raise RowMismatchError(
            f"Row {row} of {store} is in document {document[row]}, and the text has {len(lengths)} documents, numbered "
            "from 0 on: give the text of the rows as `corpus`"
        )
    beyond = np.flatnonzero(end > lengths[document])
    if len(beyond):
        row = beyond[0]
        raise RowMismatchError(
            f"Row {row} of {store} ends at character {end[row]} of document {document[row]}, which has "
            f"{lengths[document[row]]}: give the text of the rows as `corpus`"
        )
