"""Many pairs of stores, one after the other: what is known of a B store is found once, not once for each A store.

::

    with one_after_the_other(client):
        a1 × b1:  read b1, its statistics ──▶ correlate
        a2 × b1:  (both are there)        ──▶ correlate
        a1 × b2:  let go of b1; read b2 …

Where the rows of B fit the memory, each worker process keeps them until another B comes. Where they do not, the
statistics of all B features, which take a pass over the store or two, are kept in the calling process: 16 numbers a
feature. Results and memory are those of pairs on their own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from distributed import Client
from numpy.typing import NDArray

from pipeline.correlate.job import Job, forget_rows, save_arrays


@dataclass
class _Known:
    """The statistics of the last B store, by the key of its rows and kernel."""

    key: str = ""
    moments: dict[str, NDArray[Any]] = field(default_factory=dict)


_known: ContextVar[_Known | None] = ContextVar("known", default=None)


@contextlib.contextmanager
def one_after_the_other(client: Client) -> Iterator[None]:
    """Keep what is known of a B store for the next correlation with it, until the block ends."""
    token = _known.set(_Known())
    try:
        yield
    finally:
        _known.reset(token)
        client.run(forget_rows, on_error="ignore")


def is_kept() -> bool:
    """Say whether what is known of a B store is kept."""
    return _known.get() is not None


def bring_statistics(job: Job) -> None:
    """Put the statistics of all B features on disk for a job, if they are known."""
    known = _known.get()
    if known is not None and known.key == _key(job) and not job.all_moments_file.is_file():
        save_arrays(known.moments, job.all_moments_file)


def keep_statistics(job: Job) -> None:
    """Keep the statistics of all B features that a finished job has found."""
    known = _known.get()
    if known is not None and known.key != _key(job):
        known.key, known.moments = _key(job), job.read_moments().to_arrays()


def _key(job: Job) -> str:
    return f"{job.b_key} {job.plan.kernel}"
