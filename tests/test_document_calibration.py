"""Short versions of the calibration over documents; and the page shows the figures of the long one."""

from __future__ import annotations

import json

import numpy as np
from scipy.stats import binomtest

from benchmarks import document_calibration as calibration

STORED = json.loads(calibration.RESULT.read_text(encoding="utf-8"))


def test_the_tables_are_what_the_benchmark_printed():
    page = calibration.PAGE.read_text(encoding="utf-8")
    assert calibration.render(page, STORED) == page
    assert STORED["level_is_held"]
    assert STORED["coverage_is_held"]
    assert {line["documents"] for line in STORED["excess"]} == set(calibration.DOCUMENTS)
    assert all(line["experiments"] >= 500 for line in STORED["excess"])
    assert all(line["covered"] >= calibration.LEAST_COVERAGE for line in STORED["coverage"] if line["from"] >= 11)


def test_p_holds_its_level_and_finds_what_is_shared():
    lines = calibration.judge_excess(60, ("30 words", "all words, often"), (60,))
    for line in lines:
        assert line["p_holm"] > 0.05
        assert binomtest(round(line["covered"] * 60), 60, 0.95, alternative="less").pvalue > 0.01
        assert line["power"] > 0.3


def test_intervals_of_r_cover_it():
    lines = calibration.judge_intervals(100, ("30 words", "all words, seldom"), 1)
    n, covered = np.array([(line["experiments"], line["covered"]) for line in lines if line["from"] >= 11]).T
    assert n.sum() > 100
    assert n @ covered / n.sum() > calibration.LEAST_COVERAGE
