"""The whole chain on Slurm jobs gives the same bytes as on threads of this process."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from jobs.cluster import connect
from pipeline.run import run

pytestmark = pytest.mark.slurm


def digest(folder: Path) -> dict[str, str]:
    """Return a hash of every data file of every store and result; metadata carries times of creation."""
    files = [path for path in sorted(folder.rglob("*.zarr/**/*")) if path.is_file() and path.suffix != ".json"]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_chain_on_slurm_equals_the_local_one(
    slurm: Path, cluster_file: Path, tiny_inputs: Path, tmp_path: Path
) -> None:
    experiment = tiny_inputs / "experiment.yaml"
    with connect("slurm-cpu", cluster_file) as client:
        client.wait_for_workers(2, timeout=60)
        on_slurm = run(experiment, run_dir=tmp_path / "slurm", client=client)
    run(experiment, run_dir=tmp_path / "local")
    expected = digest(tmp_path / "local")
    assert len(expected) > 100
    assert digest(on_slurm.directory.root) == expected
