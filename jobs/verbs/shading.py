"""What a feature fires on, for a terminal."""

from __future__ import annotations

import numpy as np
from rich.console import Group
from rich.text import Text

from pipeline.text.feature_contexts import FeatureContexts
from pipeline.text.passages import Passage
from pipeline.text.spans import readable, readable_token


def shaded(view: FeatureContexts, label: str | None = None) -> Group:
    """Return what a feature fires on, for a terminal: every token on a ground as red as its activation."""
    missed = f" (at most {view.token_missed} more)" if view.token_missed else ""
    tokens = ", ".join(f"{readable_token(token)} {count:,}" for token, count in view.tokens[:10])
    head = Text(f"feature {view.feature}", style="bold")
    if label:
        head.append(f"  {label}", style="italic")
    head.append(f"  fires on {view.firing_rate:.3%} of rows, at most {view.maximum:.3g}", style="not bold")
    lines = [head, Text(f"  tokens: {tokens}{missed}"), Text(f"  {_bars(view.histogram)}  0 to {view.maximum:.3g}")]
    return Group(*lines, *(_line(passage, view.maximum) for passage in (*view.top, *view.sampled)), Text())


def _bars(counts: tuple[int, ...]) -> str:
    """Return a histogram in one line, its bars by the logarithm of the counts.

    >>> _bars((100, 10, 1, 0))
    '█▄▁ '
    """
    heights = np.log1p(np.array(counts, float))
    tallest = heights.max(initial=0) or 1.0
    return "".join(" ▁▂▃▄▅▆▇█"[round(8 * height / tallest)] for height in heights.tolist())


def _line(passage: Passage, maximum: float) -> Text:
    name = "  top " if passage.quantile is None else f"  q{passage.quantile:.2f}"[:7]
    line = Text(f"{name:<8}{passage.activation:>8.3g}  {passage.before}", no_wrap=False)
    for piece in passage.pieces:
        strength = piece.activation / maximum if maximum > 0 else 0.0
        line.append(readable(piece.text), style=_style(strength, peak=piece.peak))
    return line.append(passage.after)


def _style(strength: float, *, peak: bool) -> str:
    if strength <= 0:
        return "bold" if peak else ""
    pale = round(235 - 175 * min(1.0, strength))
    return f"{'bold ' if peak else ''}black on rgb(255,{pale},{pale})"
