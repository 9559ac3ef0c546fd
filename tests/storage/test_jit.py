"""Compiled functions: where their code is kept, and what becomes of damaged, old and foreign code."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
CALLEE = """
from storage.jit import cached_njit

@cached_njit
def scale(x):
    return 2 * x
"""
CALLER = """
from callee import scale
from storage.jit import cached_njit

@cached_njit
def scaled(x):
    return scale(x) + 1
"""
#: Call with an integer and a float; print the values, how many of the two were loaded, and where code is kept.
PROGRAM = """
import json, logging
logging.basicConfig(level=logging.INFO, format="LOG %(message)s")
from caller import scaled
values = [scaled(3), scaled(0.25)]
stats = scaled.stats
print(json.dumps([values, sum(stats.cache_hits.values()), stats.cache_path]))
"""


class Project:
    """Two modules of compiled functions in a folder, with a home and a folder for temporary files of their own."""

    def __init__(self, folder: Path, bound: list[str]) -> None:
        self.command = [*bound, sys.executable, "-B", "-c", PROGRAM]
        self.source, self.home, self.temporary = folder / "source", folder / "home", folder / "tmp"
        for path in (self.source, self.home, self.temporary):
            path.mkdir()
        (self.source / "callee.py").write_text(CALLEE)
        (self.source / "caller.py").write_text(CALLER)
        self.log = ""

    def run(self, **environment: str) -> tuple[list[float], int, str | None]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("NUMBA", "XDG"))}
        paths = {"HOME": str(self.home), "TMPDIR": str(self.temporary), "PYTHONPATH": f"{self.source}:{ROOT}"}
        done = subprocess.run(
            self.command,
            env={**inherited, **paths, **environment},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        self.log = done.stderr
        values, loaded, place = json.loads(done.stdout)
        return values, loaded, place

    def files(self) -> list[Path]:
        files = [path for folder in (self.source, self.home, self.temporary) for path in folder.rglob("*.nb[ci]")]
        return sorted(file for file in files if file.name.startswith("caller"))

    @property
    def private(self) -> Path:
        return self.temporary / f"subspace-numba-{os.getuid()}"


@pytest.fixture
def project(tmp_path: Path, bound_by_permissions: list[str]) -> Iterator[Project]:
    made = Project(tmp_path, bound_by_permissions)
    yield made
    for folder in (made.source, made.home, made.temporary):
        folder.chmod(0o700)


VALUES = [7, 1.5]


@pytest.fixture(scope="module")
def _compiled(tmp_path_factory: pytest.TempPathFactory, bound_by_permissions: list[str]) -> Project:
    made = Project(tmp_path_factory.mktemp("compiled"), bound_by_permissions)
    assert made.run() == (VALUES, 0, str(made.source / "__pycache__"))
    return made


@pytest.fixture
def compiled(project: Project, _compiled: Project) -> Project:
    """A project that has run once; its code is beside its source."""
    shutil.copytree(_compiled.source, project.source, dirs_exist_ok=True)
    return project


def test_code_is_loaded_by_later_processes(compiled: Project) -> None:
    assert compiled.run() == (VALUES, 2, str(compiled.source / "__pycache__"))
    assert compiled.log == ""


def test_the_folder_that_the_user_names_comes_first(project: Project, tmp_path: Path) -> None:
    place = project.run(NUMBA_CACHE_DIR=str(tmp_path / "mine"))[2]
    assert place is not None
    assert Path(place).parent == tmp_path / "mine"
    assert project.files() == []


@pytest.mark.parametrize("suffix", [".nbi", ".nbc"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[: len(content) // 2],
        lambda content: b"garbage" * 100,
        lambda content: content[:-200] + bytes([content[-200] ^ 1]) + content[-199:],
    ],
    ids=["emptied", "truncated", "garbage", "flipped bit"],
)
def test_damaged_files_are_recompiled(compiled: Project, suffix: str, damage: Callable[[bytes], bytes]) -> None:
    files = [file for file in compiled.files() if file.suffix == suffix]
    assert files
    for file in files:
        file.write_bytes(damage(file.read_bytes()))
    assert compiled.run()[:2] == (VALUES, 0)
    assert all(file.stat().st_size > 200 for file in files), "written again"


def test_files_without_checksum_are_recompiled(compiled: Project) -> None:
    """As those that Numba itself writes."""
    for file in compiled.files():
        file.write_bytes(file.read_bytes()[:-32])
    assert compiled.run()[:2] == (VALUES, 0)
    assert compiled.run()[:2] == (VALUES, 2)


def test_code_of_another_signature_is_not_taken(compiled: Project) -> None:
    """With Numba's own files, two processes that save at the same time can swap them."""
    first, second = [file for file in compiled.files() if file.suffix == ".nbc"]
    content = first.read_bytes()
    shutil.copyfile(second, first)
    second.write_bytes(content)
    assert compiled.run()[:2] == (VALUES, 0)


