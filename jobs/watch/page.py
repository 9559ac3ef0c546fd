"""A page that shows how a run is getting on: its stages, four small charts and a few figures, without scripts."""

from __future__ import annotations

import html
import itertools
import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pipeline.work.script import with_prefix

WIDTH, HEIGHT, MARGIN = 460, 150, 8
#: Samples over which a rate is taken.
SMOOTHING = 5
#: A pause of so many usual distances between samples is a gap: nothing was seen, and no line is drawn.
GAP = 5

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>{refresh}
<style>
:root {{
  --ink: #222; --paper: #fff; --panel: #f4f4f1; --muted: #555; --first: #2266aa; --second: #b3540b;
  color-scheme: light dark;
}}
@media (prefers-color-scheme: dark) {{
  :root {{ --ink: #e7e9ec; --paper: #14171b; --panel: #1f242b; --muted: #a0a9b3; --first: #82b3f2; --second: #f0a067; }}
}}
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2em; color: var(--ink); background: var(--paper); }}
main {{ display: flex; flex-wrap: wrap; gap: 1.5em; }}
figure {{ margin: 0; max-width: 100%; }} figcaption {{ font-weight: 600; }}
svg {{ background: var(--panel); max-width: 100%; }} text {{ font-size: 11px; fill: var(--muted); }}
td {{ padding-right: 1.5em; vertical-align: top; }}
.stages {{ display: flex; flex-wrap: wrap; gap: 3px; list-style: none; padding: 0; margin: 1em 0; }}
.stages li {{ flex: 1 1 6em; padding: .3em .7em; border-radius: 3px;
  --full: color-mix(in srgb, var(--first) 35%, var(--panel));
  background: linear-gradient(90deg, var(--full) var(--done), var(--panel) var(--done)); }}
