"""Where products are computed: on the CPU with NumPy, or with CuPy on the GPU of a Dask-CUDA worker.

Dense products are the same functions of :mod:`pipeline.correlate.kernels.dense` on both; a device only says which array
namespace they get, and how arrays get there and back. Sparse ones are compiled for either:
:mod:`pipeline.correlate.kernels.sparse` and :mod:`pipeline.correlate.kernels.scatter`.
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
class Gpu:
    """A GPU: its address on the bus of its host, and the bytes of its memory that this process may still take."""

    name: str
    free: int


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
        return self.xp.asnumpy(array) if array_api_compat.is_cupy_namespace(self.xp) else np.asarray(array)

    def gpu(self) -> Gpu | None:
        """Return the GPU as it is now, or None on the CPU.

        What memory pools (CuPy's, or RMM's where Dask-CUDA made one) hold already is counted as free: it is ours.
        """
        if not array_api_compat.is_cupy_namespace(self.xp):
            return None
        import cupy  # noqa: PLC0415 - an extra, and slow to import

        device = cupy.cuda.Device()
        free = int(device.mem_info[0]) + cupy.get_default_memory_pool().free_bytes() + _rmm_pool_bytes()
        return Gpu(device.pci_bus_id, free)


@functools.cache
def find_device(wanted: str) -> Device:
    """Return the device of this worker process: ``cpu``, ``cuda``, or for ``auto`` the GPU, if it has one, and CuPy.

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


def _rmm_pool_bytes() -> int:
    """Return the bytes of RMM's pool in this process, 0 where there is none."""
    if importlib.util.find_spec("rmm") is None:
        return 0
    import rmm  # noqa: PLC0415 - an extra, and slow to import

    resource = rmm.mr.get_current_device_resource()
    return int(resource.pool_size()) if isinstance(resource, rmm.mr.PoolMemoryResource) else 0


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
        logger.info("CuPy is installed, but finds no GPU (%s): products are computed on the CPU", error)
        return f"CuPy finds no GPU ({error})"
    return None if n_devices else "this worker sees no GPU"
