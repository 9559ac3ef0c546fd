"""Processes that die at the worst moment leave nothing that passes for good."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest

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
    writer = storage.ActivationWriter.open(writer.path)
    assert writer.missing() == [1]
    with pytest.raises(MissingInputError, match="not finished"):
        storage.open_activations(writer.path)

    writer.write_shard(1, dense[10:])
    writer.finalise()
    assert not list(writer.path.rglob("*.partial"))
    np.testing.assert_array_equal(storage.open_activations(writer.path).activation.values, dense)


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
