"""The `slurm-cpu` profile on a real Slurm."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.cluster.client import connect
from jobs.verbs.doctor import examine_profile
from storage.errors import SubspaceError

pytestmark = pytest.mark.slurm


SUBMIT_FILTER = """#!/bin/sh
for script in "$@"; do :; done
if grep -q -e '^#SBATCH --mem' "$script"; then echo 'sbatch: error: --mem is not allowed here' >&2; exit 1; fi
exec {sbatch} "$@"
"""


def test_a_site_that_refuses_mem_and_paths_with_spaces(
    slurm: Path, make_cluster_file: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd, commands = tmp_path / "it's a place", tmp_path / "bin"
    odd.mkdir()
    commands.mkdir()
    (commands / "sbatch").write_text(SUBMIT_FILTER.format(sbatch=shutil.which("sbatch")))
    (commands / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")
    file = make_cluster_file(odd)
    start = time.monotonic()
    with (
        pytest.raises(SubspaceError, match=r"The jobs are refused: .*--mem is not allowed"),
        connect("slurm-cpu", file),
    ):
        pass
    assert time.monotonic() - start < 10
    settings = yaml.safe_load(file.read_text())
    settings["jobqueue"]["slurm"] = {"job-directives-skip": ["--mem"], "job-script-prologue": ["export FROM_SITE=1"]}
    file.write_text(yaml.safe_dump(settings))
    with connect("slurm-cpu", file) as client:
        client.wait_for_workers(2, timeout=60)
        assert set(client.run(lambda: os.environ.get("FROM_SITE")).values()) == {"1"}
    assert len(list((odd / "logs").glob("subspace-*.err"))) == 2
    found = list(examine_profile("slurm-cpu", file))
    assert [item for item in found if item.state != "ok"] == []


@pytest.mark.timeout(600)
def test_one_allocation_with_srun(
    slurm: Path,
    tiny_inputs: Path,
    local_run: dict[str, str],
    digest: Callable[[Path], dict[str, str]],
    tmp_path: Path,
) -> None:
    """The script of docs/cluster.md, with two small nodes, in a folder with an odd name."""
    folder, root = tmp_path / "it's one", Path(__file__).parents[2]
    folder.mkdir()
    site = {"interface": "lo", "shared-temp-directory": str(folder), "job-script-prologue": ["export FROM_SITE=1"]}
    site |= {"account": "lab", "job-directives-skip": ["--mem"]}  # which are not asked for here
    options = {"scheduler-options": {"dashboard_address": "127.0.0.1:0"}}
    (folder / "site.yaml").write_text(yaml.safe_dump({"jobqueue": {"slurm": site, "slurm-allocation": options}}))
    text = (root / "docs" / "cluster.md").read_text(encoding="utf-8")
    (script,) = re.findall(r"```bash\n(#!/bin/bash\n#SBATCH --nodes=4.*?)```", text, re.DOTALL)
    script = re.sub(r"#SBATCH .*", "#SBATCH --nodes=2 --ntasks-per-node=1 --cpus-per-task=1 --mem=3G --time=9", script)
    options = "--run-dir 'a run' --until match --cluster-file site.yaml"
    script = script.replace("experiment.yaml", f"{tiny_inputs}/experiment.yaml {options}")
    (folder / "job.sh").write_text(script)
    log = folder / "job.log"
    command = ["sbatch", "--wait", f"--chdir={folder}", f"--output={log}", str(folder / "job.sh")]
    # as in an environment that is activated
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    subprocess.run(command, check=True, capture_output=True, env=environment)
    made = digest(folder / "a run")
    assert made.items() <= local_run.items()
    assert any(name.startswith("pairs/") for name in made), log.read_text()
    assert len(list((folder / "a run" / "logs").glob("allocation-*-[01].log"))) == 2
    assert not list(folder.glob("slurm-allocation-*")), "its keys are gone"
    # the exit status is the run's; what srun and the workers wrote stands in its message
    (folder / "job.sh").write_text(script.replace("experiment.yaml ", "nothing.yaml ", 1))
    assert subprocess.run(command, check=False, capture_output=True, env=environment).returncode == 2
    options = {"job-script-prologue": ["echo no such module: python/9 >&2", "exit 1"]}
    (folder / "site.yaml").write_text(yaml.safe_dump({"jobqueue": {"slurm": site, "slurm-allocation": options}}))
    (folder / "job.sh").write_text(script.replace("'a run'", "another"))
    assert subprocess.run(command, check=False, capture_output=True, env=environment).returncode == 1
    assert re.search(r"srun ended with status 1\..*no such module: python/9", log.read_text(), re.DOTALL)


def test_jobs_come_and_go_with_the_work(
    slurm: Path, slurmctl: Any, make_cluster_file: Callable[..., Path], tmp_path: Path
) -> None:
    profile, job = {"minimum": 0, "jobs": 4}, {"memory": "1GB"}
    with connect("slurm-cpu", make_cluster_file(tmp_path, job=job, profile=profile)) as client:
        assert slurmctl.jobs() == {}
        futures = client.map(lambda _: time.sleep(0.2), range(40), pure=False)
        numbers = {0}
        while not all(future.done() for future in futures) or max(numbers) < 4:
            numbers.add(len(slurmctl.jobs()))
            time.sleep(0.1)
        assert max(numbers) == 4
        client.gather(futures)
        del futures
        end = time.monotonic() + 60
        while slurmctl.jobs():
            assert time.monotonic() < end, slurmctl.jobs()
            time.sleep(0.2)
