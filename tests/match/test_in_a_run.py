"""A whole tiny run whose matching looks at contexts, and the verbs that look at what it leaves behind."""

from __future__ import annotations

import json
import shutil

import pytest
import yaml
from typer.testing import CliRunner

from jobs.cli import app
from pipeline.experiment.run import run
from storage.rundir import RunDirectory

pytest.importorskip("torch")

FILTERS = [
    {"name": "max_uses", "n": 20},
    {"name": "non_concept", "share": 0.6, "tokens": "list.yaml"},
    {"name": "easy_kind", "kinds": ["position"], "when": "after"},
    {"name": "shared_token", "when": "after"},
]


@pytest.fixture(scope="module")
def directory(tiny_inputs, tmp_path_factory, client):
    folder = shutil.copytree(tiny_inputs, tmp_path_factory.mktemp("filtered") / "inputs")
    (folder / "list.yaml").write_text("- the\n- '.'\n")
    experiment = yaml.safe_load((folder / "experiment.yaml").read_text())
    experiment["match"]["filters"] = FILTERS
    (folder / "filtered.yaml").write_text(yaml.safe_dump(experiment))
    run(folder / "filtered.yaml", run_dir=folder / "run", until="match", client=client)
    return RunDirectory(folder / "run")


def call(*arguments):
    done = CliRunner().invoke(app, [str(argument) for argument in (*arguments, "--json")])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout.splitlines()[-1])


def test_filters_of_the_experiment_act_in_their_order_and_report(directory):
    from storage import open_result

    pairs = open_result(directory.pairs("layers.0", "encoder.layer.1"))
    reports = pairs.attrs["filters"]
    assert [report["name"] for report in reports] == [one["name"] for one in FILTERS]
    assert sum(pairs.attrs["fates_a"].values()) == pairs.sizes["id_a"]
    assert sum(pairs.attrs["fates_b"].values()) == pairs.sizes["id_b"]
    assert sum(report["pairs_dropped"] for report in reports) > 0
    assert set(pairs.attrs["fates_a"]) <= set(pairs.fate_a.attrs["flag_meanings"].split())


def test_the_run_is_whole(directory):
    found = call("verify", directory.root)
    assert found["ok"]
    assert len(found["checked"]) >= 14
    inspected = call("inspect", directory.root)
    # correlation and pairs are there, scores and the report are not
    assert [path.rsplit("/", 2)[-2] for path in inspected["missing"]].count("scores") == 4
    assert len(inspected["missing"]) == 5


def test_layers_and_token_identity(directory, tmp_path):
    lines = call("layers", directory.root, "--out", tmp_path / "layers.zarr", "--csv", tmp_path / "layers.csv")["lines"]
    assert [(line["site"], line["other_site"]) for line in lines] == [
        (a, b) for a in ("layers.0", "layers.1") for b in ("encoder.layer.0", "encoder.layer.1")
    ]
    assert (tmp_path / "layers.csv").read_text().count("\n") == 5
    pairs = directory.pairs("layers.0", "encoder.layer.0")
    stores = directory.activations("a", "layers.0"), directory.activations("b", "encoder.layer.0")
    found = call("token-identity", pairs, *stores, "--corpus", directory.corpus, "--out", tmp_path / "identity.zarr")
    assert found["mean_r_heldout"] == pytest.approx(found["mean_token_part_heldout"] + found["mean_excess_heldout"])
    assert 0 <= found["share_beyond_token"] <= 1
    assert found["segments_known_by"] == "text"
    assert call("verify", tmp_path / "identity.zarr")["ok"]
    shown = CliRunner().invoke(app, ["layers", str(directory.root), "--side", "b"]).stdout
    assert "encoder.layer.1" in shown
