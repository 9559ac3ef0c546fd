"""How often the intervals of normalised scores contain the true value.

::

    python -m benchmarks.yardstick_calibration        # benchmarks/results/compare/normalised.json, and the page from it
    python -m benchmarks.yardstick_calibration --table

Simulated pairs of features: of the run, of a floor that is drawn three times, and of a ceiling. r depends on the
feature of A, and so does the arrangement of the decoder rows. In a floor, some features of A have a random partner,
half of them the same one in every draw. The matchings differ in their numbers of pairs. The truth is the ratio of the
mean differences over all experiments.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

import storage
from benchmarks.table import RESULTS, ROOT, insert, update
from pipeline.report.vocabulary import quantity_name
from pipeline.yardsticks.base import Matching
from pipeline.yardsticks.measure import Held, measure

RESULT, PAGE, MARK = RESULTS / "compare" / "normalised.json", ROOT / "docs" / "yardsticks.md", "normalised-calibration"
SIZES, EXPERIMENTS, DIMENSIONS, DRAWS, GROUPS = (60, 200), 300, 10, 3, 10
#: Pairs of the run, the floor's draws and the ceiling, as multiples of the least number.
RUN, FLOOR, CEILING = 1.3, (1.0, 1.1, 1.05), 1.6
#: The share of features of A with a random partner in a floor, and how many of those have the same one in every draw.
RANDOM, ALIKE = 0.4, 0.5
#: Mean r beyond the least that is matched, 0.1, and the standard deviation of its logarithm over features of A.
MEANS, LEAST, SPREAD = {"run": 0.25, "floor": 0.1, "ceiling": 0.6}, 0.1, 0.5


def experiment(seed: int, n: int, folder: Path) -> xr.Dataset:
    """Return what :func:`pipeline.yardsticks.measure.measure` says of simulated pairs, n in the smallest matching."""
    rng = np.random.default_rng([seed, n])
    width = 2 * n
    a = rng.standard_t(6, size=(width, DIMENSIONS))
    rows = {"a": a, "b": a + 1.5 * rng.normal(size=a.shape), "repeat": a + 0.3 * rng.normal(size=a.shape)}
    active = np.eye(2, width, dtype=np.float32)
    for name, decoder in rows.items():
        storage.write_activations(folder / f"{name}.zarr", active, decoder=decoder.astype(np.float32), overwrite=True)
    common = rng.lognormal(0, SPREAD, width)

    def matching(kind: str, size: float, partner: NDArray[np.int64]) -> Matching:
        chosen = np.sort(rng.choice(width, round(size * n), replace=False))
        r = LEAST + MEANS[kind] * common[chosen] * rng.exponential(size=len(chosen))
        other = folder / ("repeat.zarr" if kind == "ceiling" else "b.zarr")
        columns = {"a": chosen, "b": partner[chosen], "r": r, "r_heldout": r + 0.1 * rng.normal(size=len(r))}
        return Matching.of((folder / "a.zarr", other), columns)

    own, floors = np.arange(width), list(_partners(rng, width))
    real = matching("run", RUN, own)
    draws = [matching("floor", size, partner) for size, partner in zip(FLOOR, floors, strict=True)]
    held = {"floor": Held(real, draws, ALIKE), "ceiling": Held(real, [matching("ceiling", CEILING, own)])}
    return measure(held, ("floor", "ceiling"), metrics=["svcca", "rsa"], groups=GROUPS, client=None)


def _partners(rng: np.random.Generator, width: int) -> Iterator[NDArray[np.int64]]:
    """Yield the partners of the features of A in every draw of a floor."""
    moved = rng.choice(width, round(RANDOM * width), replace=False)
    same = moved[: round(ALIKE * len(moved))]
    shared = rng.integers(width, size=len(same))
    for _ in range(DRAWS):
        partner = np.arange(width)
        partner[moved] = rng.integers(width, size=len(moved))
        partner[same] = shared
        yield partner


def judge(n: int, experiments: int) -> list[dict[str, Any]]:
    """Return of each quantity how often its interval holds the truth."""
    with tempfile.TemporaryDirectory() as folder:
        made = xr.concat(
            [experiment(seed, n, Path(folder)).drop_dims("yardstick") for seed in range(experiments)], "experiment"
        )
    lines = []
    for quantity in made["quantity"].values.tolist()[1:]:
        of = made.sel(quantity=quantity)
        score, floor, ceiling = (float(of[name].mean()) for name in ("score", "floor", "ceiling"))
        truth = (score - floor) / (ceiling - floor)
        defined = of.isel(experiment=np.isfinite(of["low"].values))
        covered = float(((defined["low"] <= truth) & (truth <= defined["high"])).mean())
        figures = {
            "truth": truth,
            "mean": float(of["normalised"].mean()),
            "width": float((defined["high"] - defined["low"]).mean()),
            "given": defined.sizes["experiment"] / experiments,
            "covered": covered,
        }
        rounded = {name: round(value, 4) for name, value in figures.items()}
        lines.append({"quantity": quantity, "pairs": n, "experiments": experiments, **rounded})
    return lines


def render(page: str, result: dict[str, Any]) -> str:
    """Return the page with the table of a result."""
    lines = [
        "| score | pairs | true value | mean | interval given | mean width | coverage |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {quantity_name(line['quantity'])} | {line['pairs']} | {line['truth']:.3f} | {line['mean']:.3f} "
        f"| {line['given']:.2f} | {line['width']:.3f} | {line['covered']:.3f} |"
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
