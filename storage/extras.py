"""Libraries that only some installations have."""

from __future__ import annotations

import importlib
from typing import Any

from storage.errors import MissingDependencyError


def need(module: str, extra: str, what: str = "This") -> Any:
    """Import a module of the extra `extra`; `what` needs it.

    >>> need("nowhere.at_all", "models", "Reading tea leaves")
    Traceback (most recent call last):
    storage.errors.MissingDependencyError: Reading tea leaves needs nowhere (No module named 'nowhere'): pip install ...
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.split(".", maxsplit=1)[0]
        raise MissingDependencyError(
            f"{what} needs {package} ({error}): pip install 'semantic-subspace-matching[{extra}]'"
        ) from error
