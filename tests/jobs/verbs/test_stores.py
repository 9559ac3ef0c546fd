"""The verbs inspect, verify, import and export as a user calls them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import scipy.sparse
import xarray as xr
from typer.testing import CliRunner

import storage
from jobs.cli import app
from pipeline.compare.run import compare

VERBS = ("inspect", "verify", "import", "export")


def call(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def store(tmp_path):
    path = tmp_path / "a.zarr"
    storage.write_activations(
        path, scipy.sparse.random_array((60, 20), density=0.2, rng=0), shard_rows=20, overwrite=True
    )
    return path


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_examples_and_json(verb):
    shown = call(verb, "--help").stdout
    assert f"subspace {verb} " in shown
    assert "--json" in shown


def test_import_inspect_verify_export(tmp_path):
    np.save(tmp_path / "x.npy", np.eye(30, 40, dtype="f4"))
    imported = call("import", tmp_path / "x.npy", "--out", tmp_path / "a.zarr", "--kind", "post", "--json")
    assert imported.exit_code == 0
    assert json.loads(imported.stdout)["layout"] == "csr"
    result = json.loads(call("inspect", tmp_path / "a.zarr", "--json").stdout)
    assert (result["tokens"], result["l0"], result["kind"]) == (30, 1.0, "post")
    assert json.loads(call("verify", tmp_path / "a.zarr", "--json").stdout)["ok"]
    exported = call("export", tmp_path / "a.zarr", "--format", "npz", "--out", tmp_path / "x.npz", "--json")
    assert json.loads(exported.stdout)["left_out"] == []
    np.testing.assert_array_equal(scipy.sparse.load_npz(tmp_path / "x.npz").toarray(), np.eye(30, 40))


def test_inspect_for_people(store, tmp_path):
    shown = call("inspect", store).stdout
    for words in ("activations", "60", "ratio to dense", "dead features", "content hash"):
        assert words in shown
    manifest = storage.new_manifest("match", {}, {"method": "greedy"})
    import xarray as xr

    storage.write_result(xr.Dataset({"r": ("pair", [0.5])}), tmp_path / "p.zarr", manifest, overwrite=True)
    assert "setting method" in call("inspect", tmp_path / "p.zarr").stdout


def test_verify_names_every_fault_and_fails(store):
    for i in (0, 2):
        file = store / f"activation/c/{i}/0"
        file.write_bytes(file.read_bytes()[:-1])
    done = call("verify", store)
    assert done.exit_code == 5
    assert "activation/c/0/0, shard 0" in done.stdout
    assert "activation/c/2/0, shard 2" in done.stdout
    assert "2 faults" in done.stdout
    as_json = call("verify", store, "--json")
    assert as_json.exit_code == 5
    assert [fault["shard"] for fault in json.loads(as_json.stdout)["faults"]] == [0, 2]


@pytest.mark.parametrize(
    "arguments",
    [
        ["inspect", "nowhere"],
        ["verify", "nowhere"],
        ["import", "nowhere.npy", "--out", "a.zarr"],
        ["export", "nowhere.zarr", "--format", "npz", "--out", "x.npz"],
    ],
)
def test_what_is_not_there_is_one_message(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = call(*arguments)
    assert done.exit_code == 2
    assert "Error: " in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_verify_says_which_inputs_of_a_result_it_can_check(store, tmp_path, monkeypatch):
    """Of a result on its own: at the recorded path, beside it on the command line, or nowhere."""
    monkeypatch.chdir(tmp_path)
    storage.write_activations("b.zarr", np.random.default_rng(0).random((60, 9)))
    assert call("correlate", "a.zarr", "b.zarr", "--out", "c.zarr").exit_code == 0
    assert call("match", "c.zarr", "--out", "p.zarr", "--csv", "p.csv").exit_code == 0
    shown = call("verify", "c.zarr")
    assert shown.exit_code == 0
    assert "c.zarr: a (a.zarr) is what it was made from" in shown.stdout
    assert "correlation is not checked: no path is recorded" in call("verify", "p.zarr").stdout
    both = json.loads(call("verify", "p.zarr", "c.zarr", "--json").stdout)
    states = {(entry["result"], entry["name"]): entry["state"] for entry in both["inputs"]}
    assert states == {("p.zarr", "correlation"): "same", ("c.zarr", "a"): "same", ("c.zarr", "b"): "same"}
    storage.write_activations("b.zarr", np.random.default_rng(1).random((60, 9)), overwrite=True)
    store.rename("elsewhere.zarr")
    shown = call("verify", "c.zarr")
    assert shown.exit_code == 5
    assert "a (a.zarr) is not checked: nothing is there now" in shown.stdout
    assert "FAULT  c.zarr: was made from other inputs than the present ones: b (b.zarr)" in shown.stdout
    table = call("verify", "p.csv")
    assert table.exit_code == 2
    assert "p.csv is a file, and has no checksums to verify it by: verify the result" in " ".join(table.stderr.split())


def test_verify_says_whether_pairs_are_those_that_were_scored(tmp_path, monkeypatch):
    """Scores depend on which features are paired, and their manifest has the hash of these."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for name in "ab":
        storage.write_activations(f"{name}.zarr", np.eye(9), decoder=rng.normal(size=(9, 4)))
    for name, order in {"p": np.arange(9), "q": np.arange(9)[::-1]}.items():
        ds = xr.Dataset({"feature_a": ("pair", np.arange(9)), "feature_b": ("pair", order)})
        storage.write_result(ds, f"{name}.zarr", storage.new_manifest("match", {}, {"name": name}))
    compare("p.zarr", "a.zarr", "b.zarr", metrics=["rsa"], null_runs=9, out="s.zarr")
    assert "s.zarr: pairs (p.zarr) is what it was made from" in call("verify", "p.zarr", "s.zarr").stdout
    shown = call("verify", "q.zarr", "s.zarr").stdout
    assert "s.zarr: pairs is not checked: no path is recorded, and nothing at hand has its hash" in shown


def test_verify_finds_inputs_in_the_run_that_a_result_is_in(tiny_run):
    run = tiny_run.directory
    shown = call("verify", run.pairs("layers.0", "encoder.layer.0"), "--json")
    [entry] = json.loads(shown.stdout)["inputs"]
    assert (entry["name"], entry["state"]) == ("correlation", "same")
    assert entry["path"] == str(run.correlation("layers.0", "encoder.layer.0"))
