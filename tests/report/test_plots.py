"""Figures: text stays text, colours become variables, ids do not clash, undefined values do no harm."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure

from pipeline.report import plots
from pipeline.report.plots import Cell, Mark

NAN = float("nan")


def texts(svg: str) -> list[str]:
    return ["".join(e.itertext()) for e in ET.fromstring(svg).iter() if e.tag == "text"]


def draw_null() -> Figure:
    return plots.null_histogram(np.random.default_rng(0).normal(0, 1, 300), 2.34567, "SVCCA", "shuffled pairings")


def test_text_and_label_are_kept_and_escaped() -> None:
    cells = {("a<b>", "$x$"): Cell(0.5, "0.123456", ("p 0.012345 & more",))}
    svg = plots.to_svg(plots.heat_map(cells, ["a<b>"], ["$x$"]), 'label "<&>')
    root = ET.fromstring(svg)
    assert root.attrib["role"] == "img"
    assert root.attrib["aria-label"] == 'label "<&>'
    assert {"a<b>", "$x$", "0.123456", "p 0.012345 & more"} <= set(texts(svg))


def test_colours_and_fonts_come_from_the_page() -> None:
    svg = plots.to_svg(draw_null(), "null")
    assert not re.findall(r"#[0-9a-f]{6}\b", svg)
    assert set(re.findall(r"var\((--\w+)\)", svg)) >= {"--accent", "--null", "--muted", "--ink", "--sans"}
    assert "DejaVu" not in svg
    assert "http" not in svg


def test_ids_of_different_figures_differ() -> None:
    ids = [set(re.findall(r' id="(.*?)"', plots.to_svg(draw_null(), label))) for label in ("one", "two")]
    assert ids[0]
    assert not ids[0] & ids[1]


def test_drawing_is_reproducible_and_leaves_settings_alone() -> None:
    before = dict(mpl.rcParams)
    assert plots.to_svg(draw_null(), "x") == plots.to_svg(draw_null(), "x")
    assert dict(mpl.rcParams) == before


def test_pairs_are_counted_from_the_highest_r_down() -> None:
    figure = plots.pairs_above_r({"real": (np.array([0.2, 0.5, 0.9, NAN]), 1), "drawn": (np.array([0.5, 0.5]), 2)})
    real, drawn = (dict(zip(*line.get_data(), strict=True)) for line in figure.axes[0].lines)
    assert [real[r] for r in (0.0, 0.5, 0.75, 1.0)] == [3, 2, 1, 0]
    assert [drawn[r] for r in (0.25, 0.75)] == [1, 0]


def test_observed_value_is_marked() -> None:
    assert "observed 2.346" in texts(plots.to_svg(draw_null(), "null"))


@pytest.mark.parametrize(
    "figure",
    [
        lambda: plots.null_histogram(np.full(5, NAN), NAN, "RSA", "shuffled pairings"),
        lambda: plots.null_histogram(np.zeros(5), 0.0, "RSA", "shuffled pairings"),
        lambda: plots.pairs_above_r({}),
        lambda: plots.pairs_above_r({"a": (np.full(3, NAN), 1), "b": (np.array([NAN, -0.5, 1.0]), 3)}),
        lambda: plots.all_r_histogram(np.zeros(4, int), np.linspace(-1, 0.5, 4), np.linspace(-0.5, 1, 4), 0.1),
        lambda: plots.all_r_histogram(np.arange(201), np.linspace(-1, 0.99, 201), np.linspace(-0.99, 1, 201), 0.1),
        lambda: plots.heat_map({}, ["a"], ["b"]),
        lambda: plots.heat_map({("a", "b"): Cell(NAN, "–")}, ["a"], ["b"]),
        lambda: plots.strip_plot({"mean r": []}),
        lambda: plots.strip_plot(
            {"SVCCA": [Mark(NAN), Mark(0.5, (0.2, NAN, NAN)), Mark(0.3, floor=-0.1, ceiling=0.9)]}
        ),
    ],
)
def test_undefined_and_empty_values(figure) -> None:
    assert plots.to_svg(figure(), "figure").startswith("<svg")
