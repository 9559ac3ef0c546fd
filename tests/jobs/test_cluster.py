"""Profiles of cluster.yaml."""

from __future__ import annotations

from pathlib import Path

import dask
import pytest
import yaml

from jobs.cluster import SlurmProfile, connect, find_profile, load_settings, shipped_cluster_file, slurm_cluster
from storage.errors import InputError, MissingInputError


def test_every_shipped_profile_is_valid() -> None:
    settings = load_settings()
    for name in settings["subspace"]["profiles"]:
        find_profile(name, settings)


def test_the_shipped_file_is_a_dask_configuration() -> None:
    collected = dask.config.collect(paths=[str(shipped_cluster_file())], env={})
    assert collected["subspace"]["profiles"]["local"]["kind"] == "local"


def test_a_users_file_changes_only_what_it_names(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"subspace": {"profiles": {"slurm-cpu": {"jobs": 7}}}}))
    profile = find_profile("slurm-cpu", load_settings(path))
    assert isinstance(profile, SlurmProfile)
    assert (profile.jobs, profile.wait) == (7, 600)


@pytest.mark.parametrize(
    ("profiles", "name", "message"),
    [
        ({}, "slurm-gpx", r"No cluster profile 'slurm-gpx'.*local.*slurm-cpu"),
        ({"mine": {"kind": "local", "worker": 2}}, "mine", r"worker: Extra inputs"),
        ({"mine": {"kind": "pbs"}}, "mine", r"'pbs'"),
        ({"local": {"workers": 0}}, "local", r"workers: .*greater than 0"),
    ],
)
def test_wrong_profiles(tmp_path: Path, profiles: dict[str, object], name: str, message: str) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(yaml.safe_dump({"subspace": {"profiles": profiles}}))
    with pytest.raises(InputError, match=message):
        find_profile(name, load_settings(path))


def test_wrong_files(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match=r"absent\.yaml"):
        load_settings(tmp_path / "absent.yaml")
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(InputError, match="must hold a mapping"):
        load_settings(tmp_path / "list.yaml")


def test_no_scheduler_answers(tmp_path: Path) -> None:
    path = tmp_path / "quick.yaml"
    path.write_text(yaml.safe_dump({"distributed": {"comm": {"timeouts": {"connect": "1s"}}}}))
    with pytest.raises(InputError, match="No Dask scheduler"), connect("tcp://127.0.0.1:1", path):
        pass


def test_processes_talk_tls() -> None:
    with connect("processes") as client:
        assert client.scheduler.address.startswith("tls://")
        assert client.submit(sum, [1, 2]).result() == 3


def test_slurm_job_script(tmp_path: Path) -> None:
    pytest.importorskip("dask_jobqueue")
    job: dict[str, object] = {"queue": "short", "account": "lab", "cores": 3, "memory": "5GB"}
    job |= {"shared-temp-directory": str(tmp_path)}
    path = tmp_path / "cluster.yaml"
    job |= {"interface": "lo", "scheduler-options": {"dashboard_address": "127.0.0.1:0"}}
    path.write_text(yaml.safe_dump({"jobqueue": {"slurm-cpu": job}}))
    with dask.config.set(load_settings(path)), slurm_cluster("slurm-cpu") as cluster:
        script = cluster.job_script()
    for line in ("-p short", "-A lab", "--cpus-per-task=3", "--mem=5G", "-t 01:00:00"):
        assert f"#SBATCH {line}" in script
    for option in ("--nthreads 3", "--tls-key", "--lifetime 3060s"):
        assert option in script


def test_a_missing_log_directory_is_said_at_once(tmp_path: Path) -> None:
    pytest.importorskip("dask_jobqueue")
    path = tmp_path / "cluster.yaml"
    path.write_text(yaml.safe_dump({"jobqueue": {"slurm-cpu": {"log-directory": str(tmp_path / "logs")}}}))
    with dask.config.set(load_settings(path)), pytest.raises(MissingInputError, match="logs"):
        slurm_cluster("slurm-cpu")
