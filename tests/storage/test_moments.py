"""Statistics of features against NumPy in float64, over any cut into shards."""

from __future__ import annotations

import numpy as np
import scipy.sparse
from hypothesis import given
from hypothesis import strategies as st

from storage.moments import FeatureMoments


def gathered(dense, bounds, sparse):
    moments = FeatureMoments(dense.shape[1])
    for start, stop in zip([0, *bounds], [*bounds, len(dense)], strict=True):
        part = dense[start:stop]
        moments.add(scipy.sparse.csr_array(part) if sparse else part)
    return moments


@given(st.integers(0, 9999), st.lists(st.integers(0, 60), max_size=5), st.booleans(), st.sampled_from([0.05, 0.5, 1]))
def test_any_cut_matches_numpy(seed, bounds, sparse, density):
    rng = np.random.default_rng(seed)
    dense = rng.standard_normal((60, 5)) * (rng.random((60, 5)) < density) * 10.0 ** rng.integers(-3, 4, 5)
    moments = gathered(dense, sorted(bounds), sparse)
    np.testing.assert_allclose(moments.mean, dense.mean(axis=0), rtol=1e-12, atol=1e-12 * np.abs(dense).max())
    np.testing.assert_allclose(moments.std, dense.std(axis=0), rtol=1e-11, atol=1e-13)
    np.testing.assert_array_equal(moments.n_active, (dense != 0).sum(axis=0))
    np.testing.assert_array_equal(moments.maximum, dense.max(axis=0))


@given(st.sampled_from([0.1, 1 / 3, -7.3, 1e20, 0.0]), st.integers(1, 59), st.booleans())
def test_a_constant_has_exactly_no_deviation(value, cut, sparse):
    moments = gathered(np.full((60, 2), value), [cut], sparse)
    assert moments.std.tolist() == [0, 0]
    assert moments.mean.tolist() == [value, value]


def test_mean_far_above_deviation():
    """One-pass sums of squares in float64 would lose all digits here."""
    values = 1e8 + np.random.default_rng(0).standard_normal((3000, 3)) * 1e-2
    for sparse in (True, False):
        moments = gathered(values, [1000, 1700], sparse)
        np.testing.assert_allclose(moments.std, values.std(axis=0), rtol=1e-5)


def test_no_rows_is_not_a_number():
    moments = FeatureMoments(3)
    moments.add(np.zeros((0, 3)))
    assert moments.n == 0
    assert np.isnan(moments.std).all()
    assert np.isnan(moments.maximum).all()


def test_explicit_zeros_are_not_active():
    moments = FeatureMoments(2)
    moments.add(scipy.sparse.csr_array((np.array([0.0, 2.0]), np.array([0, 0]), np.array([0, 1, 2])), shape=(2, 2)))
    assert moments.n_active.tolist() == [1, 0]
    assert moments.mean.tolist() == [1, 0]
