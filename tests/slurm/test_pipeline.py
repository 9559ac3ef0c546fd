"""The demo's own experiment on Slurm jobs leaves the same bytes as on threads of this process.

Models, sites, dictionaries and stages are the demo's. Documents and shuffles are fewer, to save time:
``SUBSPACE_FULL_DEMO=1`` leaves both as they are (some twelve minutes on two cores). The report, which no worker makes,
is compared elsewhere.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from distributed import Client

from jobs.cluster.client import connect
from jobs.demo.prepare import prepare
from pipeline.experiment.run import run
from pipeline.settings.experiment import Experiment, load_experiment
from pipeline.work.workers import local_client, n_slots

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]

#: What metadata says of when and with which libraries it was made, and the hashes that these are part of.
#: Nothing else may differ; ``storage.manifest.Manifest`` leaves the first two out of what identifies a result, too.
NOT_COMPARED = {"created", "versions", "attributes_sha256", "stamp"}
#: What stages took; no result.
USAGE = "usage"
#: One document of so many is taken.
EVERY = 8


def demo_experiment(folder: Path) -> Experiment:
    """Return the demo's experiment, with fewer documents and shuffles."""
    experiment = load_experiment(prepare(folder))
    if os.environ.get("SUBSPACE_FULL_DEMO"):
        return experiment
    text = folder / "text.jsonl"
    text.write_text("".join(text.read_text(encoding="utf-8").splitlines(keepends=True)[::EVERY]), encoding="utf-8")
    sections = {"compare": {"null_runs": 20}, "semantics": {"null_runs": 5}}
    return experiment.model_copy(
        update={name: getattr(experiment, name).model_copy(update=values) for name, values in sections.items()}
    )


def compared(value: Any) -> Any:
    """Return metadata without what is not compared."""
    if isinstance(value, list):
        return [compared(item) for item in value]
    if isinstance(value, dict):
        return {key: compared(item) for key, item in value.items() if key not in NOT_COMPARED}
    return value


def contents(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield the name and a hash of every file of results in a run directory; its own name does not count."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.parent != folder / USAGE):
        content = path.read_bytes()
        if path.suffix == ".json":
            metadata = json.loads(content.replace(str(folder).encode(), b"RUN"))
            content = json.dumps(compared(metadata), sort_keys=True).encode()
        yield str(path.relative_to(folder)), hashlib.sha256(content).hexdigest()


def go(experiment: Experiment, folder: Path, client: Client) -> dict[str, str]:
    run(experiment, run_dir=folder, until="semantics", client=client)
    return dict(contents(folder))


def test_the_demo_on_slurm_equals_the_local_one(
    slurm: Path, make_cluster_file: Callable[..., Path], tmp_path: Path
) -> None:
    experiment = demo_experiment(tmp_path / "input")
    with connect("slurm-cpu", make_cluster_file(tmp_path, job={"memory": "4GB", "walltime": "00:30:00"})) as client:
        client.wait_for_workers(2, timeout=60)
        assert n_slots(client) == 2
        on_slurm = go(experiment, tmp_path / "slurm", client)
    with local_client(threads_per_worker=2) as client:
        local = go(experiment, tmp_path / "local", client)
    assert on_slurm == local
    parts = {Path(name).parts[0] for name in local}
    stores = {
        "corpus.zarr",
        "rows.zarr",
        "activations",
        "contexts",
        "correlation",
        "best_layer.zarr",
        "pairs",
        "scores",
    }
    assert stores | {"semantics", "semantics.zarr", "semantics.csv", "experiment.json"} <= parts
    assert sum(name.endswith("zarr.json") for name in local) > 100
