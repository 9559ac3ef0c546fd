"""Whatever happens inside a command, a person sees a sentence and a program an exit status."""

from __future__ import annotations

import errno
import logging
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import typer
from typer.testing import CliRunner

import storage
from jobs.cli import app
from pipeline.correlate.run import correlate
from pipeline.work import boundary
from storage import errors
from storage.damage import reading

TRACEBACK = "Traceback (most recent call last)"


def call(*arguments: Any) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two stores and their correlation; not to be changed."""
    folder = tmp_path_factory.mktemp("results")
    rng = np.random.default_rng(0)
    base = rng.random((120, 20)) * (rng.random((120, 20)) < 0.3)
    for name in "ab":
        storage.write_activations(
            folder / f"{name}.zarr", scipy.sparse.csr_array(base), shard_rows=40, chunk=(20, 8), overwrite=True
        )
    correlate(folder / "a.zarr", folder / "b.zarr", top_k=3, out=folder / "c.zarr", memory="2GB")
    return folder


def test_bars_of_libraries_do_not_fill_a_log_file() -> None:
    """In a process of its own: tqdm looks at the environment when it is imported."""
    code = "from pipeline.work.script import set_up_logging as up; up(); from tqdm.auto import tqdm; list(tqdm([1, 2]))"
    environment = {name: value for name, value in os.environ.items() if name != "TQDM_DISABLE"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stderr == ""


def test_what_dask_logs_is_not_shown(results: Path, tmp_path: Path) -> None:
    """In a process of its own: Dask sets the level of its loggers when it is imported."""
    command = [sys.executable, "-m", "jobs", "correlate", str(results / "a.zarr"), str(results / "b.zarr"), "--out"]
    done = subprocess.run([*command, str(tmp_path / "c.zarr")], capture_output=True, text=True, check=True)
    assert "Dashboard: http" in done.stderr
    assert not re.findall("(?i)register worker|scheduler at|close-stream|jupyter", done.stderr), done.stderr


def test_a_device_is_no_table(results: Path, tmp_path: Path) -> None:
    done = call("match", results / "c.zarr", "--out", tmp_path / "p.zarr", "--csv", "/dev/full")
    assert done.exit_code == 2
    assert "must be a name that ends in .csv" in done.stderr
    assert TRACEBACK not in done.stderr


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("file/p.zarr", "is not a folder, so that"),
        ("x" * 300, "the name is too long"),
        ("loop/p.zarr", "is not a folder, so that"),
    ],
)
def test_places_that_cannot_be_written(results: Path, tmp_path: Path, where: str, said: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    done = call("match", results / "c.zarr", "--out", tmp_path / where)
    assert (done.exit_code, TRACEBACK in done.stderr) == (2, False)
    assert said in done.stderr
    assert str(tmp_path) in done.stderr.replace("\n", "")


def test_a_folder_where_a_file_goes(results: Path, tmp_path: Path) -> None:
    done = call("match", results / "c.zarr", "--out", tmp_path / "p.zarr", "--csv", tmp_path)
    assert (done.exit_code, TRACEBACK in done.stderr) == (2, False)
    assert "must be a name that ends in .csv" in done.stderr.replace("\n", " ")


@pytest.mark.parametrize(
    ("number", "status"),
    [(errno.ENOSPC, 3), (errno.EDQUOT, 3), (errno.EROFS, 2), (errno.EACCES, 2), (errno.EMFILE, 1), (errno.EIO, 1)],
)
def test_every_trouble_of_the_system_has_a_sentence_and_a_status(number: int, status: int) -> None:
    message, result = boundary.explain(OSError(number, "as the system says", "/data/run"))
    assert result == status
    assert message.startswith("/data/run: ")
    assert "." in message.removeprefix("/data/run: ")


@pytest.mark.parametrize("arguments", [("--debug", "verb"), ("verb", "--debug"), ("verb",)])
def test_a_bug_says_that_it_is_one_and_shows_where_with_debug(arguments: tuple[str, ...]) -> None:
    def command() -> None:
        """Divide."""
        _ = {}["missing"]

    own = typer.Typer()

    @own.callback()
    def start(debug: boundary.Debug = False) -> None:
        boundary.DEBUG.set(debug)

    own.command("verb")(boundary.guarded(command))
    done = CliRunner().invoke(own, list(arguments))
    assert done.exit_code == 70
    assert "A bug in this program (KeyError: 'missing')" in done.stderr
    assert "--debug" in done.stderr
    assert (TRACEBACK in done.stderr) == ("--debug" in arguments)
    boundary.DEBUG.set(False)


@pytest.mark.parametrize("error", [EOFError("no more"), RecursionError("too deep"), AssertionError()])
def test_nothing_else_becomes_a_traceback_or_aborted(error: Exception) -> None:
    def command() -> None:
        """Fail."""
        raise error

    own = typer.Typer()
    own.command()(boundary.guarded(command))
    done = CliRunner().invoke(own, [])
    assert done.exit_code == 70
    assert type(error).__name__ in done.stderr
    assert "Aborted" not in done.stderr


def test_lack_of_memory_is_no_bug() -> None:
    message, status = boundary.explain(MemoryError("Unable to allocate 8.00 TiB"))
    assert status == 3
    assert "8.00 TiB" in message


def test_errors_of_tasks_arrive_whole() -> None:
    """Dask pickles what a task raises."""
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    assert len(kinds) == 11
    for kind in kinds:
        error = pickle.loads(pickle.dumps(kind("what went wrong")))
        assert (type(error), str(error)) == (kind, "what went wrong")


@pytest.mark.parametrize("cluster", [(), ("--cluster", "processes")])
def test_damage_that_a_task_finds_arrives_as_a_sentence(
    results: Path, tmp_path: Path, cluster: tuple[str, ...], capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.zarr", "b.zarr"):
        subprocess.run(["cp", "-r", results / name, tmp_path / name], check=True)
    shard = tmp_path / "b.zarr" / "activation" / "c" / "1" / "0"
    shard.write_bytes(bytes(len(shard.read_bytes())))
    stores = (tmp_path / "a.zarr", tmp_path / "b.zarr")
    done = call("correlate", *stores, "--memory", "2GB", "--out", tmp_path / "c.zarr", *cluster)
    assert done.exit_code == 2
    assert str(shard) in done.stderr.replace("\n", "")
    assert TRACEBACK not in done.stderr + capfd.readouterr().err


def test_a_damaged_chunk_that_zarr_reads_is_named(results: Path, tmp_path: Path) -> None:
    subprocess.run(["cp", "-r", results / "c.zarr", tmp_path / "c.zarr"], check=True)
    (chunk,) = (tmp_path / "c.zarr" / "n_active_a" / "c").rglob("0")
    chunk.write_bytes(bytes([chunk.read_bytes()[0] ^ 1]) + chunk.read_bytes()[1:])
    done = call("match", tmp_path / "c.zarr", "--out", tmp_path / "p.zarr", "--filter", "min_firing:n=1")
    assert done.exit_code == 2
    assert "c.zarr/n_active_a" in done.stderr.replace("\n", "")
    assert TRACEBACK not in done.stderr


@pytest.mark.parametrize("memory", ["1e400", "-5GB", "lots", "0", "nan", ""])
def test_sizes_that_are_none(results: Path, tmp_path: Path, memory: str) -> None:
    stores = (results / "a.zarr", results / "b.zarr")
    done = call("correlate", *stores, "--memory", memory, "--out", tmp_path / "c.zarr")
    assert done.exit_code == 2
    assert "memory must be a number of bytes" in done.stderr


def test_what_a_terminal_cannot_show_is_replaced(results: Path) -> None:
    command = [sys.executable, "-m", "jobs", "inspect", str(results / "a.zarr")]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONIOENCODING": "ascii"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "120" in done.stdout


def test_messages_have_an_end_and_no_control_characters() -> None:
    message = str(errors.InputError("\x1b[2J" + "x" * 100_000 + "\n" * 5000))
    assert "\x1b" not in message
    assert len(message) < 3000


# --- Ctrl-C -----------------------------------------------------------------------------------------------------------


def wait_for(true: Any) -> None:
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_an_interrupt_during_imports_is_one_line() -> None:
    process = subprocess.Popen([sys.executable, "-m", "jobs", "doctor"], stderr=subprocess.PIPE, text=True)
    maps = Path(f"/proc/{process.pid}/maps")
    wait_for(lambda: "numpy" in maps.read_text())  # in the middle of the imports
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (130, "Interrupted.\n")


SLOW = """
import time, typer
from pipeline.work.boundary import guarded
def command() -> None:
    try:
        print("begun", flush=True)
        time.sleep(60)
    finally:
        print("cleaning", flush=True)
        time.sleep({cleaning})
        print("clean", flush=True)
