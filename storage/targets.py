"""The one door for writes: what may stand at a target, who may write there, and how something new takes its place.

::

    claim ─▶ door: nothing there, or ours and of the same kind ─▶ lock ─▶ what dead processes left is put right
          ─▶ Target.begin (work that can be resumed, in PATH.partial) or Target.write (at once)
          ─▶ close_group: one write makes it whole ─▶ the old one is moved away, the new one takes its place

The rules of the door:

* a target that is absent, or an empty folder, may be written;
* a store or result of this package and of the same kind may be replaced by one from the same inputs, and with
  `overwrite` by one from any;
* anything else stays: the call is refused, before anything is computed, and says what stands there. So it is where
  the target is an input of the very call, or lies inside of a store.

A process may die after any operation on a file. Until the group is closed there is only ``PATH.partial``; after that,
the next claim finds a whole one there and puts it in its place. Should it die between the two renames, the old one is
put back first.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xarray as xr
import zarr

from storage.damage import reading
from storage.errors import BusyError, CorruptError, FormatError, InputError, MissingInputError
from storage.files import (
    LOCK_SUFFIX,
    is_stray_file,
    leftover_of,
    leftovers,
    partial_path,
    refuse_inside_of_store,
    remove_folder,
    target_path,
    temporary_path,
)
from storage.inventory import (
    CONSOLIDATED,
    GROUP_FILE,
    INVENTORY,
    close_group,
    is_closed,
    is_intact,
    is_working_folder,
    strangers,
)
from storage.listing import same_content
from storage.locks import check_lock, lock, refuse_if_held
from storage.manifest import CONTENT_HASH, MANIFEST, Fingerprint, Manifest, read_attrs, read_manifest
from storage.sparse_array import read_metadata
from storage.variables import write_variables

logger = logging.getLogger(__name__)

STORE = "activation store"
#: Stage of a store that was made from data at hand: its manifest has no input but its own content.
DATA_STAGE = "activations"
#: Stage of a store that was made from another program's files: its inputs are their checksums.
IMPORT_STAGE = "import"
#: Stages that take a moment to repeat: what they left unfinished is worth nothing, and either replaces the other's.
DATA_STAGES = (DATA_STAGE, IMPORT_STAGE)
CORPUS = "corpus"
#: What figures name as the program that made them; nobody would write it into a title.
FIGURE_PROGRAM = "Subspace, semantic-subspace-matching"
#: How many names of what stands at a target a message lists.
LISTED = 3
OVERWRITE = "give another path, or overwrite=True (--overwrite)"


@dataclass(frozen=True)
class Target:
    """A path that this thread alone may write to. Made by :func:`claim`.

    Attributes
    ----------
    path
        Where the store or result is to be.
    kind
        What it is: :data:`STORE`, :data:`CORPUS`, or the stage of a result.
    manifest
        What it is made from; without one, unfinished work is never resumed.
    overwrite
        Whether one of the same kind that came from other inputs may be replaced.
    """

    path: Path
    kind: str
    manifest: Manifest | None
    overwrite: bool

    @property
    def partial(self) -> Path:
        """Where unfinished work is that can be resumed."""
        return partial_path(self.path)

    @property
    def _manifest(self) -> Manifest:
        if self.manifest is None:
            raise InputError(f"{self.path} needs a manifest: what it is made from")
        return self.manifest

    def check(self) -> None:
        """Raise :class:`InputError` if something stands at the path, or at that of its unfinished work, that stays."""
        self._check_place(self.path)
        self._check_place(self.partial)

    def _check_place(self, place: Path) -> None:
        if _stays_in_place(place):
            raise InputError(
                f"{place} is a mount point or the working directory, and a folder that is written is replaced "
                "as a whole: give the path of a folder in it"
            )
        with reading(place, ELSEWHERE):
            attrs = _attrs_of_ours(place, self.kind)
            if attrs is not None:
                self._check_attrs(place, attrs)

    def _check_inputs(self) -> None:
        """Raise if an input is no longer what the manifest says, since it was replaced while it was read."""
        for name, value in self.manifest.inputs.items() if self.manifest is not None else ():
            if isinstance(value, Fingerprint) and not value.holds():
                raise InputError(
                    f"{value.path} ({name}) was changed while {self.path} was made from it, which is therefore not "
                    "kept: run the command again"
                )

    def _check_attrs(self, place: Path, attrs: Mapping[str, Any]) -> None:
        if (stands := kind_of(attrs)) != self.kind:
            raise InputError(f"{place} is {_article(stands)}, and {_article(self.kind)} is to be written: {ELSEWHERE}")
        stored, wanted = attrs.get(MANIFEST), self.manifest
        made_by, maker = (stored or {}).get("stage", DATA_STAGE), DATA_STAGE if wanted is None else wanted.stage
        if place == self.path and self.kind == STORE and made_by not in (*DATA_STAGES, maker):
            raise InputError(f"{place} is a store that {made_by!r} made, and {maker!r} is at work: {ELSEWHERE}")
        if wanted is not None and {attrs.get(CONTENT_HASH), (stored or {}).get("fingerprint")} & {
            *wanted.inputs.values()
        }:
            raise InputError(f"{place} is an input of this very call: {ELSEWHERE}")
        # A writer without a manifest is dead, and nobody can go on with its work
        worthless = place == self.partial and (stored is None or stored["stage"] in DATA_STAGES)
        same = wanted is not None and stored is not None and stored.get("inputs") == wanted.inputs
        # Somebody has added to it, or changed it, and nothing tells what of it is theirs
        has_inventory = INVENTORY in (read_metadata(place).get(CONSOLIDATED) or {})
        edited = place == self.path and not has_inventory and not self.is_current()
        if not (self.overwrite or (same and not edited) or worthless):
            what = "unfinished work" if place == self.partial else _article(self.kind)
            since = "was written before" if wanted is None else "came from other inputs"
            since = "another program changed" if edited else since
            raise InputError(f"{place} is {what} that {since}: {OVERWRITE}")

    def is_current(self) -> bool:
        """Return whether what stands at the path was made from the manifest's inputs and settings."""
        return self.manifest is not None and is_current(self.path, self.manifest)

    def recover(self) -> None:
        """Put right what a process left that died: finish what is whole, put back the old one, sweep the rest.

        Raises
        ------
        InputError
            As :meth:`check`, before whole work takes its place.
        """
        sweep(self.path)
        with contextlib.suppress(BusyError, InputError):  # the lock of a writer that died goes; others stay
            refuse_if_held(self.partial)
        self.check()
        if self.resumes() and is_closed(self.partial):
            logger.info("%s was whole when its process died: it takes its place", self.partial)
            self.finish()

    def resumes(self) -> bool:
        """Return whether there is unfinished work with the same manifest."""
        return self.manifest is not None and same_work(self.partial, self.manifest)

    def begin(self) -> Path:
        """Return the folder for work that is done piece by piece; unfinished work with the same manifest is kept."""
        if not self.resumes():
            with self.beginning() as folder:
                zarr.create_group(str(folder), zarr_format=3, attributes=self._manifest.to_attrs())
        return self.partial

    @contextlib.contextmanager
    def beginning(self) -> Iterator[Path]:
        """Yield a new folder that becomes the unfinished work, all of what is put there at once.

        Raises
        ------
        BusyError
            If a writer is at work on the unfinished work that it would replace.
        """
        refuse_if_held(self.partial)
        with self.building() as folder:
            yield folder
            self._check_place(self.partial)
            remove_folder(self.partial)
            folder.rename(self.partial)

    def finish(self, attrs: Mapping[str, Any] | None = None, *, drop: Collection[str] = ()) -> None:
        """Declare the unfinished work complete: it takes its place; working folders in it go.

        Parameters
        ----------
        attrs
            Attributes to be added.
        drop
            Names of attributes that go.

        Raises
        ------
        MissingInputError
            If there is no unfinished work.
        FormatError
            If it has no manifest.
        """
        if not self.partial.is_dir():
            raise MissingInputError(f"There is no unfinished work at {self.partial}")
        if read_manifest(self.partial) is None and MANIFEST not in (attrs or {}):
            raise FormatError(f"{self.partial} has no manifest; give that of the stage")
        try:
            self._check_inputs()
        except InputError:
            self.discard()  # it is worth nothing: parts of it came from either content
            raise
        if not is_closed(self.partial):
            close_group(self.partial, attrs, drop=drop)
        for folder in [entry for entry in self.partial.iterdir() if is_working_folder(entry)]:
            self._set_aside(folder)
        self.replace(self.partial)

    def _set_aside(self, folder: Path) -> None:
        """Take working files out of finished work; they are deleted beside it."""
        trash = temporary_path(self.path, "trash")
        with contextlib.suppress(FileNotFoundError):
            folder.rename(trash)
        remove_folder(trash)

    def write(self, ds: xr.Dataset) -> None:
        """Write a whole result at once."""
        with self.building() as folder:
            write_variables(ds, folder)
            self.replace(folder, self._manifest.to_attrs())

    def replace(self, new: Path, attrs: Mapping[str, Any] | None = None) -> None:
        """Close a group and put it in the place of what stands at the path.

        Parameters
        ----------
        new
            The group; one that is closed stays as it is.
        attrs
            Attributes to be added.
        """
        check_lock(self.path)
        self._check_inputs()
        if not is_closed(new):
            close_group(new, attrs)
        self._check_place(self.path)  # it may have come while the new one was computed
        old = None
        if os.path.lexists(self.path) and not _removed_if_empty(self.path):
            logger.info("%s replaces the one that was there before", self.path)
            old = temporary_path(self.path, "old")
            self.path.rename(old)
        new.rename(self.path)
        if old is not None:
            remove_folder(old)

    def discard(self) -> None:
        """Delete the unfinished work."""
        remove_folder(self.partial)

    @contextlib.contextmanager
    def building(self) -> Iterator[Path]:
        """Yield the path of a new folder, which is removed if an error ends the block."""
        folder = temporary_path(self.path, "new")
        try:
            yield folder
        except BaseException:
            remove_folder(folder)
            raise


