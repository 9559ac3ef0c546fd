"""What ``docs/extending.md`` adds from outside, installed as a package and used through the command line."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import yaml

import storage
from pipeline.correlate.run import correlate
from pipeline.settings.registries import METRICS
from storage.errors import InputError
from storage.registry import Registry

TEXT = (Path(__file__).parents[1] / "docs" / "extending.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of modules with the metadata of an installed package: the examples of the page."""
    folder = tmp_path_factory.mktemp("site-packages")
    for code in re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL):
        name = re.match(r"# (\w+\.py)\n", code)
        assert name is not None, code
        (folder / name[1]).write_text(code)
    (points,) = re.findall(r"```toml\n(.*?)```", TEXT, flags=re.DOTALL)
    metadata = folder / "toy-0.1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: toy\nVersion: 0.1\n")
    points = points.replace("project.entry-points.", "").replace('"', "")
    (metadata / "entry_points.txt").write_text(points)
    return folder


def subspace(installed: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(installed), *filter(None, [os.environ.get("PYTHONPATH")])])
    code = "from jobs.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": path, "COLUMNS": "400"},
    )  # fmt: skip


def summary(installed: Path, *arguments: object) -> dict[str, Any]:
    done = subspace(installed, *arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with two stores, their correlation, and pairs."""
    folder = tmp_path_factory.mktemp("work")
    rng = np.random.default_rng(0)
    x = rng.exponential(size=(400, 12)) * (rng.random((400, 12)) < 0.4)
    decoder = rng.normal(size=(12, 5))
    for name in "ab":
        storage.write_activations(folder / f"{name}.zarr", x, decoder=decoder, overwrite=True)
    correlate(folder / "a.zarr", folder / "b.zarr", keep_above=0.01, out=folder / "c.zarr")
    pairs = xr.Dataset({f"feature_{side}": ("pair", np.arange(12, dtype=np.int32)) for side in "ab"})
    storage.write_result(pairs, folder / "pairs.zarr", storage.new_manifest("match", {}, {}), overwrite=True)
    return folder


def test_a_metric_and_a_null(installed: Path, work: Path) -> None:
    stores = work / "pairs.zarr", work / "a.zarr", work / "b.zarr"
    chosen = ("--metric", "mean_cosine:absolute=true", "--null", "rolled", "--null-runs", "9")
    found = summary(installed, "compare", *stores, *chosen, "--out", work / "scores.zarr")
    assert found["mean_cosine:absolute=true"]["score"] == pytest.approx(1)
    assert found["mean_cosine:absolute=true"]["nulls"]["rolled"]["p"] == 0.1
    unknown = subspace(installed, "compare", *stores, "--metric", "mean_cosin", "--out", work / "x.zarr")
    assert "no metric 'mean_cosin'; did you mean 'mean_cosine'? There are cca, svcca" in unknown.stderr


def test_a_filter_and_a_method(installed: Path, work: Path) -> None:
    chosen = ("--method", "first", "--filter", "even:after:side=b", "--min-correlation", "0.01")
    found = summary(installed, "match", work / "c.zarr", *chosen, "--out", work / "some.zarr")
    (report,) = found["filters"]
    assert (report["name"], report["side"], report["pairs_before"]) == ("even", "b", 12)
    pairs = xr.open_zarr(work / "some.zarr")
    assert (pairs.feature_b.values % 2 == 0).all()
    assert "odd: its number" in pairs.fate_a.attrs["flag_descriptions"]
    assert (pairs.fate_a == 12).sum() == found["fates_a"]["odd"] == report["pairs_dropped"]
    unknown = subspace(installed, "match", work / "c.zarr", "--method", "first1", "--out", work / "x.zarr")
    assert "no matching method 'first1'; did you mean 'first'?" in unknown.stderr


def test_a_null_of_rows(installed: Path, work: Path) -> None:
    stores = work / "a.zarr", work / "b.zarr"
    summary(installed, "match", work / "c.zarr", "--out", work / "all.zarr")
    chosen = ("--null", "anywhere", "--draws", "2", "--metric", "rsa", "--out", work / "rematched.zarr")
    found = summary(installed, "rematch", work / "all.zarr", work / "c.zarr", *stores, *chosen)
    assert found["n_rows"] == {"anywhere": 400}
    (r,) = (line for line in found["lines"] if line["of"] == "r_heldout")
    assert r["real"] == 1 > r["null mean"]


def test_a_dictionary_format(installed: Path, tiny_inputs: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_inputs, tmp_path / "inputs")
    experiment = yaml.safe_load((tiny_inputs / "experiment.yaml").read_text())
    experiment["a"] |= {"dictionary": "signs", "sites": ["layers.0"]}
    experiment["b"]["sites"] = ["encoder.layer.0"]
    (tmp_path / "inputs" / "signs.yaml").write_text(yaml.safe_dump(experiment))
    stores = summary(installed, "harvest", tmp_path / "inputs" / "signs.yaml", "--run-dir", tmp_path / "run")
    assert storage.open_activations(stores["a layers.0"]).attrs["dictionary"] == "signs"


def test_an_importer(installed: Path, tmp_path: Path) -> None:
    np.savetxt(tmp_path / "x.tsv", np.eye(4, 6), delimiter="\t")
    written = summary(installed, "import", tmp_path / "x.tsv", "--out", tmp_path / "x.zarr")
    assert (written["tokens"], written["features"]) == (4, 6)
    (tmp_path / "x.txt").touch()
    unknown = subspace(installed, "import", tmp_path / "x.txt", "--out", tmp_path / "y.zarr")
    assert "safetensors (.safetensors), tsv (.tsv)" in unknown.stderr


@pytest.mark.parametrize(
    ("verb", "names"),
    [
        ("rematch", ["anywhere"]),
        ("compare", ["mean_cosine", "rolled"]),
        ("match", ["first", "even"]),
        ("sweep", ["first"]),
        ("import", ["tsv"]),
    ],
)
def test_names_from_outside_are_in_the_help(installed: Path, verb: str, names: list[str]) -> None:
    shown = subspace(installed, verb, "--help").stdout
    assert not [name for name in names if name not in shown]


def test_nothing_from_outside_is_imported_before_it_is_asked_for(installed: Path) -> None:
    code = "import sys, jobs.cli; print([name for name in sys.modules if name.startswith('toy_')])"
    path = os.pathsep.join([str(installed), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": path}
    )
    assert done.stdout == "[]\n"


def test_a_name_is_given_once_but_a_cell_may_be_run_again() -> None:
    shapes: Registry[Any] = Registry("shape", "subspace.no-such-group")

    def define() -> Any:
        @shapes.register
        def circle() -> None: ...

        return circle

    define()
    again = define()
    assert shapes["circle"] is again
    with pytest.raises(InputError, match="there is a shape 'circle' already"):
        shapes.add("circle", len)
    with pytest.raises(InputError, match="there is a metric 'rsa' already"):
        METRICS.add(list(METRICS)[list(METRICS).index("rsa")], METRICS["svcca"])
    assert "square" not in shapes
    assert len(shapes) == 1


@pytest.mark.parametrize(
    ("value", "message"), [("no_such_module", "cannot be imported from no_such_module"), ("json", "json registers no")]
)
def test_an_entry_point_that_keeps_no_promise_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, value: str, message: str
) -> None:
    metadata = tmp_path / "broken-0.1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 0.1\n")
    (metadata / "entry_points.txt").write_text(f"[subspace.shapes]\nsquare = {value}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("storage.registry._all_entry_points", importlib_entry_points)
    shapes: Registry[Any] = Registry("shape", "subspace.shapes")
    assert list(shapes) == ["square"]
    with pytest.raises(InputError, match=message):
        shapes["square"]


def importlib_entry_points() -> Any:
    from importlib.metadata import entry_points

    return entry_points()
