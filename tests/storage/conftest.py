"""Fixtures of the storage tests."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse

import storage.codec


def random_csr(rng, rows, columns, density, dtype="float32"):
    """A sparse matrix with entries of both signs; some rows and columns are empty when it is sparse enough."""
    matrix = scipy.sparse.random_array((rows, columns), density=density, rng=rng, format="csr", dtype=np.float64)
    matrix.data = rng.standard_normal(matrix.nnz).astype(dtype)
    return scipy.sparse.csr_array(matrix)


@pytest.fixture
def make_csr():
    """A function that makes a random sparse matrix from a generator, a shape and a density."""
    return random_csr


@pytest.fixture
def rng():
    return np.random.default_rng(7)


@pytest.fixture
def no_dense(monkeypatch):
    """Make every way from sparse to dense raise."""

    def refuse(*args, **kwargs):
        raise AssertionError("something was made dense")

    monkeypatch.setattr(storage.codec, "panel_to_dense", refuse)
    monkeypatch.setattr(storage.codec, "dense_to_panel", refuse)
    for kind in (scipy.sparse.csr_array, scipy.sparse.csc_array, scipy.sparse.coo_array):
        monkeypatch.setattr(kind, "toarray", refuse)
        monkeypatch.setattr(kind, "todense", refuse)


@pytest.fixture
def tokens():
    """A function that makes the coordinates of so many rows: documents of seven tokens of three characters."""

    def make(n):
        row = np.arange(n)
        return {
            "document": row // 7,
            "position": row % 7,
            "char_start": row % 7 * 3,
            "char_end": row % 7 * 3 + 3,
            "token_id": row * 11 % 500,
            "group": row // 21,
        }

    return make
