"""Runs side by side: what agrees, what moves, and what is named instead of being compared."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from typer.testing import CliRunner

import storage
from jobs.cli import app
from pipeline.compare.engine import summary
from pipeline.experiment.diff import TABLE_COLUMNS, agreement_table, diff, diff_table
from storage.errors import InputError, MissingInputError
from storage.rundir import RunDirectory

X, Y = ("l0", "m0"), ("l0", "m1")
#: Pairs of a run, by sites: features of A and B, and r.
Pairs = Mapping[tuple[str, str], Sequence[tuple[int, int, float]]]
FIRST: Pairs = {X: [(0, 3, 0.9), (1, 4, 0.5), (2, 0, 0.4)], Y: [(0, 1, 0.3)]}
SECOND: Pairs = {X: [(0, 3, 0.8), (1, 5, 0.7), (4, 0, 0.2)], Y: [(0, 1, 0.3)]}
METRICS = ("svcca", "rsa")


def write_run(
    root: Path, pairs: Pairs, *, above: float = 0.2, dictionary: str = "sae", text: str = "news", **compare: Any
) -> Path:
    """Write the results that runs are compared by, with scores that are `above` what chance scores."""
    run = RunDirectory(root)
    sites = {"a": list(dict.fromkeys(a for a, _ in pairs)), "b": list(dict.fromkeys(b for _, b in pairs))}
    side = {"model": "toy", "dictionary": dictionary}
    run.write_experiment({
        "name": "toy", "corpus": {"path": "x.txt"}, **{name: side | {"sites": at} for name, at in sites.items()},
        "compare": {"metrics": list(METRICS), "null_runs": 9} | compare,
    })  # fmt: skip
    for name, at in sites.items():
        for site in at:
            inputs = {"corpus": text, "rows": text, "model": name, "dictionary": f"{dictionary}-{site}"}
            settings = {"module": site, "tensor": "output", "kind": "post"}
            storage.write_activations(
                run.activations(name, site), np.eye(6), attrs={"corpus_hash": text},
                manifest=storage.new_manifest("harvest", inputs, settings),
            )  # fmt: skip
    for at, matched in pairs.items():
        stores = {name: storage.fingerprint(run.activations(name, site)) for name, site in zip("ab", at, strict=True)}
        a, b, r = (np.array(column) for column in zip(*matched, strict=True))
        columns = {"feature_a": a.astype("i4"), "feature_b": b.astype("i4"), "r": r, "r_heldout": r / 2}
        fates = {f"fate_{name}": (f"id_{name}", np.zeros(6, "i1")) for name in "ab"}
        result = xr.Dataset({name: ("pair", values) for name, values in columns.items()} | fates)
        storage.write_result(result, run.pairs(*at), storage.new_manifest("match", {"store_a": stores["a"]}, {}))
        inputs = {"pairs": storage.fingerprint(run.pairs(*at)), **stores}
        storage.write_result(scores(len(a), above), run.scores(*at), storage.new_manifest("compare", inputs, {}))
    return root


def scores(n_pairs: int, above: float) -> xr.Dataset:
    null = np.linspace(0.1, 0.3, 9)
    said = summary(0.2 + above, null)
    both = {name: (("null", "metric"), np.full((1, 2), value)) for name, value in said.items()}
    of_metric = {name: ("metric", np.full(2, 0.2 + above)) for name in ("score", "low", "high")}
    columns = both | of_metric | {"null_score": (("null", "metric", "run"), np.tile(null, (1, 2, 1)))}
    coords = {"metric": np.array(METRICS, object), "null": np.array(["shuffled"], object)}
    return xr.Dataset(columns | {"note": ("metric", np.array(["", ""], object)), "n_pairs": n_pairs}, coords)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two runs, not to be changed."""
    folder = tmp_path_factory.mktemp("runs")
    return [write_run(folder / "one", FIRST), write_run(folder / "two", SECOND, above=0.25)]


@pytest.fixture
def copied(runs: list[Path], tmp_path: Path) -> list[Path]:
    """The two runs, to be spoilt."""
    return [Path(shutil.copytree(run, tmp_path / run.name)) for run in runs]


def call(*arguments: Any) -> Any:
    return CliRunner().invoke(app, ["diff", *map(str, arguments)], env={"COLUMNS": "80"})


def test_pairs_that_agree_are_those_with_the_same_partner(runs: list[Path]) -> None:
    beside = diff(runs)
    table = agreement_table(beside).set_index(["run", "other", "site_a", "site_b"])
    line = table.loc[("one", "two", *X)]
    # features 0 and 1 are matched in both, and 0 with the same partner
    assert line.tolist() == [2, 1, 0.9, 0.5, 0.5]
    assert table.loc[("two", "one", *X), "mean_r_changed"] == 0.7
    assert table.loc[("one", "two", *Y), "share_same"] == 1
    here = beside.isel(feature=np.flatnonzero((beside.feature_site_a == X[0]) & (beside.feature_site_b == X[1])))
    assert here.partner.values.tolist() == [[3, 4, 0, -1, -1, -1], [3, 5, -1, -1, 0, -1]]


