"""Tiles of B features give the bytes of panels against all of B, and what dense float64 gives."""

from __future__ import annotations

import importlib
import itertools
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import storage
from pipeline.correlate.kernels.reduce import Best
from pipeline.correlate.plan import WORTH_STRIPS, Cut, Resources, StoreSize, make_plan
from pipeline.correlate.topk import best_of, best_of_all
from pipeline.settings.correlate import CorrelateSettings
from tests.correlate.test_measures import ORACLES
from tests.correlate.test_touched import assert_same_bytes, sparse_sides

run = importlib.import_module("pipeline.correlate.run")
plan_module = importlib.import_module("pipeline.correlate.plan")
KERNEL = {"resident": "sparse", "streaming": "sparse", "dense": "dense", "float32": "dense"}


@pytest.mark.parametrize("method", KERNEL)
@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], max_examples=2, deadline=None
)
@given(
    sides=sparse_sides(),
    measure=st.sampled_from(["pearson", "cosine", "spearman", "phi", "jaccard"]),
    top_k=st.sampled_from([1, 3, 20]),
    keep_above=st.sampled_from([0.02, 0.9]),
    select=st.sampled_from(["half", "all"]),
    more=st.sampled_from([{"min_firing": 0}, {"min_firing": 4}, {"min_firing": 0, "full": "float32"}]),
    touched=st.booleans(),
)
def test_same_bytes_as_panels_against_all_of_b(
    client, make_case, force, monkeypatch, method, sides, measure, top_k, keep_above, select, more, touched
):
    monkeypatch.setattr(plan_module, "touched_is_faster", lambda *_: touched)
    case = make_case(*sides, **({} if measure == "pearson" else {"oracle": ORACLES[measure]}))
    wanted = {"top_k": top_k, "keep_above": keep_above, "select": select, "measure": measure, **more}
    results = []
    for strip in (None, 16):
        force(method, panel=16, slab_rows=32, strip=strip)
        results.append(case.correlate(f"strip-{strip}", kernel=KERNEL[method], client=client, **wanted))
    assert_same_bytes(*results)
    if more == {"min_firing": 0}:
        case.check_r(results[1], top_k, keep_above)


@given(st.integers(0, 2**32 - 1), st.integers(1, 6))
def test_lists_of_strips_join_to_the_best_of_all(seed, top_k):
    rng = np.random.default_rng(seed)
    r = rng.choice([-0.5, -0.0, 0.0, 0.25, 0.5, np.nan], (4, 12))
    ids = np.arange(12, dtype=np.int32)
    edges = np.sort(rng.choice(np.arange(1, 12), 2, replace=False))
    parts = [
        best_of(*part, r[:, part[0]], top_k) for part in zip(np.split(ids, edges), np.split(r, edges, 1), strict=True)
    ]
    rng.shuffle(parts)
    joined, whole = best_of_all(parts), best_of(ids, r, r, top_k)
    assert isinstance(joined, Best)
    for one, other in zip(joined, whole, strict=True):
        assert one.tobytes() == other.tobytes()


@pytest.fixture
def case(make_case, values):
    rng = np.random.default_rng(0)
    x, y = values(rng, 200, 70, 0.2), values(rng, 200, 50, 0.2)
    y[:, :20] += x[:, 30:50]
    return make_case(x, y)


@pytest.mark.parametrize("method", ["resident", "streaming", "dense"])
@pytest.mark.parametrize("dies_in", ["correlate-panel", "correlate-join"])
def test_a_run_that_dies_computes_no_finished_tile_again(case, client, force, monkeypatch, caplog, method, dies_in):
    arguments = {"kernel": KERNEL[method], "client": client}
    force(method, panel=32)
    reference = case.correlate("reference", **arguments)
    force(method, panel=32, strip=16)  # 3 panels, 4 strips
    run_tasks, ran = run.run_tasks, []

    def dying(client, function, items, *, name, **more):
        for count, done in enumerate(run_tasks(client, function, items, name=name, **more)):
            ran.append((name, done[0]))
            yield done
            if name == dies_in and count == 1:
                raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run, "run_tasks", dying)
        with pytest.raises(KeyboardInterrupt):
            case.correlate(**arguments)
    panels = storage.partial_path(case.folder / "cor.zarr") / "panels"
    on_disk = {int(file.stem.removeprefix("tile-")) for file in panels.glob("tile-*.npz")}
    joined = {int(file.stem.removeprefix("panel-")) for file in panels.glob("panel-*.npz")}
    assert bool(joined) == (dies_in == "correlate-join")
    done = on_disk | {t for i in joined for t in range(4 * i, 4 * i + 4)}
    assert len(done) >= 2
    ran.clear()
    monkeypatch.setattr(run, "run_tasks", lambda *given, **more: _noted(ran, run_tasks(*given, **more), more["name"]))
    caplog.set_level("INFO", "pipeline.correlate")
    resumed = case.correlate(**arguments)
    assert "of 12 tiles are already done" in caplog.text
    assert not done & {t for name, t in ran if name == "correlate-panel"}, "what was in flight may be done by now too"
    assert_same_bytes(resumed, reference)
    assert not (case.folder / "cor.zarr" / "panels").exists()


