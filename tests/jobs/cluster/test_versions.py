"""Workers of other versions are refused; on a Slurm: tests/slurm/test_messages.py."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import dask
import pytest
import yaml
from distributed import LocalCluster

from jobs.cluster import versions
from jobs.cluster.client import connect
from storage.errors import InputError


def answers(monkeypatch: pytest.MonkeyPatch, *numpy: str) -> None:
    """Have the versions of numpy be these, one after the other."""
    found: Iterator[dict[str, str]] = iter([{"numpy": version} for version in numpy])
    monkeypatch.setattr(versions, "versions", lambda: next(found))


def test_workers_that_somebody_else_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with LocalCluster(
        n_workers=1, threads_per_worker=1, processes=False, protocol="tcp", dashboard_address="127.0.0.1:0"
    ) as cluster:
        path = tmp_path / "site.yaml"
        path.write_text(
            yaml.safe_dump({"subspace": {"profiles": {"scheduler": {"address": cluster.scheduler_address}}}})
        )
        with connect("scheduler", path) as client:
            assert client.submit(sum, [1, 2]).result() == 3
        answers(monkeypatch, "2.4", "2.3")
        with (
            pytest.raises(InputError, match=r"driver's versions: numpy 2\.3, not 2\.4\. It is"),
            connect("scheduler", path),
        ):
            pass


def test_a_job_compares_itself_with_its_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, "2.4", "2.4", "2.3")
    started = SimpleNamespace(process="a worker")
    with dask.config.set(versions.demanding_versions({"distributed": {"nanny": {"preload": ["mine"]}}})):
        assert dask.config.get("distributed.nanny.preload") == ["mine", versions.__name__]
        versions.dask_setup(started)
        with pytest.raises(SystemExit, match=r"numpy 2\.3, not 2\.4"):
            versions.dask_setup(started)


def test_a_worker_that_reaches_no_scheduler_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(versions, "REACHING", 0.1)
    for process in ("started", None):
        versions.dask_setup(SimpleNamespace(process=process, scheduler_addr="tls://127.0.0.1:1"))
        time.sleep(0.5)
    (line,) = capsys.readouterr().err.splitlines()
    assert "cannot reach the scheduler at tls://127.0.0.1:1 (" in line


def test_the_code_counts_and_not_the_version_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = versions.versions()
    assert here["semantic-subspace-matching"]
    assert versions.differences(here, here) == []
    (tmp_path / "storage").mkdir()
    (tmp_path / "storage" / "codec.py").write_text("CODE = 1\n")
    monkeypatch.setattr(versions, "PLACE", tmp_path)
    (different,) = versions.differences(versions.versions(), here)
    assert different.startswith("files of subspace ")