ELSEWHERE = "give another path, or move it away"


@contextlib.contextmanager
def claim(
    path: str | Path,
    manifest: Manifest | None = None,
    *,
    kind: str | None = None,
    overwrite: bool = False,
    part: str | None = None,
) -> Iterator[Target]:
    """Hold a target: nobody else writes there, and what stands there may be replaced.

    Parameters
    ----------
    path
        Where a store or result is to be; a path of a file system.
    manifest
        What it is to be made from.
    kind
        :data:`STORE`, :data:`CORPUS`, or the stage of a result; the manifest's stage if absent, a store without one.
    overwrite
        Whether one of the same kind that came from other inputs may be replaced.
    part
        Which part of the unfinished work is to be done, where several processes share it.

    Raises
    ------
    InputError
        If what stands there stays; nothing is changed then.
    BusyError
        If somebody else is writing there.

    Examples
    --------
    >>> import tempfile, storage
    >>> path = tempfile.mkdtemp() + "/pairs.zarr"
    >>> manifest = storage.new_manifest("match", {}, {"method": "greedy"})
    >>> with claim(path, manifest) as target:
    ...     target.write(xr.Dataset({"r": ("pair", [0.9, 0.4])}))
    >>> storage.open_result(path, stage="match").r.values
    array([0.9, 0.4])
    """
    path = target_path(path)
    # Of a link, what it leads to is replaced, not the link
    place = Path(os.path.realpath(path)) if path.is_symlink() else path
    target = Target(place, kind or (manifest.stage if manifest is not None else STORE), manifest, overwrite)
    with _parent_of(target.path), lock(target.path, part):
        if part is None:
            target.recover()
        else:
            target.check()
        yield target


