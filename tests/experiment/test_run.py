"""The whole chain on two tiny models: run, skip, resume, refuse."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import yaml
from click.testing import Result
from distributed import Client
from typer.testing import CliRunner

from jobs.cli import app
from pipeline.experiment.run import RunResult, run
from pipeline.harvest import run as harvest_module
from storage import open_result, read_csr
from storage.errors import InputError


def digest(folder: Path) -> dict[str, str]:
    """Return a hash of every data file below `folder`; metadata files carry times of creation."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix not in (".json", ".html")]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def written(folder: Path) -> dict[str, int]:
    """Return when every file of every store and result was written."""
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*.zarr/**/*") if path.is_file()}


def copy_with(folder: Path, target: Path, **changes: object) -> Path:
    """Write a changed experiment that reads the same inputs."""
    content = yaml.safe_load((folder / "experiment.yaml").read_text())
    for key, value in changes.items():
        content[key] = {**content[key], **value} if isinstance(value, dict) else value
    for side in ("a", "b"):
        for key in ("model", "dictionary"):
            content[side][key] = str(folder / content[side][key])
    content["corpus"]["path"] = str(folder / Path(content["corpus"]["path"]).name)
    path = target / "experiment.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture
def copied(tiny_run: RunResult, tmp_path: Path) -> Path:
    """A finished run that a test may change."""
    return Path(shutil.copytree(tiny_run.directory.root, tmp_path / "run"))


def test_the_chain_is_whole(tiny_run: RunResult) -> None:
    directory, experiment = tiny_run.directory, tiny_run.experiment
    assert len(experiment.site_pairs) == 4
    a = xr.open_zarr(directory.activations("a", "layers.0"))
    b = xr.open_zarr(directory.activations("b", "encoder.layer.1"))
    assert a.attrs["row_hash"] == b.attrs["row_hash"]
    assert a.sizes["token"] > 3 * 256, "at least three slabs"
    for site_a, site_b in experiment.site_pairs:
        pairs = tiny_run.pairs(site_a, site_b)
        scores = tiny_run.scores(site_a, site_b)
        assert pairs.sizes["pair"] > 0
        assert len(np.unique(pairs.feature_a)) == len(np.unique(pairs.feature_b)) == pairs.sizes["pair"]
        assert scores.sizes["run"] == 50
        assert (scores.p >= 1 / 51).all()
    best = xr.open_zarr(directory.best_layer)
    assert set(best.best_site_b.values) <= {"encoder.layer.0", "encoder.layer.1", ""}
    assert best.sizes["unit_a"] == 2 * a.sizes["feature"]
    assert (directory.root / "best_layer_b.csv").is_file()
    grid = xr.open_zarr(directory.score_grid)
    assert grid.p_holm.shape == (2, 2, 3, 1)
    assert (grid.p_holm >= grid.p).all()
    assert "run at least 239" in str(grid.power.values[0])
    assert r"\toprule" in (directory.root / "scores.tex").read_text()
    table = open_result(directory.semantics_table, "semantics-table")
    assert table.sizes["row"] == 2 * 2 * 4, "concepts × approaches × pairs of sites"
    assert directory.concepts_page.is_file()
    html = tiny_run.report.read_text()
    for site_a, site_b in experiment.site_pairs:
        assert site_a in html
        assert site_b in html


def test_pairs_have_the_r_of_the_stores(tiny_run: RunResult) -> None:
    """From the stores alone, by NumPy: what the chain calls r and held-out r."""
    directory = tiny_run.directory
    a = read_csr(directory.activations("a", "layers.1")).toarray().astype(np.float64)
    b = read_csr(directory.activations("b", "encoder.layer.0")).toarray().astype(np.float64)
    cor = xr.open_zarr(directory.correlation("layers.1", "encoder.layer.0"))
    assert cor.attrs["n_rows_select"] + cor.attrs["n_rows_heldout"] == len(a)
    pairs = tiny_run.pairs("layers.1", "encoder.layer.0")
    document = xr.open_zarr(directory.activations("a", "layers.1")).document.values
    halves = [document_half(document, cor, which) for which in ("select", "heldout")]
    for name, rows in zip(("r", "r_heldout"), halves, strict=True):
        for pair in range(min(10, pairs.sizes["pair"])):
            i, j = int(pairs.feature_a[pair]), int(pairs.feature_b[pair])
            expected = np.corrcoef(a[rows, i], b[rows, j])[0, 1]
            np.testing.assert_allclose(pairs[name].values[pair], expected, atol=1e-6)


