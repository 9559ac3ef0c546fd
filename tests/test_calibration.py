"""Short versions of the statistical benchmarks: p-values without an effect, and what SVCCA scores by chance."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.stats import kstest

from benchmarks import calibration, compare_activations, concept_calibration, every_p
from benchmarks.chance import DIMENSIONS, EXPECTED, tolerance, unit_rows
from pipeline.compare import engine
from pipeline.compare.arrays import compare_rows
from pipeline.compare.statistics import holm
from pipeline.settings.registries import METRICS as registered

METRICS = ["svcca", "rsa", "svcca_pc1"]


@pytest.fixture(scope="module")
def scores(client):
    found = {}
    patch = pytest.MonkeyPatch()
    for name in ("RUNS_PER_TASK",):
        patch.setattr(engine, name, 39)
    for seed in range(30):
        for one in calibration.experiment(seed, METRICS, 39, client):
            calibration._extend(found, calibration._scores_of("rows", one))
    patch.undo()
    return found


def test_p_is_uniform_where_there_is_no_effect(scores):
    lines = [calibration.judge(*key, values) for key, values in scores.items()]
    assert {line["null"] for line in lines} == {"shuffled", "random_features", "random_dictionary", "random_pairs"}
    assert len(lines) == 4 * len(METRICS)
    assert min(line["ks_p"] for line in lines) > 0.05 / len(lines)
    assert all(line["below_level"] <= calibration.sampled_limit(line["experiments"], 4) for line in lines)


def test_p_of_the_best_of_a_grid_is_uniform_where_there_is_no_effect():
    """A short version of ``benchmarks.calibration --grid``; the stored one has 500 experiments."""
    best = [calibration.best_of_grid(seed, "sites of B").set_index("metric").loc["rsa"] for seed in range(24)]
    p = np.array([line[["p_max", "p"]].to_numpy(float) for line in best])
    steps = np.random.default_rng(0).random(len(p)) / (calibration.GRID_RUNS + 1)
    assert kstest(p[:, 0] - steps, "uniform").pvalue > 0.01
    assert kstest(p[:, 1] - steps, "uniform").pvalue < 0.01, "which pair of sites is the best was chosen by the scores"


def test_the_stored_p_of_the_best_of_a_grid_is_uniform():
    lines = json.loads(calibration.GRID.read_text(encoding="utf-8"))["lines"]
    of_max = [line for line in lines if line["kind"] == "p_max"]
    assert {line["experiments"] for line in lines} == {500}
    assert min(line["ks_p"] for line in of_max if line["alike"] == "sites of B") > 0.05
    assert min(holm([line["p_binomial"] for line in of_max])) > 0.05


def test_holm_keeps_the_family_wise_error(scores):
    """Families of 2 tests of the same metric: with 39 runs, the corrected p of one can just reach 0.05."""
    wrong = []
    for values in scores.values():
        p = np.array([(np.sum(null >= score - 1e-6) + 1) / (len(null) + 1) for score, null in values])
        wrong += [(holm(family) <= 0.05).any() for family in p.reshape(-1, 2)]
    assert np.mean(wrong) <= calibration.sampled_limit(len(wrong))


def test_p_is_uniform_where_nulls_end_early(client):
    p, runs = [], []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        rows = rng.normal(size=(12, 3)), rng.normal(size=(12, 4))
        found = compare_rows(*rows, metrics=["svcca_pc1"], null_runs=400, stop_after=5, seed=seed, client=client)
        p.append(found.p.item())
        runs.append(found.p_runs.item())
    assert min(runs) == 100
    assert 100 < np.mean(runs) < 200
    assert np.mean(np.array(p) <= 0.05) <= calibration.sampled_limit(60, 4)
    assert kstest(p, "uniform").pvalue > 0.01


def test_ties_are_broken_evenly():
    rng = np.random.default_rng(0)
    draws = rng.integers(0, 3, size=(1000, 20)).astype(float)
    smooth = [calibration.uniform_p(row[0], row[1:], rng) for row in draws]
    assert kstest(smooth, "uniform").pvalue > 0.01


@pytest.mark.parametrize("n", [24, 239, 1000])
def test_trap_2_svcca_of_independent_rows(client, n):
    found = compare_rows(*(unit_rows(n, d, n + d) for d in DIMENSIONS), metrics=["svcca"], null_runs=4, client=client)
    assert abs(float(found.null_mean[0, 0]) - EXPECTED[n]) <= tolerance(float(found.null_std[0, 0]), 4)


def test_calibration_runs(bench, monkeypatch):
    for name in ("RUNS_PER_TASK",):
        monkeypatch.setattr(engine, name, 19)  # set back afterwards: the benchmark sets them too
    sizes = ("--experiments", "4", "--activations", "2", "--null-runs", "19", "--metrics", "svcca", "rsa")
    result = bench("calibration", *sizes)
    assert {line["null"] for line in result["lines"]} == {
        "shuffled", "random_features", "random_dictionary", "random_pairs", "permuted_documents", "shifted_blocks",
    }  # fmt: skip
    assert result["families"] == 4 * 2 * 2 + 6 * 3
    assert set(result["refused"]) == {"series that keep 0.99 of a row"}
    assert all(line["below_level"] == 1.0 for line in result["shuffled_tokens"] if line["data"] == "160 documents")


def test_chance_runs(bench):
    result = bench("chance", "--sizes", "24", "239", "--runs", "3")
    assert result["reproduced"]
    assert result["lines"][0]["mean"] > 0.99


def test_compare_activations_runs(bench, monkeypatch):
    monkeypatch.setattr(compare_activations, "DIMENSIONS", (24, 32))
    sizes = ("--rows", "4000", "--plain-rows", "3000", "--null-runs", "5")
    result = bench("compare_activations", *sizes)
    assert result["max_error"] < 1e-6
    assert len(result["ratios"]) == 1
    assert result["with_null"]["null_mean"] < result["score"]


def test_intervals_of_scores_hold_the_truth():
    """Of metrics that repeated pairs would change, too; the long version's figures stand in the page."""
    lines = calibration.judge_intervals(60, 150, ["rsa", "cka", "svcca:k=4", "procrustes"])
    assert all(line["given"] == 1 for line in lines)
    assert min(min(line["covered"], line["difference_covered"]) for line in lines) >= 0.9
    stored = json.loads(calibration.RESULT.read_text(encoding="utf-8"))["lines"]
    assert {line["metric"] for line in stored} > set(registered)
    assert min(line["covered"] for line in stored if line["given"]) >= 0.92
    assert min(line["difference_covered"] for line in stored if line["given"]) >= 0.92


