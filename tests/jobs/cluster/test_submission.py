"""Scripts that are submitted: what stands in them, and that the shipped ones can be submitted by hand."""

from __future__ import annotations

import json
import shlex
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from jobs.cluster.scripts import read_script
from jobs.cluster.submission import submit_run, submitted_jobs
from storage.errors import BusyError, InputError, SubspaceError
from storage.files import temporary_path
from storage.locks import lock


@pytest.fixture
def site(tmp_path: Path) -> Path:
    path = tmp_path / "site.yaml"
    driver = {"partition": "long", "walltime": "3-00:00:00", "cores": 1, "memory": "2GiB"}
    job = {"partition": "short", "account": "lab", "qos": "normal", "modules": ["python/3.11"], "python": "/env/python"}
    path.write_text(
        yaml.safe_dump({"subspace": {"profiles": {"slurm-cpu": {"driver": driver}}}, "jobqueue": {"slurm-cpu": job}})
    )
    return path


def test_the_driver(site: Path, tmp_path: Path) -> None:
    (one,) = submit_run(tmp_path / "e.yaml", tmp_path / "run", cluster_file=site, dry_run=True)
    script = tmp_path / "run" / "jobs" / "driver.sbatch"
    assert shlex.split(one.command.removeprefix("job0=$(").removesuffix(")")) == [
        "sbatch", "--parsable", str(script), str(tmp_path / "e.yaml"), "--run-dir", str(tmp_path / "run"),
        "--cluster", "slurm-cpu", "--cluster-file", str(site),
    ]  # fmt: skip
    lines = script.read_text().splitlines()
    directives = {line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH ")}
    assert {"--job-name=subspace-driver", "-p long", "-A lab", "--qos=normal"} <= directives
    assert {"-t 3-00:00:00", "--cpus-per-task=1", "--mem=2G", "--requeue"} <= directives
    assert lines.index("module load python/3.11") < lines.index("set -euo pipefail")
    assert "export SUBSPACE_PYTHON=/env/python" in lines
    first_command = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    assert all(i < first_command for i, line in enumerate(lines) if line.startswith("#SBATCH"))


def test_arrays(site: Path, tmp_path: Path) -> None:
    submitted = submit_run(tmp_path / "e.yaml", tmp_path / "run", cluster_file=site, array=3, dry_run=True)
    commands = [one.command for one in submitted]
    assert len(commands) == 5
    assert "--array=0-2" in commands[1]
    assert "--array=0-2" in commands[3]
    assert [("afterok" in one, "afterany" in one) for one in commands] == [
        (False, False), (True, False), (False, True), (True, False), (False, True),
    ]  # fmt: skip
    assert " --dependency=afterok:$job0 " in commands[1]
    assert commands[4].startswith("job4=$(sbatch --parsable --dependency=afterany:$job3 ")
    assert all("--cluster" not in one.split() for one in commands), "no scheduler, no workers"
    four = submit_run(tmp_path / "e.yaml", tmp_path / "run", cluster_file=site, array="4%2", dry_run=True)
    assert "--array=0-3%2" in four[1].command
    assert "begin/4" in four[0].command


def test_one_submission_at_a_time_which_sweeps_what_a_dead_one_left(site: Path, tmp_path: Path) -> None:
    jobs = tmp_path / "run" / "jobs"
    jobs.mkdir(parents=True)
    temporary_path(jobs / "driver.sbatch", "partial").touch()
    with lock(jobs), ThreadPoolExecutor(1) as pool, pytest.raises(BusyError, match="jobs is being written by"):
        pool.submit(submit_run, tmp_path / "e.yaml", tmp_path / "run", cluster_file=site, dry_run=True).result()
    submit_run(tmp_path / "e.yaml", tmp_path / "run", cluster_file=site, dry_run=True)
    assert [path.name for path in jobs.iterdir()] == ["driver.sbatch"]
    assert sorted(path.name for path in jobs.parent.iterdir()) == ["jobs", "logs"]


def test_jobs_that_slurm_has_forgotten_are_listed_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "jobs").mkdir()
    record = [{"job": number, "command": "sbatch …"} for number in ("7", "8", "9")]
    (tmp_path / "jobs" / "submitted.json").write_text(json.dumps(record))
    monkeypatch.setenv("PATH", str(tmp_path))
    listed = submitted_jobs(tmp_path)
    assert [(job.id, job.state) for job in listed] == [(number, "NOT_ASKED") for number in "789"]
    assert listed[0].reason.startswith("Slurm could not be asked: There is no squeue")
    (tmp_path / "squeue").write_text("#!/bin/sh\necho '8_1|FAILED|n1|NonZeroExitCode'\necho '6|RUNNING|n1|None'\n")
    (tmp_path / "squeue").chmod(0o755)
    listed = submitted_jobs(tmp_path)
    assert [(job.id, job.state) for job in listed] == [("7", "UNKNOWN"), ("9", "UNKNOWN"), ("8_1", "FAILED")]
    assert not submitted_jobs(tmp_path / "another-run")


