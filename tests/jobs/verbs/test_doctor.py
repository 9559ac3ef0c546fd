"""Each check against a computer that is as it should be, and one that is not."""

from __future__ import annotations

import http.server
import json
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from typer.testing import CliRunner

from jobs.cli import app
from jobs.cluster import workers
from jobs.verbs import doctor
from jobs.verbs.doctor import Finding, examine, examine_profile
from storage.errors import InputError


class Answering(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server on this host in the hub's place."""
    server = http.server.HTTPServer(("127.0.0.1", 0), Answering)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("HF_ENDPOINT", address)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    yield address
    server.shutdown()
    thread.join()
    server.server_close()


def only(check: str, found: list[Finding]) -> Finding:
    return next(item for item in found if item.check == check)


def program(folder: Path, name: str, script: str) -> None:
    file = folder / name
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)


def test_this_computer(hub: str) -> None:
    result = examine()
    assert only("packages", result).state == "ok", "the tests run where everything needed is installed"
    assert only("extra models", result).state == "ok"
    assert only("model hub", result).found.startswith(hub)
    assert not [item for item in result if item.state == "problem"]
    assert all(item.remedy for item in result if item.state == "note" and item.check != "disk here")


def test_no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    finding = only("model hub", examine())
    assert finding.state == "note"
    assert "does not answer" in finding.found
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "HF_HUB_OFFLINE is set" in only("model hub", examine()).found


def test_the_token_is_not_shown(hub: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    shown = CliRunner().invoke(app, ["doctor", "--json"])
    assert "a token is set" in shown.stdout
    assert "hf_secret" not in shown.output


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("numpy>=1000", "numpy is "),
        ("no-such-package", "no-such-package is not installed"),
        ("numpy>=1", ""),
        ("no-such-package; python_version < '3'", ""),
    ],
)
def test_requirements(text: str, wrong: str) -> None:
    assert doctor._unmet(Requirement(text)).startswith(wrong)
    assert bool(doctor._unmet(Requirement(text))) == bool(wrong)


