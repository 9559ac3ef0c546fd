"""Death after every file operation: that the harness counts, notices and judges, and a short version of it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import storage
from benchmarks import crash
from benchmarks.crash_disk import differences, read_between, tree
from benchmarks.crash_processes import LIBRARY, build
from jobs.verbs.index import VERBS
from pipeline.experiment.stages import STAGES
from storage.derived import write_derived

ROOT = Path(__file__).parent.parent

OPERATIONS = """
    import ctypes, os, shutil
    import numpy as np
    os.mkdir("folder")
    library = ctypes.CDLL(os.environ["{library}"])
    log = os.open("log", os.O_CREAT | os.O_WRONLY)
    library.crash_arm(os.fsencode(os.path.realpath("folder")), ctypes.c_long({die_after}), {torn}, log)
    os.chdir("folder")
    with open("a", "wb", buffering=0) as file:      # open
        file.write(b"12345678")                     # write
        os.pwrite(file.fileno(), b"x", 0)           # write
        os.writev(file.fileno(), [b"1", b"2"])      # write
        os.ftruncate(file.fileno(), 6)              # truncate
        os.fchmod(file.fileno(), 0o600)             # chmod
    os.mkdir("b")                                   # mkdir
    os.replace("a", "b/a")                          # rename
    os.link("b/a", "b/c")                           # link
    os.symlink("a", "b/d")                          # link
    os.utime("b/a", (1, 1))                         # utime
    os.truncate("b/a", 3)                           # truncate
    np.arange(9).tofile("e")                        # open, write
    shutil.copyfile("e", "f")                       # open, write
    os.chmod("f", 0o644)                            # chmod
    open("../outside", "w").close()
    open("f").close()
    shutil.rmtree("b")                              # 3 unlink, rmdir
    print(library.crash_disarm())
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Compile the library that is preloaded."""
    return build(tmp_path_factory.mktemp("library"))


def operate(library: str, folder: Path, *, die_after: int = 0, torn: bool = False) -> tuple[int, list[str]]:
    """Run the operations; return the exit status and the log of kinds."""
    program = textwrap.dedent(OPERATIONS).format(library=LIBRARY, die_after=die_after, torn=int(torn))
    variables = {**os.environ, LIBRARY: library, "LD_PRELOAD": library}
    ended = subprocess.run([sys.executable, "-c", program], cwd=folder, env=variables, check=False, timeout=60)
    return ended.returncode, [line.split()[1] for line in (folder / "log").read_text().splitlines()]


def test_operations_of_every_kind_are_counted(library: str, tmp_path: Path) -> None:
    status, kinds = operate(library, tmp_path)
    assert status == 0
    counts = Counter(kinds)
    assert 5 <= counts.pop("write") <= 6  # copying may take one call more, to see the end of the file
    assert counts == {"open": 3, "truncate": 2, "chmod": 2, "mkdir": 1, "rename": 1, "link": 2, "utime": 1, "unlink": 3,
                      "rmdir": 1}  # fmt: skip


def test_nothing_happens_after_the_death(library: str, tmp_path: Path) -> None:
    status, kinds = operate(library, tmp_path, die_after=8)
    assert status == -9
    assert kinds[-2:] == ["mkdir", "rename"]
    assert [path.name for path in sorted((tmp_path / "folder").rglob("*"))] == ["b", "a"]


def test_a_write_is_torn(library: str, tmp_path: Path) -> None:
    status, kinds = operate(library, tmp_path, die_after=1, torn=True)
    assert status == -9
    assert kinds == ["open", "torn"]
    assert (tmp_path / "folder" / "a").read_bytes() == b"1234"


def test_trees_differ_where_content_does_but_not_where_moments_do(tmp_path: Path) -> None:
    trees = []
    for scale in (1, 1, 2):
        storage.write_activations(tmp_path / "a.zarr", scale * np.eye(6, 9), attrs={"kind": "post"}, overwrite=True)
        trees.append(tree(tmp_path))
    assert trees[0] == trees[1]
    changed = list(differences(trees[2], trees[0]))
    assert "other bytes: a.zarr/activation/c/0/0" in changed
    assert "other bytes: a.zarr/zarr.json" in changed
    (tmp_path / "a.zarr.lock").touch()
    assert list(differences(tree(tmp_path), trees[2])) == ["left behind: a.zarr.lock"]


def test_a_reader_that_opens_half_of_something_is_noticed(tmp_path: Path) -> None:
    storage.write_activations(tmp_path / "a.zarr", np.eye(6, 9), attrs={"kind": "post"})
    old = tree(tmp_path)
    storage.write_activations(tmp_path / "a.zarr", 2 * np.eye(6, 9), attrs={"kind": "post"}, overwrite=True)
    new = tree(tmp_path)
    assert not list(read_between(tmp_path, ["a.zarr"], old, new))
    (tmp_path / "a.zarr/activation/c/0/0").unlink()
    assert not list(read_between(tmp_path, ["a.zarr"], old, new)), "it is refused"
    (tmp_path / "pairs.csv").write_text("half")
    table = {"pairs.csv": "the digest of the whole"}
    assert list(read_between(tmp_path, ["pairs.csv"], table, table)) == [
        "a reader opens neither the old nor the new pairs.csv"
    ]


@pytest.mark.timeout(600)
def test_a_few_stages_survive_their_deaths() -> None:
    command = [sys.executable, "-m", "benchmarks.crash", "--quick", "--pairs", "2"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=590)
    assert ended.returncode == 0, ended.stderr
    result: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    assert {row["scenario"] for row in result["rows"]} == set(crash.QUICK)
    for row in result["rows"]:
        assert not row["problems"], row
        assert row["same"] == row["deaths"], row
        assert row["pairs_well"] == 2, row
    assert sum(sum(row["deaths"].values()) for row in result["rows"]) > 100
    # what must not come out well does not
    assert sum(result["control"]["same"].values()) < sum(result["control"]["deaths"].values())


def test_every_verb_and_stage_has_a_scenario_and_no_row_of_the_table_a_problem() -> None:
    from benchmarks.crash_scenarios import SCENARIOS, WITHOUT_SCENARIO

    names = [scenario.name for scenario in SCENARIOS]
    tried = {re.split(r",| --", name)[0] for name in names} | {"harvest"}
    assert {verb.name for verb in VERBS} - tried == {*WITHOUT_SCENARIO}
    assert {f"run --until {stage}" for stage in STAGES} <= {*names}
    rows = {row["scenario"]: row for row in json.loads(crash.KEPT.read_text(encoding="utf-8"))["rows"]}
    assert [*rows] == [name for name in names if name in rows]
    for name, row in rows.items():
        assert row["deaths"]["death"] >= min(row["operations"], 4), name
        assert row["same"] == row["deaths"], name
        assert row["pairs_well"] == row["pairs"] > 0, name
        assert not row["problems"], name


def test_the_page_shows_what_was_kept() -> None:
    page = crash.PAGE.read_text(encoding="utf-8")
    assert crash.insert(page, crash.MARK, crash.render(json.loads(crash.KEPT.read_text(encoding="utf-8")))) == page


def test_a_record_of_written_files_differs_only_where_it_is_not_that_of_the_files(tmp_path: Path) -> None:
    trees = []
    for moment in ("2026-11-28T18:31:54+00:00", "2026-11-28T18:32:11+00:00"):
        (tmp_path / "experiment.json").write_text("{}")
        write_derived(tmp_path / "report.json", f'{{"created": "{moment}"}}')
        trees.append(tree(tmp_path))
    assert trees[0] == trees[1]
    (tmp_path / "written.json").write_text('{"report.json": [1]}')
    assert list(differences(tree(tmp_path), trees[0])) == ["other bytes: written.json"]
