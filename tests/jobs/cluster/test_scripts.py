"""The scripts of workers, driver and shares: what a site says applies to all of them, and everything is quoted."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import dask
import pytest
import yaml

from jobs.cluster import keeper as watcher
from jobs.cluster import profiles
from jobs.cluster.client import slurm_cluster
from jobs.cluster.profiles import SlurmJob, find_job, find_profile, load_settings
from jobs.cluster.scripts import header, shell_word
from jobs.cluster.submission import submit_run
from jobs.verbs.cluster import job_script
from storage.errors import InputError, MissingInputError
from storage.files import private_folder


def written(folder: Path, content: dict[str, Any]) -> Path:
    path = folder / "site.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def scripts(folder: Path, content: dict[str, Any]) -> dict[str, str]:
    """Return the text of all three scripts of a site."""
    pytest.importorskip("dask_jobqueue")
    path, run_dir = written(folder, content), folder / "run"
    submit_run(folder / "e.yaml", run_dir, cluster_file=path, array=2, dry_run=True)
    texts = {name: (run_dir / "jobs" / f"{name}.sbatch").read_text() for name in ("driver", "share")}
    return {"worker": job_script("slurm-cpu", path), **texts}


def directives(script: str) -> list[str]:
    """Return the options of a script, as Slurm reads them."""
    lines = [line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH ")]
    return [word for line in lines for word in [" ".join(shlex.split(line))]]


def test_a_site_that_refuses_mem(tmp_path: Path) -> None:
    content = {"jobqueue": {"slurm": {"job-directives-skip": ["--mem"]}, "slurm-cpu": {"job-directives-skip": ["-t"]}}}
    for name, text in scripts(tmp_path, content).items():
        options = [option for option in directives(text) if option.startswith(("--mem", "-t ", "--time"))]
        assert options == [], name
        assert any(option.startswith("--cpus-per-task=") for option in directives(text))


def test_lists_of_site_and_profile_are_joined(tmp_path: Path) -> None:
    site: dict[str, Any] = {
        "job-script-prologue": ["source /etc/site"], "job-extra-directives": ["--mail-type=FAIL"], "account": "all",
        "header-skip": ["-p"], "shebang": "#!/bin/bash -l",
    }  # fmt: skip
    mine: dict[str, Any] = {
        "job-script-prologue": ["source env/bin/activate"], "job-extra-directives": ["--comment=x"], "qos": "normal",
        "account": None, "partition": "short", "reservation": "mine", "modules": ["python/3.11"], "shebang": None,
    }  # fmt: skip
    for name, text in scripts(tmp_path, {"jobqueue": {"slurm": site, "slurm-cpu": mine}}).items():
        lines = text.splitlines()
        assert lines[0] == "#!/bin/bash -l", name
        ours = [
            line
            for line in lines
            if line in ("module load python/3.11", *site["job-script-prologue"], *mine["job-script-prologue"])
        ]
        assert ours == ["module load python/3.11", "source /etc/site", "source env/bin/activate"], name
        options = directives(text)
        assert {"--mail-type=FAIL", "--comment=x", "-A all", "--qos=normal", "--reservation=mine"} <= set(options)
        assert not [option for option in options if option.startswith(("-p", "--partition"))]


def test_a_default_of_dask_jobqueue_is_no_word_of_the_site() -> None:
    jobqueue = pytest.importorskip("dask_jobqueue")
    assert dask.config.get("jobqueue.slurm.name") == "dask-worker", jobqueue
    assert find_job("slurm-cpu", load_settings()).name == "subspace"


def test_keys_of_the_site_that_are_not_used_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    content = {"jobqueue": {"slurm": {"nanny-port": 7, "memory": "3GB"}, "slurm-cpu": {"memory": None}}}
    assert find_job("slurm-cpu", load_settings(written(tmp_path, content))).memory == "3GB"
    assert "jobqueue.slurm has keys that are not used here: nanny-port" in caplog.text


def test_shares_ask_for_gpus_and_the_driver_does_not(tmp_path: Path) -> None:
    share = {"gpus": 1, "partition": "gpu", "walltime": "02:00:00"}
    content = {
        "subspace": {"profiles": {"slurm-cpu": {"driver": {"partition": "long", "cores": 1}, "share": share}}},
        "jobqueue": {"slurm-cpu": {"gpu-type": "a100", "gpu-request": "gres", "exclusive": True}},
    }
    texts = scripts(tmp_path, content)
    options = set(directives(texts["share"]))
    assert {"--gres=gpu:a100:1", "-p gpu", "-t 02:00:00", "--cpus-per-task=1", "--mem=8G"} <= options
    options = set(directives(texts["driver"]))
    assert {"-p long", "-t 1-00:00:00", "--cpus-per-task=1"} <= options
    assert not [option for option in options if option.startswith(("--gpu", "--gres", "--exclusive"))]


def test_paths_with_spaces(tmp_path: Path) -> None:
    """The scripts are read by a shell, and by Slurm's rules, which are a shell's."""
    odd = tmp_path / "it's 100% a #1 place"
    odd.mkdir()
    python = odd / "python"
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    python.chmod(0o755)
    job = {"python": str(python), "scratch": "$SPARE/sp are", "scheduler-options": {"dashboard_address": "127.0.0.1:0"}}
    job |= {"interface": "lo", "log-directory": str(odd)}
    path, folder = written(odd, {"jobqueue": {"slurm-cpu": job}}), private_folder(odd / "keys")
    pytest.importorskip("dask_jobqueue")
    settings = load_settings(path)
    with dask.config.set(settings), slurm_cluster("slurm-cpu", settings, folder, "mine") as cluster:
        worker = cluster.job_script()
        (odd / "subspace-mine-7.err").write_text("no such module\n")
        assert watcher.Keeper(cluster, 1).log_files("7") == [odd / "subspace-mine-7.err"]
    submit_run(odd / "e.yaml", odd / "run", cluster_file=path, array=2, dry_run=True)
    assert f"-o {odd}/subspace-mine-%J.out".replace("100%", "100%%") in directives(worker)
    for name in ("driver", "share"):
        text = (odd / "run" / "jobs" / f"{name}.sbatch").read_text()
        (log,) = [option for option in directives(text) if option.startswith("-o ")]
        assert log.startswith(f"-o {odd}/run/logs/%x-".replace("100%", "100%%"))
        said = run(text, "3", "e.yaml")
        assert said[:3] == ["-m", "jobs.cli", "run"], name
    said = run(worker)
    assert said[said.index("--local-directory") + 1] == "/spare/sp are"
    assert said[said.index("--tls-key") + 1] == str(folder / "key.pem")


def run(script: str, *arguments: str) -> list[str]:
    environment = {"PATH": "/usr/bin:/bin", "SPARE": "/spare", "SLURM_ARRAY_TASK_ID": "1"}
    done = subprocess.run(
        ["bash", "-s", "-", *arguments], input=script, env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    ("part", "keys", "message"),
    [
        ("driver", {"memory": "lots"}, r"driver.memory: .*'lots'"),
        ("share", {"memory": "lots"}, r"share.memory: .*'lots'"),
        ("driver", {"walltime": "soon"}, r"driver.walltime: .*'soon' is none that Slurm reads"),
        ("driver", {"partition": "a b"}, r"driver.partition: 'a b' is not a name that Slurm has"),
        ("share", {"gpus": 0}, r"share.gpus: .*greater than 0"),
        ("profile", {"minimum": 3}, r"minimum \(3\) must be at most jobs \(2\)"),
        ("job", {"name": "my run"}, r"name: 'my run' must be letters"),
        ("job", {"name": "a,b"}, r"name: 'a,b' must be letters"),
        ("job", {"interface": "ib0 --x"}, r"interface: 'ib0 --x' is not the name"),
        ("job", {"interface": "eth0;reboot"}, r"interface: 'eth0;reboot' is not the name"),
        ("job", {"job-mem": "lots"}, r"job-mem: .*'lots'"),
        ("job", {"job-mem": "8"}, r"job-mem: '8' is less than 100 MB to Slurm"),
        ("job", {"memory": "8"}, r"memory: '8' is less than 100 MB; write the unit"),
        ("job", {"account": "-x"}, r"account: '-x' is not a name that Slurm has"),
        ("job", {"shebang": "/bin/bash"}, r"shebang: '/bin/bash' is not the first line"),
        ("job", {"job-extra-directives": ["#SBATCH --x"]}, r"directives.0: '#SBATCH --x' is not an option"),
        ("profile", {"jobs": True}, r"jobs: must be a whole number"),
        ("profile", {"jobs": 10**9}, r"jobs: .*less than or equal to 10000"),
        ("profile", {"jobs": 1e3}, r"jobs: must be a whole number"),
        ("driver", {"cores": True}, r"driver.cores: must be a whole number"),
    ],
)
def test_one_set_of_checks(part: str, keys: dict[str, Any], message: str, tmp_path: Path) -> None:
    profile = {} if part == "job" else {"slurm-cpu": keys if part == "profile" else {part: keys}}
    job = {"slurm-cpu": keys} if part == "job" else {}
    settings = load_settings(written(tmp_path, {"subspace": {"profiles": profile}, "jobqueue": job}))
    with pytest.raises(InputError, match=message):
        (find_job if part == "job" else find_profile)("slurm-cpu", settings)


def test_folders_of_the_host_that_submits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    job = {"log-directory": "~/logs", "shared-temp-directory": "$HOME/x"}
    found = find_job("slurm-cpu", load_settings(written(tmp_path, {"jobqueue": {"slurm-cpu": job}})))
    assert (found.log_directory, found.shared_temp_directory) == (f"{tmp_path}/logs", f"{tmp_path}/x")


def test_a_home_with_spaces_on_the_node(tmp_path: Path) -> None:
    python = tmp_path / "my env" / "python"
    python.parent.mkdir()
    python.write_text("#!/bin/sh\necho found\n")
    python.chmod(0o755)
    for word in (shell_word("~/my env/python"), shell_word("$HOME/my env/python")):
        done = subprocess.run(
            ["bash", "-c", word], env={"HOME": str(tmp_path)}, capture_output=True, text=True, check=True
        )
        assert done.stdout == "found\n"


@pytest.mark.parametrize("skip", ["-c", "-q", "-C", "-G", "-A", "-p", "--mem", "-N", "-t"])
def test_short_options_are_left_out(skip: str) -> None:
    job = SlurmJob(
        cores=2, memory="1GB", qos="x", constraint="y", account="z", partition="w", walltime="10", gpus=1,
        job_directives_skip=[skip],
    )  # fmt: skip
    whole = [*header(job.model_copy(update={"job_directives_skip": []}))]
    left_out = set(whole) - {*header(job)}
    assert len(left_out) == (0 if skip == "-N" else 1), left_out


def test_what_a_site_says_in_parts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    jobqueue = pytest.importorskip("dask_jobqueue")
    assert dask.config.get("jobqueue.slurm.walltime") == "00:30:00", jobqueue
    site = {"scheduler-options": {"interface": "eth1", "port": 4000}, "walltime": "00:30:00"}
    mine = {"scheduler-options": {"port": 5000}, "walltime": None}
    file = written(tmp_path, {"jobqueue": {"slurm": site, "slurm-cpu": mine}})
    job = find_job("slurm-cpu", load_settings(file))
    assert job.walltime == "00:30:00", "said by the site, though dask-jobqueue's default is the same"
    expected = {"interface": "eth1", "port": 5000, "dashboard_address": "127.0.0.1:8787"}
    assert job.scheduler_options == expected
    file = written(tmp_path, {"jobqueue": {"slurm": {"job-directives-skip": "--mem"}}})
    with pytest.raises(
        InputError, match=r"^jobqueue.slurm.job-directives-skip is '--mem'; it must be a list, as \['--mem'\]"
    ):
        find_job("slurm-cpu", load_settings(file))
    file = written(tmp_path, {"jobqueue": {"slurm": {"walltime": "soon"}, "slurm-cpu": {"walltime": None}}})
    with pytest.raises(InputError, match=r"^jobqueue.slurm-cpu, with jobqueue.slurm, is wrong: walltime"):
        find_job("slurm-cpu", load_settings(file))


def test_dashboards_are_local_in_a_profile_of_ones_own(tmp_path: Path) -> None:
    content = {
        "subspace": {"profiles": {"mine": {"kind": "slurm"}}},
        "jobqueue": {"mine": {"scheduler-options": {"port": 5000}}},
    }
    job = find_job("mine", load_settings(written(tmp_path, content)))
    assert job.scheduler_options == {"port": 5000, "dashboard_address": "127.0.0.1:8787"}


def test_an_installation_without_its_cluster_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiles, "__file__", str(tmp_path / "jobs" / "cluster" / "profiles.py"))
    with pytest.raises(MissingInputError, match=r"lacks .*jobs/cluster.yaml: install it again"):
        load_settings()


def test_ctrl_c_stays_what_it_was() -> None:
    """dask-jobqueue, as it is imported, has Ctrl-C end the process with status 0."""
    pytest.importorskip("dask_jobqueue")
    code = "import signal; from jobs.cluster.scripts import import_jobqueue as load; before = signal.getsignal(2); "
    code += "load(); assert signal.getsignal(2) == before"
    subprocess.run([sys.executable, "-c", code], check=True)
