"""Measured peak memory stays below the projected one, for every method, in a fresh process."""

from __future__ import annotations

import importlib.util

import pytest

from benchmarks.correlate import write_random_store
from benchmarks.measure import run_measured

PROGRAM = """
import importlib, logging
plan = importlib.import_module("pipeline.correlate.plan")
run = importlib.import_module("pipeline.correlate.run")
if arguments.pop("streaming"):
    plan._methods = lambda kernel: ["streaming"]
    plan._with_strips = lambda panels, ways, shape: plan._plan(ways[0], plan.Cut(3072, 4096), shape)
plans = []
make = run.make_plan
run.make_plan = lambda *sizes, **settings: plans.append(make(*sizes, **settings)) or plans[-1]
run.correlate(**arguments)
figures["method"], figures["projected"] = plans[-1].method, plans[-1].projected
"""

RANKING = """
import importlib
run = importlib.import_module("pipeline.correlate.run")
class Ranked(Exception):
    pass
def stop(*_):
    raise Ranked
plans = []
plan_ranks = run.plan_ranks
run.plan_ranks = lambda *sizes, **settings: plans.append(plan_ranks(*sizes, **settings)) or plans[-1]
run._measure = stop
try:
    run.correlate(**arguments)
except Ranked:
    figures["projected"], figures["width"] = max(plan.projected for plan in plans), min(plan.width for plan in plans)
"""


@pytest.mark.parametrize("method", ["resident", "streaming", "dense"])
def test_measured_peak_is_below_the_projected_one(tmp_path, method):
    active = None if method == "dense" else 24
    rows, features = (20_000, 700) if method == "dense" else (60_000, 6000)
    for seed, name in enumerate("ab"):
        write_random_store(tmp_path / name, rows, features, active, seed)
    arguments = {"a": str(tmp_path / "a"), "b": str(tmp_path / "b"), "out": str(tmp_path / "out.zarr")}
    arguments |= {"top_k": 64, "keep_above": 0.015, "memory": "4GB", "streaming": method == "streaming"}
    arguments |= {"full": "float32" if method == "resident" else None}
    figures = run_measured(PROGRAM, arguments)
    assert figures["method"] == method
    assert figures["peak_gb"] <= figures["projected"] / 1e9
    assert figures["projected"] <= 4e9


@pytest.mark.gpu
@pytest.mark.skipif(importlib.util.find_spec("cupy") is None, reason="needs CuPy and a CUDA device")
@pytest.mark.parametrize("method", ["resident", "streaming", "dense"])
def test_measured_peak_beside_a_gpu_is_below_the_projected_one(tmp_path, method):
    for seed, name in enumerate("ab"):
        write_random_store(tmp_path / name, 60_000, 6000, 24, seed)
    arguments = {"a": str(tmp_path / "a"), "b": str(tmp_path / "b"), "out": str(tmp_path / "out.zarr")}
    arguments |= {"kernel": "dense" if method == "dense" else "sparse", "device": "cuda", "memory": "6GB"}
    figures = run_measured(PROGRAM, arguments | {"streaming": method == "streaming"})
    assert figures["method"] == method
    assert figures["peak_gb"] <= figures["projected"] / 1e9


@pytest.mark.parametrize("active", [24, None])
def test_measured_peak_of_ranking_is_below_the_projected_one(tmp_path, active):
    rows, features = (60_000, 6000) if active else (20_000, 500)
    for seed, name in enumerate("ab"):
        write_random_store(tmp_path / name, rows, features, active, seed)
    arguments = {"a": str(tmp_path / "a"), "b": str(tmp_path / "b"), "out": str(tmp_path / "out.zarr")}
    arguments |= {"measure": "spearman", "keep_above": 0.9, "memory": "850MB"}
    figures = run_measured(RANKING, arguments)
    assert figures["peak_gb"] <= figures["projected"] / 1e9 <= 0.85
    figures = run_measured(PROGRAM, arguments | {"streaming": False})
    assert figures["peak_gb"] <= 0.85


DOCUMENTS = """
import numpy as np
from pipeline.correlate.intervals import intervals
rng = np.random.default_rng(0)
pairs = rng.integers(0, 2000, 100_000), rng.integers(0, 2000, 100_000)
ds = intervals(pairs, arguments["a"], arguments["b"], memory=arguments["memory"])
figures["pairs"], figures["units"] = ds.sizes["pair"], sum(ds.attrs["n_documents"])
"""


def test_sums_over_documents_stay_within_the_budget(tmp_path):
    for seed, name in enumerate("ab"):
        write_random_store(tmp_path / name, 20_000, 2000, 24, seed)
    arguments = {"a": str(tmp_path / "a"), "b": str(tmp_path / "b"), "memory": "640MB"}
    figures = run_measured(DOCUMENTS, arguments)
    assert figures["units"] * figures["pairs"] * 40 > 3e8, "the sums of all pairs would not fit beside the libraries"
    assert figures["peak_gb"] <= 0.64
