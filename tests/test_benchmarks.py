"""A small size of every benchmark runs, so that none can rot; no timing is asserted."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import storage
from benchmarks import cluster, scale
from benchmarks.measure import run_measured
from pipeline.correlate.rates import Rates
from pipeline.correlate.run import correlate

Bench = Callable[..., dict[str, Any]]


def test_what_a_process_takes_is_measured() -> None:
    code = "import numpy\nkept = numpy.ones(arguments['numbers'])\nfigures['sum'] = kept.sum().item()"
    small, large = (run_measured(code, {"numbers": numbers}) for numbers in (10, 20_000_000))
    assert (small["sum"], large["sum"]) == (10, 2e7)
    assert large["peak_gb"] - small["peak_gb"] == pytest.approx(0.16, rel=0.2)
    assert small["cpu_seconds"] > 0
    assert small["wall"] > 0
    with pytest.raises(RuntimeError, match="exit code 1"):
        run_measured("raise SystemExit(1)", {})


def test_match(tmp_path: Path, bench: Bench) -> None:
    rng = np.random.default_rng(0)
    base = rng.exponential(size=(400, 60)) * (rng.random((400, 60)) < 0.2)
    storage.write_activations(tmp_path / "a.zarr", base, overwrite=True)
    storage.write_activations(tmp_path / "b.zarr", base @ (rng.random((60, 50)) < 0.1), overwrite=True)
    correlate(tmp_path / "a.zarr", tmp_path / "b.zarr", out=tmp_path / "cor.zarr")
    sizes = ("--features", "130", "--peer-features", "70")
    result = bench("match", *sizes, "--correlation", str(tmp_path / "cor.zarr"))
    assert result["max_error"] < 1e-9
    assert 0 < result["greedy_total"] <= result["optimal_total"]
    assert result["kept_pairs"] > 100
    for peer in ("linear_sum_assignment", "lapx", "full_sort_greedy"):
        assert {peer, f"{peer}_70"} <= set(result["ratios"])
        assert set(result["ratios"]) == set(result["memory_ratios"])
    assert {"greedy_seconds", "optimal_seconds", "peak_gb"} <= set(result)


def test_compare(bench: Bench) -> None:
    sizes = ["--pairs", "150", "--d-a", "12", "--d-b", "20", "--null-runs", "25"]
    result = bench("compare", *sizes)
    assert result["max_error"] < 1e-6
    assert set(result["scores"]) == set(result["null_means"]) == {"svcca", "rsa", "cka", "procrustes"}
    assert result["p"] == dict.fromkeys(result["scores"], pytest.approx(1 / 26))
    assert result["ratios"]["plain NumPy and SciPy"] > 0
    assert {"seconds", "peak_gb", "evaluation_seconds", "command"} <= set(result)


def test_token_identity(bench: Bench) -> None:
    result = bench("token_identity", "--rows", "3000", "--features", "60", "--active", "6", "--repeats", "1")
    assert result["ratios"]["correlate"] > 0
    assert {"seconds", "peak_gb", "command"} <= set(result)


def test_rematch(bench: Bench) -> None:
    result = bench("rematch", "--rows", "3000", "--features", "60", "--active", "6", "--repeats", "1")
    assert set(result["ratios"]) == {"bare_loop", "bare_loop_cpu"}


def test_semantics(bench: Bench) -> None:
    sizes = ["--concepts", "3", "--site-pairs", "1", "--features", "200", "--null-runs", "10", "--peer-runs", "1"]
    result = bench("semantics", *sizes)
    assert result["max_error"] < 1e-6
    assert result["ratios"]["plain NumPy and SciPy"] > 0
    assert {"seconds", "peak_gb", "command"} <= set(result)


@pytest.mark.parametrize("kind", [["--active", "8"], ["--dense"]])
def test_correlate(kind: list[str], bench: Bench) -> None:
    result = bench("correlate", "--rows", "3000", "--features", "300", "--top-k", "4", *kind, own_processes=True)
    assert result["max_error"] < 1e-6
    assert result["seconds"] > 0
    assert result["peak_gb"] > 0
    assert "sgemm" in result["ratios"]
    assert result["command"].startswith("python -m benchmarks.correlate --rows 3000")
    assert result["peak_gb"] <= result["planned_gb"]
    assert result["planned_seconds"] > 0


def test_peers(bench: Bench) -> None:
    arguments = ["--rows", "1500", "--features", "200", "--small-rows", "800", "--small-features", "60"]
    result = bench("peers", *arguments, "--active", "8", "--top-k", "4")
    assert len(result["ratios"]) == len(result["memory_ratios"]) == 5
    assert all(ratio > 0 for ratio in result["ratios"].values())
    assert result["max_error"] < 1e-9
    assert max(result["differences"].values()) < 1e-4
    assert result["differences"]["scipy sparse product"] < 1e-9


def test_harvest(bench: Bench) -> None:
    result = bench("harvest", "--tiny", "--documents", "40", "--repeats", "2", "--shard-rows", "256")
    assert result["rows"] > 3 * 256
    assert result["max_error"] < 1e-6
    assert {"bare_loop", "full_model", "dense_size", "dense_write", "dense_read"} == set(result["ratios"])
    assert len(result["all_seconds"]["bare_loop"]) == 2


def test_contexts(bench: Bench) -> None:
    result = bench("contexts", "--rows", "2000", "--features", "300", "--active", "6")
    assert result["max_error"] == 0
    assert set(result["ratios"]) == set(result["memory_ratios"]) == {"scipy_csc", "torch_topk"}
    assert {"seconds", "seconds_top_only", "peak_gb", "all_ratio"} <= set(result)


def test_cluster(tmp_path: Path, bench: Bench) -> None:
    sizes = ["--rows", "3000", "--features", "600", "--active", "8", "--workers", "1", "--repeats", "1"]
    rest = ["--no-ops", "20", "--folder", str(tmp_path)]
    result = bench("cluster", *sizes, *rest)
    assert {"dask, 1 processes", "bare, 1 processes"} <= set(result["all_seconds"])
    assert set(result["overheads"]) == {name for name in result["all_seconds"] if name.startswith("dask")}
    assert result["seconds_a_task"] > 0
    assert not (tmp_path / "out.zarr").exists()


def test_reads_are_those_of_the_plan(tmp_path: Path) -> None:
    counted = cluster.count_reads(4096, 12_288, 8, [2.0], tmp_path, [1, 9])["reads"]
    assert [run["workers"] for run in counted] == [1, 9, 1, 9]
    assert counted[1]["strips"] == counted[3]["strips"] == 3
    for run in counted:
        assert run["stores"] == pytest.approx(run["planned"], rel=0.05)


def test_a_slab_of_a_tile_is_timed(tmp_path: Path) -> None:
    rates = scale.measure_tile(scale.Study(), tmp_path, repeats=1)
    assert set(rates) == {"entry", "streamed"}
    assert all(0 < rate < 1e-3 for rate in rates.values())


def test_as_many_worker_processes_as_asked_for() -> None:
    with cluster.processes(3) as client:
        assert list(client.nthreads().values()) == [1, 1, 1]


def test_the_scale_page_is_what_the_arithmetic_says() -> None:
    page = scale.PAGE.read_text(encoding="utf-8")
    study = scale.Study(**scale.measured())
    assert scale.page_of(page, scale.render(study, scale.plan_on_paper(study, scale.rates_of()))) == page


def test_scale_against_sums_by_hand() -> None:
    study = scale.Study()
    harvest, *_, match = scale.plan_on_paper(study, Rates())
    assert harvest.tasks == 2 * math.ceil(2e9 / 65_536)
    assert harvest.disk == pytest.approx(13 * 2e9 * (64 * 5.6 + 12), rel=1e-6)  # whole rows a feature
    assert harvest.computing == pytest.approx(62 * 65_536 / 1290)  # 61,036 shards on 1,000 workers, in rounds
    assert match.computing == pytest.approx(40 * 0.006 * 131_072**2 * 4e-7)
    one, forty = (scale.correlate_stage(study, scale.rates_of(), at_once=count) for count in (1, 40))
    assert one is not None
    assert forty is not None
    assert forty.plan is not None
    store = 2e9 * 64 * 5.6
    joined = 40 * 2 * 20 * ((6 + 4) * 131_072 * 16 + 0.006 * 131_072**2)
    # 6 panels × 4 strips: A for each strip, B for each panel, each once before
    assert forty.moved == pytest.approx(40 * store * (4 + 1 + 6 + 1) + joined, rel=1e-6)
    assert forty.moved < 400e12 < one.moved
    assert forty.seconds < 6 * 3600
    assert 2 * 8 * forty.plan.panel * forty.plan.strip < forty.memory <= 16e9
    assert any("the driver would hold 200 GB" in line for line in scale.breaks(study, [harvest]))
    assert scale.correlate_stage(scale.Study(memory=5 * 10**8), Rates(), at_once=40) is None