REFUSES_THE_THIRD = """#!/bin/sh
echo "$@" >> {folder}/calls
if [ $(wc -l < {folder}/calls) -ge 3 ]; then echo 'sbatch: error: QOSMaxSubmitJobPerUserLimit' >&2; exit 1; fi
wc -l < {folder}/calls
"""


def test_an_array_that_is_refused_half_way_is_taken_back(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = {
        "sbatch": REFUSES_THE_THIRD.format(folder=tmp_path),
        "scancel": f"#!/bin/sh\necho $@ > {tmp_path}/ended\n",
    }
    for name, text in commands.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    message = r"(?s)QOSMaxSubmitJobPerUserLimit.*The jobs before it are cancelled: 1, 2$"
    with pytest.raises(SubspaceError, match=message):
        submit_run(tmp_path / "e.yaml", tmp_path / "run", cluster_file=site, array=3)
    assert (tmp_path / "ended").read_text() == "1 2\n"
    (tmp_path / "calls").unlink()
    (tmp_path / "scancel").unlink()
    (tmp_path / "scancel").symlink_to("/bin/false")
    with pytest.raises(SubspaceError, match=r"still there, cancel them: scancel 1 2 "):
        submit_run(tmp_path / "e.yaml", tmp_path / "run", cluster_file=site, array=3)


@pytest.mark.parametrize("name", ["driver", "share"])
def test_the_shipped_scripts_do_what_they_say(name: str, tmp_path: Path) -> None:
    """Run as Slurm runs them, with an interpreter that says what it was given."""
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\nprintf "%s " "$@"\nulimit -m\n')
    python.chmod(0o755)
    script = tmp_path / "script"
    script.write_text(read_script(name))  # type: ignore[arg-type]
    arguments = ["e.yaml", "--until", "harvest"] if name == "driver" else ["4", "e.yaml", "--until", "harvest"]
    environment = {
        "PATH": "/usr/bin:/bin", "SUBSPACE_PYTHON": str(python),
        "SLURM_ARRAY_TASK_ID": "3", "SLURM_MEM_PER_NODE": "100",
    }  # fmt: skip
    done = subprocess.run(
        ["bash", str(script), *arguments], env=environment, capture_output=True, text=True, check=True
    )
    said = done.stdout.split()
    assert said[:6] == ["-m", "jobs.cli", "run", "e.yaml", "--until", "harvest"]
    assert said[6:] == ([] if name == "driver" else ["--share", "3/4"]) + ["102400"]


def test_what_cannot_be_submitted(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="submitted to one of kind 'slurm'"):
        submit_run(tmp_path / "e.yaml", tmp_path / "run", profile="processes", dry_run=True)
    for array in (0, "4%0", "four"):
        with pytest.raises(InputError, match=rf"at least one task.*, not {array}"):
            submit_run(tmp_path / "e.yaml", tmp_path / "run", array=array, dry_run=True)
    assert not (tmp_path / "run").exists()