app = typer.Typer()
app.command()(guarded(command))
app()
"""


@pytest.mark.parametrize(("cleaning", "times"), [(0, 1), (60, 2)])
def test_the_first_interrupt_cleans_up_the_second_does_not_wait(cleaning: int, times: int) -> None:
    code = SLOW.format(cleaning=cleaning)
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=0
    )
    assert process.stdout is not None
    for expected in ("begun", "cleaning")[:times]:
        assert process.stdout.readline().strip() == expected
        process.send_signal(signal.SIGINT)
    output, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert len(said.splitlines()) == 1
    assert said.startswith("Interrupted.")
    assert ("clean\n" in output) == (times == 1)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
@pytest.mark.parametrize("arguments", [["import", "x.npy", "--out", "a.zarr"], ["inspect", "b.zarr"], ["--help"]])
def test_standard_output_that_takes_nothing(tmp_path: Path, arguments: list[str]) -> None:
    np.save(tmp_path / "x.npy", np.ones((9, 5)))
    storage.write_activations(tmp_path / "b.zarr", np.ones((9, 5)))
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "jobs", *arguments]
        done = subprocess.run(command, cwd=tmp_path, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 3
    assert done.stderr.splitlines()[-1].startswith("Error: Standard output: the disk is full")
    assert TRACEBACK not in done.stderr
    assert "a.zarr:" not in done.stderr


@pytest.mark.parametrize("kilobytes", [300_000, 450_000, 600_000])
def test_too_little_memory_to_start(tmp_path: Path, kilobytes: int) -> None:
    """Some libraries raise something while they are imported, others wait for memory without end."""
    np.save(tmp_path / "x.npy", np.ones((9, 5)))
    command = f"ulimit -v {kilobytes}; exec {sys.executable} -m jobs import x.npy --out a.zarr"
    done = subprocess.run(["sh", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr.count("\n")) == (3, 1), done.stderr
    assert re.match(r"Error: .*ulimit -v", done.stderr)


NO_THREAD = """
import threading
start = threading.Thread.start

