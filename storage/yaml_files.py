"""YAML files that people write: read, or refused with the file's name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from storage.errors import FormatError, MissingInputError

# libyaml reads the list of concepts in a tenth of the time; PyYAML may have been built without it
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_yaml(file: Path, missing: str) -> Any:
    """Return what a YAML file holds.

    Parameters
    ----------
    file
        The file.
    missing
        What to say where there is none.

    Raises
    ------
    MissingInputError
        If there is no such file.
    FormatError
        If it is not YAML.
    """
    if not file.is_file():
        raise MissingInputError(missing)
    try:
        return yaml.load(file.read_text(encoding="utf-8"), Loader=_LOADER)  # noqa: S506 - a safe one
    except yaml.YAMLError as error:
        raise FormatError(f"{file} is not valid YAML: {error}") from error
