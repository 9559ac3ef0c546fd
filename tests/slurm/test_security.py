"""Whoever has not the cluster's certificate can do nothing on any profile that reaches over several hosts."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dask
import psutil
import pytest
import yaml
from distributed import Client
from distributed.security import Security

from jobs.cluster import service
from jobs.cluster.client import connect, slurm_cluster
from jobs.cluster.profiles import load_settings
from jobs.cluster.running import cluster_of
from storage.files import private_folder

pytestmark = pytest.mark.slurm

_ran: list[str] = []


def intrude(name: str) -> str:
    """What a stranger would run."""
    _ran.append(name)
    return name


def strangers(address: str) -> Iterator[tuple[str, str, Security | None]]:
    """Yield a name, an address and the keys of each who may not come in."""
    yield "without TLS", address.replace("tls://", "tcp://"), None
    yield "with the keys of another cluster", address, Security.temporary()
    yield "with TLS, and no certificate of its own", address, _nameless()


def _nameless() -> Security:
    """Return the security of a client that encrypts, but shows a certificate that nobody signed for this cluster."""
    own, other = Security.temporary(), Security.temporary()
    return Security(
        require_encryption=True,
        tls_ca_file=own.tls_ca_file,
        tls_client_cert=other.tls_client_cert,
        tls_client_key=other.tls_client_key,
    )


def refuses_strangers(address: str) -> None:
    assert address.startswith("tls://")
    for name, where, keys in strangers(address):
        # the connection is closed, reset, or never answered: all of these are OSErrors
        with pytest.raises(OSError), Client(where, security=keys, timeout=2) as stranger:  # noqa: PT011
            stranger.submit(intrude, name, pure=False).result(timeout=2)


@pytest.fixture
def gpu_settings(tmp_path: Path) -> dict[str, object]:
    job = {"interface": "lo", "shared-temp-directory": str(tmp_path), "cores": 1, "memory": "1GB"}
    job |= {"scheduler-options": {"dashboard_address": "127.0.0.1:0"}}
    path = tmp_path / "gpu.yaml"
    node = {**job, "gpus": 2, "processes": 2, "cores": 2}
    path.write_text(yaml.safe_dump({"jobqueue": {"slurm-gpu": job, "slurm-gpu-node": node}}))
    return load_settings(path)


@pytest.mark.parametrize("profile", ["slurm-gpu", "slurm-gpu-node"])
def test_gpu_profiles(slurm: Path, profile: str, gpu_settings: dict[str, object], tmp_path: Path) -> None:
    pytest.importorskip("dask_jobqueue")
    folder = private_folder(tmp_path / "private")
    with dask.config.set(gpu_settings), slurm_cluster(profile, gpu_settings, folder, "test") as cluster:
        refuses_strangers(cluster.scheduler_address)
        with Client(cluster, timeout=10) as own:
            assert own.scheduler_info(n_workers=0)["services"]["dashboard"]
    assert not _ran


def test_slurm_cpu_and_its_workers(slurm: Path, slurmctl: Any, cluster_file: Path) -> None:
    with connect("slurm-cpu", cluster_file) as client:
        client.wait_for_workers(2, timeout=60)
        assert set(client.run(lambda: os.environ["SLURM_JOB_ID"]).values()) == set(slurmctl.running())
        (folder,) = cluster_file.parent.glob("slurm-cpu-*")
        assert folder.stat().st_mode & 0o777 == 0o700
        assert {path.stat().st_mode & 0o077 for path in folder.glob("*.pem")} == {0}, "others may read keys"
        refuses_strangers(client.scheduler.address)
        info = client.scheduler_info(n_workers=-1)
        for worker in info["workers"]:
            refuses_strangers(worker)
        ports = {info["services"]["dashboard"], *(w["services"]["dashboard"] for w in info["workers"].values())}
        assert {one.laddr.ip for one in psutil.net_connections() if one.laddr and one.laddr.port in ports} == {
            "127.0.0.1"
        }, "dashboards listen on localhost alone"
        assert client.submit(sum, [1, 2]).result() == 3
        tasks = client.run_on_scheduler(lambda dask_scheduler: [str(key) for key in dask_scheduler.tasks])
    assert not [key for key in tasks if "intrude" in key]
    assert not _ran


def test_the_service_and_the_profile_scheduler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, subspace: Callable[..., str]
) -> None:
    monkeypatch.setenv("SUBSPACE_STATE", str(tmp_path / "state"))
    subspace("cluster", "up", "mine")
    try:
        state = cluster_of("mine")
        refuses_strangers(state.address())
        joins = {"address": state.address(), "certificates": str(state.folder)}
        path = tmp_path / "join.yaml"
        path.write_text(yaml.safe_dump({"subspace": {"profiles": {"scheduler": joins}}}))
        with connect("scheduler", path) as client:
            assert client.submit(sum, [1, 2]).result() == 3
    finally:
        service.down("mine")
