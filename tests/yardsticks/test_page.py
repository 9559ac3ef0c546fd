"""The tables of docs/yardsticks.md are those of the stored result."""

from __future__ import annotations

import json

from benchmarks.yardsticks import PAGE, RESULT, render


def test_the_page_has_what_the_result_says() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert render(page, json.loads(RESULT.read_text(encoding="utf-8"))) == page
