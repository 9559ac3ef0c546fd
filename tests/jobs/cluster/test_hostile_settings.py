"""Settings that would become lines of a job script, and state that others could change."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.cluster import service
from jobs.cluster.profiles import Driver, SlurmJob, find_job, find_profile, load_settings
from jobs.cluster.running import cluster_of, find_cluster, known_names
from jobs.cluster.submission import submit_run
from storage.errors import InputError
from storage.files import private_folder, write_atomically

BAD = "gpu\n#SBATCH --uid=0"


def settings_of(folder: Path, content: dict[str, Any]) -> dict[str, Any]:
    path = folder / "cluster.yaml"
    path.write_text(yaml.safe_dump(content))
    return load_settings(path)


def texts(model: Any) -> Iterator[tuple[str, Any]]:
    """Yield each key of a section that takes text, with a bad value."""
    for name, field in model.model_fields.items():
        key, kind = name.replace("_", "-"), str(field.annotation)
        if "list[str]" in kind:
            yield key, ["good", BAD]
        elif "dict" in kind:
            yield key, {"interface": {"of": BAD}}
        elif "str" in kind and "Literal" not in kind:
            yield key, BAD


@pytest.mark.parametrize(("key", "value"), list(texts(SlurmJob)))
def test_no_setting_of_a_job_has_a_line_break(key: str, value: Any, tmp_path: Path) -> None:
    settings = settings_of(tmp_path, {"jobqueue": {"slurm-cpu": {key: value}}})
    with pytest.raises(
        InputError, match=rf"^jobqueue\.slurm-cpu\.{key}\S* is 'gpu\\n#SBATCH --uid=0', with the control"
    ):
        find_job("slurm-cpu", settings)


@pytest.mark.parametrize(("key", "value"), list(texts(Driver)))
def test_no_setting_of_a_driver_has_a_line_break(key: str, value: Any, tmp_path: Path) -> None:
    settings = settings_of(tmp_path, {"subspace": {"profiles": {"slurm-cpu": {"driver": {key: value}}}}})
    with pytest.raises(InputError, match=rf"^subspace\.profiles\.slurm-cpu\.driver\.{key} is 'gpu"):
        find_profile("slurm-cpu", settings)


@pytest.mark.parametrize("character", ["\n", "\r", "\t", "\0", "\x1b", "\x85", "\u2028", "\x7f"])
def test_no_control_character_is_taken(character: str, tmp_path: Path) -> None:
    settings = settings_of(tmp_path, {"jobqueue": {"slurm-cpu": {"queue": f"gpu{character}x"}}})
    with pytest.raises(InputError, match=r"jobqueue\.slurm-cpu\.queue is ") as caught:
        find_job("slurm-cpu", settings)
    assert character not in str(caught.value)


def test_a_long_value_is_shortened(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, {"jobqueue": {"slurm-cpu": {"account": "x" * 10_000 + "\n" + "y" * 10_000}}})
    with pytest.raises(InputError, match=r"x\\ny") as caught:
        find_job("slurm-cpu", settings)
    assert len(str(caught.value)) < 300


def test_names_are_settings_too(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, {"subspace": {"profiles": {BAD: {"kind": "slurm", "like": "slurm-cpu"}}}})
    with pytest.raises(InputError, match="the name of a cluster profile is 'gpu"):
        find_profile(BAD, settings)


def test_what_the_site_adds_is_looked_at(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, {"jobqueue": {"slurm": {"job-extra-directives": [BAD]}}})
    with pytest.raises(InputError, match=r"^jobqueue\.slurm\.job-extra-directives\.0 is"):
        find_job("slurm-cpu", settings)


def test_nothing_is_written_of_a_submission_that_is_refused(tmp_path: Path) -> None:
    (tmp_path / "site.yaml").write_text(yaml.safe_dump({"jobqueue": {"slurm-cpu": {"partition": BAD}}}))
    with pytest.raises(InputError, match="partition is"):
        submit_run(tmp_path / "e.yaml", tmp_path / "run", cluster_file=tmp_path / "site.yaml", dry_run=True)
    with pytest.raises(InputError, match="the run directory is"):
        submit_run(tmp_path / "e.yaml", tmp_path / "run\n#SBATCH --uid=0", dry_run=True)
    with pytest.raises(InputError, match=r"the run directory is .*control character '\\udcff'"):
        submit_run(tmp_path / "e.yaml", tmp_path / os.fsdecode(b"run-\xff"), dry_run=True)
    assert [path.name for path in tmp_path.iterdir()] == ["site.yaml"]


# --- what is on disk --------------------------------------------------------------------------------------------------


@pytest.fixture(params=[0o000, 0o022, 0o077], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_folders_and_files_are_private_whatever_the_umask(umask: int, tmp_path: Path) -> None:
    folder = private_folder(tmp_path / "state" / "clusters" / "mine")
    write_atomically(folder / "file", [b"x"], mode=0o600)
    assert {path.stat().st_mode & 0o777 for path in (folder, *folder.parents[:2])} == {0o700}
    assert (folder / "file").stat().st_mode & 0o777 == 0o600


def test_all_of_a_cluster_is_private(tmp_path: Path) -> None:
    """Started where everything else that is made may be written to by all."""
    environment = {**os.environ, "XDG_STATE_HOME": str(tmp_path / "home" / "state")}
    environment.pop("SUBSPACE_STATE", None)
    code = "import os; os.umask(0); from jobs.cli import main; main()"
    started = subprocess.run(
        [sys.executable, "-c", code, "cluster", "up", "mine"],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    try:
        assert started.returncode == 0, started.stderr
        modes = {path: path.stat().st_mode & 0o777 for path in (tmp_path / "home").rglob("*")}
        modes[tmp_path / "home"] = (tmp_path / "home").stat().st_mode & 0o777
        assert tmp_path / "home/state/subspace/clusters/mine/key.pem" in modes
        assert {path: oct(mode) for path, mode in modes.items() if mode & 0o077} == {}
    finally:
        subprocess.run([sys.executable, "-m", "jobs.cli", "cluster", "down", "mine"], env=environment, check=False)


@pytest.mark.parametrize("part", ["", "clusters", "clusters/mine"])
def test_state_that_others_could_change_is_refused(part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUBSPACE_STATE", str(tmp_path / "state"))
    folder = private_folder(cluster_of("mine").folder)
    cluster_of("mine").begin(profile="processes", token="x")
    assert known_names() == ["mine"]
    open_to_all = tmp_path / "state" / part
    open_to_all.chmod(0o777)
    message = rf"Others may write to {open_to_all}.*chmod go-w"
    for use in (lambda: cluster_of("mine").about, lambda: service.up("mine", "processes")):
        with pytest.raises(InputError, match=message):
            use()
    if part != "clusters/mine":
        with pytest.raises(InputError, match=message):
            find_cluster("mine")
        with pytest.raises(InputError, match=message):
            known_names()
    assert list(folder.iterdir()) == [folder / "cluster.json"]


def test_a_folder_of_somebody_else_is_refused(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        theirs = tmp_path / "theirs"
        theirs.mkdir(mode=0o700)
        os.chown(theirs, 65534, 65534)
    else:
        theirs = Path("/usr")
    link = tmp_path / "link"
    link.symlink_to(theirs)
    for path in (theirs, link):
        with pytest.raises(InputError, match=rf"{path} belongs to user \d+, not to you"):
            private_folder(path)
