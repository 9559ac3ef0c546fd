"""One feature of a run: what is said of it is what the results hold, in 80 columns, and nothing acts on a terminal."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from typer.testing import CliRunner

import pipeline
import storage
from jobs.cli import app
from pipeline.experiment.run import RunResult
from storage.errors import InputError, MissingInputError
from storage.rundir import RunDirectory

SITES = {"a": ["layers.6"], "b": ["layers.6", "encoder.layer.10"]}


@pytest.fixture(scope="module")
def run(write_run, tmp_path_factory) -> RunDirectory:
    return write_run(tmp_path_factory.mktemp("feature") / "run", sites=SITES, n_documents=12)


@pytest.mark.parametrize(("side", "site"), [("a", "layers.6"), ("b", "encoder.layer.10")])
def test_it_says_what_the_results_hold(run: RunDirectory, side: str, site: str) -> None:
    other = {"a": "b", "b": "a"}[side]
    seen = set()
    for number in range(3, 60, 19):
        card = pipeline.feature(run.root, f"{side}:{site}", number)
        store = storage.open_activations(run.activations(side, site))
        active = store["activation"].values[~store["sink"].values, number] != 0
        assert card.fires.firing_rate == pytest.approx(active.mean())
        for at in SITES[other]:
            pair = (site, at) if side == "a" else (at, site)
            pairs = xr.open_zarr(run.pairs(*pair))
            theirs = pairs[f"feature_{other}"].values[pairs[f"feature_{side}"].values == number].tolist()
            (row,) = card.partners[card.partners.site == at].to_dict("records")
            seen.add(row["fate"])
            assert (row["fate"] == "matched") == bool(theirs) == (row["partner"] in theirs)
            listed = card.candidates[card.candidates.site == at]
            correlation = xr.open_zarr(run.correlation(*pair))
            assert listed.candidate.tolist() == correlation[f"best_{other}"].values[number][: len(listed)].tolist()
            np.testing.assert_array_equal(listed.r, correlation[f"r_{other}"].values[number][: len(listed)])
            if theirs and row["rank"] < len(listed):
                assert listed.candidate.iloc[row["rank"]] == row["partner"]
                assert listed.matched_with.iloc[row["rank"]] == number
            for candidate, owner in zip(listed.candidate, listed.matched_with, strict=True):
                owners = pairs[f"feature_{side}"].values[pairs[f"feature_{other}"].values == candidate].tolist()
                assert owners == ([] if owner < 0 else [owner])
        assert json.loads(json.dumps(card.as_dict()))["feature"] == number
    assert {"matched", "below_min_r"} <= seen or {"matched", "taken"} <= seen


def test_in_eighty_columns_and_harmless(run: RunDirectory) -> None:
    """The synthetic text holds markup, a null character and a sign that turns the direction of writing."""
    shown = [CliRunner().invoke(app, ["feature", str(run.root), "a:layers.6", str(number)]) for number in (0, 48, 49)]
    for one in shown:
        assert one.exit_code == 0, one.output
        assert max(map(len, one.stdout.splitlines())) <= 80
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", one.stdout)
    assert "script" in shown[1].stdout
    assert "partners" in shown[0].stdout
    assert "candidates at encoder.layer.10" in shown[0].stdout


def test_what_later_stages_know(tiny_run: RunResult) -> None:
    directory = tiny_run.directory
    semantics = storage.open_result(directory.semantics("layers.0", "encoder.layer.0"), "semantics")
    number = int(semantics["feature_a"][0])
    card = pipeline.feature(directory.root, "layers.0", number, candidates=2)
    here = card.subspaces[card.subspaces.site == "encoder.layer.0"]
    names = semantics["name"].values[semantics["subspace_of"].values[semantics["feature_a"].values == number]]
    assert here.name.tolist() == names.tolist()
    concepts = storage.open_result(directory.concepts("a", "layers.0"), "concepts").isel(feature=number)
    members = concepts["concept"].values[concepts["member"].values]
    assert set(card.concepts.concept[card.concepts.member == True]) == set(members)  # noqa: E712 - a column
    assert len(card.candidates) <= 4
    assert card.missing == ()


def test_what_is_beyond_the_token(run: RunDirectory, tmp_path: Path) -> None:
    pairs = storage.open_result(run.pairs("layers.6", "layers.6"), "match")
    excess = np.arange(pairs.sizes["pair"]) / 100
    names = ("excess", "excess_low", "excess_high", "excess_p")
    columns = {f"{name}_heldout": ("pair", excess) for name in names}
    ids = {name: pairs[name].compute() for name in ("feature_a", "feature_b")}
    manifest = storage.new_manifest("token_identity", {}, {})
    path = run.identity("layers.6", "layers.6")
    storage.write_result(xr.Dataset(ids | columns), path, manifest)
    number = int(pairs["feature_a"][3])
    card = pipeline.feature(run.root, "a:layers.6", number)
    assert card.partners.excess.iloc[0] == 0.03


def test_what_is_not_there_is_named(run: RunDirectory, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'layers.6' is a site of both sides: name one of a:layers.6, b:lay"):
        pipeline.feature(run.root, "layers.6", 0)
    with pytest.raises(InputError, match=r"'layers.9' is not a site of this run, which has a:layers.6"):
        pipeline.feature(run.root, "layers.9", 0)
    with pytest.raises(InputError, match=r"layers.6 has the features 0 to 71, not 72"):
        pipeline.feature(run.root, "a:layers.6", 72)
    with pytest.raises(MissingInputError, match="not a run directory"):
        pipeline.feature(tmp_path, "layers.6", 0)
    begun = RunDirectory(tmp_path / "begun")
    begun.write_experiment(run.read_experiment())
    with pytest.raises(MissingInputError, match=r"has no activations of encoder.layer.10 yet"):
        pipeline.feature(begun.root, "encoder.layer.10", 0)
    begun.activations_folder("b").mkdir(parents=True)
    begun.activations("b", "encoder.layer.10").symlink_to(run.activations("b", "encoder.layer.10").resolve())
    card = pipeline.feature(begun.root, "encoder.layer.10", 0)
    assert card.fires is None
    assert card.partners.empty
    assert "pairs/layers.6--encoder.layer.10.zarr" in card.missing


def test_exchanged_results_are_not_mixed(run: RunDirectory, tmp_path: Path) -> None:
    shutil.copytree(run.root, tmp_path / "run")
    copy, (site,), others = RunDirectory(tmp_path / "run"), SITES["a"], SITES["b"]
    first, second = (copy.pairs(site, other) for other in others)
    first.rename(tmp_path / "aside")
    second.rename(first)
    (tmp_path / "aside").rename(second)
    card = pipeline.feature(copy.root, f"a:{site}", 3)
    assert {f"pairs/{path.name}" for path in (first, second)} <= set(card.missing)
    assert card.partners.empty
    assert not card.candidates.empty
    assert (card.candidates.matched_with == -1).all()