def check_parents(path: Path) -> None:
    """Raise :class:`InputError` if a path lies inside of a store, or in something that is not a folder."""
    refuse_inside_of_store(path)
    nearest = next(parent for parent in path.absolute().parents if os.path.lexists(parent))
    if not nearest.is_dir():
        raise InputError(f"{nearest} is not a folder, so that {path} cannot be made in it: give another path")


@contextlib.contextmanager
def _parent_of(path: Path) -> Iterator[None]:
    """Make the folder that a target is in; folders that were made for it go again if the target comes to nothing."""
    check_parents(path)
    made = [parent for parent in path.parents if not parent.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            for parent in made:
                parent.rmdir()
        raise


def is_current(path: str | Path, manifest: Manifest) -> bool:
    """Return whether a finished result at `path` was made from the same inputs and settings.

    One that another program changed since is left as it is, with a warning: what is made from it is made again. One
    that is damaged is not current.
    """
    stored = read_manifest(path)
    if stored is None or stored.fingerprint != manifest.fingerprint:
        return False
    try:
        intact = is_intact(path)
    except CorruptError as error:
        logger.warning("It is made again: %s", error)
        return False
    if not intact:
        logger.warning("%s was changed by another program since it was made; it is used as it is now", path)
    return True


def same_work(partial: Path, manifest: Manifest) -> bool:
    """Return whether the folder `partial` holds unfinished work of the same manifest."""
    stored = read_manifest(partial)
    return stored is not None and stored.fingerprint == manifest.fingerprint


def kind_of(attrs: Mapping[str, Any]) -> str | None:
    """Return what a group of this package is, by its attributes; None if it is not one."""
    if "layout" in attrs and "schema_version" in attrs:
        return STORE
    if attrs.get("format") == CORPUS:
        return CORPUS
    manifest = attrs.get(MANIFEST)
    return str(manifest["stage"]) if isinstance(manifest, dict) and "stage" in manifest else None


def _article(kind: str | None) -> str:
    if kind in (STORE, CORPUS):
        return f"an {kind}" if kind == STORE else f"a {kind}"
    return f"a result of {kind!r}"


def _attrs_of_ours(place: Path, kind: str) -> dict[str, Any] | None:
    """Return the attributes of what stands at a place; None if nothing does. Raise if it is not this package's."""
    if not os.path.lexists(place):
        return None
    if not place.is_dir():
        raise InputError(f"{place} is a file, and {_article(kind)} is a folder: {ELSEWHERE}")
    names = sorted(entry.name for entry in place.iterdir())
    if not names:
        return None
    try:
        attrs = read_attrs(place)
        ours = kind_of(attrs) is not None
        foreign = strangers(place) if ours else names
    except FormatError as error:
        raise InputError(f"{place} is damaged ({error}): {ELSEWHERE}") from error
    except MissingInputError:
        ours, foreign = False, names
    if foreign:
        shown = ", ".join(foreign[:LISTED]) + (f" and {len(foreign) - LISTED} more" if len(foreign) > LISTED else "")
        what = "next to its own files" if ours else "and is nothing that this package wrote"
        raise InputError(f"{place} holds {shown} {what}: nothing there is replaced; {ELSEWHERE}")
    return attrs


def _stays_in_place(place: Path) -> bool:
    """Return whether a folder cannot be renamed, or a shell would be left in the old one."""
    with contextlib.suppress(FileNotFoundError):
        return os.path.ismount(place) or (place.is_dir() and place.samefile(Path.cwd()))
    return False


def _removed_if_empty(path: Path) -> bool:
    try:
        path.rmdir()
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return False
        raise
    return True


@dataclass(frozen=True)
class FileTarget:
    """A table, figure or export, which the thread that made it by :func:`claim_file` alone may write.

    Attributes
    ----------
    path
        Where the file is to be; AnnData in Zarr is a folder.
    is_ours
        Whether something at a path was written by the same function before.
    overwrite
        Whether one with other content may be replaced.
    """

    path: Path
    is_ours: Callable[[Path], bool]
    overwrite: bool

    def check(self) -> None:
        """Raise :class:`InputError` if something stands at the path that stays."""
        if os.path.lexists(self.path) and not self.is_ours(self.path):
            raise InputError(
                f"{self.path} is there and was not written by this command, or was edited since: {ELSEWHERE}"
            )

    @contextlib.contextmanager
    def writing(self) -> Iterator[Path]:
        """Yield a path to write to, which ends alike; at the end, what is there takes its place."""
        folder = temporary_path(self.path, "new")
        folder.mkdir()
        try:
            yield folder / self.path.name
            self.replace(folder / self.path.name)
        finally:
            remove_folder(folder)

    def write_text(self, text: str) -> None:
        """Write text as UTF-8 with Unix line ends."""
        with self.writing() as path:
            path.write_text(text, encoding="utf-8", newline="\n")

    def check_new(self, new: Path) -> bool:
        """Return whether a new file is to take its place; raise :class:`InputError` if what stands there stays."""
        if not os.path.lexists(self.path):
            return True
        if same_content(self.path, new):
            logger.info("%s is up to date", self.path)
            return False
        self.check()
        if not self.overwrite:
            raise InputError(f"{self.path} is there, with other content: {OVERWRITE}")
        return True

    def refuse_older(self) -> None:
        """Raise :class:`InputError` if something is at the path that was made from an earlier result, and stays."""
        if os.path.lexists(self.path) and not self.overwrite:
            raise InputError(f"{self.path} is there, and came from another result than this call makes: {OVERWRITE}")

    def replace(self, new: Path) -> None:
        """Put a new file in its place; one with the same content stays."""
        check_lock(self.path)
        if not self.check_new(new):
            return
        if not self.path.is_dir():
            new.replace(self.path)
            return
        old = temporary_path(self.path, "old")
        self.path.rename(old)
        new.rename(self.path)
        remove_folder(old)


@contextlib.contextmanager
def claim_file(
    path: str | Path, is_ours: Callable[[Path], bool], *, suffixes: Sequence[str], overwrite: bool = False
) -> Iterator[FileTarget]:
    r"""Hold a file to be written: nobody else writes it, and what stands there may be replaced.

    Parameters
    ----------
    path
        Where the file is to be.
    is_ours
        Whether something at a path was written by the same function before; anything else stays.
    suffixes
        Endings that the name may have.
    overwrite
        Whether a file of ours with other content may be replaced; one with the same content always stays.

    Raises
    ------
    InputError
        If the name ends otherwise, or what stands there stays; nothing is changed then.
    BusyError
        If somebody else is writing there.

    Examples
    --------
    >>> import tempfile
    >>> path = tempfile.mkdtemp() + "/pairs.csv"
    >>> with claim_file(path, starts_with("a,b"), suffixes=[".csv"]) as target:
    ...     target.write_text("a,b\n1,2\n")
    >>> Path(path).read_text()
    'a,b\n1,2\n'
    """
    path = target_path(path)
    if path.suffix.lower() not in suffixes:
        raise InputError(f"{path} must be a name that ends in {' or '.join(suffixes)}")
    target = FileTarget(Path(os.path.realpath(path)) if path.is_symlink() else path, is_ours, overwrite)
    with _parent_of(target.path), lock(target.path):
        sweep(target.path)
        target.check()
        yield target


def starts_with(*beginnings: str) -> Callable[[Path], bool]:
    """Return whether a file starts with one of some texts, such as the first columns of a table, as a function."""
    longest = max(map(len, beginnings))

    def is_ours(path: Path) -> bool:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return file.read(4 * longest).startswith(tuple(text.encode() for text in beginnings))

    return is_ours


def names_program(path: Path) -> bool:
    """Return whether a figure names this package as its program (see :data:`FIGURE_PROGRAM`)."""
    return path.is_file() and FIGURE_PROGRAM.encode() in path.read_bytes()


def sweep_below(folder: Path) -> None:
    """Remove what dead processes left beside any target below a folder, and their locks.

    Targets are not looked into; those that another process holds are left alone.
    """
    for parent, folders, names in os.walk(folder):
        listed = [*folders, *names]
        folders[:] = [name for name in folders if not (Path(parent, name) / GROUP_FILE).exists()]
        targets = {leftover_of(name) for name in listed if not is_stray_file(name)}
        # an empty lock may be another program's: the next claim of that target takes it
        locked = [name for name in names if name.endswith(LOCK_SUFFIX) and not _is_empty(Path(parent, name))]
        targets |= {name.removesuffix(LOCK_SUFFIX) for name in locked}
        folders[:] = [name for name in folders if leftover_of(name) is None]
        for name in targets - {None}:
            # a lock that is not ours is none
            with contextlib.suppress(BusyError, InputError), lock(Path(parent, str(name))):
                sweep(Path(parent, str(name)))


def _is_empty(file: Path) -> bool:
    """Return whether a file has no bytes, or is gone."""
    try:
        return not file.lstat().st_size
    except FileNotFoundError:
        return True


def sweep(path: Path) -> None:
    """Put back what stood at a path if its process died between two renames; remove what dead processes left."""
    remains = leftovers(path)
    if not os.path.lexists(path) and remains["old"]:
        newest = max(remains["old"], key=lambda old: old.stat().st_mtime)
        newest.rename(path)
        remains["old"].remove(newest)
    for leftover in (leftover for paths in remains.values() for leftover in paths):
        if leftover.is_dir():
            remove_folder(leftover)
        else:
            leftover.unlink(missing_ok=True)
