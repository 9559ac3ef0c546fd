"""Halves that the caller gives take the place of those that documents have."""

from __future__ import annotations

import numpy as np
import pytest

from storage.errors import InputError

N = 160


@pytest.fixture
def case(make_case, values):
    rng = np.random.default_rng(3)
    return make_case(values(rng, N, 12, 0.3), values(rng, N, 10, 0.3), documents=np.arange(N) // 10)


@pytest.fixture
def halves():
    return np.random.default_rng(3).integers(-1, 2, N).astype(np.int8)


@pytest.mark.parametrize("kernel", ["sparse", "dense"])
def test_r_is_of_the_rows_that_are_given(case, halves, client, kernel):
    found = case.correlate(top_k=3, keep_above=0.01, min_firing=0, kernel=kernel, halves=halves, client=client)
    case.halves = lambda _: [halves == 0, halves == 1]
    case.check(found, 3, 0.01)
    counted = [found.attrs[f"n_rows_{name}"] for name in ("select", "heldout", "excluded")]
    assert counted == [np.count_nonzero(halves == half) for half in (0, 1, -1)]


def test_other_halves_are_another_result(case, halves, client):
    first = case.correlate(min_firing=0, halves=halves, client=client)
    other = halves.copy()
    other[0] = 1 - abs(other[0])
    second = case.correlate(min_firing=0, halves=other, client=client)
    assert first.attrs["manifest"]["fingerprint"] != second.attrs["manifest"]["fingerprint"]


@pytest.mark.parametrize(
    ("change", "select", "message"),
    [
        (lambda halves: halves[:-1], "half", r"of shape \(160,\), not int8 of shape \(159,\)"),
        (lambda halves: halves.astype(int), "half", "must be int8"),
        (lambda halves: halves + np.int8(1), "half", "must hold -1 and 0 and 1 alone"),
        (lambda halves: halves, "all", "must hold -1 and 0 alone, with select='all'"),
        (lambda halves: np.minimum(halves, 0), "half", "halves has 0 rows of half 1; correlation needs at least 2"),
    ],
)
def test_halves_that_are_none_are_refused(case, halves, change, select, message):
    with pytest.raises(InputError, match=message):
        case.correlate(select=select, halves=change(halves))
    assert not (case.folder / "cor.zarr").exists()
