"""What `match` and `sweep` print and write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import storage
from jobs.cli import app
from pipeline.correlate.run import correlate


@pytest.fixture(scope="module")
def correlation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of two dictionaries that have nothing to do with each other."""
    folder = tmp_path_factory.mktemp("unrelated")
    rng = np.random.default_rng(0)
    for name in "ab":
        storage.write_activations(folder / f"{name}.zarr", rng.random((200, 5)) * (rng.random((200, 5)) < 0.5))
    correlate(folder / "a.zarr", folder / "b.zarr", top_k=3, out=folder / "c.zarr", memory="2GB")
    return folder / "c.zarr"


def call(*arguments: Any) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})


@pytest.mark.parametrize("options", [("--out", "p.zarr"), ("--all",)])
def test_what_is_not_defined_over_no_pairs_is_not_printed(
    correlation: Path, options: tuple[str, ...], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    caplog.set_level("INFO")
    done = call("match", correlation, "--min-correlation", 0.95, *options)
    assert done.exit_code == 0, done.output
    texts = [done.stdout, *(record.getMessage() for record in caplog.records)]
    assert not [text for text in texts if "None" in text or "nan" in text]
    assert "0" in done.stdout


@pytest.mark.parametrize("foreign", ["x.csv", "x.svg", "x.zarr"])
@pytest.mark.parametrize("verb", ["match", "sweep"])
def test_nothing_is_written_where_one_target_is_not_ours(
    correlation: Path, tmp_path: Path, verb: str, foreign: str
) -> None:
    if verb == "match" and foreign == "x.svg":
        foreign = "x.csv"
    (tmp_path / foreign).write_text("ten years")
    plot = ["--plot", tmp_path / "x.svg"] if verb == "sweep" else []
    done = call(verb, correlation, "--out", tmp_path / "x.zarr", "--csv", tmp_path / "x.csv", *plot, "--overwrite")
    assert done.exit_code == 2
    assert [path.name for path in tmp_path.iterdir()] == [foreign]
    assert (tmp_path / foreign).read_text() == "ten years"


#: A verb, its options, others of the same inputs, and the names of its files.
SECOND_TARGETS = [
    pytest.param(("match", "C"), ("--min-correlation", 0.95), {"--csv": "x.csv"}, id="match"),
    pytest.param(("sweep", "C"), ("--max-uses", 3), {"--csv": "x.csv", "--plot": "x.png"}, id="sweep"),
    pytest.param(("convergence", "C", "A", "B"), ("--threshold", 0.3), {"--plot": "x.svg"}, id="convergence"),
]


@pytest.mark.parametrize(("words", "others", "files"), SECOND_TARGETS)
def test_no_target_is_replaced_where_one_may_not_be(
    correlation: Path, tmp_path: Path, words: tuple[str, ...], others: tuple[object, ...], files: dict[str, str]
) -> None:
    """The table or figure is our own, of another result: the refusal comes before that result is replaced."""
    folder = correlation.parent
    paths = {"A": folder / "a.zarr", "B": folder / "b.zarr", "C": correlation}
    command = [paths.get(word, word) for word in words] + ["--out", tmp_path / "x.zarr"]
    for option, name in files.items():
        command += [option, tmp_path / name]
    assert call(*command).exit_code == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert call(*command).exit_code == 0, "the same again is up to date"
    refused = call(*command, *others)
    assert refused.exit_code == 2
    assert f"{next(iter(files.values()))} is there" in refused.stderr
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert call(*command, *others, "--overwrite").exit_code == 0
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert not [path for path in before if path.parent == tmp_path and after[path] == before[path]]
