"""Where dense products are computed: NumPy on the CPU, CuPy on the GPU of a Dask-CUDA worker.

Both run the same functions of :mod:`pipeline.correlate.kernels.dense`; a device only says which array namespace they
get, and how arrays get there and back.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import array_api_compat
import numpy as np
from numpy.typing import NDArray

from storage.errors import MissingDependencyError

logger = logging.getLogger(__name__)

Array = NDArray[Any]


@dataclass(frozen=True)
class Device:
    """An array namespace, and the way of arrays there and back.

    Attributes
    ----------
    name
        ``cpu`` or ``cuda``.
    xp
        The namespace.
    """

    name: str
    xp: ModuleType

    def put(self, array: Array) -> Any:
        """Return a host array on the device."""
        return self.xp.asarray(array)

    def get(self, array: Any) -> Array:
        """Return a device array on the host."""
        return self.xp.asnumpy(array) if self.name == "cuda" else np.asarray(array)


@functools.cache
def find_device(wanted: str) -> Device:
    """Return the device of this worker process.

    Parameters
    ----------
    wanted
        ``cpu``, ``cuda``, or ``auto``: the GPU where CuPy and one are there.

    Raises
    ------
    MissingDependencyError
        If ``cuda`` is wanted and CuPy or a GPU is missing.
    """
    if wanted == "cpu":
        return _cpu()
    problem = _why_no_gpu()
    if problem is None:
        import cupy  # noqa: PLC0415 - an extra, and slow to import

        return Device("cuda", array_api_compat.array_namespace(cupy.empty(0)))
    if wanted == "cuda":
        raise MissingDependencyError(
            f"device='cuda' was asked for, but {problem}. Install the extra 'gpu' on the workers and give them a GPU "
            "(`dask cuda worker`), or use device='cpu'"
        )
    return _cpu()


def _cpu() -> Device:
    return Device("cpu", array_api_compat.array_namespace(np.empty(0)))


def _why_no_gpu() -> str | None:
    """Return why there is no GPU to be used, or None if there is one. CuPy imports without a GPU, and fails at use."""
    if importlib.util.find_spec("cupy") is None:
        return "CuPy is not installed here"
    import cupy  # noqa: PLC0415 - an extra, and slow to import

    try:
        n_devices = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        logger.info("CuPy is installed, but finds no GPU (%s): dense products are computed on the CPU", error)
        return f"CuPy finds no GPU ({error})"
    return None if n_devices else "this worker sees no GPU"
