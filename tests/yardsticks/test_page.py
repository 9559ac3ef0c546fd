"""The tables of docs/yardsticks.md are those of the stored results."""

from __future__ import annotations

import json
from types import ModuleType

import pytest

from benchmarks import yardstick_calibration, yardsticks


@pytest.mark.parametrize("benchmark", [yardsticks, yardstick_calibration])
def test_the_page_has_what_the_result_says(benchmark: ModuleType) -> None:
    page = benchmark.PAGE.read_text(encoding="utf-8")
    assert benchmark.render(page, json.loads(benchmark.RESULT.read_text(encoding="utf-8"))) == page
