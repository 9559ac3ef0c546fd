"""What is on disk after a death, for :mod:`benchmarks.crash`: trees of files, and what a reader and `verify` say."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import zipfile
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import storage
from storage.derived import RECORD
from storage.inventory import crc32
from storage.verify import verify

#: What may differ between two runs. Files and folders that record when and how fast a run was:
VOLATILE_FILES = re.compile(r"(^|/)(usage|watch|logs)/|(^|/)watch\.(html|json)$")
#: text in ``zarr.json`` that holds a moment, the hash of all attributes, which has it among them, and that of all times
#: of modification:
VOLATILE_KEYS = ("created", "attributes_sha256", "stamp")
#: moments on pages:
VOLATILE_TEXT = re.compile(rb"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d)?([.]\d+)?([+]\d\d:\d\d)?")
#: what the report says of each session's time and memory:
VOLATILE_TABLE = re.compile(
    rb'<table id="usage">.*?</table>|\s*<p class="note">Stages beyond their plan:.*?</p>', re.DOTALL
)
#: and the moments that a zip archive keeps of its members: of a ``.npz`` the members are compared.

#: Names that unfinished or doomed work has.
LEFTOVERS = re.compile(r"\.(partial|old|new|trash|lock|tmp)\b|\.[0-9a-f]{32}\b")

#: Path below the folder → digest of the content; folders end in a slash.
Tree = dict[str, str]


def tree(root: Path) -> Tree:
    """Return all files and folders below `root`, without what may differ."""
    found = {}
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if VOLATILE_FILES.search(f"{name}/" if path.is_dir() else name):
            continue
        if path.is_dir():
            found[f"{name}/"] = ""
        else:
            data = plain(path).replace(str(root.resolve()).encode(), b"ROOT")  # scripts of jobs hold it
            found[name] = hashlib.sha256(data).hexdigest()
    return found


def plain(path: Path) -> bytes:
    """Return the content of a file without what may differ."""
    data = path.read_bytes()
    if path.name == "zarr.json":
        with contextlib.suppress(ValueError):
            data = json.dumps(blanked(json.loads(data))).encode()
    elif path.name == RECORD:
        with contextlib.suppress(ValueError):
            data = json.dumps(checked(json.loads(data), path.parent)).encode()
    elif path.suffix in (".html", ".json", ".svg", ".csv", ".tex"):
        data = VOLATILE_TEXT.sub(b"MOMENT", VOLATILE_TABLE.sub(b"", data))
    elif path.suffix == ".npz":
        with contextlib.suppress(zipfile.BadZipFile), zipfile.ZipFile(io.BytesIO(data)) as archive:
            data = json.dumps([(one.filename, one.CRC, one.file_size) for one in archive.infolist()]).encode()
    return data


def checked(record: dict[str, list[int]], folder: Path) -> dict[str, str | list[int]]:
    """Return the record of written files without the checksums that are those of the files: some hold moments."""
    return {
        name: "as it is" if (folder / name).is_file() and checksums == [crc32(folder / name)] else checksums
        for name, checksums in record.items()
    }


def blanked(value: Any) -> Any:
    """Return JSON values without the text that may differ.

    >>> blanked({"attributes": {"created": "today", "n": 1}, "inventory": {"attributes": "3f…"}})
    {'attributes': {'created': '', 'n': 1}, 'inventory': {'attributes': ''}}
    """
    if isinstance(value, dict):
        volatile = {key for key in VOLATILE_KEYS if isinstance(value.get(key), str)}
        return {key: "" if key in volatile else blanked(item) for key, item in value.items()}
    return [blanked(item) for item in value] if isinstance(value, list) else value


def differences(found: Tree, expected: Tree) -> Iterator[str]:
    """Yield what is not as it should be; of a folder that is too many or missing, only the folder.

    >>> list(differences({"a/": "", "a/b": "1", "c": "2"}, {"c": "3"}))
    ['left behind: a/', 'other bytes: c']
    """
    yield from (f"left behind: {name}" for name in topmost(found.keys() - expected.keys()))
    yield from (f"missing: {name}" for name in topmost(expected.keys() - found.keys()))
    for name in sorted(found.keys() & expected.keys()):
        if found[name] != expected[name]:
            yield f"other bytes: {name}"


def topmost(names: Iterable[str]) -> Iterator[str]:
    """Yield names, but not what is in a folder that is among them."""
    last = None
    for name in sorted(names):
        if last is None or not name.startswith(last):
            yield name
            last = name if name.endswith("/") else last


def part(whole: Tree, target: str) -> Tree:
    """Return what a tree holds of one target."""
    return {name: digest for name, digest in whole.items() if name == target or name.startswith(f"{target}/")}


def units(name: str, targets: Iterable[str]) -> Iterator[str]:
    """Yield what a path of a tree belongs to, of that which is read as a whole: a target, or in a folder a part of it.

    >>> list(units("run/pairs/x.zarr/r/c/0", ["run"])), list(units("run/report.html", ["run"]))
    (['run/pairs/x.zarr'], ['run/report.html'])
    """
    for target in targets:
        if name == target or (name.startswith(f"{target}/") and target.endswith(".zarr")):
            yield target
        elif name.startswith(f"{target}/"):
            store = re.match(r".*?\.zarr(?=/)", name)
            if store or not name.endswith("/"):
                yield store[0] if store else name


def read_between(root: Path, targets: Iterable[str], old: Tree, new: Tree) -> Iterator[str]:
    """Yield what is wrong with what a reader finds between two runs: neither the old, nor the new, nor a refusal."""
    now = tree(root)
    for target in sorted({unit for name in old | new for unit in units(name, targets)}):
        found = part(now, target)
        if not found or target.endswith("/written.json"):  # that holds the old and the new while files are replaced
            continue
        whole = found in (part(old, target), part(new, target))
        if whole and target.endswith(".zarr") and not opens(root / target):
            yield f"a whole target is refused: {target}"
        elif not whole and opens(root / target):
            yield f"a reader opens neither the old nor the new {target}"


def opens(path: Path) -> bool:
    """Return whether a public reader opens a path; an error other than a refusal with a sentence is passed on."""
    if not path.is_dir():
        return path.exists()
    for reader in (storage.open_activations, storage.open_corpus, storage.open_result):
        try:
            opened: Any = reader(path)
        except storage.SubspaceError:
            continue
        if hasattr(opened, "load"):
            opened.load()
        return True
    return False


def faults(targets: Iterable[str]) -> Iterator[str]:
    """Yield what :func:`storage.verify` objects to; the first fault of each store."""
    ours = [one for one in targets if storage.read_manifest(one) is not None or Path(one, "experiment.json").is_file()]
    broken: dict[str, list[str]] = defaultdict(list)
    for fault in verify(*ours).faults if ours else ():
        broken[fault.path].append(str(fault))
    yield from (f"verify has {len(found)} faults: {found[0]}" for found in broken.values())


def nameless(text: str) -> str:
    """Return a text without random names, numbers of processes and moments.

    >>> nameless("a.zarr.0123456789abcdef0123456789abcdef.old")
    'a.zarr.*.old'
    """
    plain_text = re.sub(r"[0-9a-f]{32}", "*", re.sub(r"\.\d+\.partial", ".*.partial", text))
    return re.sub(r"process \d+|since [^ )]+", "…", VOLATILE_TEXT.sub(b"MOMENT", os.fsencode(plain_text)).decode())
