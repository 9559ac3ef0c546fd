"""JSON files that programs wrote: read, or refused with the file's name.

>>> import tempfile
>>> file = Path(tempfile.mkdtemp()) / "a.json"
>>> _ = file.write_text('{"a": 1}')
>>> read_json(file, "nothing there", "remove it")
{'a': 1}
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from storage.bounds import check_file
from storage.damage import cause_of
from storage.errors import CorruptError, shown

#: The metadata of a store of thousands of arrays have some megabytes.
LARGEST_FILE = 256 * 2**20


def read_json(file: Path, missing: str, remedy: str, *, largest: int = LARGEST_FILE) -> Any:
    """Return what a JSON file of at most `largest` bytes holds; the error names the file.

    `missing` is what to say where there is none, `remedy` what the user can do where it is damaged: a CorruptError if
    it is not JSON in UTF-8, or nests without end.
    """
    check_file(file, missing, largest)
    try:
        return json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:  # ValueError: also what is not UTF-8
        raise CorruptError(f"{file} is not valid JSON ({cause_of(error)}); {remedy}") from error


def read_json_object(file: Path, missing: str, remedy: str, *, largest: int = LARGEST_FILE) -> dict[str, Any]:
    """Return what a JSON file holds, which has to be an object; as :func:`read_json`."""
    content = read_json(file, missing, remedy, largest=largest)
    if not isinstance(content, dict):
        raise CorruptError(f"{file} must hold a JSON object, not {shown(content)}; {remedy}")
    return content
