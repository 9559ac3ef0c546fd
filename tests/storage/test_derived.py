"""The record of what a run wrote depends on its files alone, not on what was there before."""

from __future__ import annotations

import json
import zlib

import pytest

from storage import derived
from storage.derived import edited_files, write_derived


@pytest.fixture
def run(tmp_path):
    (tmp_path / "experiment.json").write_text("{}")
    return tmp_path


def test_the_record_forgets_what_was_replaced(run):
    for text in ("a,b\n1,2\n", "a,b\n1,3\n"):
        write_derived(run / "pairs.csv", text)
    assert json.loads((run / "written.json").read_text()) == {"pairs.csv": [zlib.crc32(b"a,b\n1,3\n")]}


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
    write_derived(run / "pairs.csv", new)
    assert json.loads((run / "written.json").read_text()) == {"pairs.csv": [zlib.crc32(new.encode())]}
