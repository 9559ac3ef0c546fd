"""Profiles of cluster.yaml."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import dask
import pytest
import yaml

from benchmarks import slurm_faults
from jobs.cluster.certificates import make_certificates, read_certificates
from jobs.cluster.client import connect, slurm_cluster, tunnel, where_to_look
from jobs.cluster.profiles import (
    LocalCudaProfile,
    SlurmProfile,
    find_job,
    find_profile,
    load_settings,
    profile_names,
    render_keys,
    shipped_cluster_file,
)
from jobs.cluster.slurm import Job, failures
from storage.errors import InputError, MissingInputError
from storage.files import private_folder


def test_every_shipped_profile_is_valid() -> None:
    settings = load_settings()
    kinds = {name: find_profile(name, settings).kind for name in profile_names(settings)}
    assert kinds == {
        "local": "local",
        "processes": "processes",
        "local-cuda": "local-cuda",
        "slurm-cpu": "slurm",
        "slurm-gpu": "slurm",
        "slurm-gpu-node": "slurm",
        "slurm-allocation": "slurm-allocation",
        "scheduler": "scheduler",
        "pbs-cpu": "pbs",
        "sge-cpu": "sge",
        "lsf-cpu": "lsf",
    }
    assert {name for name in kinds if find_job(name, settings).is_cuda} == {"slurm-gpu", "slurm-gpu-node"}


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
        ({"mine": {"kind": "local", "worker": 2}}, "mine", r"worker: unknown key; did you mean 'workers'\?"),
        ({"slurm-cpu": {"driver": {"wall-time": "1"}}}, "slurm-cpu", r"driver.wall-time: unknown key.*'walltime'"),
        ({"mine": {"like": "yours"}}, "mine", r"'mine' is like 'yours', which is not there"),
        ({"x": {"like": "y"}, "y": {"like": "x"}}, "x", r"circle: x → y → x"),
        ({"local-cuda": {"rmm-async": True}}, "local-cuda", r"rmm-async and rmm-pool-size exclude each other"),
        ({"mine": {"kind": "oar"}}, "mine", r"'oar'"),
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


def test_the_table_of_messages_is_what_was_measured() -> None:
    page = slurm_faults.PAGE.read_text(encoding="utf-8")
    assert slurm_faults.render_messages(page, json.loads(slurm_faults.RESULT.read_text(encoding="utf-8"))) == page


def test_slurm_job_script(tmp_path: Path) -> None:
    pytest.importorskip("dask_jobqueue")
    job: dict[str, object] = {"queue": "short", "account": "lab", "cores": 3, "memory": "5GB"}
    job |= {"interface": "lo", "scheduler-options": {"dashboard_address": "127.0.0.1:0"}, "modules": ["python/3.11"]}
    settings = site(tmp_path, {"jobqueue": {"slurm-cpu": job}})
    folder = private_folder(tmp_path / "keys")
    with dask.config.set(settings), slurm_cluster("slurm-cpu", settings, folder, "mine") as cluster:
        script = cluster.job_script()
    for line in ("-p short", "-A lab", "--cpus-per-task=3", "--mem=5G", "-t 01:00:00", "-J subspace-mine"):
        assert f"#SBATCH {line}" in script
    for option in (
        "--nthreads 3",
        f"--tls-key {folder}/key.pem",
        "--lifetime 3060s",
        "--dashboard-address 127.0.0.1:0",
    ):
        assert option in script
    assert script.index("module load python/3.11") < script.index(f"export DASK_CONFIG={folder}/settings.yaml")


def site(folder: Path, content: dict[str, object]) -> dict[str, object]:
    path = folder / "cluster.yaml"
    path.write_text(yaml.safe_dump(content))
    return load_settings(path)


def test_workers_are_told_the_settings_of_the_user(tmp_path: Path) -> None:
    pytest.importorskip("dask_jobqueue")
    content: dict[str, object] = {
        "distributed": {"comm": {"timeouts": {"connect": "77s"}}, "worker": {"memory": {"pause": 0.77}}}
    }
    content |= {
        "jobqueue": {"slurm-cpu": {"interface": "lo", "scheduler-options": {"dashboard_address": "127.0.0.1:0"}}}
    }
    settings, folder = site(tmp_path, content), private_folder(tmp_path / "keys")
    with dask.config.set(settings), slurm_cluster("slurm-cpu", settings, folder, "mine"):
        environment = {**os.environ, "DASK_CONFIG": str(folder / "settings.yaml")}
        code = "import distributed; from dask.config import get; print(get('distributed.comm.timeouts.connect'), "
        code += "*get('distributed.worker.memory').values())"
        said = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    connect, *shares = said.stdout.split()
    assert connect == "77s"
    assert {"0.6", "0.7", "0.77", "0.95"} <= set(shares), "where results are spilled, tasks wait, the worker restarts"
    assert (folder / "settings.yaml").stat().st_mode & 0o777 == 0o600


def test_two_clusters_of_one_profile_keep_apart(tmp_path: Path) -> None:
    """Each of them replaces its jobs by its own settings, whichever was started, or ended, last."""
    pytest.importorskip("dask_jobqueue")
    clusters, scripts = [], {}
    with contextlib.ExitStack() as both:
        both.enter_context(dask.config.set(load_settings()))  # what the two leave, since they end out of turn
        for queue in ("one", "other"):
            folder = private_folder(tmp_path / queue)
            job = {"queue": queue, "interface": "lo", "scheduler-options": {"dashboard_address": "127.0.0.1:0"}}
            settings = site(folder, {"jobqueue": {"slurm-cpu": job}})
            ending = both.enter_context(contextlib.ExitStack())
            ending.enter_context(dask.config.set(settings))
            clusters.append((ending, ending.enter_context(slurm_cluster("slurm-cpu", settings, folder, queue))))
            scripts[queue] = clusters[-1][1].job_script()
        assert clusters[0][1].job_script() == scripts["one"]
        clusters[0][0].close()  # its settings are no longer in force, nor are those that it found
        assert clusters[1][1].job_script() == scripts["other"]
    for queue, script in scripts.items():
        assert f"#SBATCH -p {queue}\n" in script
        assert f"export DASK_CONFIG={tmp_path / queue}/settings.yaml" in script


def test_a_missing_log_directory_is_said_at_once(tmp_path: Path) -> None:
    pytest.importorskip("dask_jobqueue")
    settings = site(tmp_path, {"jobqueue": {"slurm-cpu": {"log-directory": str(tmp_path / "logs")}}})
    folder = private_folder(tmp_path / "keys")
    cluster = slurm_cluster("slurm-cpu", settings, folder, "mine")
    with dask.config.set(settings), pytest.raises(MissingInputError, match="logs"), cluster:
        pass


@pytest.mark.parametrize(
    ("job", "message"),
    [
        ({"partitoin": "x"}, r"jobqueue.slurm-gpu is wrong: partitoin: unknown key; did you mean 'partition'\?"),
        ({"partition": "x", "queue": "y"}, r"partition: 'x' and queue: 'y', which is the same"),
        ({"gpus": 4}, r"one worker for each GPU of a job: set processes \(1\) to gpus \(4\)"),
        ({"walltime": 3600}, r"walltime: write it in quotes"),
        ({"walltime": "soon"}, r"walltime 'soon' is none that Slurm reads"),
        ({"worker-command": "distributed.cli.dask_worker"}, r"rmm-pool-size.*are of workers with a GPU"),
        ({"processes": 3, "gpus": 3, "cores": 4}, r"cores \(4\) must be a multiple of processes \(3\)"),
        ({"memory": "much"}, r"memory: "),
    ],
)
def test_wrong_jobs(tmp_path: Path, job: dict[str, object], message: str) -> None:
    settings = site(tmp_path, {"jobqueue": {"slurm-gpu": job}})
    with pytest.raises(InputError, match=message):
        find_job("slurm-gpu", settings)


def test_a_profile_of_ones_own_is_like_another(tmp_path: Path) -> None:
    settings = site(
        tmp_path,
        {
            "subspace": {"profiles": {"a100": {"like": "slurm-gpu", "jobs": 8}}},
            "jobqueue": {"a100": {"partition": "gpu", "gpu-type": "a100"}},
        },
    )
    profile, job = find_profile("a100", settings), find_job("a100", settings)
    assert isinstance(profile, SlurmProfile)
    assert (profile.jobs, profile.wait) == (8, 1800)
    assert (job.partition, job.gpu_type, job.gpus, job.is_cuda) == ("gpu", "a100", 1, True)


SHOW = """
import json, sys, pathlib
from jobs.cluster.profiles import find_job, find_profile, load_settings
settings = load_settings(pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else None)
print(json.dumps([f("slurm-cpu", settings).model_dump() for f in (find_profile, find_job)]))
"""


def test_the_file_is_the_same_by_every_way(tmp_path: Path) -> None:
    """``--cluster-file``, ``DASK_CONFIG`` and single variables come to the same values; a given file wins."""
    path = tmp_path / "cluster.yaml"
    content = {"subspace": {"profiles": {"slurm-cpu": {"jobs": 7}}}, "jobqueue": {"slurm-cpu": {"partition": "short"}}}
    path.write_text(yaml.safe_dump(content))
    loser = tmp_path / "other.yaml"
    loser.write_text(yaml.safe_dump({"subspace": {"profiles": {"slurm-cpu": {"jobs": 3}}}}))
    variables = {"DASK_SUBSPACE__PROFILES__SLURM_CPU__JOBS": "7", "DASK_JOBQUEUE__SLURM_CPU__PARTITION": "short"}
    ways: list[tuple[list[str], dict[str, str]]] = [
        ([str(path)], {}),
        ([], {"DASK_CONFIG": str(path)}),
        ([], variables),
        ([str(path)], {"DASK_CONFIG": str(loser)}),
    ]
    seen = []
    for arguments, environment in ways:
        command = [sys.executable, "-c", SHOW, *arguments]
        done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        seen.append(json.loads(done.stdout))
    assert seen[0][0]["jobs"] == 7
    assert seen[0][1]["partition"] == "short"
    assert all(one == seen[0] for one in seen)


def test_every_key_is_explained_in_the_documentation() -> None:
    text = (shipped_cluster_file().parent / "docs" / "cluster.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"<!-- keys -->\n(.*?)\n<!-- /keys -->", text, flags=re.DOTALL)
    assert shown.strip() == render_keys(), "put what `python -m jobs.cluster.profiles` prints between the marks"


def test_effective_values_are_logged(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(yaml.safe_dump({"subspace": {"profiles": {"processes": {"workers": 1}}}}))
    with caplog.at_level("INFO", logger="jobs.cluster.client"), connect("processes", path) as client:
        assert client.scheduler.address.startswith("tls://")
        assert client.submit(sum, [1, 2]).result() == 3
    assert "Cluster profile processes: {kind: processes, memory: auto, threads: 1, workers: 1}" in caplog.text


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="this machine has a GPU")
def test_local_cuda_without_a_gpu_is_said(tmp_path: Path) -> None:
    pytest.importorskip("dask_cuda")
    assert isinstance(find_profile("local-cuda", load_settings()), LocalCudaProfile)
    with pytest.raises(InputError, match="no GPU that NVIDIA's driver knows"), connect("local-cuda"):
        pass


def test_keys_stay_private(tmp_path: Path) -> None:
    folder = private_folder(tmp_path / "new" / "keys")
    assert folder.stat().st_mode & 0o777 == 0o700
    security = make_certificates(folder)
    assert security.require_encryption
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
    (folder / "key.pem").chmod(0o644)
    with pytest.raises(InputError, match=r"Others may read .*key\.pem"):
        read_certificates(folder)
    (folder / "key.pem").unlink()
    with pytest.raises(MissingInputError, match=r"key\.pem missing"):
        read_certificates(folder)
    (tmp_path / "open").mkdir(mode=0o755)
    with pytest.raises(InputError, match="Others may enter"):
        make_certificates(tmp_path / "open")


def test_the_tunnel_leads_over_the_login_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("getpass.getuser", lambda: "ada")
    monkeypatch.delenv("SLURM_SUBMIT_HOST", raising=False)
    assert tunnel("http://127.0.0.1:8787/status", "login1") == "ssh -N -L 8787:127.0.0.1:8787 ada@login1"
    monkeypatch.setenv("SLURM_SUBMIT_HOST", "login1")
    assert tunnel("http://127.0.0.1:8787/status", "node7") == ("ssh -N -L 8787:127.0.0.1:8787 -J ada@login1 ada@node7")
    assert where_to_look("http://127.0.0.1:8787/status", "node7").startswith("http://127.0.0.1:8787/status (")


def test_the_log_of_a_failed_job_is_shown(tmp_path: Path) -> None:
    jobs = [
        Job("7", "RUNNING", "n1", "None"),
        Job("8", "OUT_OF_MEMORY", "n2", "OutOfMemory"),
        Job("9", "FAILED", "n1", "NonZeroExitCode"),
    ]
    (tmp_path / "subspace-mine-8.err").write_text("\n".join(f"line {i}" for i in range(100)))
    (tmp_path / "subspace-mine-7.err").write_text("all is well")
    shown = "\n".join(failures(jobs, tmp_path))
    assert "job 8 on n2: OUT_OF_MEMORY (OutOfMemory)" in shown
    assert "line 99" in shown
    assert "line 10\n" not in shown, "only its end"
    assert f"no log in {tmp_path}" in shown
    assert "all is well" not in shown


def test_the_profiler_of_workers_is_off_where_it_can_stop_them_unless_the_user_wants_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def enabled() -> bool:
        return load_settings()["distributed"]["worker"]["profile"]["enabled"]

    assert enabled() == (sys.version_info >= (3, 12))
    monkeypatch.setenv("DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED", "True")
    assert enabled()
