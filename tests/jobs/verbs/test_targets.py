"""Whatever a verb is told to write to: what is not its own survives, and nothing else is written."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from jobs.cli import app
from jobs.verbs.index import VERBS
from pipeline.experiment.run import RunResult
from storage.locks import lock

#: Verbs that write where they are told to, and how the tests call them; `label` needs a server, and has its own.
WRITERS = {
    "correlate": ("A", "B"),
    "intervals": ("P", "A", "B"),
    "convergence": ("P", "A", "B"),
    "match": ("C",),
    "sweep": ("C",),
    "token-identity": ("P", "A", "B"),
    "rematch": ("P", "C", "A", "B", "--draws", "2"),
    "layers": ("RUN",),
    "contexts": ("A",),
    "concepts": ("A", "--rule", "count:at_least=1:of=4"),
    "non-concept": ("A",),
    "compare": ("P", "A", "B"),
    "compare-activations": ("A", "B"),
    "import": ("NPY",),
    "export": ("A", "--format", "npz"),
    "labels": ("LABELS", "--store", "A"),
    "corpus": ("TEXT",),
    "diff": ("RUN", "OTHER_RUN"),
}
FILES = {
    "match": ["--csv"],
    "diff": ["--csv", "--plot"],
    "sweep": ["--csv", "--plot"],
    "layers": ["--csv"],
    "convergence": ["--plot"],
}
#: Verbs that work on a cluster.
ON_CLUSTER = {"correlate", "intervals", "convergence", "sweep", "rematch", "contexts", "concepts", "non-concept"}
ON_CLUSTER |= {"compare", "compare-activations", "run", "plan", "harvest", "demo", "reproduce", "neurons", "yardsticks"}
RUNS = ("run", "plan", "harvest", "demo", "submit", "reproduce", "neurons")
#: Verbs that write into a run that is there, and options that have them make something else than what is there.
INTO_RUNS = {
    "report": (),
    "scores": (),
    "semantics": ("--approach", "global"),
    "yardsticks": ("--yardstick", "random_directions"),
}
#: Verbs with a run that only read it.
READERS = {"status", "feature"}


@pytest.fixture
def arguments(tiny_run: RunResult, tmp_path: Path, request: pytest.FixtureRequest) -> dict[str, str]:
    run, (site_a, site_b) = tiny_run.directory, tiny_run.experiment.site_pairs[0]
    np.save(tmp_path / "x.npy", np.eye(4))
    (tmp_path / "labels.csv").write_text("feature,label\n1,one\n")
    (tmp_path / "text.jsonl").write_text('"a text"\n')
    if "diff" in request.node.name:
        shutil.copytree(run.root, tmp_path / "other", copy_function=os.link)
    paths = {
        "A": run.activations("a", site_a),
        "B": run.activations("b", site_b),
        "C": run.correlation(site_a, site_b),
        "P": run.pairs(site_a, site_b),
        "RUN": run.root,
        "OTHER_RUN": tmp_path / "other",
        "NPY": tmp_path / "x.npy",
        "LABELS": tmp_path / "labels.csv",
        "TEXT": tmp_path / "text.jsonl",
    }
    return {name: str(path) for name, path in paths.items()}


@pytest.fixture
def precious(tmp_path: Path) -> Path:
    folder = tmp_path / "precious"
    (folder / ".git").mkdir(parents=True)
    for name in ("thesis.txt", "thesis.csv", "thesis.png", "thesis.npz"):
        (folder / name).write_text("ten years")
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b"" for path in folder.rglob("*")}


def refused(*call: str, status: int = 2) -> str:
    """Expect a refusal; of verbs that work on a cluster, before one is started or looked for. Return what is said."""
    call = (*call, "--cluster", "nowhere") if call[0] in {*ON_CLUSTER, "semantics"} else call
    done = CliRunner().invoke(app, list(call), env={"COLUMNS": "500"})
    assert done.exit_code == status, (call, done.output)
    assert "Error" in done.stderr, done.stderr
    assert "Traceback" not in done.output
    assert "nowhere" not in done.stderr
    return done.stderr


@contextlib.contextmanager
def held(path: Path) -> Iterator[None]:
    """Have somebody else write to a target as long as the block lasts."""
    there, over = threading.Event(), threading.Event()

    def hold() -> None:
        with lock(path):
            there.set()
            over.wait()

    holder = threading.Thread(target=hold)
    holder.start()
    assert there.wait(60)
    try:
        yield
    finally:
        over.set()
        holder.join()


def on_runs(verb: str, run: Path, inputs: Path) -> list[str]:
    """Return the arguments with which a verb of :data:`RUNS` writes to a run directory."""
    given = {"demo": [], "reproduce": ["pythia"], "neurons": [str(run)]}.get(verb, [str(inputs / "experiment.yaml")])
    return [verb, *given, "--run-dir"]


@pytest.mark.parametrize("verb", WRITERS)
def test_what_is_not_the_verbs_own_survives(
    verb: str, arguments: dict[str, str], precious: Path, tmp_path: Path
) -> None:
    """Also with ``--overwrite``; without it, less is replaced."""
    given = [arguments.get(name, name) for name in WRITERS[verb]]
    options = ["--overwrite"]
    ending = ".npz" if verb == "export" else ".txt"
    before = content(tmp_path)
    for target in (precious, precious / f"thesis{ending}", Path(given[0])):
        assert str(target) in refused(verb, *given, "--out", str(target), *options)
    for option in FILES.get(verb, []):
        for name in ("thesis.txt", "thesis.csv" if option == "--csv" else "thesis.png"):
            call = (verb, *given, "--out", str(tmp_path / "out.zarr"), option, str(precious / name), *options)
            assert str(precious / name) in refused(*call)
    assert content(tmp_path) == before


@pytest.mark.parametrize("verb", RUNS)
def test_no_run_begins_among_other_files(verb: str, tiny_run: RunResult, tiny_inputs: Path, precious: Path) -> None:
    before = content(precious)
    assert str(precious) in refused(*on_runs(verb, tiny_run.directory.root, tiny_inputs), str(precious))
    assert content(precious) == before


@pytest.mark.parametrize("verb", RUNS)
def test_no_run_replaces_that_of_another_experiment(
    verb: str, tiny_run: RunResult, tiny_inputs: Path, tmp_path: Path
) -> None:
    """Above all not the run that it reads."""
    run = shutil.copytree(tiny_run.directory.root, tmp_path / "run")
    text = (tiny_inputs / "experiment.yaml").read_text()
    (tmp_path / "experiment.yaml").write_text(text.replace("name: tiny", "name: another"))
    before = content(run)
    message = refused(*on_runs(verb, run, tmp_path), str(run))
    assert "is the run of the experiment 'tiny'" in message
    assert content(run) == before


@pytest.mark.parametrize("verb", [*WRITERS, *(verb for verb in RUNS if verb not in ("plan", "submit")), *INTO_RUNS])
def test_a_second_writer_is_refused_and_told_of_the_first(
    verb: str, arguments: dict[str, str], tiny_run: RunResult, tiny_inputs: Path, tmp_path: Path
) -> None:
    """`plan` makes what the locks of the run's first results protect, and `submit` scripts, both the same each time."""
    if verb in WRITERS:
        target = tmp_path / ("out.npz" if verb == "export" else "out.zarr")
        call = [verb, *(arguments.get(name, name) for name in WRITERS[verb]), "--out", str(target)]
    elif verb in RUNS:
        target = tmp_path / "run"
        call = [*on_runs(verb, tiny_run.directory.root, tiny_inputs), str(target)]
        if verb == "reproduce":
            call += ["--experiment", str(tiny_inputs / "experiment.yaml")]
    else:
        target = shutil.copytree(tiny_run.directory.root, tmp_path / "run")
        call = [verb, str(target), *INTO_RUNS[verb]]
    (tmp_path / "run").mkdir(exist_ok=True)
    locked = target if verb in WRITERS else target / "scores.zarr" if verb == "scores" else target / "run"
    before = content(tmp_path)
    with held(locked):
        message = refused(*call, status=75)
    assert "is being written by process" in message
    assert content(tmp_path) == before


