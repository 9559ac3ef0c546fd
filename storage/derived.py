r"""Files that people open, such as tables and pages: a run writes them again, but not over what somebody else wrote.

Nothing in a table tells a version that somebody has annotated from the original. So a run directory keeps the CRC-32
of each such file (``written.json``). A file with another one was edited or is foreign, and stays.

>>> import tempfile
>>> run = Path(tempfile.mkdtemp())
>>> _ = (run / "experiment.json").write_text("{}")
>>> write_derived(run / "pairs.csv", "a,b\n1,2\n")
>>> write_derived(run / "pairs.csv", "a,b\n1,3\n")
>>> _ = (run / "pairs.csv").write_text("a,b\n1,3\nchecked by hand\n")
>>> edited_files(run)
['pairs.csv']
"""

from __future__ import annotations

import functools
import json
import os
import re
import zlib
from collections.abc import Callable
from pathlib import Path

from storage.errors import InputError
from storage.files import EXPERIMENT, remove_folder, write_text
from storage.inventory import crc32
from storage.json_files import read_json_object
from storage.locks import waiting_lock
from storage.targets import claim_file, starts_with

RECORD = "written.json"
#: So many characters are alike in all files of a kind, whatever columns a release adds.
BEGINNING = 12


def write_derived(path: Path, text: str, is_ours: Callable[[Path], bool] | None = None) -> None:
    """Write a text file that is made from results, unless what stands at the path was edited or is foreign.

    Parameters
    ----------
    path
        The file.
    text
        Its content.
    is_ours
        Whether a file of which the run has no record is ours, because an earlier version wrote it; that it begins
        like the text, if absent.

    Raises
    ------
    InputError
        If what stands there stays.
    """
    checksums = _read_record(path.parent).get(path.name)
    is_mine = is_ours or starts_with(text[:BEGINNING])
    if checksums is not None:
        is_mine = functools.partial(_is_one_of, checksums)
    with claim_file(
        path, lambda file: file.is_file() and is_mine(file), suffixes=[path.suffix], overwrite=True
    ) as target:
        recorded = (path.parent / EXPERIMENT).is_file()
        new = zlib.crc32(text.encode())
        if recorded:  # the process may die before or after it writes
            present = [crc32(path)] if path.is_file() else []
            _note(path.parent, {path.name: list(dict.fromkeys([*present, new]))})
        target.write_text(text)
        if recorded:
            _note(path.parent, {path.name: [new]})


def replace_pages(folder: Path, new: Path | None) -> None:
    """Put a folder of pages in the place of an earlier one, of which nothing goes that is edited or foreign.

    Parameters
    ----------
    folder
        Where they are, in a run directory: ``1.html``, ``2.html``, …
    new
        The new ones, in a folder beside it; None if there are to be none.

    Raises
    ------
    InputError
        If something there stays.
    """
    run, record, prefix = folder.parent, _read_record(folder.parent), f"{folder.name}/"
    if os.path.lexists(folder) and (folder.is_symlink() or not folder.is_dir()):
        raise InputError(f"{folder} is not a folder, and pages of the report go there: move it")
    old = _pages(folder)
    for name, checksum in old.items():
        recorded = record.get(prefix + name)
        if not (_PAGE.fullmatch(name) and (is_page(folder / name) if recorded is None else checksum in recorded)):
            raise InputError(
                f"{folder} holds {name}, which no report wrote or which was edited since, and the report's pages go "
                "there: move it"
            )
    pages = _pages(new) if new is not None else {}
    # of those that are recorded, some are gone where a process died here
    names = {*old, *pages, *(name.removeprefix(prefix) for name in record if name.startswith(prefix))}

    def note(*there: dict[str, int]) -> None:
        _note(run, {prefix + name: [*dict.fromkeys(page[name] for page in there if name in page)] for name in names})

    note(old, pages)
    remove_folder(folder)
    if new is not None:
        new.rename(folder)
    note(pages)