def test_code_depends_on_the_functions_that_it_calls(compiled: Project) -> None:
    """The caller's file is as it was."""
    (compiled.source / "callee.py").write_text(CALLEE.replace("2 * x", "3 * x"))
    assert compiled.run()[:2] == ([10, 1.75], 0)


def test_code_depends_on_the_numbers_of_other_modules(project: Project) -> None:
    (project.source / "callee.py").write_text(CALLEE)
    (project.source / "sizes.py").write_text("OFFSET = 1")
    text = "from sizes import OFFSET\n" + CALLER.replace("+ 1", "+ OFFSET")
    (project.source / "caller.py").write_text(text)
    assert project.run()[:2] == (VALUES, 0)
    (project.source / "sizes.py").write_text("OFFSET = 2")
    assert project.run()[:2] == ([8, 2.5], 0)


def read_only(*folders: Path) -> None:
    for folder in folders:
        folder.chmod(0o500)


def test_where_nothing_else_can_be_written_to_code_is_below_tmpdir(project: Project) -> None:
    read_only(project.source, project.home)
    values, _, place = project.run()
    assert values == VALUES
    assert place is not None
    assert Path(place).parent == project.private
    assert project.private.stat().st_mode & 0o777 == 0o700
    assert project.log.count("LOG") == 1
    assert str(project.private) in project.log
    assert project.run()[1] == 2


def test_where_nothing_can_be_written_to_there_is_no_cache_and_one_warning(project: Project) -> None:
    # not TMPDIR itself: Python would use another folder in place of one that it cannot write to
    project.private.mkdir()
    read_only(project.source, project.home, project.private)
    assert project.run() == (VALUES, 0, None)
    assert project.log.count("LOG") == 1


def world_writable(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o777)


def of_somebody_else(folder: Path) -> None:
    folder.mkdir()
    os.chown(folder, 65534, 65534)


def planted_link(folder: Path) -> None:
    of_somebody_else(folder.with_name("theirs"))
    folder.symlink_to(folder.with_name("theirs"))


#: Only the administrator can make folders of others.
FOREIGN = [of_somebody_else, planted_link] if os.geteuid() == 0 else []


@pytest.mark.parametrize("plant", [world_writable, Path.touch, *FOREIGN])
def test_a_folder_in_which_others_could_put_code_is_not_used(project: Project, plant: Callable[[Path], Any]) -> None:
    plant(project.private)
    read_only(project.source, project.home)
    values, loaded, place = project.run()
    assert (values, loaded, place) == (VALUES, 0, None)
    assert str(project.private) in project.log
    assert project.files() == []


def test_a_cache_that_can_no_longer_be_written_to_is_no_error(project: Project) -> None:
    """As a disk that is full: the function is compiled, and its code is lost."""
    lock = "import pathlib; pathlib.Path(__file__).parent.joinpath('__pycache__').chmod(0o500)"
    (project.source / "caller.py").write_text(CALLER + lock)
    assert project.run()[0] == VALUES
    assert project.log.count("LOG") == 1
    (project.source / "__pycache__").chmod(0o700)