def _noted(ran, finished, name):
    for item, result in finished:
        ran.append((name, item))
        yield item, result


def test_too_many_kept_pairs_stop_the_run(case, client, force, monkeypatch):
    force("resident", panel=32, strip=16)
    n_kept = case.correlate("all", client=client, keep_above=0.01).attrs["n_kept"]
    monkeypatch.setattr(plan_module, "MATCHING_SHARE", n_kept // 3 * plan_module.MATCHING_BYTES / 1e9)
    with pytest.raises(storage.BudgetError, match=r"r ≥ 0.01.*in total.*should fit"):
        case.correlate(client=client, keep_above=0.01, memory=10**9)
    monkeypatch.setattr(plan_module, "KEPT_AT_LEAST", 3)
    monkeypatch.setattr(plan_module, "KEPT_SHARE", 0.001)
    with pytest.raises(storage.BudgetError, match="in one tile"):
        case.correlate(client=client, overwrite=True)


def planned(workers, memory, features=32_768, rows=10**6, active=64):
    size = StoreSize(True, 4, np.full(features, rows * active // features))
    return make_plan(size, size, rows, CorrelateSettings(), Resources(workers * memory, workers))


def test_stores_are_read_as_often_as_the_root_of_the_workers():
    reads = {workers: sum(planned(workers, 8 * 10**9).reads(workers)) for workers in (1, 4, 16, 64)}
    assert reads == {1: 2, 4: 5, 16: 8, 64: 16}


@given(
    workers=st.sampled_from([1, 2, 7, 25, 64, 1000]),
    memory=st.integers(10**9, 64 * 10**9),
    features=st.integers(1, 300_000),
    rows=st.sampled_from([10**5, 10**7, 10**9]),
)
@example(workers=7, memory=2_739_906_048, features=24_577, rows=10**5)  # panels must be narrower than a chunk
@settings(max_examples=50, deadline=None)
def test_strips_fit_and_read_less_than_panels_would(workers, memory, features, rows):
    try:
        found = planned(workers, memory, features, rows, active=min(64, features))
    except storage.BudgetError:
        return
    assert found.projected <= found.allowed
    assert (found.n_strips - 1) * found.strip < features <= found.n_strips * found.strip
    if found.n_strips > 1:
        assert found.strip % plan_module.CHUNK == 0
        assert found.n_tiles >= min(workers, -((-features // plan_module.CHUNK) ** 2)) / 2, "few idle"
        if found.method == "resident":
            with patch.object(plan_module, "_cuts", lambda _: ()):
                panels = planned(workers, memory, features, rows, active=min(64, features))
            assert n_read(found, workers, features) <= WORTH_STRIPS * n_read(panels, workers, features)


def n_read(plan, workers, features):
    """Return how often both stores are read; a panel that is narrower than a chunk of A reads all of the chunk."""
    of_a, of_b = plan.reads(workers)
    return of_a * max(1, min(plan_module.CHUNK, features) / plan.panel) + of_b


def test_a_cut_that_was_begun_is_kept():
    size = StoreSize(True, 4, np.full(32_768, 1000))
    for cut in itertools.starmap(Cut, [(4096, 32_768), (8192, 4096)]):
        assert make_plan(size, size, 10**6, CorrelateSettings(), Resources(10**10), cut=cut).cut == cut
