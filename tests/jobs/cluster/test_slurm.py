"""How Slurm's commands are called, and what is made of their answers, on sites that print and ask more than usual."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from jobs.cluster import keeper as watcher
from jobs.cluster.profiles import SlurmJob
from jobs.cluster.schedulers import number_pattern
from jobs.cluster.scripts import job_options, worker_class
from jobs.cluster.site import waits_in_vain
from jobs.cluster.slurm import Job, cancel, job_number, jobs_named, slurm_environment, submit
from storage.errors import SubspaceError

BANNER = "printf 'Welcome to Alpha 2\\n\\n2026 nodes are up\\n'"


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Slurm's commands: each notes how it was called, prints a banner, and then the file of its name."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("sbatch", "squeue", "scancel", "scontrol"):
        (folder / name).write_text(
            f'#!/bin/sh\necho "$0 $@" >> {folder}/calls\nenv > {folder}/environment\n{BANNER}; cat {folder}/{name}.out'
        )
        (folder / name).chmod(0o755)
        (folder / f"{name}.out").touch()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return folder


def passed(commands: Path) -> dict[str, str]:
    """Return the variables that the last command was given."""
    lines = (commands / "environment").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line.startswith(("S", "L")) and "=" in line)


def test_what_users_set_for_their_own_eyes_does_not_reach_slurm(
    commands: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = {"SQUEUE_FORMAT": "%j", "SQUEUE_FORMAT2": "name", "SQUEUE_STATES": "PENDING", "SINFO_FORMAT": "%n"}
    mine |= {"SCANCEL_INTERACTIVE": "true", "SCONTROL_ALL": "1", "SBATCH_WAIT": "1", "SBATCH_ARRAY_INX": "0-9"}
    kept = {"SLURM_CONF": "/etc/slurm.conf", "SLURM_CLUSTERS": "alpha", "SBATCH_RESERVATION": "course"}
    for name, value in (mine | kept).items():
        monkeypatch.setenv(name, value)
    (commands / "squeue.out").write_text("CLUSTER: alpha\n17|RUNNING|n1|None\n17_1|PENDING||Resources|x\n")
    assert jobs_named("mine") == [Job("17", "RUNNING", "n1", "None"), Job("17_1", "PENDING", "", "Resources|x")]
    assert not mine.keys() & passed(commands).keys()
    assert kept.items() <= passed(commands).items()
    cancel([Job("17", "REQUEUE_HOLD", "", "held"), Job("18", "COMPLETED", "n1", "None")])
    assert (commands / "calls").read_text().endswith("scancel 17\n"), "a state that is none of the usual ones is no end"


def test_what_the_script_says_goes_before_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"PARTITION": "gpu", "JOB_NAME": "x", "TIMELIMIT": "1", "MEM_PER_CPU": "1", "NO_REQUEUE": "1", "GRES": "y"}
    for name, value in given.items():
        monkeypatch.setenv(f"SBATCH_{name}", value)
    script = (
        "#!/bin/sh\n#SBATCH -J worker\n#SBATCH -p cpu\n#SBATCH -t10\n#SBATCH --mem=8G\n#SBATCH --requeue\necho -C x\n"
    )
    left = {name for name in slurm_environment(script) if name.startswith("SBATCH_")}
    assert left == {"SBATCH_GRES"}, "a default for what the profile does not say"
    assert len([name for name in slurm_environment() if name.startswith("SBATCH_")]) == len(given)


@pytest.mark.parametrize(
    ("scheduler", "printed"),
    [
        ("slurm", "2026\nsbatch: info: 512 cores\n17\n"),
        ("slurm", "17;alpha\n\nYour quota: 5 of 10\n"),
        ("slurm", "Submitted batch job 17 on cluster alpha\n"),
        ("pbs", "5 jobs wait\n17.server\n"),
        ("pbs", "17[].server\n"),
        ("sge", '2026\nYour job 17 ("subspace-1") has been submitted\n'),
        ("lsf", "<5> of 9\nJob <17> is submitted to queue <short>.\n"),
    ],
)
def test_the_number_of_a_job_below_a_banner(scheduler: str, printed: str) -> None:
    assert job_number(printed, number_pattern(scheduler)) == "17"


def test_submission_below_a_banner(commands: Path, tmp_path: Path) -> None:
    (tmp_path / "script").write_text("#!/bin/sh\n#SBATCH -p cpu\n")
    (commands / "sbatch.out").write_text("17\n")
    assert submit(tmp_path / "script", (), ()) == "17"
    (commands / "sbatch.out").write_text("ok\n")
    with pytest.raises(SubspaceError, match=r"its number is not in what was printed: 'Welcome.*ok'"):
        submit(tmp_path / "script", (), ())


def test_workers_are_submitted_below_a_banner(commands: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("dask_jobqueue")
    monkeypatch.setenv("SBATCH_JOB_NAME", "mine")
    job = SlurmJob(cores=1, memory="1GB")
    cls = worker_class("slurm-cpu", job, job_options("slurm-cpu", job, tmp_path))
    worker = cls("tls://SCHEDULER:PORT", name="w", config_name="slurm-cpu", job_name="subspace-1")
    (commands / "sbatch.out").write_text("17;alpha\n")
    asyncio.run(worker.start())
    assert (worker.job_id, cls.refusals) == ("17", [])
    assert "SBATCH_JOB_NAME" not in passed(commands)
    (commands / "sbatch.out").write_text("ok\n")
    asyncio.run(worker.start())
    assert "its number is not in what was printed" in cls.refusals[0]


def test_the_queue_is_asked_for_its_own_jobs_alone(commands: Path) -> None:
    listing = "17 RUNNING n1\n18 PENDING (PartitionTimeLimit)\n19 CANCELLED n1\n20 REQUEUE_HOLD (x)\n99 RUNNING n2\n"
    (commands / "squeue.out").write_text(listing)
    found = watcher.queued_jobs("slurm", ["17", "18", "19", "20"])
    assert found == {"17": "RUNNING n1", "18": "PENDING (PartitionTimeLimit)", "20": "REQUEUE_HOLD (x)"}
    assert "--jobs 17,18,19,20" in (commands / "calls").read_text()
    (commands / "squeue").write_text("#!/bin/sh\necho 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1\n")
    assert watcher.queued_jobs("slurm", ["17"]) == {}


@pytest.mark.parametrize(
    ("reason", "remedy"),
    [
        ("(PartitionTimeLimit)", "walltime"),
        ("QOSMaxWallDurationPerJobLimit", "walltime"),
        ("AssocMaxWallDurationPerJobLimit", "walltime"),
        ("BadConstraints", "another constraint"),
        ("QOSMaxCpuPerJobLimit", "fewer cores"),
        ("QOSMinGRES", "fewer cores"),
        ("PartitionNodeLimit", "fewer cores"),
        ("AssocGrpBillingMinutes", "budget"),
        ("JobHeldAdmin", "scontrol release"),
        ("Resources", None),
        ("Priority", None),
        ("QOSMaxJobsPerUserLimit", None),
        ("QOSMaxCpuPerUserLimit", None),
        ("AssocGrpCPURunMinutesLimit", None),
        ("AssocGrpCpuLimit", None),
        ("ReqNodeNotAvail, UnavailableNodes:n1", None),
    ],
)
def test_why_a_job_waits(reason: str, remedy: str | None) -> None:
    said = waits_in_vain(reason)
    assert said is None if remedy is None else said is not None and remedy in said