_PAGE = re.compile(r"[0-9]+\.html")


def _pages(folder: Path) -> dict[str, int]:
    """Return the checksum of each file in a folder, and -1, which no file has, of what is none."""
    entries = sorted(folder.iterdir()) if folder.is_dir() else []
    return {entry.name: crc32(entry) if entry.is_file() else -1 for entry in entries}


def settle(run: Path) -> None:
    """Note which of two contents a file has where the process died that was to write the second one.

    Raises
    ------
    CorruptError
        If the record is damaged.
    """
    for name, checksums in _read_record(run).items():
        file = run / name
        if len(checksums) > 1 and file.is_file() and (present := crc32(file)) in checksums:
            _note(run, {name: [present]})


def edited_files(run: Path) -> list[str]:
    """Return the names of the files below a run directory that were edited since the run wrote them.

    Raises
    ------
    CorruptError
        If the record is damaged.
    """
    files = sorted(_read_record(run).items())
    return [name for name, checksums in files if (run / name).exists() and not _is_one_of(checksums, run / name)]


def foreign_files(run: Path) -> list[str]:
    """Return the names of files in a run directory that have a name of the run's, and that it did not write.

    Raises
    ------
    CorruptError
        If the record of what it wrote is damaged.
    """
    recorded = _read_record(run)
    there = ((name, is_ours) for name, is_ours in _OURS.items() if name not in recorded and (run / name).exists())
    return [name for name, is_ours in there if not is_ours(run / name)]


def is_page(file: Path) -> bool:
    """Return whether a file is a page of this package."""
    if not file.is_file():
        return False
    with file.open("rb") as stream:
        head = stream.read(4096)
    return head.lstrip().startswith(b"<!doctype html>") and any(title in head for title in _TITLES)


#: How the titles of pages end.
_TITLES = (b"Subspace report</title>", b"Subspace explorer</title>", " – Meanings</title>".encode())


def _is_watch_page(file: Path) -> bool:
    return file.is_file() and b"memory of the fullest worker process" in file.read_bytes()


#: Whether a file of a run directory is ours where there is no record of it, by its name.
_OURS: dict[str, Callable[[Path], bool]] = {
    **{f"best_layer_{side}.csv": starts_with(f"site_{side},feature_{side}"[:BEGINNING]) for side in "ab"},
    **dict.fromkeys(
        ("pairs.csv", "scores.csv", "yardsticks.csv", "normalised.csv"), starts_with("site_a,site_b"[:BEGINNING])
    ),
    "scores.tex": starts_with(r"\begin{tabular}"[:BEGINNING]),
    "semantics.csv": starts_with("kind,name,approach"[:BEGINNING]),
    "semantics.html": starts_with('<table class="dataframe">'[:BEGINNING]),
    "semantics.tex": starts_with(r"% needs \usepackage{booktabs}"[:BEGINNING]),
    **dict.fromkeys(("report.html", "concepts.html"), is_page),
    "watch.html": _is_watch_page,
}


def _is_one_of(checksums: list[int], file: Path) -> bool:
    return file.is_file() and crc32(file) in checksums


def _read_record(folder: Path) -> dict[str, list[int]]:
    file = folder / RECORD
    if not file.exists():
        return {}
    remedy = "delete it, after you have moved away tables and pages that you edited"
    content = read_json_object(file, f"There is no {file}", remedy)
    if not all(isinstance(checksums, list) for checksums in content.values()):
        raise InputError(f"{file} is not a record of this package: move it away")
    return content


def _note(run: Path, checksums: dict[str, list[int]]) -> None:
    """Record which checksums files of a run may have, none of those that are gone; others may do so meanwhile."""
    if not checksums:
        return
    file = run / RECORD
    with waiting_lock(file):
        record = _read_record(run)
        changed = {name: known for name, known in (record | checksums).items() if known}
        if changed != record:
            write_text(file, json.dumps(changed, indent=2, sort_keys=True) + "\n")
