"""Harvest a corpus of many documents while processes are killed, and compare with an undisturbed harvest.

::

    python -m benchmarks.harvest_faults --documents 1000 --worker-kills 3 --driver-kills 1 --scheduler-kills 1

A driver in a process of its own runs the harvest of a tiny random model on two worker processes. At random moments
(counted in finished shards, drawn with `--seed`) one of the workers is killed by SIGKILL, then the driver, which holds
the scheduler; it is started again each time, until it finishes. With `--scheduler-kills`, drivers before that use a
scheduler in a process of its own, and that is killed. The last line is one JSON object: ``identical`` says whether
every file of values has the same bytes as those of the undisturbed harvest, ``computed_twice`` how many shards were
computed more often than once.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from pipeline.settings.harvest import CorpusSettings, ModelSettings, StoreSettings
from pipeline.work.workers import closing, local_client

WORDS = 400
STORE = StoreSettings(shard_rows=1024)
PATIENCE = 300.0


def make_inputs(folder: Path, documents: int) -> None:
    """Write a tiny random model, a corpus of random words, and the table of its rows."""
    import torch  # noqa: PLC0415
    from tokenizers import Tokenizer, models, pre_tokenizers  # noqa: PLC0415
    from transformers import LlamaConfig, LlamaModel, PreTrainedTokenizerFast  # noqa: PLC0415

    from pipeline.harvest.corpus import build_corpus  # noqa: PLC0415
    from pipeline.harvest.rows import make_rows  # noqa: PLC0415

    words = ["<s>", *(f"word{i}" for i in range(WORDS))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, words[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=words[0]).save_pretrained(folder / "model")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_key_value_heads": 2}
    LlamaModel(LlamaConfig(vocab_size=len(words), num_hidden_layers=3, **sizes)).save_pretrained(folder / "model")
    rng = np.random.default_rng(0)
    lines = [json.dumps(" ".join(rng.choice(words[1:], int(rng.integers(10, 80))))) for _ in range(documents)]
    (folder / "text.jsonl").write_text("\n".join(lines), encoding="utf-8")
    build_corpus(CorpusSettings(path=str(folder / "text.jsonl")), folder / "corpus.zarr")
    make_rows(folder / "corpus.zarr", _model(folder), _model(folder), 64, folder / "rows.zarr")


def _model(folder: Path) -> ModelSettings:
    return ModelSettings(
        model=str(folder / "model"), dictionary="identity", sites=["layers.0", "layers.2"], batch_size=4
    )


def harvest(folder: Path, out: str, client: Any) -> None:
    """Harvest into a subfolder; what is there already is gone on with."""
    run = importlib.import_module("pipeline.harvest.run")
    run.harvest(folder / "corpus.zarr", folder / "rows.zarr", _model(folder), "a", STORE, folder / out, client=client)


def digests(out: Path) -> dict[str, str]:
    """Return the SHA-256 of every file of values (metadata holds the time of its writing)."""
    files = [file for file in sorted(out.rglob("*")) if file.is_file() and file.name != "zarr.json"]
    return {str(file.relative_to(out)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


# --- in the driver and its workers ------------------------------------------------------------------------------------


def logged_shard(item: Any, *arguments: Any) -> None:
    """Compute one shard as the harvest does, and note it when it is on disk."""
    run = importlib.import_module("pipeline.harvest.run")
    run._harvest_shard(item, *arguments)
    rows_path = Path(arguments[0].rows_path)
    with (rows_path.parent / "shards.log").open("a", encoding="utf-8") as log:
        log.write(f"{item[0]}\n")


def drive(folder: Path, scheduler: str | None, workers: int) -> None:
    """Harvest on worker processes, with the scheduler in this process or at an address."""
    from distributed import Client, LocalCluster  # noqa: PLC0415

    run: Any = importlib.import_module("pipeline.harvest.run")
    run_tasks = run.run_tasks

    def logging_tasks(client: Any, function: Callable[..., Any], *arguments: Any, **settings: Any) -> Iterator[Any]:
        one = logged_shard if function is run._harvest_shard else function
        return run_tasks(client, one, *arguments, **settings)

    run.run_tasks = logging_tasks
    with contextlib.ExitStack() as stack:
        cluster = scheduler or stack.enter_context(
            closing(LocalCluster(n_workers=workers, threads_per_worker=1, processes=True, dashboard_address=":0"))
        )
        harvest(folder, "disturbed", stack.enter_context(Client(cluster)))


# --- the murderer -----------------------------------------------------------------------------------------------------


class Run:
    """A driver in a process of its own, and with `separate` also its scheduler and workers."""

    def __init__(self, folder: Path, workers: int, *, separate: bool = False) -> None:
        self.folder = folder
        self.n_workers = str(workers)
        self.errors = (folder / "driver.log").open("a", encoding="utf-8")
        self.helpers: list[subprocess.Popen[bytes]] = []
        command = [
            sys.executable,
            "-m",
            "benchmarks.harvest_faults",
            "--drive",
            str(folder),
            "--workers",
            self.n_workers,
        ]
        if separate:
            command += ["--scheduler", self._start_cluster()]
        self.driver = subprocess.Popen(command, stderr=self.errors)
        self.seen: dict[int, psutil.Process] = {}

    def _start_cluster(self) -> str:
        file = self.folder / "scheduler.json"
        file.unlink(missing_ok=True)
        dask = [sys.executable, "-m", "dask"]
        options = ["--host", "127.0.0.1", "--port", "0", "--dashboard-address", ":0", "--scheduler-file", str(file)]
        self.helpers.append(subprocess.Popen([*dask, "scheduler", *options], stderr=self.errors))
        wait_until(file.is_file)
        address: str = json.loads(file.read_text(encoding="utf-8"))["address"]
        worker = [*dask, "worker", address, "--nworkers", self.n_workers, "--nthreads", "1", "--death-timeout", "60"]
        self.helpers.append(subprocess.Popen(worker, stderr=self.errors))
        return address

    @property
    def ended(self) -> bool:
        """Whether the driver has ended."""
        return self.driver.poll() is not None

    def family(self) -> list[psutil.Process]:
        """Return all processes that this run has started and that still live."""
        for one in (self.driver, *self.helpers):
            with contextlib.suppress(psutil.NoSuchProcess):
                for process in (root := psutil.Process(one.pid), *root.children(recursive=True)):
                    self.seen[process.pid] = process
        return [process for process in self.seen.values() if process.is_running()]

    def workers(self) -> list[psutil.Process]:
        """Return the living worker processes."""
        found = []
        for process in self.family():
            with contextlib.suppress(psutil.Error):
                if "spawn_main" in " ".join(process.cmdline()) and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def bury(self) -> None:
        """Kill whatever is left, and wait for its end."""
        for process in self.family():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        for one in (self.driver, *self.helpers):
            one.wait()
        self.errors.close()


def wait_until(true: Callable[[], bool]) -> None:
    """Wait for something to come true.

    Raises
    ------
    TimeoutError
        If it does not within :data:`PATIENCE` seconds.
    """
    end = time.monotonic() + PATIENCE
    while not true():
        if time.monotonic() > end:
            raise TimeoutError(f"Waited {PATIENCE} s in vain")
        time.sleep(0.01)


def finished_shards(folder: Path) -> list[int]:
    """Return the numbers of the shards that were computed, as often as they were."""
    log = folder / "shards.log"
    return [int(line) for line in log.read_text(encoding="utf-8").split()] if log.is_file() else []


def disturb(folder: Path, moments: list[tuple[str, int]], workers: int) -> list[str]:
    """Run the harvest to its end, killing what `moments` names once so many shards are finished.

    Returns
    -------
    list of str
        What was killed when.
    """
    killed = []
    waiting = sorted(moments, key=lambda moment: moment[1])
    while True:
        run = Run(folder, workers, separate=any(victim == "scheduler" for victim, _ in waiting))
        try:
            while waiting and not run.ended:
                victim, count = waiting[0]
                wait_until(lambda run=run, count=count: run.ended or len(set(finished_shards(folder))) >= count)  # type: ignore[misc]
                if not run.ended and _kill(run, victim):
                    killed.append(f"{victim} after {len(set(finished_shards(folder)))} shards")
                    waiting.pop(0)
                    if victim != "worker":
                        break
            else:
                run.driver.wait(PATIENCE)
                if run.driver.returncode == 0:
                    return killed
                raise RuntimeError(f"The driver failed; see {folder / 'driver.log'}")
        finally:
            run.bury()


def _kill(run: Run, victim: str) -> bool:
    """Kill one process by SIGKILL; say whether there was one. After its scheduler, a driver must end by itself."""
    if victim == "worker":
        workers = run.workers()
        if not workers:
            return False
        random.choice(workers).kill()  # noqa: S311 - no secret
        return True
    run.family()
    if victim == "driver":
        run.driver.kill()
        return True
    run.helpers[0].kill()
    run.driver.wait(PATIENCE)
    return True


def benchmark(*, documents: int, kills: dict[str, int], seed: int, folder: Path, workers: int = 2) -> dict[str, Any]:
    """Harvest undisturbed and disturbed; return what came out.

    Parameters
    ----------
    documents
        Of the corpus.
    kills
        How often which of ``worker``, ``driver`` and ``scheduler`` is killed.
    seed
        Of the moments.
    folder
        Where to work.
    workers
        Worker processes.
    """
    make_inputs(folder, documents)
    start = time.perf_counter()
    with local_client(threads_per_worker=2) as client:
        harvest(folder, "undisturbed", client)
    undisturbed = time.perf_counter() - start
    expected = digests(folder / "undisturbed")
    n_shards = len({name.split("/c/")[1] for name in expected if "/activation/c/" in name})
    random.seed(seed)
    victims = [victim for victim, count in kills.items() for _ in range(count)]
    moments = [(victim, random.randint(1, max(1, n_shards - 2))) for victim in victims]  # noqa: S311
    start = time.perf_counter()
    killed = disturb(folder, moments, workers)
    seconds = time.perf_counter() - start
    computed = finished_shards(folder)
    return {
        "name": "harvest-faults",
        "documents": documents,
        "shards": n_shards,
        "killed": killed,
        "computed_twice": len(computed) - len(set(computed)),
        "identical": digests(folder / "disturbed") == expected,
        "left_behind": [str(path) for path in (folder / "disturbed").rglob("*.partial")],
        "seconds": seconds,
        "seconds_undisturbed": undisturbed,
    }


def main() -> None:
    """Read the command line, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=1000)
    parser.add_argument("--worker-kills", type=int, default=3)
    parser.add_argument("--driver-kills", type=int, default=1)
    parser.add_argument("--scheduler-kills", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--drive", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--scheduler", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.drive:
        drive(given.drive, given.scheduler, given.workers)
        return
    kills = {"worker": given.worker_kills, "driver": given.driver_kills, "scheduler": given.scheduler_kills}
    folder = Path(tempfile.mkdtemp(prefix="benchmark-faults-"))
    try:
        told = {"documents": given.documents, "seed": given.seed, "workers": given.workers}
        print(json.dumps(benchmark(kills=kills, folder=folder, **told)))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
