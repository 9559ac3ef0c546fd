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
from pydantic import ValidationError

import storage
from pipeline.compare.arrays import compare_rows
from pipeline.compare.engine import score_pairs
from pipeline.compare.rows import ArrayRows
from pipeline.correlate.run import correlate
from pipeline.semantics.run import semantics
from pipeline.settings.compare import CompareSettings
from pipeline.settings.registries import METRICS, NULLS
from pipeline.settings.semantics import SubspaceSettings
from storage.errors import InputError
from storage.registry import Registry
from tests.semantics.conftest import write_planted

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


@pytest.fixture
def from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Register the nulls of words and of keywords that the page shows, as a notebook does, for one test."""
    assert "shuffled" in NULLS
    monkeypatch.setattr(NULLS, "_items", dict(NULLS._items))
    (code,) = re.findall(r"```python\n(# toy_words_null.py.*?)```", TEXT, flags=re.DOTALL)
    exec(compile(code, "toy_words_null.py", "exec"), {"__name__": "toy_words_null"})


@pytest.mark.usefixtures("from_outside")
def test_a_null_of_words_needs_one_registration(client: Any) -> None:
    rng = np.random.default_rng(0)
    word = np.repeat(np.arange(10), 4)
    x = rng.normal(size=(10, 5))[word] + 0.3 * rng.normal(size=(40, 5))
    sides = ArrayRows(x), ArrayRows(x @ rng.normal(size=(5, 5)))
    settings = CompareSettings(metrics=["rsa"], nulls=["shuffled", "rolled_words"], null_runs=19)
    scores = score_pairs(sides, {}, settings, client, words=word)
    within, anyhow = (scores.null_mean.sel(null=null).item() for null in ("rolled_words", "shuffled"))
    assert within > anyhow + 0.3, "rows of a word stay with rows of that word"
    with pytest.raises(InputError, match="rolled_words moves pairs by their words, and knows no words here"):
        compare_rows(x, x, metrics=["rsa"], nulls=["rolled_words"], null_runs=9)
    with pytest.raises(ValidationError, match="rolled_words needs the words of all pairs, which subspaces do not have"):
        SubspaceSettings(nulls=["rolled_words"])


@pytest.mark.usefixtures("from_outside")
def test_a_null_of_keywords_needs_one_registration(client: Any, tmp_path: Path) -> None:
    planted = write_planted(tmp_path, client)
    settings = SubspaceSettings(metrics=["rsa"], nulls=["other_pairs", "random_keywords"], null_runs=19)
    paths = planted.pairs, planted.correlation, planted.sites, planted.run.corpus
    found = semantics(*paths, settings, client=client)
    (weather,) = np.flatnonzero((found.name == "weather") & (found.approach == "global"))
    assert found.p.sel(metric="rsa", null="other_pairs").values[weather] == 1 / 20
    assert np.isnan(found.p.sel(null="other_pairs").values[found.approach.values == "within"]).all()
    with pytest.raises(InputError, match="other_pairs is a null of concepts"):
        compare_rows(np.eye(5), np.eye(5), metrics=["rsa"], nulls=["other_pairs"], null_runs=9)


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
        ("compare", ["mean_cosine", "rolled", "rolled_words"]),
        ("match", ["first", "even"]),
        ("sweep", ["first"]),
        ("yardsticks", ["other_random"]),
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
