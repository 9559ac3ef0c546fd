"""PBS, Grid Engine and LSF: their scripts as text, and their listings of jobs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.cluster.keeper import queued_jobs
from jobs.cluster.profiles import find_job, load_settings
from jobs.cluster.schedulers import live_jobs
from jobs.verbs.cluster import job_script
from storage.errors import InputError

#: What of a script differs from scheduler to scheduler: for cores: 4, memory: 8GB, a queue, an account, two hours.
EXPECTED = {
    "pbs": [
        "#PBS -N subspace", "#PBS -q short", "#PBS -A lab", "#PBS -l select=1:ncpus=4:mem=7630MB",
        "#PBS -l walltime=02:00:00", "#PBS -m n",
    ],
    "sge": [
        "#$ -N subspace", "#$ -q short", "#$ -P lab", "#$ -l h_rt=02:00:00", "#$ -cwd", "#$ -j y", "#$ -S /bin/bash",
        "#$ -pe smp 4",
    ],
    "lsf": [
        "#BSUB -J subspace", "#BSUB -q short", '#BSUB -P "lab"', "#BSUB -n 4", '#BSUB -R "span[hosts=1]"',
        "#BSUB -M 7630", "#BSUB -W 02:00", "#BSUB -x",
    ],
}  # fmt: skip
EXTRA = {"pbs": "-m n", "sge": "-pe smp 4", "lsf": "-x"}
# recorded, names changed
LISTINGS = {
    "pbs": """
server:
                                                            Req'd  Req'd   Elap
Job ID          Username Queue    Jobname    SessID NDS TSK Memory Time  S Time
--------------- -------- -------- ---------- ------ --- --- ------ ----- - -----
1234.server     ada      workq    subspace     4567   1   2    8gb 01:00 R 00:01
1235.server     ada      workq    subspace      --    1   2    8gb 01:00 Q   --
""",
    "sge": """job-ID  prior   name       user         state submit/start at     queue           slots ja-task-ID
------------------------------------------------------------------------------------------------
   1234 0.55500 subspace   ada          r     11/28/2026 10:00:00 all.q@n1            2
   1235 0.00000 subspace   ada          qw    11/28/2026 10:00:00                     2
""",
    "lsf": "1234 RUN\n1235 PEND\n",
}


def written(folder: Path, content: dict[str, Any]) -> Path:
    path = folder / "site.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.mark.parametrize("kind", EXPECTED)
def test_scripts_as_text(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("dask_jobqueue")
    site = {"job-script-prologue": ["source /etc/site"], "job-extra-directives": [EXTRA[kind]]}
    job = {
        "partition": "short", "account": "lab", "walltime": "02:00:00", "cores": 4, "memory": "8GB",
        "modules": ["python/3.11"], "scratch": "$TMPDIR", "interface": "ib0", "python": "/my env/python",
    }  # fmt: skip
    script = job_script(f"{kind}-cpu", written(tmp_path, {"jobqueue": {kind: site, f"{kind}-cpu": job}}))
    assert [line for line in script.splitlines() if line.startswith(("#PBS", "#$", "#BSUB"))] == EXPECTED[kind]
    command = script.strip().splitlines()[-1]
    assert command.startswith('"/my env/python" -m distributed.cli.dask_worker tls://SCHEDULER:PORT')
    for part in ("--nthreads 4", '--local-directory "$TMPDIR"', "--lifetime 6120s", "--tls-key ", "--interface ib0"):
        assert part in command
    assert script.index("module load python/3.11") < script.index("export DASK_CONFIG=") < script.index("source /etc")


def test_what_only_slurm_has(tmp_path: Path) -> None:
    settings = load_settings(written(tmp_path, {"jobqueue": {"pbs-cpu": {"qos": "x", "gpus": 1}}}))
    with pytest.raises(InputError, match="only Slurm has qos, gpus; use resource-spec"):
        find_job("pbs-cpu", settings)


@pytest.mark.parametrize(("kind", "command"), [("pbs", "qstat"), ("sge", "qstat"), ("lsf", "bjobs")])
def test_the_jobs_that_wait_or_run(kind: str, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert live_jobs(LISTINGS[kind]).keys() == {"1234", "1235"}
    (tmp_path / "listing").write_text(LISTINGS[kind])
    (tmp_path / command).write_text(f"#!/bin/sh\nexec /bin/cat {tmp_path}/listing\n")
    (tmp_path / command).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    jobs = ["1234", "1235", "7"]
    assert queued_jobs(kind, jobs).keys() == {"1234", "1235"}  # type: ignore[union-attr]
    (tmp_path / command).write_text("#!/bin/sh\necho 'No unfinished job found' >&2; exit 255\n")
    assert queued_jobs(kind, jobs) == {}
    (tmp_path / command).write_text("#!/bin/sh\nexit 1\n")
    assert queued_jobs(kind, jobs) is None


def test_what_lsf_is_to_find_between_double_quotes(tmp_path: Path) -> None:
    pytest.importorskip("dask_jobqueue")
    for spec, message in (("select[type==any]", None), ('select["x"]', "leave out those in")):
        file = written(tmp_path, {"jobqueue": {"lsf-cpu": {"resource-spec": spec}}})
        if message is None:
            assert '#BSUB -R "select[type==any]"\n' in job_script("lsf-cpu", file)
            continue
        with pytest.raises(InputError, match=message):
            job_script("lsf-cpu", file)
