"""How often the intervals of normalised scores contain the true value.

::

    python -m benchmarks.yardstick_calibration        # benchmarks/results/compare/normalised.json, and the page from it
    python -m benchmarks.yardstick_calibration --table

Simulated pairs of features: of the run, of a floor that is drawn three times, and of a ceiling. r depends on the
feature of A. In a floor, some features of A have a random partner, half of them the same one in every draw. The
matchings differ in their numbers of pairs, which must not move the value.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from benchmarks.table import RESULTS, ROOT, insert, update
from pipeline.report.vocabulary import quantity_name
from pipeline.yardsticks.base import Matching
from pipeline.yardsticks.measure import Comparison, measure

RESULT, PAGE, MARK = RESULTS / "compare" / "normalised.json", ROOT / "docs" / "yardsticks.md", "normalised-calibration"
SIZES, EXPERIMENTS, DRAWS, GROUPS = (60, 200, 1000), 500, 3, 10
#: Pairs of the run, the floor's draws and the ceiling, as multiples of the least number.
RUN, FLOOR, CEILING = 1.3, (1.0, 1.1, 1.05), 1.6
#: The share of features of A with a random partner in a floor, and how many of those have the same one in every draw.
RANDOM, ALIKE = 0.4, 0.5
#: Mean r beyond the least that is matched, by features of A whose logarithms vary; and how held-out r differs from r.
MEANS, LEAST, SPREAD, NOISE = {"run": 0.25, "floor": 0.1, "ceiling": 0.6}, 0.1, 0.5, 0.1
#: What the value is, whatever the numbers of pairs.
TRUTH = (MEANS["run"] - MEANS["floor"]) / (MEANS["ceiling"] - MEANS["floor"])


def experiment(seed: int, n: int) -> xr.Dataset:
    """Return what :func:`pipeline.yardsticks.measure.measure` says of simulated pairs, n in the smallest matching."""
    rng = np.random.default_rng([seed, n])
    common = rng.lognormal(0, SPREAD, 2 * n)

    def matching(kind: str, size: float, r_of_features: NDArray[np.float64]) -> Matching:
        a = np.sort(rng.choice(2 * n, round(size * n), replace=False))
        r = LEAST + MEANS[kind] * r_of_features[a] * rng.exponential(size=len(a))
        columns = {"a": a, "b": a, "r": r, "r_heldout": r + NOISE * rng.normal(size=len(a))}
        return Matching.of((Path("a"), Path("b")), columns)

    real = matching("run", RUN, common)
    draws = [matching("floor", size, moved) for size, moved in zip(FLOOR, _moved(rng, common), strict=True)]
    held = {
        "floor": Comparison(real, draws, ALIKE),
        "ceiling": Comparison(real, [matching("ceiling", CEILING, common)]),
    }
    return measure(held, ("floor", "ceiling"), metrics=[], groups=GROUPS, client=None)


def _moved(rng: np.random.Generator, common: NDArray[np.float64]) -> Iterator[NDArray[np.float64]]:
    """Yield how high the r of features of A are in every draw of a floor."""
    moved = rng.choice(len(common), round(RANDOM * len(common)), replace=False)
    same = moved[: round(ALIKE * len(moved))]
    shared = rng.choice(common, len(same))
    for _ in range(DRAWS):
        values = common.copy()
        values[moved] = rng.choice(common, len(moved))
        values[same] = shared
        yield values


def judge(n: int, experiments: int) -> list[dict[str, Any]]:
    """Return of each quantity how often its interval holds the truth."""
    made = xr.concat([experiment(seed, n).drop_dims("yardstick") for seed in range(experiments)], "experiment")
    lines = []
    for quantity in made["quantity"].values.tolist()[1:]:
        of = made.sel(quantity=quantity)
        defined = of.isel(experiment=np.isfinite(of["low"].values))
        figures: dict[str, Any] = {
            "mean": of["normalised"].mean(),
            "width": (defined["high"] - defined["low"]).mean(),
            "given": defined.sizes["experiment"] / experiments,
            "covered": ((defined["low"] <= TRUTH) & (defined["high"] >= TRUTH)).mean(),
        }
        rounded = {name: round(float(np.asarray(value)), 4) for name, value in figures.items()}
        lines.append({"quantity": quantity, "pairs": n, "experiments": experiments, **rounded})
    return lines


def render(page: str, result: dict[str, Any]) -> str:
    """Return the page with the table of a result."""
    lines = ["| score | pairs | mean value | interval given | mean width | coverage |", "|---|---|---|---|---|---|"]
    lines += [
        f"| {quantity_name(line['quantity'])} | {line['pairs']:,} | {line['mean']:.3f} | {line['given']:.2f} "
        f"| {line['width']:.3f} | {line['covered']:.3f} |"
        for line in result["lines"]
    ]
    return insert(page, MARK, "\n".join(lines))


def main() -> None:
    """Run the experiments, unless only the table is asked for, and make the page again."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiments", type=int, default=EXPERIMENTS)
    parser.add_argument("--table", action="store_true", help="only the page, from the stored result")
    given = parser.parse_args()
    if not given.table:
        lines = [line for n in SIZES for line in judge(n, given.experiments)]
        command = "python -m benchmarks.yardstick_calibration"
        command += "" if given.experiments == EXPERIMENTS else f" --experiments {given.experiments}"
        RESULT.write_text(json.dumps({"command": command, "lines": lines}, indent=1) + "\n", encoding="utf-8")
    update(PAGE, RESULT, render)


if __name__ == "__main__":
    main()
