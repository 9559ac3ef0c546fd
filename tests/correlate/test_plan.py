"""The plan is a pure function: sizes in, panels and projected memory out."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.correlate.cost import Rates
from pipeline.correlate.plan import (
    NARROWEST,
    RESERVED,
    Cut,
    Resources,
    StoreSize,
    choose_kernel,
    dense_seconds,
    make_plan,
    nth_slice,
    sparse_seconds,
)
from pipeline.correlate.run import threshold_that_fits
from pipeline.settings.correlate import CorrelateSettings
from storage import BudgetError, InputError


def size(features, rows, active, sparse=True, value_bytes=4):
    return StoreSize(sparse, value_bytes, np.full(features, rows * active // features, np.int64))


def plan(features=32_768, rows=300_000, active=32, memory=3 * 10**9, threads=2, sparse=True, **more):
    one = size(features, rows, active, sparse)
    given = {name: more.pop(name) for name in ("reserved", "gpu", "processes") if name in more}
    cut = more.pop("cut", None)
    return make_plan(one, one, rows, CorrelateSettings(**more), Resources(memory, threads=threads, **given), cut=cut)


def test_the_size_that_the_original_study_could_not_do():
    found = plan()
    assert (found.method, found.panel, found.n_panels) == ("resident", 4096, 8)
    assert found.projected < 1.5e9


def test_b_that_does_not_fit_is_streamed_and_what_fits_nowhere_is_refused():
    assert plan(rows=30_000_000, memory=4 * 10**9).method == "streaming"
    assert plan(rows=3_000_000, memory=4 * 10**9).method == "resident"
    with pytest.raises(
        BudgetError, match=r"needs at least \d\.\d\d GB .* 0\.50 GB is allowed, of which 0\.\d\d GB is reserved"
    ):
        plan(memory=5 * 10**8)


def test_wide_dictionaries_fit_six_gigabytes():
    assert plan(features=131_072, memory=6 * 10**9).projected <= 6e9


def test_dense_stores_stay_within_two_gigabytes():
    found = plan(features=8192, rows=50_000, active=8192, memory=2 * 10**9, sparse=False)
    assert found.method == "dense"
    assert found.projected <= 2e9


def test_more_workers_get_narrower_panels():
    widths = [plan(threads=threads, memory=10**11).panel for threads in (1, 2, 8, 32, 128)]
    assert widths == sorted(widths, reverse=True)
    assert all(-(-32_768 // width) >= 2 * threads for width, threads in zip(widths, (1, 2, 8, 32, 128), strict=True))


def test_the_budget_is_shared_by_processes():
    one, four = plan(memory=8 * 10**9), plan(memory=8 * 10**9, processes=4, threads=1)
    assert four.allowed == one.allowed // 4
    assert four.projected <= four.allowed


def test_panels_of_unfinished_work_keep_their_width():
    assert plan(cut=Cut(512, 4096)).cut == (512, 4096)


@given(
    features=st.tuples(st.integers(1, 200_000), st.integers(1, 200_000)),
    rows=st.integers(4, 10**8),
    active=st.integers(1, 200),
    top_k=st.integers(1, 256),
    memory=st.integers(10**8, 10**11),
    workers=st.tuples(st.integers(1, 16), st.integers(1, 64)),
    kernel=st.sampled_from(["auto", "sparse", "dense"]),
)
def test_every_plan_fits_its_budget_and_covers_every_feature(features, rows, active, top_k, memory, workers, kernel):
    a, b = (size(n, rows, min(active, n)) for n in features)
    processes, threads = workers
    try:
        found = make_plan(
            a, b, rows, CorrelateSettings(top_k=top_k, kernel=kernel), Resources(memory, processes, threads)
        )
    except BudgetError as error:
        assert "Raise memory" in str(error)  # noqa: PT017
        return
    assert RESERVED < found.projected <= found.allowed == memory // processes
    covered = [nth_slice(i, found.panel, a.n_features) for i in range(found.n_panels)]
    assert covered[0].start == 0
    assert covered[-1].stop == a.n_features
    assert all(one.stop == two.start for one, two in itertools.pairwise(covered))
    assert found.panel >= min(NARROWEST, a.n_features)
    assert 1 <= found.kept_per_tile <= found.panel * b.n_features


def test_auto_takes_the_cheaper_kernel():
    rows = 100_000
    for active, expected in ((32, "sparse"), (400, "sparse"), (4096, "dense")):
        one = size(8192, rows, active)
        assert choose_kernel(one, one, rows) == expected
        assert (sparse_seconds(one, one, rows) < dense_seconds(one, one, rows)) == (expected == "sparse")
    thin, full = size(8192, rows, 8), size(8192, rows, 8192, sparse=False)
    assert choose_kernel(thin, full, rows) == "dense"
    with pytest.raises(InputError, match="one is dense"):
        choose_kernel(thin, full, rows, "sparse")


def test_one_source_of_rates_chooses_the_kernel_and_a_gpu_that_is_insisted_on_has_its_own():
    one = size(8192, 10**6, 700)
    assert choose_kernel(one, one, 10**6) == "sparse"
    assert sparse_seconds(one, one, 10**6) == pytest.approx(10**6 * 700 * 700 * Rates().crowded, rel=1e-4)
    assert choose_kernel(one, one, 10**6, device="cuda") == "dense"
    thin = size(8192, 10**6, 32)
    assert choose_kernel(thin, thin, 10**6, device="cuda") == "sparse"


def test_a_gpu_takes_the_products_that_outweigh_the_way_back():
    few = plan(gpu=40 * 10**9)
    assert (few.method, few.device, few.gpu_projected) == ("resident", "cpu", 0)
    many = plan(rows=10**6, active=400, memory=10**10, gpu=40 * 10**9)
    assert (many.method, many.device) == ("resident", "cuda")
    long = plan(rows=30_000_000, memory=4 * 10**9, gpu=40 * 10**9)
    assert (long.method, long.device) == ("streaming", "cuda")
    assert long.projected <= 4e9
    assert long.panel > plan(rows=30_000_000, memory=4 * 10**9).panel, "the tile is on the GPU, so it may be wider"
    assert plan(device="cuda", gpu=40 * 10**9).device == "cuda"
    assert plan(rows=10**6, active=400, memory=10**10).device == "cpu"


@pytest.mark.parametrize("sparse", [True, False])
def test_panels_fit_the_memory_of_the_gpu_too(sparse):
    sizes = {"features": 16_384, "rows": 200_000, "active": 32 if sparse else 16_384, "sparse": sparse}
    found = [plan(**sizes, memory=10**11, device="cuda", gpu=gpu) for gpu in (80 * 10**9, 8 * 10**9, 2 * 10**9)]
    assert [one.device for one in found] == ["cuda"] * 3
    assert all(0 < one.gpu_projected <= one.gpu_allowed for one in found)
    assert found[0].panel >= found[1].panel > found[2].panel
    with pytest.raises(BudgetError, match=r"does not fit the GPU: panels of \d+ features need \d\.\d\d GB .* 0\.01 GB"):
        plan(**sizes, memory=10**11, device="cuda", gpu=10**7)
    assert plan(**sizes, memory=10**11, gpu=10**7).device == "cpu"


@given(st.integers(0, 2**32 - 1), st.integers(0, 60_000))
def test_threshold_that_fits_is_the_lowest(seed, budget):
    histogram = np.random.default_rng(seed).integers(0, 50, 2000)
    threshold = threshold_that_fits(histogram, budget)
    if threshold is None:
        assert histogram[-1] > budget
        return
    edge = round((threshold + 1) * 1000)
    assert histogram[edge:].sum() <= budget
    assert edge == 0 or histogram[edge - 1 :].sum() > budget