def test_slurm_and_gpus_by_their_own_programs(hub: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    result = examine()
    assert (only("Slurm", result).state, only("GPU", result).state) == ("note", "note")
    program(tmp_path, "sbatch", "")
    program(tmp_path, "sinfo", "echo 'main* up 2 nodes'")
    program(tmp_path, "nvidia-smi", "echo 'NVIDIA A100, 40960 MiB'")
    result = examine()
    assert (only("Slurm", result).state, only("Slurm", result).found) == ("ok", "main* up 2 nodes")
    assert only("GPU", result).found == "NVIDIA A100, 40960 MiB"
    program(tmp_path, "sinfo", "echo 'unable to contact the controller' >&2; exit 1")
    assert only("Slurm", examine()).found.endswith("unable to contact the controller")


def test_a_wrong_cluster_file_is_a_problem(hub: str, tmp_path: Path) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text("subspace: {profiles: {slurm-cpu: {jobs: many}}}\n")
    shown = CliRunner().invoke(app, ["doctor", "--cluster-file", str(file), "--json"])
    assert shown.exit_code == 1
    finding = next(item for item in json.loads(shown.stdout)["findings"] if item["check"] == "cluster.yaml")
    assert "slurm-cpu" in finding["found"]
    assert "jobs" in finding["found"]


def test_brackets_are_no_markup() -> None:
    table = doctor.table_of([Finding("extra gpu", "note", "none", "pip install 'x[gpu]'")])
    assert "x[gpu]" in str(next(iter(table.columns[3].cells)))


SBATCH = """
script=$(eval echo "\\$$#")
log=$(sed -n "s/^#SBATCH -o //p" "$script")
bash "$script" > "$log" 2>&1 &
echo 17
"""


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Slurm's commands; sbatch runs the script on this host."""
    pytest.importorskip("dask_jobqueue")
    folder = tmp_path / "bin"
    folder.mkdir()
    program(folder, "sbatch", SBATCH)
    program(folder, "scancel", "exit 0")
    program(folder, "squeue", "exit 0")
    program(folder, "scontrol", "echo 'PartitionName=cpu AllowAccounts=ALL AllowQos=ALL Default=YES State=UP'")
    program(folder, "sacctmgr", "echo 'lab||normal'")
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setenv("SUBSPACE_STATE", str(tmp_path / "state"))
    return folder


def profile_file(folder: Path, **job: object) -> Path:
    file = folder / "site.yaml"
    file.write_text(yaml.safe_dump({"jobqueue": {"slurm-cpu": {"interface": "lo", "account": "lab", **job}}}))
    return file


def test_a_profile_is_tried_on_a_node(slurm: Path, tmp_path: Path) -> None:
    scratch = tmp_path / "sp are"
    result = list(examine_profile("slurm-cpu", profile_file(tmp_path, scratch=str(scratch))))
    assert [(item.check, item.state) for item in result] == [
        ("account, partition, QOS", "ok"), ("scheduler", "ok"), ("shared folder", "ok"),
        ("packages of the node", "ok"), ("scratch of the node", "ok"), ("cache of the node", "ok"),
        ("interface of the node", "ok"),
    ]  # fmt: skip
    assert f"GB free in {scratch}" in only("scratch of the node", result).found
    assert list((tmp_path / "state" / "runs").iterdir()) == [], "nothing is left"


def test_what_is_wrong_with_a_profile(slurm: Path, tmp_path: Path) -> None:
    file = profile_file(tmp_path, account="other")
    wrong = only("account, partition, QOS", list(examine_profile("slurm-cpu", file, submit=False)))
    assert (wrong.state, wrong.found) == ("problem", "partition: default, account: other, qos: default")
    assert wrong.remedy == "What you may use, under jobqueue.slurm-cpu: {partition: cpu, account: lab, qos: normal}"
    file = profile_file(tmp_path, python="/bin/no-such-python", **{"job-script-prologue": ["echo prologue"]})
    program(slurm, "squeue", "echo '17|FAILED|n1|NonZeroExitCode'")
    wrong = only("profile", list(examine_profile("slurm-cpu", file)))
    assert wrong.state == "problem"
    assert "Job 17 is FAILED (NonZeroExitCode) on n1, and wrote nothing here" in wrong.found
    assert "no-such-python" in wrong.found
    program(slurm, "sbatch", "echo 'sbatch: error: Invalid qos specification' >&2; exit 1")
    wrong = only("profile", list(examine_profile("slurm-cpu", file)))
    assert "Invalid qos specification\nWhat you may use" in wrong.found
    with pytest.raises(InputError, match="only those of kind 'slurm' can be tried"):
        list(examine_profile("processes"))


def test_a_test_job_that_waits(
    slurm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Findings are printed as they come, a line says why the job waits, and it is ended where it waits in vain."""
    monkeypatch.setattr(workers, "FIRST_LINE", 0.0)
    program(slurm, "sbatch", "echo 17")
    look = f"[ -e {tmp_path}/away ] && exit 1; [ -e {tmp_path}/next ] && reason=PartitionTimeLimit"
    program(slurm, "squeue", f'{look}; echo "17|PENDING||${{reason:-Priority}}"')

    def then(name: str, line: str) -> None:
        end = time.monotonic() + 60
        while line not in caplog.text:
            assert time.monotonic() < end, caplog.text
            time.sleep(0.05)
        (tmp_path / name).touch()

    def site() -> None:
        monkeypatch.setattr(workers, "NEXT_LINES", 0.0)
        then("away", "waiting, at most 600 s. Job 17 is PENDING (Priority)")
        then("next", "`squeue")
        (tmp_path / "away").unlink()

    thread = threading.Thread(target=site)
    thread.start()
    findings = examine_profile("slurm-cpu", profile_file(tmp_path))
    assert [next(findings).check for _ in range(2)] == ["account, partition, QOS", "scheduler"], "before it waits"
    (wrong,) = findings
    thread.join()
    assert wrong.found.startswith("Job 17 is PENDING (PartitionTimeLimit), and would wait in vain: set walltime to")
    assert "→ change what it names" in str(doctor.line_of(wrong))


def test_a_node_that_differs(slurm: Path, tmp_path: Path) -> None:
    program(slurm, "python", f'export PYTHONPATH={tmp_path}:$PYTHONPATH; exec {sys.executable} "$@"')
    (tmp_path / "dask-0.1.dist-info").mkdir()
    (tmp_path / "dask-0.1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: dask\nVersion: 0.1\n")
    (tmp_path / "file").touch()
    file = profile_file(tmp_path, python="python", scratch=str(tmp_path / "file" / "x"))
    result = list(examine_profile("slurm-cpu", file))
    assert only("packages of the node", result).found.startswith("dask 0.1, not ")
    assert only("packages of the node", result).state == "problem"
    assert "Not a directory" in only("scratch of the node", result).found
    # the test job of a release that reported something else
    program(slurm, "python", """for folder; do :; done; echo '{"hostname": "n1"}' > "$folder/answer.json\"""")
    found = only("profile", list(examine_profile("slurm-cpu", file))).found
    assert found.startswith("The node has another version of Subspace")
