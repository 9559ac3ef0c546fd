"""The record of what a run wrote depends on its files alone, not on what was there before."""

from __future__ import annotations

import json
import zlib

import pytest

from jobs.watch.page import watch_page
from storage import derived
from storage.derived import edited_files, foreign_files, write_derived
from storage.errors import InputError
from storage.rundir import RunDirectory


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


@pytest.mark.parametrize("written", [0, 1])
def test_a_death_while_a_file_is_replaced_leaves_no_edited_file(run, monkeypatch, written):
    """Before the file is written or after it, the record knows both contents; the next call forgets the old one."""
    old, new = "a,b\n1,2\n", "a,b\n1,3\n"
    write_derived(run / "pairs.csv", old)
    note, notes = derived._note, []

    def dies(record, path, checksums):
        if len(notes) == written:
            raise KeyboardInterrupt
        notes.append(checksums)
        note(record, path, checksums)

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


@pytest.mark.parametrize("name", ["pairs.csv", "best_layer_a.csv", "semantics.tex", "concepts.html", "watch.html"])
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
    assert {*derived._OURS} == {*names} - {"report.json"}