def test_no_verb_touches_other_files_of_a_run(tiny_run: RunResult, tmp_path: Path) -> None:
    """In each of its folders: beside what is replaced they stay, within what is replaced they stop it."""
    run = shutil.copytree(tiny_run.directory.root, tmp_path / "run")
    changed = json.loads((run / "experiment.json").read_text())
    changed["match"]["method"] = "mutual"
    (tmp_path / "changed.yaml").write_text(json.dumps(changed))
    (run / "explorer").mkdir()
    folders = [run, *(path for path in run.rglob("*") if path.is_dir() and ".zarr" not in str(path))]
    kept = [folder / "thesis.txt" for folder in folders]
    for thesis in kept:
        thesis.write_text("ten years")

    def stopped_by(thesis: Path, *call: str) -> None:
        thesis.write_text("ten years")
        done = CliRunner().invoke(app, list(call), env={"COLUMNS": "500"})
        assert done.exit_code == 2, done.output
        assert f"{thesis.parent} holds thesis.txt" in done.stderr
        assert thesis.read_text() == "ten years"
        thesis.unlink()

    for verb, options in INTO_RUNS.items():
        if verb == "report":
            stopped_by(run / "explorer" / "thesis.txt", verb, str(run))
            kept.remove(run / "explorer" / "thesis.txt")
        done = CliRunner().invoke(app, [verb, str(run), *options])
        assert done.exit_code == 0, done.output
    again = ["run", str(tmp_path / "changed.yaml"), "--run-dir", str(run), "--until", "match"]
    for site in ("layers.0", "layers.1"):
        stopped_by(run / f"pairs/{site}--encoder.layer.0.zarr" / "thesis.txt", *again)
    done = CliRunner().invoke(app, again)
    assert done.exit_code == 0, done.output
    assert {thesis.read_text() for thesis in kept} == {"ten years"}


