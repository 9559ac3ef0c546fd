"""What the workers of a client have: processes, threads, and how much memory may be taken, of hosts and of GPUs."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from distributed import Client
from distributed.system import MEMORY_LIMIT

from pipeline.correlate.kernels.device import Gpu, find_device
from pipeline.correlate.kernels.sparse import correlate_resident
from pipeline.correlate.plan import COMPILING, CUDA, RESERVED, Resources
from pipeline.settings.correlate import DeviceName
from storage.bounds import parse_size

logger = logging.getLogger(__name__)

#: Share of the free memory that is taken where no budget is given, and share of a worker's own limit, above which
#: Dask would begin to act.
FREE_SHARE, LIMIT_SHARE = 0.5, 0.6
#: Share of the free memory of a GPU that is taken: allocators need some for the pieces between.
GPU_SHARE = 0.8
#: How often workers are asked again where one is lost meanwhile, and seconds before that: it has to be noticed.
ASK_AGAIN, SECONDS_BETWEEN = 5, 1.0


@dataclass(frozen=True)
class _Worker:
    """What one Dask worker says of itself."""

    host: str
    process: int
    threads: int
    free: int
    limit: int | None
    compiled: bool
    gpu: Gpu | None


def parse_memory(memory: str | int) -> int | None:
    """Return a budget in bytes, or None for ``auto``.

    Raises
    ------
    InputError
        If it is no positive number of bytes.

    Examples
    --------
    >>> parse_memory("4GB")
    4000000000
    """
    return None if memory == "auto" else parse_size(memory)


def find_resources(
    client: Client, memory: int | None, device: DeviceName = "cpu", *, assumed_gpu: float | None = None
) -> Resources:
    """Ask the workers of a client what they have; where there are none yet, the first one is waited for.

    `memory` is the budget in bytes for all of them, or None for half of what is free (less, where a worker has a lower
    limit). With the device ``auto``, GPUs are used where all workers have one. With `assumed_gpu`, every process is
    taken to have a GPU of N bytes to itself, whatever it has.

    Raises
    ------
    MissingDependencyError
        If ``cuda`` is asked for and a worker has no GPU, or no CuPy.
    """
    workers = _ask(client, device if assumed_gpu is None else "cpu")
    processes: dict[tuple[str, int], list[_Worker]] = {}
    for worker in workers:
        processes.setdefault((worker.host, worker.process), []).append(worker)
    on_host = {host: sum(1 for other, _ in processes if other == host) for host, _ in processes}
    free = [_allowance(group, on_host[host]) for (host, _), group in processes.items()]
    # Every process gets the same plan, so the poorest one sets the budget of all
    total = memory if memory is not None else min(free) * len(processes)
    threads = max(sum(worker.threads for worker in group) for group in processes.values())
    reserved = RESERVED if all(worker.compiled for worker in workers) else RESERVED + COMPILING
    gpu = _gpu_allowance(list(processes.values())) if assumed_gpu is None else int(GPU_SHARE * assumed_gpu)
    reserved += CUDA if gpu is not None else 0
    return Resources(total, len(processes), threads, reserved, frozenset(on_host), gpu)


def _ask(client: Client, device: DeviceName) -> list[_Worker]:
    """Return what all workers say; they are asked again where one is lost while it answers."""
    attempts_left = ASK_AGAIN
    while True:
        if not client.nthreads():
            client.submit(os.getpid, pure=False).result()
        answers = list(client.run(_describe, device=device, on_error="return").values())
        errors = [answer for answer in answers if isinstance(answer, Exception)]
        if not errors:
            return answers
        # A lost connection is an OSError; anything else is the worker's own answer
        if not attempts_left or not all(isinstance(error, OSError) for error in errors):
            raise next((error for error in errors if not isinstance(error, OSError)), errors[0])
        attempts_left -= 1
        logger.warning("A worker was lost while it was asked what it has (%s): asking again", errors[0])
        time.sleep(SECONDS_BETWEEN)


def _gpu_allowance(processes: list[list[_Worker]]) -> int | None:
    """Return the bytes that each process may take of its GPU; processes that see one GPU share what is free of it."""
    gpus = [group[0].gpu for group in processes]
    if any(gpu is None for gpu in gpus):
        if any(gpus):
            logger.info("Some workers have no GPU: products are computed on the CPU by all, so that all do the same")
        return None
    using = Counter((group[0].host, gpu.name) for group, gpu in zip(processes, gpus, strict=True) if gpu)
    free = [gpu.free // using[group[0].host, gpu.name] for group, gpu in zip(processes, gpus, strict=True) if gpu]
    return int(GPU_SHARE * min(free))


def _allowance(workers: list[_Worker], processes_on_host: int) -> int:
    """Return the bytes that one process may take by default."""
    free = int(FREE_SHARE * workers[0].free / processes_on_host)
    limits = [int(LIMIT_SHARE * worker.limit) for worker in workers if worker.limit]
    return min([free, *limits])


def compiled_kernels() -> Path | None:
    """Return the folder in which compiled kernels are kept; None if none can be written to (:mod:`storage.jit`)."""
    folder = correlate_resident.stats.cache_path
    return None if folder is None else Path(folder)


def is_compiled() -> bool:
    """Return whether an earlier run has left compiled kernels."""
    folder = compiled_kernels()
    return folder is not None and any(folder.glob(f"*{correlate_resident.__name__}*.nbi"))


def _describe(dask_worker: Any, device: DeviceName) -> _Worker:
    return _Worker(
        host=socket.gethostname(),
        process=os.getpid(),
        threads=dask_worker.state.nthreads,
        free=min(psutil.virtual_memory().available, MEMORY_LIMIT),
        limit=dask_worker.memory_manager.memory_limit,
        compiled=is_compiled(),
        gpu=find_device(device).gpu(),
    )
