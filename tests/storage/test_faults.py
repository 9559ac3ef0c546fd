"""Processes that die at the worst moment leave nothing that passes for good."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import xarray as xr

import storage
from storage import files
from storage.errors import MissingInputError

KILLED = """
    import os, pathlib, signal, sys
    import numpy as np
    import storage
    def die(self, target):
        os.kill(os.getpid(), signal.SIGKILL)
    {patch}
    {action}
"""


def run_until_killed(folder, action, patch):
    program = textwrap.dedent(KILLED).format(action=textwrap.dedent(action), patch=patch)
    done = subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr


@pytest.fixture
def writer(tmp_path):
    return storage.ActivationWriter.create(
        tmp_path / "a.zarr", n_tokens=20, n_features=9, shard_rows=10, chunk=(5, 4),
        manifest=storage.new_manifest("harvest", {}, {}),
    )  # fmt: skip


def test_killed_between_writing_a_shard_and_naming_it(tmp_path, writer):
    dense = np.eye(20, 9)
    writer.write_shard(0, dense[:10])
    action = 'storage.ActivationWriter.open("a.zarr").write_shard(1, np.eye(20, 9)[10:])'
    run_until_killed(tmp_path, action, "storage.files.Path.replace = lambda self, to: to.suffix or die(self, to)")
    strays = list(writer.partial.rglob("*.partial"))
    assert len(strays) == 1
    assert writer.missing() == [1]
    with pytest.raises(MissingInputError, match="not finished"):
        storage.open_activations(writer.path)

    writer.write_shard(1, dense[10:])
    writer.finalise()
    assert not list(writer.path.rglob("*.partial"))
    np.testing.assert_array_equal(storage.open_activations(writer.path).activation.values, dense)


@pytest.mark.parametrize("moment", ["before the old one is moved", "between the two renames", "before the old is gone"])
def test_killed_while_a_store_takes_its_place(tmp_path, moment):
    path = tmp_path / "a.zarr"
    storage.write_activations(path, np.eye(3))
    patch = {
        "before the old one is moved": "storage.files.Path.rename = die",
        "between the two renames": (
            "rename = storage.files.Path.rename\n"
            "unless_new = lambda self, to: die(self, to) if self.suffix == '.partial' else rename(self, to)\n"
            "storage.files.Path.rename = unless_new"
        ),
        "before the old is gone": "import shutil; shutil.rmtree = lambda *a, **k: die(0, 0)",
    }[moment]
    action = """
storage.ActivationWriter.create("a.zarr", n_tokens=4, n_features=4,
    manifest=storage.new_manifest("harvest", {}, {})).write_shard(0, 2 * np.eye(4))
PATCH
storage.ActivationWriter.open("a.zarr").finalise()
"""
    run_until_killed(tmp_path, action.replace("PATCH", patch), "")
    if moment == "before the old one is moved":
        assert storage.open_activations(path).sizes["token"] == 3
    if moment != "before the old is gone":
        # A second run finds the work, all of it, and finishes it
        writer = storage.ActivationWriter.create(
            path, n_tokens=4, n_features=4, manifest=storage.new_manifest("harvest", {}, {})
        )
        assert writer.missing() == []
        writer.finalise()
    np.testing.assert_array_equal(storage.open_activations(path).activation.values, 2 * np.eye(4))


def test_killed_while_writing_a_result(tmp_path):
    manifest = storage.new_manifest("match", {}, {})
    old = xr.Dataset({"x": ("y", [1.0, 2.0])})
    storage.write_result(old, tmp_path / "r.zarr", manifest)
    action = """
    import xarray as xr
    storage.write_result(xr.Dataset({"x": ("y", [3.0])}), "r.zarr", storage.new_manifest("match", {}, {"new": 1}))
    """
    run_until_killed(tmp_path, action, "storage.results.close_group = lambda folder: die(0, 0)")
    assert (tmp_path / "r.zarr.partial").exists()
    assert storage.is_current(tmp_path / "r.zarr", manifest)
    xr.testing.assert_equal(storage.open_result(tmp_path / "r.zarr").load(), old)
    storage.write_result(old, tmp_path / "r.zarr", manifest)
    assert [p.name for p in tmp_path.iterdir()] == ["r.zarr"]


def test_a_failed_write_leaves_no_temporary_file(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        files.write_atomically(tmp_path / "x", [b"1"])
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_leaves_nothing_of_a_new_store(tmp_path):
    def slabs():
        yield np.eye(40, 5)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        storage.write_activations(tmp_path / "a.zarr", slabs(), shard_rows=16, chunk=(16, 5))
    assert list(tmp_path.iterdir()) == []
