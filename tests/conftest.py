"""Shared fixtures: one thread-based Dask client for the whole session, and hypothesis profiles."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from distributed import Client
from hypothesis import HealthCheck, settings

from pipeline.workers import local_client

settings.register_profile("default", deadline=None, max_examples=30, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("thorough", deadline=None, max_examples=500)
settings.load_profile("default")


@pytest.fixture(scope="session")
def client() -> Iterator[Client]:
    """A local client of two threads in this process."""
    with local_client(threads_per_worker=2) as own:
        yield own
