"""The record of what a run wrote depends on its files alone, not on what was there before."""

from __future__ import annotations

import json
import shutil
import zlib
from concurrent.futures import ThreadPoolExecutor

import pytest

from jobs.watch.page import watch_page
from storage import derived, files, locks
from storage.derived import edited_files, foreign_files, replace_pages, write_derived
from storage.errors import BusyError, InputError
from storage.rundir import RunDirectory
from storage.targets import FileTarget


@pytest.fixture
def run(tmp_path):
    (tmp_path / "experiment.json").write_text("{}")
    return tmp_path


def test_the_record_forgets_what_was_replaced(run):
    for text in ("a,b\n1,2\n", "a,b\n1,3\n"):
        write_derived(run / "pairs.csv", text)
    assert json.loads((run / "written.json").read_text()) == {"pairs.csv": [zlib.crc32(b"a,b\n1,3\n")]}


def test_a_file_is_recorded_before_it_is_first_written(run, monkeypatch):
    def dies(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("storage.targets.FileTarget.write_text", dies)
    with pytest.raises(KeyboardInterrupt):
        write_derived(run / "pairs.csv", "a,b\n")
    assert json.loads((run / "written.json").read_text()) == {"pairs.csv": [zlib.crc32(b"a,b\n")]}
    assert edited_files(run) == []


def test_processes_that_write_different_files_at_once_are_both_recorded(run, monkeypatch):
    """As `subspace scores` during a run: the second one begins and ends while the first one writes."""
    write = FileTarget.write_text

    def write_another_meanwhile(target, text):
        if target.path.name == "pairs.csv":
            with ThreadPoolExecutor(1) as pool:
                pool.submit(write_derived, run / "scores.csv", "site_a,site_b\n").result()
        write(target, text)

    monkeypatch.setattr(FileTarget, "write_text", write_another_meanwhile)
    write_derived(run / "pairs.csv", "a,b\n")
    assert {*json.loads((run / "written.json").read_text())} == {"pairs.csv", "scores.csv"}


def test_the_record_waits_for_whoever_is_writing_it(run):
    with ThreadPoolExecutor(1) as pool, locks.lock(run / "written.json"):
        writing = pool.submit(write_derived, run / "pairs.csv", "a,b\n")
        with pytest.raises(TimeoutError):
            writing.result(timeout=0.3)
        assert not (run / "pairs.csv").exists()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(locks, "PATIENCE", 0.0)
            with ThreadPoolExecutor(1) as other, pytest.raises(BusyError, match=r"written\.json is being written by"):
                other.submit(write_derived, run / "scores.csv", "a,b\n").result()
    assert {*json.loads((run / "written.json").read_text())} == {"pairs.csv"}


@pytest.mark.parametrize("written", [0, 1])
def test_a_death_while_a_file_is_replaced_leaves_no_edited_file(run, monkeypatch, written):
    """Before the file is written or after it, the record knows both contents; the next call forgets the old one."""
    old, new = "a,b\n1,2\n", "a,b\n1,3\n"
    write_derived(run / "pairs.csv", old)
    note, notes = derived._note, []

    def dies(run, checksums):
        if len(notes) == written:
            raise KeyboardInterrupt
        notes.append(checksums)
        note(run, checksums)

    monkeypatch.setattr(derived, "_note", dies)
    with pytest.raises(KeyboardInterrupt):
        write_derived(run / "pairs.csv", new)
    monkeypatch.undo()
    assert (run / "pairs.csv").read_text() == (new if written else old)
    assert edited_files(run) == []
    (run / "experiment.json").write_text('{"a": {}, "b": {}}')
    with RunDirectory(run).claim():
        assert json.loads((run / "written.json").read_text()) == {
            "pairs.csv": [zlib.crc32((run / "pairs.csv").read_bytes())]
        }
    write_derived(run / "pairs.csv", new)
    assert json.loads((run / "written.json").read_text()) == {"pairs.csv": [zlib.crc32(new.encode())]}


PAGE = "<!doctype html><title>x – Subspace explorer</title>"


def pages(run, *texts):
    new = run / "new"
    new.mkdir()
    for i, text in enumerate(texts):
        (new / f"{i + 1}.html").write_text(PAGE + text)
    return new


def test_pages_replace_pages_and_leave_no_record(run):
    for texts in (["one", "two"], ["three"]):
        replace_pages(run / "explorer", pages(run, *texts))
        assert [page.read_text() for page in sorted((run / "explorer").iterdir())] == [PAGE + text for text in texts]
        assert len(json.loads((run / "written.json").read_text())) == len(texts)
    replace_pages(run / "explorer", None)
    assert not (run / "explorer").exists()
    assert json.loads((run / "written.json").read_text()) == {}


@pytest.mark.parametrize("texts", [["three", "four"], None])
@pytest.mark.parametrize("dies_at", ["_note", "remove_folder", "Path.rename", "second _note"])
def test_a_death_while_pages_are_replaced_is_made_good(run, monkeypatch, dies_at, texts):
    replace_pages(run / "explorer", pages(run, "one", "two", "five"))
    (run / "experiment.json").write_text('{"a": {}, "b": {}}')
    new, name = files.temporary_path(run / "explorer", "new"), dies_at.removeprefix("second ")
    pages(run, "three", "four").rename(new)
    function, calls = (derived.Path.rename if "." in name else getattr(derived, name)), []

    def dies(*arguments):
        calls.append(arguments)
        if len(calls) > dies_at.startswith("second") and arguments[0] in (
            new,
            run,
            *[run / "explorer"] * (name != "Path.rename"),
        ):
            raise KeyboardInterrupt
        return function(*arguments)

    monkeypatch.setattr(f"storage.derived.{name}", dies)
    with pytest.raises(KeyboardInterrupt):
        replace_pages(run / "explorer", new)
    monkeypatch.undo()
    with RunDirectory(run).claim():
        replace_pages(run / "explorer", None if texts is None else pages(run, *texts))
    known = {f"explorer/{i + 1}.html": [zlib.crc32((PAGE + text).encode())] for i, text in enumerate(texts or [])}
    assert json.loads((run / "written.json").read_text()) == known
    left = {"experiment.json", "written.json"} | ({"explorer"} if texts else set())
    assert {path.name for path in run.iterdir()} == left


@pytest.mark.parametrize("make", ["edit", "file", "folder", "the folder a file", "the folder a link"])
def test_no_page_goes_that_somebody_edited_or_wrote(run, make):
    """Not even one that begins like ours."""
    folder = run / "explorer"
    replace_pages(folder, pages(run, "one"))
    if make.startswith("the folder"):
        replace_pages(folder, None)
        (run / "thesis").mkdir()
        (run / "thesis" / "1.html").write_text(PAGE)
        folder.symlink_to("thesis") if make.endswith("link") else folder.write_text("ten years")
    else:
        {
            "edit": lambda: (folder / "1.html").write_text(PAGE + "a note"),
            "file": lambda: (folder / "2.html").write_text("ten years"),
            "folder": (folder / "2.html").mkdir,
        }[make]()
    before = {path: path.is_file() and path.read_bytes() for path in run.rglob("*")}
    for new in (lambda: None, lambda: pages(run, "two")):
        with pytest.raises(InputError, match="explorer is not a folder" if "the" in make else "holds [12].html, which"):
            replace_pages(folder, new())
        shutil.rmtree(run / "new", ignore_errors=True)
        assert {path: path.is_file() and path.read_bytes() for path in run.rglob("*")} == before
    (run / "experiment.json").write_text('{"a": {}, "b": {}}')
    if make == "edit":
        with pytest.raises(InputError, match=r"explorer/1\.html was edited since"), RunDirectory(run).claim():
            pass


@pytest.mark.parametrize(
    "name", ["pairs.csv", "normalised.csv", "best_layer_a.csv", "semantics.tex", "concepts.html", "watch.html"]
)
def test_a_file_of_somebody_else_is_named_before_a_run_begins(run, name):
    (run / name).write_text("Dear diary")
    (run / "experiment.json").write_text('{"a": {}, "b": {}}')
    assert foreign_files(run) == [name]
    with pytest.raises(InputError, match=rf"{name} was not written by this package"), RunDirectory(run).claim():
        pass
    assert sorted(path.name for path in run.iterdir()) == sorted(["experiment.json", name])


def test_all_files_of_a_run_are_its_own(tiny_run, tmp_path):
    """Even where the record of them is lost."""
    names = ["watch.html", *json.loads((tiny_run.directory.root / "written.json").read_text())]
    for name in names[1:]:
        (tmp_path / name).write_bytes((tiny_run.directory.root / name).read_bytes())
    (tmp_path / "watch.html").write_text(watch_page("run", "", [], {}))
    assert foreign_files(tmp_path) == []
    # the tiny run has no yardsticks
    assert {*derived._OURS} == {*names} - {"report.json"} | {"yardsticks.csv", "normalised.csv"}
