"""Functions that Numba compiles, and the machine code of earlier runs, which is kept on disk.

The code is kept where Numba keeps it: in ``NUMBA_CACHE_DIR``, in ``__pycache__`` beside the source, or in the user's
cache folder, whichever can be written to first. Numba by itself refuses to import a function if none can, stops with
a traceback at a damaged file for good, and goes on with old code if a function changes that a cached one calls. Here,

* the last resort is a folder below ``TMPDIR`` that only the user may write to, and then no cache at all,
* a file whose checksum is wrong counts as absent, and a disk that is full is no error,
* code belongs to the sources of all functions that it was compiled from.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import inspect
import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FunctionType
from typing import Any, ClassVar

import numba
from numba.core.caching import (
    CompileResultCacheImpl,
    FunctionCache,
    IndexDataCacheFile,
    UserWideCacheLocator,
)

from storage.errors import InputError
from storage.files import private_folder

logger = logging.getLogger(__name__)

DIGEST_BYTES = 32
NOT_KEPT = "Compiled functions are not kept, so every process compiles them again"


def cached_njit(function: Callable[..., Any] | None = None, **options: Any) -> Any:
    """Compile a function with ``numba.njit`` when it is first called, without the GIL; later runs load its code.

    The options are those of ``numba.njit``, as ``fastmath``; without a function, a decorator is returned.

    >>> @cached_njit
    ... def add(a, b):
    ...     return a + b
    >>> add(1, 2)
    3
    """
    if function is None:
        return functools.partial(cached_njit, **options)
    compiled = numba.njit(nogil=True, **options)(function)
    if not numba.config.DISABLE_JIT:
        try:
            compiled._cache = KernelCache(function)
        except InputError as error:
            _warn(f"{NOT_KEPT}: {error}")
        except (RuntimeError, OSError):  # what Numba and `tempfile` raise where no place is left
            _warn(f"{NOT_KEPT}: neither a usual folder nor one below TMPDIR can be written to; set NUMBA_CACHE_DIR")
    return compiled


@functools.cache
def _warn(message: str) -> None:
    """Log a warning once in a process."""
    logger.warning("%s", message)


class TemporaryCacheLocator(UserWideCacheLocator):
    """Keeps code below ``TMPDIR``, where other users may write too: in a folder that they may not write to."""

    def __init__(self, function: Callable[..., Any], file: str) -> None:
        super().__init__(function, file)
        self._root = Path(tempfile.gettempdir()) / f"subspace-numba-{os.getuid()}"
        self._cache_path = str(self._root / self.get_suitable_cache_subpath(file))

    def ensure_cache_path(self) -> None:
        """Make the folder; InputError if others could put code there."""
        private_folder(self._root)
        super().ensure_cache_path()


class _KernelCacheImpl(CompileResultCacheImpl):
    _locator_classes: ClassVar[list[type]] = [*CompileResultCacheImpl._locator_classes, TemporaryCacheLocator]


class KernelCache(FunctionCache):
    """The code of one function, for each signature it is called with."""

    _impl_class = _KernelCacheImpl

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        locator = self._impl.locator
        if isinstance(locator, TemporaryCacheLocator):
            _log_place(locator._root)
        self._cache_file = CheckedFiles(self._cache_path, self._impl.filename_base, locator.get_source_stamp())

    def _index_key(self, signature: Any, codegen: Any) -> Any:
        return (*super()._index_key(signature, codegen), sources(self._py_func))

    @contextlib.contextmanager
    def _guard_against_spurious_io_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            _warn(f"Compiled functions cannot be kept in {self._cache_path}: {error.strerror or error}")


@functools.cache
def _log_place(folder: Path) -> None:
    logger.info("Compiled functions are kept in %s: no usual place can be written to", folder)


class CheckedFiles(IndexDataCacheFile):
    """Numba's two kinds of files, index and code, each with a checksum behind what Numba writes.

    Numba reads pickles, which end by themselves, and does not see what follows. The code of a signature is in a file
    of its own, with its key: Numba numbers files, so that two processes that save at once may swap their code.
    """

    def load(self, key: Any) -> Any:
        """Return the code that was saved for `key`, or None."""
        saved_key, data = super().load(key) or (None, None)
        return data if saved_key == key else None

    def save(self, key: Any, data: Any) -> None:
        """Write code, then the index that names it."""
        signature, processor, *_ = key
        digest = hashlib.sha256(repr((signature, processor)).encode()).digest()
        name = self._data_name(int.from_bytes(digest[:8]))
        self._save_data(name, (key, data))
        self._save_index({**self._load_index(), key: name})

    def _load_index(self) -> Any:
        return super()._load_index() if _is_intact(Path(self._index_path)) else {}

    def _load_data(self, name: str) -> Any:
        if not _is_intact(Path(self._data_path(name))):
            raise FileNotFoundError(name)  # which Numba takes for what it is
        return super()._load_data(name)

    @contextlib.contextmanager
    def _open_for_write(self, filepath: str) -> Iterator[Any]:
        with super()._open_for_write(filepath) as file:
            yield file
            file.flush()
            file.write(hashlib.sha256(Path(file.name).read_bytes()).digest())


def _is_intact(file: Path) -> bool:
    """Return whether a file ends with the checksum of what is before it; one that is not there is not."""
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        return False
    return hashlib.sha256(content[:-DIGEST_BYTES]).digest() == content[-DIGEST_BYTES:]


def sources(function: Any) -> str:
    """Return a digest of the source files, and of the global numbers, that a Python function is compiled from.

    Functions that it calls are followed where Numba compiles them.
    """
    digest = hashlib.sha256()
    for part in sorted(_parts(function, set())):
        digest.update(part.encode())
    return digest.hexdigest()


def _parts(function: Any, seen: set[Any]) -> Iterator[str]:
    if function in seen:
        return
    seen.add(function)
    yield _file_digest(inspect.getfile(function))
    for name in function.__code__.co_names:
        value = function.__globals__.get(name)
        # a function compiled by Numba; one that writes LLVM code itself
        called = getattr(value, "py_func", None) or getattr(value, "_defn", None)
        if isinstance(called, FunctionType):
            yield from _parts(called, seen)
        elif isinstance(value, int | float | str | tuple):
            yield f"{name}={value!r}"


@functools.cache
def _file_digest(file: str) -> str:
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()
