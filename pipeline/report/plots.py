"""Figures as inline SVG that follows the page's light or dark colours.

Figures are drawn by matplotlib without its global state. Colours are stand-ins (:data:`PALETTE`) that
:func:`to_svg` replaces by the page's CSS variables, text stays text in the page's font, and the background stays
transparent. Each function returns a :class:`matplotlib.figure.Figure`, so that other formats need no second drawing.
"""

from __future__ import annotations

import io
import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgba_array
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from pipeline.work.outputs import FIGURE_METADATA

#: Stand-in colours and the CSS variables that take their place.
PALETTE = {
    "#010101": "var(--ink)",
    "#020202": "var(--muted)",
    "#030303": "var(--rule)",
    "#040404": "var(--accent)",
    "#050505": "var(--null)",
}
INK, MUTED, RULE, ACCENT, NULL = PALETTE

#: The light page's colours, for formats without variables.
PRINTED = {INK: "#1b1f24", MUTED: "#5b646e", RULE: "#dcdcd6", ACCENT: "#0f7b6c", NULL: "#a9b0b6"}

STYLE: dict[Any, Any] = {
    "axes.edgecolor": MUTED,
    "axes.facecolor": "none",
    "axes.labelcolor": MUTED,
    "axes.labelsize": 8.5,
    "axes.linewidth": 0.7,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.unicode_minus": True,
    "figure.facecolor": "none",
    "font.size": 8.5,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": MUTED,
    "xtick.labelsize": 8,
    "ytick.color": MUTED,
    "ytick.labelsize": 8,
}

#: Opacity of the palest and the strongest cell of a map: text stays readable on both, light and dark.
CELL_OPACITY = (0.04, 0.55)
BINS = 50
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
#: Width and height of a cell in inches; narrower where there are many columns, to fit a page.
CELL_INCHES = (1.3, 0.82)
NARROW_CELL_INCHES, MANY_COLUMNS = (1.0, 0.82), 6
CSS_PIXELS = 96
#: Width of what stands right of a map: the bar of its shades.
BAR_INCHES = 0.75
#: Width of the strip plot, and height of a strip with few marks and at most, in inches.
STRIP_INCHES = (7.6, 0.42, 1.2)


@dataclass(frozen=True)
class Cell:
    """One cell of a map: the share of the way from chance to 1, its figure, and the small lines below that.

    What is no evidence is drawn in grey.
    """

    share: float
    figure: str
    lines: tuple[str, ...] = ()
    evidence: bool = True

    @property
    def opacity(self) -> float:
        """How strongly it is filled: the same for the same share, in every map."""
        weakest, strongest = CELL_OPACITY
        return weakest + (strongest - weakest) * float(np.clip(np.nan_to_num(self.share), 0, 1))


@dataclass(frozen=True)
class Mark:
    """A score on its strip, with its chance level (mean, and where 5 and 95 % of it lie), floor and ceiling.

    What is not known is NaN.
    """

    score: float
    chance: tuple[float, float, float] = (math.nan, math.nan, math.nan)
    floor: float = math.nan
    ceiling: float = math.nan


def to_svg(figure: Figure, label: str) -> Markup:
    """Return `figure` as an ``<svg>`` element with ``role="img"``, whose colours are CSS variables.

    `label` says what it shows, for those who do not see it. Ids are unique to the content.
    """
    buffer = io.StringIO()
    with mpl.rc_context({**STYLE, "svg.hashsalt": label}):
        metadata = {"Date": None, "Creator": None, "Format": None, "Type": None}
        figure.savefig(buffer, format="svg", transparent=True, metadata=metadata)
    svg = _compact(buffer.getvalue())
    for stand_in, variable in PALETTE.items():
        svg = svg.replace(stand_in, variable)
    width = figure.get_figwidth() * CSS_PIXELS
    root = f'<svg role="img" aria-label="{escape(label)}" class="plot" style="max-width:{width:.0f}px" viewBox='
    # the only markup that the page takes as it is: matplotlib escaped every text in it, and the label is escaped above
    return Markup(re.sub(r"<svg [^>]*?viewBox=", lambda _: root, svg, count=1))  # noqa: S704


