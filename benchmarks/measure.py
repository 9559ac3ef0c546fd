"""Run a function in a fresh process, and measure its time and the memory of that process and all its children."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
import time
from typing import Any

import numpy as np
import psutil

SAMPLING_SECONDS = 0.02


def peak_memory(process: psutil.Process, stop: threading.Event, peak: list[int]) -> None:
    """Sample the resident memory of a process and its children, summed, into ``peak[0]`` until told to stop."""
    while not stop.wait(SAMPLING_SECONDS):
        with contextlib.suppress(psutil.Error):
            peak[0] = max(peak[0], sum(one.memory_info().rss for one in _family(process)))


def _family(process: psutil.Process) -> list[psutil.Process]:
    """Return a process and its children, but for those just forked, which still are their parent's memory."""
    own = process.cmdline()
    return [process, *(child for child in process.children(recursive=True) if child.cmdline() != own)]


def run_measured(code: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Run ``code`` in a fresh interpreter with ``arguments`` as a dictionary of that name.

    The code leaves its figures in a dictionary ``figures``. Processor seconds are those of the process itself.

    Returns
    -------
    dict
        The figures, with ``wall`` (seconds of the whole process, imports included) and ``peak_gb`` (of all
        processes, summed) added.
    """
    program = (
        f"import json, resource\narguments = json.loads({json.dumps(json.dumps(arguments))})\nfigures = {{}}\n{code}\n"
        "used = resource.getrusage(resource.RUSAGE_SELF)\n"
        # ru_maxrss would start from the memory of the process that started this one
        "status = dict(line.split(':', 1) for line in open('/proc/self/status'))\n"
        "figures['own_peak'] = 1024 * int(status['VmHWM'].split()[0])\n"
        "figures['cpu_seconds'] = used.ru_utime + used.ru_stime\n"
        "print(json.dumps(figures))\n"
    )
    start = time.perf_counter()
    child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    stop, peak = threading.Event(), [0]
    sampler = threading.Thread(target=peak_memory, args=(psutil.Process(child.pid), stop, peak))
    sampler.start()
    output, _ = child.communicate()
    stop.set()
    sampler.join()
    if child.returncode:
        raise RuntimeError(f"The measured process failed with exit code {child.returncode}")
    figures: dict[str, Any] = json.loads(output.splitlines()[-1])
    figures["wall"] = time.perf_counter() - start
    figures["peak_gb"] = max(peak[0], figures.pop("own_peak")) / 1e9
    return figures


def sgemm_rate(size: int = 4096, repeats: int = 3) -> float:
    """Return the float32 matrix product rate of this machine, FLOP a second, the best of some tries."""
    x = np.random.default_rng(0).random((size, size), dtype=np.float32)
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        np.matmul(x, x)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best