def refuse(thread):
    if thread.name == "zarr_io":
        raise RuntimeError("can't start new thread")
    start(thread)

threading.Thread.start = refuse
from jobs.__main__ import main
main()
"""


@pytest.mark.parametrize("arguments", ["verify {0}/a.zarr", "inspect {0}/a.zarr", "match {0}/c.zarr --out p.zarr"])
def test_a_thread_of_zarr_that_the_system_does_not_start(results: Path, tmp_path: Path, arguments: str) -> None:
    """It is not waited for: Zarr itself would, at the second call and at the end of the process."""
    command = [sys.executable, "-c", NO_THREAD, *arguments.format(results).split()]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (3, "", 1), done.stderr
    assert done.stderr.startswith("Error: There is not enough memory (RuntimeError: can't start new thread)")


def test_a_thread_that_the_system_does_not_start() -> None:
    message, status = boundary.explain(RuntimeError("can't start new thread"))
    assert "memory (RuntimeError: can't start new thread)" in message
    assert status == 3
    with pytest.raises(RuntimeError, match="can't start"), reading("x.zarr"):
        raise RuntimeError("can't start new thread")


def test_any_failure_under_a_low_limit_of_memory_names_the_limit() -> None:
    """Libraries raise anything then: here, what starting a cluster raised with 977 MiB."""
    code = """
import resource
from pipeline.work.boundary import explain
resource.setrlimit(resource.RLIMIT_AS, (2000 * 2**20, resource.RLIM_INFINITY))
message, status = explain(RuntimeError("Cluster failed to start: error return without exception set"))
assert status == 3 and "2,000 MiB are allowed. Raise the limit (ulimit -v)" in message, message
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_traceback_of_a_failed_task_is_not_shown() -> None:
    """Its error is raised in the command, which says it in a sentence."""
    failed, other = "Compute Failed\nKey: %s", "Lost a peer: %s"

    def is_shown(logger: str, text: str) -> bool:
        return boundary.is_no_failed_task(logging.LogRecord(logger, logging.ERROR, "", 0, text, ("k",), None))

    assert not is_shown("distributed.worker", failed)
    assert is_shown("distributed.worker", other)
    assert is_shown("pipeline", failed)
    for said, shown in {"ConnectionPool closing.": False, "Timed out": True}.items():
        error = (OSError, OSError(said), None)
        record = logging.LogRecord("distributed.worker", logging.ERROR, "", 0, "heartbeat", (), error)
        assert boundary.is_no_failed_task(record) is shown
