"""From panels on disk to the result: the lists of all features, their statistics, the histogram, the attributes."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xarray as xr
from distributed import Client
from numpy.typing import NDArray

from pipeline.correlate.job import Job, arrays_of, load_arrays
from pipeline.correlate.kernels.reduce import Best
from pipeline.correlate.moments import Moments, join
from pipeline.correlate.panel import BINS, R_HELD_OUT, R
from pipeline.correlate.rescore import rescore
from pipeline.correlate.rest import complete
from pipeline.correlate.topk import merge_all, nan_where_empty
from pipeline.settings.correlate import MEASURE_NAMES, Measure
from storage import add_variables

logger = logging.getLogger(__name__)


@dataclass
class _Panels:
    """What the panels say of their own A features, and of all pairs; gathered as they are read."""

    rows: list[Best] = field(default_factory=list)
    moments: list[Moments] = field(default_factory=list)
    histogram: NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, np.int64))
    n_kept: int = 0
    complete: bool = True

    def read(self, job: Job) -> Iterator[dict[str, NDArray[Any]]]:
        """Take in the panels one by one; yield their lists of B features, which only one panel at a time may take."""
        for i in range(job.plan.n_panels):
            arrays = load_arrays(job.panel_file(i))
            self.rows.append(Best(**arrays_of(arrays, "row")))
            self.moments.append(Moments(**arrays_of(arrays, "moments")))
            self.histogram = self.histogram + arrays["histogram"]
            self.n_kept += int(arrays["n_kept"])
            self.complete &= bool(arrays["complete"])
            yield arrays_of(arrays, "column")


def write_result(job: Job, attrs: dict[str, Any], client: Client) -> None:
    """Merge the panels, make them final, and add everything but the kept pairs to the result."""
    panels = _Panels()
    columns = merge_all(job.b.n_features, job.n_candidates, panels.read(job))
    rows = Best(*(np.concatenate(parts) for parts in zip(*panels.rows, strict=True)))
    panels.rows.clear()
    n_kept = panels.n_kept
    moments = {"a": join(panels.moments), "b": job.read_moments()}
    if not panels.complete:
        complete(job, columns, (moments["a"], moments["b"]), client)
    if job.plan.method == "dense":
        rows, columns, n_kept = rescore(job, rows, columns, client)
    edges = np.linspace(-1, 1, BINS + 1)
    variables: dict[str, Any] = _lists(job, nan_where_empty(rows), nan_where_empty(columns))
    variables |= {
        "histogram": ("bin", panels.histogram),
        "bin_left": ("bin", edges[:-1]),
        "bin_right": ("bin", edges[1:]),
    }
    for side, of_side in moments.items():
        variables |= _statistics(of_side, side)
        attrs[f"n_undefined_{side}"] = int((~of_side.defined[0]).sum())
        attrs[f"n_rare_{side}"] = int(of_side.rare.sum())
        _log_left_out(of_side, side.upper())
    add_variables(xr.Dataset(variables, attrs=attrs | {"n_kept": n_kept}), job.folder)


def _log_left_out(moments: Moments, side: str) -> None:
    """Say how many features of a side have no correlation, and why."""
    n_rare = int(moments.rare.sum())
    n_constant = int((~moments.defined[0]).sum()) - n_rare
    if n_constant or n_rare:
        logger.info(
            "%d %s features do not vary over the rows used for selection, and %d fire in fewer than %d of these %d "
            "rows: they have no correlation",
            n_constant, side, n_rare, moments.fewest, moments.n[0],
        )  # fmt: skip


def _lists(job: Job, rows: Best, columns: Best) -> dict[str, Any]:
    """Return the best partners of the features of both sides, as variables."""
    both = (("b", ("feature_a", "rank"), rows), ("a", ("feature_b", "rank"), columns))
    chosen, held_out = (label(name, job.settings.measure) for name in (R, R_HELD_OUT))
    variables: dict[str, Any] = {}
    for partner, dims, best in both:
        variables |= {f"best_{partner}": (dims, best.id), f"r_{partner}": (dims, best.r, chosen)}
    if job.settings.n_halves > 1:
        variables |= {f"r_heldout_{partner}": (dims, best.held_out, held_out) for partner, dims, best in both}
    return variables


def label(name: str, measure: Measure) -> dict[str, str]:
    """Return the attributes of a variable that holds r."""
    rows = "on held-out rows" if name == R_HELD_OUT else "on the rows used for selection"
    return {"long_name": f"{MEASURE_NAMES[measure]} {rows}", "measure": measure}


def _statistics(moments: Moments, side: str) -> dict[str, Any]:
    """Return the statistics on the selection half, as variables."""
    arrays = {"mean": moments.mean, "std": moments.std, "n_active": moments.active, "defined": moments.defined}
    return {f"{name}_{side}": (f"feature_{side}", array[0]) for name, array in arrays.items()}
