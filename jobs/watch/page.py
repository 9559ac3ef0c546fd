"""A page that shows how a run is getting on: four small charts and a line of figures, in one file without scripts."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.work.script import with_prefix

WIDTH, HEIGHT, MARGIN = 460, 150, 8
#: Samples over which a rate is taken.
SMOOTHING = 5
COLOURS = ("#2266aa", "#dd7722")

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>{refresh}
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2em; color: #222; }}
main {{ display: flex; flex-wrap: wrap; gap: 1.5em; }}
figure {{ margin: 0; }} figcaption {{ font-weight: 600; }}
svg {{ background: #f7f7f5; }} text {{ font-size: 11px; fill: #555; }}
td {{ padding-right: 1.5em; }}
</style></head><body>
<h1>{title}</h1>
<p>{state}</p>
<main>{charts}</main>
<table>{figures}</table>
</body></html>
"""


@dataclass(frozen=True)
class Sample:
    """What was seen so many seconds after the beginning: rows read, tasks done, and threads of the workers.

    `moved` are bytes a second that their hosts read, wrote and sent; `memory` are bytes of the fullest worker process,
    and `planned` what the stage may take at most, 0 where that is not known.
    """

    seconds: float
    rows: float
    tasks: int
    moved: float
    memory: float
    planned: float
    threads: int


def watch_page(title: str, state: str, samples: Sequence[Sample], figures: dict[str, str], *, refresh: int = 0) -> str:
    """Return the page as HTML: charts of the samples, and figures below.

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
        charts="".join(_chart(caption, times, lines, unit) for caption, lines, unit in charts),
        figures="".join(
            f"<tr><td>{html.escape(name)}</td><td>{html.escape(text)}</td></tr>" for name, text in figures.items()
        ),
    )


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
    """Return one chart; all lines share the scale, which begins at 0."""
    top = max((value for values in lines.values() for value in values), default=0.0) or 1.0
    end = max(times[-1] if times else 0.0, 1e-9)
    drawn, legend = [], []
    for colour, (name, values) in zip(COLOURS, lines.items(), strict=False):
        points = " ".join(
            f"{MARGIN + t / end * (WIDTH - 2 * MARGIN):.1f},{HEIGHT - MARGIN - v / top * (HEIGHT - 4 * MARGIN):.1f}"
            for t, v in zip(times, values, strict=True)
        )
        drawn.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        legend.append(f'<tspan fill="{colour}">{html.escape(name)} </tspan>')
    return (
        f'<figure><figcaption>{html.escape(caption)}</figcaption><svg width="{WIDTH}" height="{HEIGHT}" role="img">'
        f'<text x="{MARGIN}" y="14">{with_prefix(top)}{unit}</text><text x="{WIDTH - 60}" y="14">{end:.0f} s</text>'
        f'<text x="{WIDTH / 2}" y="14">{"".join(legend)}</text>{"".join(drawn)}</svg></figure>'
    )
