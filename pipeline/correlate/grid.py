"""Many pairs of stores, one after the other: what is known of a B store is found once, not once for each A store.

::

    with forget_rows_after(client):
        known_b = KnownB()
        correlate(a1, b1, known_b=known_b, …)     read b1, its statistics ──▶ correlate
        correlate(a2, b1, known_b=known_b, …)     (both are there)        ──▶ correlate
        correlate(a1, b2, known_b=known_b, …)     let go of b1; read b2 …

Where the rows of B fit in memory, each worker process keeps them until another B comes. Where they do not, the
statistics of all B features, which take a pass over the store or two, are kept in the calling process: 16 numbers a
feature. Results and memory are those of pairs on their own.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from distributed import Client
from numpy.typing import NDArray

from pipeline.correlate.job import Job, Store, forget_rows, save_arrays
from pipeline.settings.correlate import CorrelateSettings
from storage import fingerprint


@dataclass
class KnownB:
    """The statistics of the last B store, by the key of its rows and kernel; handed from correlation to correlation."""

    key: str = ""
    moments: dict[str, NDArray[Any]] = field(default_factory=dict)

    def bring(self, job: Job) -> None:
        """Put the statistics of all B features on disk for a job, if they are known."""
        if self.key == _key(job) and not job.all_moments_file.is_file():
            save_arrays(self.moments, job.all_moments_file)

    def keep(self, job: Job) -> None:
        """Keep the statistics of all B features that a finished job has found."""
        if self.key != _key(job):
            self.key, self.moments = _key(job), job.read_moments().to_arrays()


def _key(job: Job) -> str:
    return f"{job.b_key} {job.plan.kernel}"


def key_of_rows(store: Store, half: NDArray[np.int8], settings: CorrelateSettings) -> str:
    """Return a key of the rows of a store as the kernels read them: content, halves, measure, features left out."""
    rows = hashlib.sha256(half.tobytes()).hexdigest()
    return f"{fingerprint(store.path)} {rows} {settings.measure} {settings.min_firing}"


@contextlib.contextmanager
def forget_rows_after(client: Client) -> Iterator[None]:
    """Let all workers go of the rows that they keep for the next correlation, when the block ends."""
    try:
        yield
    finally:
        client.run(forget_rows, on_error="ignore")