.stages b {{ display: block; }}
</style></head><body>
<h1>{title}</h1>
<p>{state}</p>
{stages}<main>{charts}</main>
<table>{figures}</table>
</body></html>
"""


@dataclass(frozen=True)
class StageView:
    """A stage of the run: whether it is `done`, how far its tasks at work are (0 to 1), and what is said of it."""

    name: str
    done: float
    note: str = ""


@dataclass(frozen=True)
class Sample:
    """What was seen so many seconds after the beginning: rows read, tasks done, and threads of the workers.

    `moved` are bytes a second that their hosts read, wrote and sent; `memory` are bytes of the fullest worker process,
    and `planned` what the stage may take at most, NaN where that is not known.
    """

    seconds: float
    rows: float
    tasks: int
    moved: float
    memory: float
    planned: float
    threads: int


def watch_page(
    title: str,
    state: str,
    samples: Sequence[Sample],
    figures: dict[str, str],
    *,
    stages: Sequence[StageView] = (),
    refresh: int = 0,
) -> str:
    """Return the page as HTML: the stages, charts of the samples, and figures below.

    A browser loads it again after `refresh` seconds; 0: it is finished.

    Examples
    --------
    >>> page = watch_page("toy", "harvest: 3 of 9", [Sample(0, 0, 0, 0, 1e9, 2e9, 4)], {"workers lost": "0"})
    >>> page.count("<svg"), "&lt;" in watch_page("a < b", "", [], {})
    (4, True)
    """
    times = [s.seconds for s in samples]
    charts: tuple[tuple[str, dict[str, Sequence[float]], str], ...] = (
        ("rows per second", {"": rates(times, [s.rows for s in samples])}, ""),
        ("bytes per second, disk and network of the workers' hosts", {"": [s.moved for s in samples]}, "B"),
        ("tasks done, threads at work", {"tasks": [s.tasks for s in samples], "threads": _threads(samples)}, ""),
        (
            "memory of the fullest worker process, against the plan",
            {"memory": [s.memory for s in samples], "plan": [s.planned for s in samples]},
            "B",
        ),
    )
    return _PAGE.format(
        title=html.escape(title),
        state=html.escape(state),
        refresh=f'<meta http-equiv="refresh" content="{refresh}">' if refresh else "",
        stages=_stages(stages),
        charts="".join(_chart(caption, times, lines, unit) for caption, lines, unit in charts),
        figures="".join(
            f"<tr><td>{html.escape(name)}</td><td>{html.escape(text)}</td></tr>" for name, text in figures.items()
        ),
    )


def _stages(stages: Sequence[StageView]) -> str:
    """Return the bar of stages, each filled as far as it is done."""
    drawn = "".join(
        f'<li style="--done: {100 * stage.done:.0f}%"><b>{html.escape(stage.name)}</b>{html.escape(stage.note)}</li>'
        for stage in stages
    )
    return f'<ol class="stages" aria-label="Stages">{drawn}</ol>' if drawn else ""


def _threads(samples: Sequence[Sample]) -> list[float]:
    """Return the threads at work on the scale of the tasks, so that gaps can be seen."""
    most_threads = max((s.threads for s in samples), default=0) or 1
    most_tasks = max((s.tasks for s in samples), default=0)
    return [s.threads / most_threads * most_tasks for s in samples]


def rates(times: Sequence[float], totals: Sequence[float]) -> list[float]:
    """Return how fast a total grows, over the last few samples at each.

    >>> rates([0, 1, 2, 3], [0, 10, 20, 60])
    [0.0, 10.0, 10.0, 20.0]
    """
    result = [0.0] if times else []
    for i in range(1, len(times)):
        first = max(0, i - SMOOTHING)
        result.append((totals[i] - totals[first]) / max(times[i] - times[first], 1e-9))
    return result


def _chart(caption: str, times: Sequence[float], lines: dict[str, Sequence[float]], unit: str) -> str:
    """Return one chart; all lines share the scale, which begins at 0, and break where nothing is known."""
    known = [value for values in lines.values() for value in values if math.isfinite(value)]
    top = max(known, default=0.0) or 1.0
    end = max(times[-1] if times else 0.0, 1e-9)
    drawn, legend = [], []
    for colour, (name, values) in zip(("first", "second"), lines.items(), strict=False):
        for part in _unbroken(times, values):
            points = " ".join(
                f"{MARGIN + t / end * (WIDTH - 2 * MARGIN):.1f},{HEIGHT - MARGIN - v / top * (HEIGHT - 4 * MARGIN):.1f}"
                for t, v in part
            )
            drawn.append(
                f'<polyline points="{points}" fill="none" stroke="var(--{colour})" stroke-width="1.5" '
                'stroke-linecap="round"/>'
            )
        legend.append(f'<tspan style="fill: var(--{colour})">{html.escape(name)} </tspan>')
    return (
        f"<figure><figcaption>{html.escape(caption)}</figcaption>"
        f'<svg width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{html.escape(caption)}, at most {with_prefix(top)}{unit}, over {end:.0f} s">'
        f'<text x="{MARGIN}" y="14">{with_prefix(top)}{unit}</text><text x="{WIDTH - 60}" y="14">{end:.0f} s</text>'
        f'<text x="{WIDTH / 2}" y="14">{"".join(legend)}</text>{"".join(drawn)}</svg></figure>'
    )


def _unbroken(times: Sequence[float], values: Sequence[float]) -> Iterator[list[tuple[float, float]]]:
    """Yield the stretches of a line without a gap: an undefined value, or a long time without a sample.

    >>> list(_unbroken([0, 1, 2, 3, 30, 31], [1, math.nan, 2, 3, 4, 5]))
    [[(0, 1)], [(2, 2), (3, 3)], [(30, 4), (31, 5)]]
    """
    usual = statistics.median(after - before for before, after in itertools.pairwise(times)) if len(times) > 1 else 0.0
    part: list[tuple[float, float]] = []
    for time, value in zip(times, values, strict=True):
        if part and (not math.isfinite(value) or time - part[-1][0] > GAP * usual):
            yield part
            part = []
        if math.isfinite(value):
            part.append((time, value))
    if part:
        yield part
