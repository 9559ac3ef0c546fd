"""Files are listed while other processes rename and delete their folders."""

from __future__ import annotations

import os
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import zarr

import storage
from storage.inspect import inspect
from storage.listing import entries_below, files_below, size_on_disk
from storage.rundir import RunDirectory


@pytest.fixture
def restless(tmp_path):
    """Return a folder, the names of whose subfolders change as long as the test runs."""
    root = tmp_path / "root"
    for i in range(8):
        (root / f"{i}.partial" / "c" / "0").mkdir(parents=True)
        (root / f"{i}.partial" / "c" / "0" / "0").write_bytes(b"12345678")
    (root / "still").write_bytes(b"1")
    done = threading.Event()

    def rename() -> None:
        while not done.is_set():
            for i in range(8):
                (root / f"{i}.partial").rename(root / f"{i}")
                (root / f"{i}").rename(root / f"{i}.partial")

    thread = threading.Thread(target=rename)
    thread.start()
    yield root
    done.set()
    thread.join()


def test_folders_that_are_renamed_meanwhile(restless) -> None:
    for _ in range(50):
        assert restless / "still" in list(files_below(restless))
        assert restless / "still" in list(entries_below(restless))
        assert 1 <= size_on_disk(restless) <= 2 * 8 * 8 + 1


def test_a_folder_that_is_gone_between_listing_and_reading(tmp_path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_bytes(b"12")
    listing = files_below(tmp_path)
    assert next(listing) == tmp_path / "a" / "file"
    (tmp_path / "b").rename(tmp_path / "c")
    assert list(listing) == []


def test_only_regular_files_count(tmp_path) -> None:
    (tmp_path / "file").write_bytes(b"123")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    assert [file.name for file in files_below(tmp_path)] == ["file", "link"]
    assert size_on_disk(tmp_path) == 6
    assert size_on_disk(tmp_path / "file") == 3
    assert size_on_disk(tmp_path / "nothing") == 0


def test_entries_are_all_that_is_no_folder(tmp_path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "file").touch()
    os.mkfifo(tmp_path / "a" / "pipe")
    (tmp_path / "elsewhere").symlink_to(tmp_path / "a")
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    names = [path.relative_to(tmp_path).as_posix() for path in entries_below(tmp_path)]
    assert names == ["dangling", "elsewhere", "a/pipe", "a/b/file"]


def test_a_run_is_inspected_while_stores_are_finished(tmp_path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.write_experiment({"name": "toy", "a": {"sites": ["x"]}, "b": {"sites": ["y"]}})
    storage.write_activations(run.activations("b", "y"), np.eye(5))
    paths = [run.activations("a", f"x{i}") for i in range(12)]
    for path in paths:
        shutil.copytree(run.activations("b", "y"), storage.partial_path(path))

    def finish() -> None:
        for path in paths:
            time.sleep(0.05)
            storage.partial_path(path).rename(path)

    thread = threading.Thread(target=finish)
    thread.start()
    while thread.is_alive():
        names = {Path(part["path"]).name.removesuffix(".partial") for part in inspect(run.root)["parts"]}
        assert "y.zarr" in names
    thread.join()
    assert len(inspect(run.root)["parts"]) == 13


@pytest.mark.parametrize(
    "step", ["read_metadata", "check_whole", "size_on_disk", "zarr.open_group", "missing_shards", "_statistics"]
)
def test_a_store_that_is_finished_while_it_is_inspected_is_left_out(tmp_path, monkeypatch, step: str) -> None:
    run = RunDirectory(tmp_path / "run")
    run.write_experiment({"name": "toy", "a": {"sites": ["x"]}, "b": {"sites": ["y"]}})
    storage.write_activations(run.activations("b", "y"), np.eye(5))
    unfinished = storage.partial_path(run.activations("a", "x"))
    shutil.copytree(run.activations("b", "y"), unfinished)
    module, name = (zarr, "open_group") if step == "zarr.open_group" else (storage.inspect, step)
    original = getattr(module, name)

    def finish_first(*args: object, **keywords: object) -> object:
        if unfinished.exists() and any(str(arg).startswith(str(unfinished)) for arg in args):
            unfinished.rename(run.activations("a", "x"))
        return original(*args, **keywords)

    monkeypatch.setattr(module, name, finish_first)
    assert [Path(part["path"]).name for part in inspect(run.root)["parts"]] == ["y.zarr"]
    assert run.activations("a", "x").exists()