def _compact(svg: str) -> str:
    """Keep what a browser draws: no prolog, no metadata, no unused ids (they would repeat on a page), two decimals."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"', "", svg).replace("xlink:href", "href")
    used = set(re.findall(r"#([\w.-]+)", svg))
    svg = re.sub(r' id="([^"]*)"', lambda match: match[0] if match[1] in used else "", svg)
    svg = re.sub(r"(font-family: |font: (?:\w+ )*[\d.]+px )[^;\"]+", r"\1var(--sans)", svg)
    svg = re.sub(r' (?:d|x|y|transform)="[^"]*"', lambda match: re.sub(r"(\.\d\d)\d+", r"\1", match[0]), svg)
    return re.sub(r"\s*\n\s*", " ", svg)


@mpl.rc_context(STYLE)
def heat_map(cells: dict[tuple[str, str], Cell], sites_a: Sequence[str], sites_b: Sequence[str]) -> Figure:
    """Draw the grid of sites, A downwards and B across, with a bar of the shades; a missing pair is left empty."""
    cell_width, cell_height = CELL_INCHES if len(sites_b) < MANY_COLUMNS else NARROW_CELL_INCHES
    left, bottom = 0.35 + 0.075 * max(map(len, sites_a)), 0.48
    grid_width, grid_height = cell_width * len(sites_b), cell_height * len(sites_a)
    width, height = left + grid_width + BAR_INCHES, bottom + grid_height + 0.02
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((left / width, bottom / height, grid_width / width, grid_height / height))
    for (site_a, site_b), cell in cells.items():
        _draw_cell(axes, sites_b.index(site_b), sites_a.index(site_a), cell)
    prefix = common_prefix(sites_b) if len(sites_b) >= MANY_COLUMNS else ""
    xlabel = f"site of B: {prefix}…" if prefix else "site of B"
    axes.set(xlim=(0, len(sites_b)), ylim=(len(sites_a), 0), xlabel=xlabel, ylabel="site of A")
    axes.set_xticks(np.arange(len(sites_b)) + 0.5, [site.removeprefix(prefix) for site in sites_b])
    axes.set_yticks(np.arange(len(sites_a)) + 0.5, sites_a)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    _shade_bar(figure.add_axes((1 - 0.5 / width, bottom / height, 0.12 / width, grid_height / height)))
    return figure


def _shade_bar(axes: Axes) -> None:
    """Draw what the shades of a map mean."""
    steps = np.linspace(0, 1, 51)
    for low, high in itertools.pairwise(steps):
        opacity = Cell((low + high) / 2, "").opacity
        axes.add_patch(Rectangle((0, low), 1, high - low, facecolor=ACCENT, alpha=opacity, linewidth=0))
    axes.set(xlim=(0, 1), ylim=(0, 1), xticks=[])
    axes.set_yticks([0, 0.5, 1], ["0 %", "50 %", "100 %"])
    axes.yaxis.tick_right()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def common_prefix(sites: Sequence[str]) -> str:
    """Return the dotted parts with which all names begin.

    >>> common_prefix(["encoder.layer.1", "encoder.layer.10"])
    'encoder.layer.'
    """
    parts = zip(*(site.split(".")[:-1] for site in sites), strict=False)
    return "".join(f"{part[0]}." for part in itertools.takewhile(lambda part: len(set(part)) == 1, parts))


def _draw_cell(axes: Axes, x: int, y: int, cell: Cell) -> None:
    colour = ACCENT if cell.evidence else NULL
    axes.add_patch(Rectangle((x + 0.015, y + 0.02), 0.97, 0.96, facecolor=colour, alpha=cell.opacity, linewidth=0))
    top = 0.5 - 0.1 * len(cell.lines)
    axes.text(x + 0.5, y + top, cell.figure, ha="center", va="center", fontsize=13, fontweight="bold")
    for i, line in enumerate(cell.lines):
        axes.text(x + 0.5, y + top + 0.25 + 0.19 * i, line, ha="center", va="center", fontsize=8.5)


@mpl.rc_context(STYLE)
def strip_plot(strips: dict[str, list[Mark]]) -> Figure:
    """Draw strips of scores against their chance levels, floors and ceilings, all on one axis that ends at 1.

    Parameters
    ----------
    strips
        Marks by the name of what they measure, one for each pair of sites, in one order.
    """
    width, least, most = STRIP_INCHES
    row = float(np.clip(0.05 * max(map(len, strips.values())), least, most))
    top, bottom, left = 0.3, 0.28, 0.35 + 0.075 * max(map(len, strips))
    height = top + bottom + row * len(strips)
    figure = Figure(figsize=(width, height))
    box = (left / width, bottom / height, (width - left - 0.15) / width, row * len(strips) / height)
    axes = figure.add_axes(box)
    for i, marks in enumerate(strips.values()):
        for mark, y in zip(marks, i + 0.5 + 0.7 * _spread(len(marks)), strict=True):
            _draw_mark(axes, mark, y, 0.7 / len(marks), row)
    values = [value for marks in strips.values() for mark in marks for value in (mark.score, *mark.chance, mark.floor)]
    lowest = min([0.0, *(value for value in values if math.isfinite(value))])
    axes.set(xlim=(lowest - 0.01, 1.01), ylim=(len(strips), 0), yticks=np.arange(len(strips)) + 0.5)
    axes.set_yticklabels(list(strips), fontsize=9, color=INK)
    axes.hlines(np.arange(1, len(strips)), *axes.get_xlim(), color=RULE, linewidth=0.7)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    handles, names = axes.get_legend_handles_labels()
    place: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (-0.01, 0.97), "ncols": 5}
    first = dict(zip(reversed(names), reversed(handles), strict=True))
    order = [name for name in ("score", "chance, 5 to 95 %", "floor", "ceiling") if name in first]
    axes.legend([first[name] for name in order], order, **place, fontsize=8.5, handlelength=1.2, columnspacing=1.4)
    return figure


def _spread(n: int) -> np.ndarray:
    """Return places around 0 for n marks of a strip, the first at the top.

    >>> _spread(2).tolist()
    [-0.25, 0.25]
    """
    return (np.arange(n) + 0.5) / n - 0.5


def _draw_mark(axes: Axes, mark: Mark, y: float, height: float, row: float) -> None:
    """Draw one score of a strip that is `row` inches high; a long bar is the way from chance to the score."""
    mean, low, high = mark.chance
    size = float(np.clip(72 * row * height, 2.5, 6))
    if math.isfinite(mean):
        axes.plot([mean, mark.score], [y, y], color=ACCENT, linewidth=size / 4, alpha=0.5)
        low, high = (low, high) if math.isfinite(low) else (mean, mean)
        # a null that is narrower than a point can still be seen
        axes.barh(
            y, max(high - low, 0.005), height * 0.9, left=min(low, mean - 0.0025), color=NULL, label="chance, 5 to 95 %"
        )
    dots: dict[str, Any] = {"markersize": size, "linestyle": "none", "markeredgewidth": 0}
    axes.plot(mark.score, y, "o", color=ACCENT, label="score", **dots)
    for name, value, shape in (("floor", mark.floor, ">"), ("ceiling", mark.ceiling, "<")):
        if math.isfinite(value):
            axes.plot(value, y, shape, color=MUTED, label=name, **dots)


@mpl.rc_context(STYLE)
def null_histogram(null: np.ndarray, score: float, axis: str, name: str) -> Figure:
    """Draw the distribution of a metric (`axis`) under a null (`name`), with the observed value marked."""
    figure, axes = _small_figure(axis, name)
    defined = null[np.isfinite(null)]
    if len(defined):
        counts, edges = np.histogram(defined, bins=30)
        axes.stairs(counts, edges, fill=True, color=NULL, alpha=0.75)
    if np.isfinite(score):
        axes.axvline(score, color=ACCENT, linewidth=2)
        on_left = bool(score < np.mean(axes.get_xlim()))
        _label(axes, score, f"observed {score:.3f}", to_the_right=on_left)
    return figure


def _label(axes: Axes, x: float, text: str, *, to_the_right: bool) -> None:
    """Write `text` above the vertical line at `x`."""
    axes.annotate(
        text,
        (x, 1),
        xycoords=("data", "axes fraction"),
        xytext=(-2 if to_the_right else 2, 3),
        textcoords="offset points",
        ha="left" if to_the_right else "right",
        va="bottom",
        fontsize=8,
    )


@mpl.rc_context(STYLE)
def pairs_above_r(curves: dict[str, tuple[np.ndarray, int]]) -> Figure:
    """Draw how many pairs have at least each r.

    Parameters
    ----------
    curves
        By name: r of pairs, and from how many matchings they come, over which the number is averaged. NaN counts as
        less than any r.
    """
    figure, axes = _small_figure("r", "pairs with at least this r")
    styles = ((MUTED, "-"), (ACCENT, "-"), (INK, "--"), (INK, ":"))
    lowest = min([0.0, *(float(np.nanmin(r)) for r, _ in curves.values() if np.isfinite(r).any())])
    at_least = np.linspace(lowest, 1, 4 * BINS + 1)
    for (name, (r, matchings)), (colour, line) in zip(curves.items(), styles, strict=False):
        ascending = np.sort(r[np.isfinite(r)])
        counts = (len(ascending) - np.searchsorted(ascending, at_least)) / matchings
        axes.plot(at_least, counts, color=colour, linestyle=line, linewidth=1.4, label=name)
    axes.set_xlim(lowest, 1)
    axes.set_ylim(bottom=0)
    if curves:
        axes.legend(loc="upper right", fontsize=8, handlelength=1.6)
    return figure


@mpl.rc_context(STYLE)
def all_r_histogram(counts: np.ndarray, left: np.ndarray, right: np.ndarray, keep_above: float) -> Figure:
    """Draw the histogram of all correlations on a logarithmic scale, with the threshold for keeping pairs."""
    figure, axes = _small_figure("r of all pairs of features", "pairs of features")
    starts = np.arange(0, len(counts), max(1, len(counts) // (2 * BINS)))
    merged = np.add.reduceat(counts, starts)
    edges = np.append(left[starts], right[-1])
    _draw_counts(axes, merged, edges, MaxNLocator(5))
    axes.axvline(keep_above, color=ACCENT, linewidth=1.2, linestyle="--")
    _label(axes, keep_above, f"kept: r ≥ {keep_above:g}", to_the_right=True)
    return figure


@mpl.rc_context(STYLE)
def uses_histogram(uses: np.ndarray) -> Figure:
    """Draw of how many A features the B features are the best match, on a logarithmic scale."""
    figure, axes = _small_figure("A features that a B feature is the best match of", "B features")
    most = int(uses.max(initial=0))
    step = max(1, -(-most // BINS))
    edges = np.arange(0, most + 2 * step, step) - 0.5
    counts = np.histogram(uses, edges)[0]
    _draw_counts(axes, counts, edges, MaxNLocator(6, integer=True))
    return figure


def _draw_counts(axes: Axes, counts: np.ndarray, edges: np.ndarray, ticks: MaxNLocator) -> None:
    """Draw a histogram on a logarithmic scale, on which an empty bin has no height."""
    axes.stairs(np.maximum(counts, 0.5), edges, fill=True, color=NULL, alpha=0.75, baseline=0.5)
    axes.set_yscale("log")
    axes.set_ylim(bottom=0.5)
    axes.xaxis.set_major_locator(ticks)
    axes.yaxis.set_major_formatter(lambda value, _: power_of_ten(value))


def save(figure: Figure, path: Path) -> None:
    """Write a figure to a file for print: in the colours of the light page, which it takes on, on white, text as text.

    The ending chooses the format: ``.pdf``, ``.svg`` or ``.png`` (300 dots an inch).
    """
    for axes in figure.axes:
        axes.tick_params(which="both", color=PRINTED[MUTED], labelcolor=PRINTED[MUTED])
    for artist in figure.findobj():
        for name in ("color", "facecolor", "edgecolor"):
            _recolour(artist, name)
    settings: dict[Any, Any] = {**STYLE, "svg.hashsalt": path.name, "pdf.fonttype": 42}
    metadata = FIGURE_METADATA[path.suffix]
    with mpl.rc_context(settings):
        figure.savefig(path, dpi=300, facecolor="white", bbox_inches="tight", pad_inches=0.04, metadata=metadata)


def _recolour(artist: Any, name: str) -> None:
    """Put a colour for print in the place of a stand-in."""
    if not (hasattr(artist, f"get_{name}") and hasattr(artist, f"set_{name}")):
        return
    colours = to_rgba_array(getattr(artist, f"get_{name}")())
    if len(colours) == 1 and (printed := PRINTED.get(to_hex(colours[0]))):
        getattr(artist, f"set_{name}")((printed, float(colours[0, 3])))


def power_of_ten(value: float) -> str:
    """Write a tick of a logarithmic axis without mathematical markup.

    >>> power_of_ten(1000.0)
    '10³'
    """
    return "10" + str(round(math.log10(value))).translate(SUPERSCRIPTS)


def _small_figure(xlabel: str, ylabel: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(3.7, 2.3))
    axes = figure.add_axes((0.155, 0.195, 0.82, 0.68))
    axes.set(xlabel=xlabel, ylabel=ylabel)
    return figure, axes
