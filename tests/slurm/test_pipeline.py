"""The whole chain on Slurm jobs gives the same bytes as on threads of this process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.cluster import connect
from pipeline.run import STAGES, run

pytestmark = pytest.mark.slurm


def test_the_chain_on_slurm_equals_the_local_one(
    slurm: Path,
    cluster_file: Path,
    tiny_inputs: Path,
    local_run: dict[str, str],
    digest: Callable[[Path], dict[str, str]],
    tmp_path: Path,
) -> None:
    with connect("slurm-cpu", cluster_file) as client:
        client.wait_for_workers(2, timeout=60)
        on_slurm = run(tiny_inputs / "experiment.yaml", run_dir=tmp_path / "slurm", client=client)
    assert digest(on_slurm.directory.root) == local_run
    assert len(local_run) > 100
    stages = {Path(name).parts[0] for name in local_run}
    assert {"corpus.zarr", "rows.zarr", "activations", "contexts", "correlation", "pairs", "scores"} <= stages
    assert on_slurm.report.is_file()
    assert STAGES[-1] == "report"