def test_scores_move_by_what_is_above_chance(runs: list[Path]) -> None:
    table = diff_table(diff(runs)).set_index(["run", "site_a", "site_b", "metric"]).sort_index()
    assert len(table) == 8
    assert table.loc["two", "change"].round(12).tolist() == [0.05] * 4
    assert table.loc[("two", *X, "rsa"), ["n_pairs", "mean_r_heldout", "score"]].tolist() == [3, 1.7 / 6, 0.45]


def test_another_text_and_other_features_are_named_and_not_compared(runs: list[Path], tmp_path: Path) -> None:
    third = write_run(tmp_path / "three", {X: SECOND[X]}, dictionary="wider", text="books", metrics=["rsa"])
    beside = diff([runs[0], third])
    assert agreement_table(beside).empty
    assert beside.change.sel(run="three").isnull().all()
    assert beside.score.sel(run="three", site_b="m0").notnull().all()
    assert beside.attrs["notes"] == [
        "three read another text than one: no change of its scores is given",
        "three and one do not both have: svcca (shuffled)",
        "three has other features than one: only scores are compared there, no pairs",
    ]
    assert beside.attrs["settings"] == [
        "three: a.dictionary: wider, b.dictionary: wider, b.sites: ['m0'], compare.metrics: ['rsa']"
    ]


def test_stale_results_are_left_out_by_name(copied: list[Path]) -> None:
    one, two = map(RunDirectory, copied)
    storage.write_result(
        storage.open_result(one.pairs(*X)).load(), two.pairs(*X), storage.new_manifest("match", {}, {}), overwrite=True
    )
    beside = diff(copied)
    assert beside.score.sel(run="two", site_b="m0").isnull().all()
    assert beside.attrs["notes"] == [
        "two: left out: scores/l0--m0.zarr was made from other inputs than the present ones (pairs/l0--m0.zarr)"
    ]


def test_runs_at_other_sites_stand_beside_each_other(runs: list[Path], tmp_path: Path) -> None:
    deeper = write_run(tmp_path / "deeper", {("l1", "m0"): SECOND[X]})
    beside = diff([runs[0], deeper])
    assert diff_table(beside).groupby("run", sort=False).size().tolist() == [4, 2]
    assert beside.attrs["notes"] == ["deeper has no pair of sites of one: nothing of it is a change from there"]
    assert call(runs[0], deeper).exit_code == 0


def test_runs_without_scores_are_compared_by_their_pairs(copied: list[Path]) -> None:
    for run in map(RunDirectory, copied):
        run.write_experiment(run.read_experiment() | {"compare": None})
    table = diff_table(diff(copied))
    assert table["n_pairs"].tolist() == [3, 1, 3, 1]
    assert call(*copied).exit_code == 0
    refused = call(*copied, "--plot", copied[0].parent / "x.png")
    assert (refused.exit_code, "no scores to draw" in refused.stderr) == (2, True)


def test_what_the_command_prints_and_writes(runs: list[Path], tmp_path: Path) -> None:
    files = {"--out": "d.zarr", "--csv": "d.csv", "--plot": "d.png"}
    done = call(*runs, *(part for option, name in files.items() for part in (option, tmp_path / name)))
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert max(map(len, lines[2:])) <= 80
    assert [line.split() for line in lines if " rsa " in line][:2] == [
        ["1", "rsa", "0.400", "0.200", "0.200", "0.400"], ["2", "rsa", "0.450", "0.200", "0.250", "0.050", "0.400"]
    ]  # fmt: skip
    assert pd.read_csv(tmp_path / "d.csv").columns.tolist() == list(TABLE_COLUMNS)
    assert (tmp_path / "d.png").stat().st_size > 1000
    kept = storage.open_result(tmp_path / "d.zarr", "diff").load()
    xr.testing.assert_equal(kept, diff(runs))
    told = json.loads(call(*runs, "--json").stdout)
    assert [len(told[key]) for key in ("runs", "scores", "agreement", "notes")] == [2, 8, 4, 0]


def test_what_is_refused(runs: list[Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="two run directories at least, each once"):
        diff([runs[0]])
    with pytest.raises(InputError, match="each once"):
        diff([runs[0], runs[0]])
    with pytest.raises(MissingInputError, match="not a run directory"):
        diff([runs[0], tmp_path / "nowhere"])
    (tmp_path / "circle").symlink_to("circle")
    with pytest.raises(MissingInputError, match="not a run directory"):
        diff([runs[0], tmp_path / "circle"])