def document_half(document: np.ndarray, cor: xr.Dataset, which: str) -> np.ndarray:
    """Return the rows of one half: the highest bit of SplitMix64 of a document's number, mixed with seed 0."""
    of_half = [d for d in range(document.max() + 1) if splitmix64(splitmix64(0) ^ d) >> 63 == (which == "heldout")]
    rows = np.isin(document, of_half)
    assert rows.sum() == cor.attrs[f"n_rows_{which}"]
    return rows


def splitmix64(number: int) -> int:
    mask = 2**64 - 1
    z = (number + 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


def test_a_finished_run_does_nothing_again(copied: Path, tiny_inputs: Path, client: Client) -> None:
    before = written(copied)
    run(tiny_inputs / "experiment.yaml", run_dir=copied, client=client)
    assert written(copied) == before


def test_a_changed_setting_runs_what_depends_on_it(
    copied: Path, tiny_inputs: Path, tmp_path: Path, client: Client
) -> None:
    before = written(copied)
    run(copy_with(tiny_inputs, tmp_path, match={"method": "mutual"}), run_dir=copied, client=client)
    after = written(copied)
    changed = {path.split("/run/")[1].split("/")[0] for path in after if after[path] != before.get(path)}
    assert changed == {"pairs", "scores", "scores.zarr", "semantics", "semantics.zarr"}


def test_the_result_does_not_depend_on_the_number_of_workers(
    tiny_run: RunResult, tiny_inputs: Path, tmp_path: Path
) -> None:
    from pipeline.work.workers import local_client

    with local_client(n_workers=3, threads_per_worker=1) as other:
        run(tiny_inputs / "experiment.yaml", run_dir=tmp_path, client=other)
    assert digest(tmp_path) == digest(tiny_run.directory.root)


def test_stopped_twice_and_run_again(tiny_run: RunResult, tiny_inputs: Path, tmp_path: Path) -> None:
    """By the keyboard, and then by a signal that leaves no time for anything."""
    command = [sys.executable, "-m", "jobs.cli", "run", str(tiny_inputs / "experiment.yaml"), "--run-dir"]
    command.append(str(tmp_path))
    # a shell that puts the tests in the background makes them, and what they start, ignore Ctrl-C
    code = "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])"
    said: list[tuple[int, str]] = []
    for number, after in ((signal.SIGINT, 1.0), (signal.SIGKILL, 5.0)):
        process = subprocess.Popen([sys.executable, "-c", code, *command], stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        process.stderr.readline()  # imports are done, the run has begun
        time.sleep(after)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
        said.append((process.returncode, errors))
    (by_keyboard, errors), (by_signal, _) = said
    assert (by_keyboard, by_signal) == (130, -signal.SIGKILL)
    assert "resumes from there" in errors
    assert "Traceback" not in errors
    subprocess.run(command, check=True, capture_output=True)
    assert digest(tmp_path) == digest(tiny_run.directory.root)
    assert not list(tmp_path.rglob("*.partial"))


def test_a_death_between_the_models_is_gone_on_from(
    tiny_run: RunResult, tiny_inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One model is harvested and known, the other is not: the next run takes the folder for its own and finishes."""

    def dies_after_a(*arguments: Any, harvest: Any = harvest_module.harvest, **options: Any) -> Any:
        harvest(*arguments, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(harvest_module, "harvest", dies_after_a)
    with pytest.raises(KeyboardInterrupt):
        run(tiny_inputs / "experiment.yaml", run_dir=tmp_path)
    monkeypatch.undo()
    assert list(json.loads((tmp_path / "models.json").read_text())) == ["a"]
    (tmp_path / "thesis.txt").write_text("thesis")
    (tmp_path / "models.json.partial").symlink_to(tmp_path / "thesis.txt")
    run(tiny_inputs / "experiment.yaml", run_dir=tmp_path, until="harvest")
    assert (tmp_path / "thesis.txt").read_text() == "thesis"
    models = tiny_run.directory.models.read_bytes()
    assert (tmp_path / "models.json").read_bytes() == models


@pytest.mark.timeout(900)  # every function is compiled
def test_a_run_where_installation_and_home_are_read_only(
    tiny_run: RunResult, tiny_inputs: Path, tmp_path: Path, bound_by_permissions: list[str]
) -> None:
    root = Path(__file__).parents[2]
    installed, home, temporary = tmp_path / "installed", tmp_path / "home", tmp_path / "tmp"
    for package in ("storage", "pipeline", "jobs"):
        shutil.copytree(root / package, installed / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(root / "cluster.yaml", installed)
    home.mkdir()
    temporary.mkdir()
    folders = [home, *(path for path in (installed, *installed.rglob("*")) if path.is_dir())]
    for folder in folders:
        folder.chmod(0o500)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("NUMBA_", "XDG_"))}
    environment |= {"HOME": str(home), "TMPDIR": str(temporary), "PYTHONPATH": str(installed)}

    def subspace(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        command = [*bound_by_permissions, sys.executable, "-m", "jobs.cli", *map(str, arguments)]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    version = subspace("--version")
    assert (version.returncode, version.stderr) == (0, "")
    done = subspace("run", tiny_inputs / "experiment.yaml", "--run-dir", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert digest(tmp_path / "run") == digest(tiny_run.directory.root)
    place = temporary / f"subspace-numba-{os.getuid()}"
    assert list(place.rglob("*.nbc"))
    assert done.stderr.count(f"kept in {place}") == 1
    for folder in folders:
        folder.chmod(0o700)


def call(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": "200"}
    command = [sys.executable, "-m", "jobs.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, check=False)


def call_here(*arguments: str | Path) -> Result:
    """Call the command in this process, which has imported everything already."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})


def test_verbs_over_paths(tiny_run: RunResult, copied: Path, tmp_path: Path) -> None:
    directory = tiny_run.directory
    a, b = directory.activations("a", "layers.0"), directory.activations("b", "encoder.layer.0")
    options = ("--top-k", "4", "--keep-above", "0.05", "--json")
    shown = call_here("correlate", a, b, *options, "--out", tmp_path / "C.zarr")
    assert shown.exit_code == 0, shown.stderr
    assert json.loads(shown.stdout)["n_rows_select"] > 0
    shown = call_here("match", tmp_path / "C.zarr", "--out", tmp_path / "P.zarr", "--min-correlation", "0.05", "--json")
    assert shown.exit_code == 0, shown.stderr
    assert json.loads(shown.stdout)["pairs"] == tiny_run.pairs("layers.0", "encoder.layer.0").sizes["pair"]
    shown = call_here("compare", tmp_path / "P.zarr", a, b, "--out", tmp_path / "S.zarr", "--null-runs", "50", "--json")
    assert shown.exit_code == 0, shown.stderr
    expected = tiny_run.scores("layers.0", "encoder.layer.0").sel(metric="rsa")
    assert json.loads(shown.stdout)["rsa"]["score"] == pytest.approx(float(expected.score))
    shown = call_here("report", copied)
    assert shown.exit_code == 0, shown.stderr
    with (copied / "scores.csv").open() as file:
        assert len(list(csv.DictReader(file))) >= 4


def test_stages_are_scripts(tiny_run: RunResult, tmp_path: Path) -> None:
    source = tiny_run.directory.correlation("layers.0", "encoder.layer.0")
    command = [
        sys.executable,
        "-m",
        "pipeline.match",
        str(source),
        "--out",
        str(tmp_path / "P.zarr"),
        "--min-correlation",
        "0.05",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "mean r" in done.stdout


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"a": {"model": "nowhere/at/all"}}, "nowhere"),
        ({"a": {"dictionary": "sae-bert"}}, "width 12"),
        ({"a": {"sites": ["layers.7"]}}, "layers.7"),
        ({"corpus": {"path": "empty.jsonl"}}, "empty"),
        ({"corpus": {"column": "body"}}, "body"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(
    tiny_inputs: Path, tmp_path: Path, changes: dict[str, dict[str, object]], message: str, client: Client
) -> None:
    path = copy_with(tiny_inputs, tmp_path, **changes)
    with pytest.raises(InputError, match=message):
        run(path, run_dir=tmp_path / "run", client=client)
    assert not list((tmp_path / "run").rglob("*.zarr"))


def test_the_command_line_says_it_in_one_line(tiny_inputs: Path, tmp_path: Path) -> None:
    path = copy_with(tiny_inputs, tmp_path, a={"dictionary": "sae-bert"})
    shown = call_here("run", path, "--run-dir", tmp_path / "run")
    assert shown.exit_code == 2
    assert "12" in shown.stderr
    assert "16" in shown.stderr
    done = call("run", tmp_path / "absent.yaml")
    assert done.returncode == 2
    assert "absent.yaml" in done.stderr
    assert "Traceback" not in done.stderr


def test_inputs_are_looked_at_before_a_cluster_is_started(tiny_inputs: Path, tmp_path: Path) -> None:
    path = copy_with(tiny_inputs, tmp_path, corpus={"path": "absent.jsonl"})
    shown = call_here("run", path, "--run-dir", tmp_path / "run", "--cluster", "tls://127.0.0.1:1")
    assert shown.exit_code == 2
    assert "absent.jsonl" in shown.stderr
    assert not (tmp_path / "run").exists()


def test_help_has_examples() -> None:
    for verb in ("run", "demo", "harvest", "correlate", "match", "compare", "report"):
        shown = call_here(verb, "--help")
        assert shown.exit_code == 0, shown.output
        assert f"$ subspace {verb}" in shown.output
