"""Run a function in a fresh process, and measure its time and the memory of that process and all its children."""

from __future__ import annotations

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
        total = 0
        try:
            for one in (process, *process.children(recursive=True)):
                total += one.memory_info().rss
        except psutil.Error:
            continue
        peak[0] = max(peak[0], total)


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
        "figures['own_peak'] = used.ru_maxrss * 1024\n"
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