@pytest.mark.parametrize("verb", ["run", "harvest"])
def test_nothing_is_written_where_the_text_is_missing(verb: str, tiny_inputs: Path, tmp_path: Path) -> None:
    """Not even the record of a session."""
    text = (tiny_inputs / "experiment.yaml").read_text()
    (tmp_path / "experiment.yaml").write_text(text.replace("texts.jsonl", "nowhere.jsonl"))
    done = CliRunner().invoke(app, [verb, str(tmp_path / "experiment.yaml"), "--run-dir", str(tmp_path / "run")])
    assert "No corpus at" in done.stderr
    assert not (tmp_path / "run").exists()


def test_figures_for_a_paper_replace_no_other_files(tiny_run: RunResult, precious: Path) -> None:
    (precious / "scores.csv").write_text("mine")
    refused("report", str(tiny_run.directory.root), "--figures", str(precious), "--overwrite")
    assert (precious / "scores.csv").read_text() == "mine"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(importlib.import_module("pipeline.report.export"), "_drafts", None)  # refused before any is drawn
        message = refused("report", str(tiny_run.directory.root), "--figures", str(precious / "thesis.txt"))
        assert "thesis.txt is not a folder" in message
    assert (precious / "thesis.txt").read_text() == "ten years"


def test_a_report_replaces_no_table_of_somebody_else(tiny_run: RunResult, tmp_path: Path) -> None:
    run = shutil.copytree(tiny_run.directory.root, tmp_path / "run")
    for name in ("pairs.csv", "scores.csv"):
        kept = (run / name).read_bytes()
        (run / name).write_text("document,note\n1,mine\n")
        refused("report", str(run))
        assert (run / name).read_text() == "document,note\n1,mine\n"
        (run / name).write_bytes(kept)


def test_every_verb_that_writes_is_tried() -> None:
    """A verb that is given a target or a run is in one of the lists above."""
    writing, on_cluster = set(), set()
    for verb in VERBS:
        if " " not in verb.name:
            text = CliRunner().invoke(app, [verb.name, "--help"], env={"COLUMNS": "300"}).output
            on_cluster |= {verb.name} if "--cluster-file" in text and "--cluster " in text else set()
            if "--out" in text or "--run-dir" in text or "Run directory" in text:
                writing.add(verb.name)
    assert on_cluster - {"semantics", "submit", "doctor"} == ON_CLUSTER
    assert writing == {*WRITERS, *RUNS, *INTO_RUNS, *READERS, "label"}


@pytest.mark.parametrize(
    "edit",
    [
        lambda text: text + "my note,1\n",
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text.replace("r_heldout", "my_judgement", 1),
        lambda text: text.replace("0.", "0,", 1),
        lambda _: "feature_a,feature_b,my_judgement\n1,2,two weeks of reading\n",
    ],
)
def test_a_table_that_somebody_edited_stays(edit, arguments: dict[str, str], tmp_path: Path) -> None:
    """Also with ``--overwrite``, which replaces a table of this command."""
    table, out = tmp_path / "t.csv", tmp_path / "out.zarr"
    given = ["match", arguments["C"], "--out", str(out), "--csv", str(table), "--overwrite"]
    assert CliRunner().invoke(app, given).exit_code == 0
    text = table.read_text()
    changed = [*given, "--min-correlation", "0.3"]
    table.write_text(edit(text), newline="")
    refused(*changed)
    assert table.read_bytes() == edit(text).encode()
    table.write_text(text)
    assert CliRunner().invoke(app, changed).exit_code == 0
    assert table.read_text() != text
