"""Tables hold in a terminal of 80 columns: names stay whole, and what is left out is said to be elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest
import xarray as xr
from rich.console import Console

from jobs.verbs import scores, status
from pipeline.compare.score_grid import score_grid, scores_table
from pipeline.work.task import Item

SITES = ("layers.11", "encoder.layer.10")


def grid() -> xr.Dataset:
    """Return the scores of two metrics at one pair of sites."""
    of_null = {
        name: (("null", "metric"), [[0.0123, worst]])
        for name, worst in {"null_mean": -0.00001, "null_std": 0.01, "difference": -0.00001, "p": 0.5}.items()
    }
    of_metric = {name: ("metric", [0.51, 0.42]) for name in ("score", "low", "high")}
    names = {"metric": ["svcca_pc1", "rsa"], "null": ["shuffled"]}
    return score_grid({SITES: xr.Dataset({**of_null, **of_metric, "n_pairs": 1234}, names)})


def lines(shown: object, width: int) -> list[str]:
    console = Console(width=width)
    with console.capture() as captured:
        console.print(shown)
    return captured.get().splitlines()


def test_scores_in_a_narrow_terminal_have_whole_names_and_say_where_the_rest_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    table = scores_table(grid())
    narrow, wide = ("\n".join(lines(scores._table(table, narrow=width == 80), width)) for width in (80, 160))
    for text in (narrow, wide):
        assert all(name in text for name in (*SITES, "svcca_pc1", "0.510", "1,234"))
        assert "-0.000" not in text
    assert "interval" in wide
    assert "interval" not in narrow
    monkeypatch.setattr(scores, "wide_console", lambda: Console(width=80))
    scores._print(table, {}, 1)
    assert "For intervals and further p" in capsys.readouterr().out


def test_status_has_a_line_for_each_stage_and_state() -> None:
    items = [Item("match", f"layers.{i} × b", Path("x"), "current", "") for i in range(3)]
    items += [Item("match", f"layers.{i} × b", Path("x"), "outdated", f"top_k was {i}") for i in (3, 4)]
    items += [Item("compare", f"layers.{i} × b", Path("x"), "missing", "not there yet") for i in range(5)]
    text = [" ".join(line.replace("│", " ").split()) for line in lines(status.table_of(items), 80)]
    assert "match 3 of 5 current" in text
    assert "match 2 of 5 outdated layers.3 × b: top_k was 3 (and 1 other" in text
    assert "compare 5 of 5 missing not there yet" in text