def test_every_p_holds_its_level():
    """In the stored results of the long versions, which the page shows."""
    lines = every_p.all_lines()
    assert {line["part"] for line in lines} == {*every_p.PARTS, *every_p.KINDS_OF_P}
    assert min(line["experiments"] for line in lines) >= 490
    assert min(line["p_holm"] for line in lines) > 0.05
    assert min(line["covered"] for line in lines if line["part"].startswith("rematch") and "covered" in line) >= 0.92
    result = json.loads(calibration.LEVELS.read_text(encoding="utf-8"))
    assert {line["metric"] for line in result["lines"]} == set(registered)
    assert min(line["experiments"] for line in result["lines"]) >= 500
    page = calibration.PAGE.read_text(encoding="utf-8")
    assert every_p.page_with_table(calibration.page_with_tables(page)) == page
    page = every_p.METHOD.read_text(encoding="utf-8")
    assert every_p.render_traps(page) == page


@pytest.mark.parametrize("kind", ["coherence", "shuffled words", "ends early"])
def test_a_short_version_of_other_p(kind):
    """Not those whose experiments take long; their functions have tests of their own."""
    for line in every_p.judge(kind, 30, 5):
        assert line["p_binomial"] > 0.001
        assert line["power"] > 0


def test_the_token_null_of_concepts_holds_its_level_and_finds_what_is_more():
    """A short version, and the stored result of the long one, which the page shows."""
    result = concept_calibration.benchmark(8, 19, 8)
    assert result["level_is_held"]
    assert result["interval_holds"]
    assert min(line["power"] for line in result["lines"]) > 0.3
    stored = json.loads(concept_calibration.RESULT.read_text(encoding="utf-8"))
    assert stored["level_is_held"]
    assert stored["interval_holds"]
    assert min(line["experiments"] for line in stored["lines"]) >= 500
    assert min(line["holds_0"] for line in stored["lines"]) >= 0.92
    page = concept_calibration.PAGE.read_text(encoding="utf-8")
    assert concept_calibration.page_with_table(page) == page
