"""A hub on loopback with the tiny models, their dictionaries and text, and processes that take it for the real one."""

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

from benchmarks.hub import Faults, Hub

#: A process that for each line of JSON calls a function, or runs a command of `subspace`, and answers with a line.
_COMMANDS = """
import json, sys
from typer.testing import CliRunner
from jobs.cli import app
from pipeline.harvest.corpus import build_corpus
from pipeline.harvest.dictionaries import load_dictionary
from pipeline.settings.harvest import CorpusSettings
for line in sys.stdin:
    what, *arguments = json.loads(line)
    if what == "load_dictionary":
        loaded = load_dictionary(*arguments)
        answer = [loaded.id, loaded.site]
    elif what == "build_corpus":
        answer = len(build_corpus(CorpusSettings(**arguments[0]), arguments[1]))
    else:
        done = CliRunner().invoke(app, [what, *arguments])
        answer = [done.exit_code, done.output]
    print(json.dumps(answer), flush=True)
"""

Run = Callable[..., subprocess.CompletedProcess[str]]
Ask = Callable[..., Any]


def _fill(root: Path, tiny: Path) -> None:
    """Make the repositories: models, dictionaries a folder for each site, text in files of two kinds."""
    import pandas as pd
    import torch
    from safetensors.torch import save_file

    models = root / "models" / "tiny"
    texts = [json.loads(line) for line in (tiny / "texts.jsonl").read_text().splitlines()]
    for name in ("llama", "bert"):
        shutil.copytree(tiny / name, models / name)
    for name, sites in (("llama", "layers.{}"), ("bert", "encoder.layer.{}")):
        for i in (0, 1):
            shutil.copytree(tiny / f"sae-{name}", models / f"sae-{name}" / sites.format(i))
    for kind in ("parquet", "jsonl"):
        (root / "datasets" / "tiny" / kind).mkdir(parents=True)
        for i in range(3):
            part = pd.DataFrame(texts[20 * i : 20 * i + 20])
            file = root / "datasets" / "tiny" / kind / f"train-{i:05}-of-00003.{kind}"
            part.to_parquet(file) if kind == "parquet" else part.to_json(file, orient="records", lines=True)
    (models / "no-weights").mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny / "llama" / name, models / "no-weights")
    # the repository of a release of SAELens's list
    saved = root / "models" / "jbloom" / "GPT2-Small-SAEs-Reformatted" / "blocks.0.hook_resid_pre"
    saved.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    shapes = {"W_enc": (12, 20), "W_dec": (20, 12), "b_enc": (20,), "b_dec": (12,)}
    weights = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    save_file(weights, saved / "sae_weights.safetensors")
    config = {"d_in": 12, "d_sae": 20, "hook_point": "blocks.0.hook_resid_pre", "hook_point_layer": 0}
    old = {"model_name": "gpt2-small", "dtype": "torch.float32", "context_size": 128, "dataset_path": "text"}
    (saved / "cfg.json").write_text(json.dumps(config | old | {"prepend_bos": True}))


@pytest.fixture(scope="session")
def hub(tiny_inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """The hub, serving for the session."""
    root = tmp_path_factory.mktemp("hub")
    _fill(root, tiny_inputs)
    with Hub(root).serving() as hub:
        yield hub


@pytest.fixture(autouse=True)
def _nothing_goes_wrong(hub: Hub) -> None:
    hub.faults = Faults()


def _environment(hub: Hub, home: Path, **variables: str) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    quiet = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "COLUMNS": "500"}
    return inherited | quiet | {"HF_ENDPOINT": hub.url, "HF_HOME": str(home)} | variables


@pytest.fixture(scope="session")
def subspace(hub: Hub) -> Run:
    """Return a function that runs a command of `subspace` in a process of its own."""

    def run(home: Path, *arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "jobs", *map(str, arguments)],
            env=_environment(hub, home, **variables), capture_output=True, text=True, check=False, timeout=600,
        )  # fmt: skip

    return run


@pytest.fixture(scope="module")
def start(hub: Hub) -> Iterator[Callable[..., Ask]]:
    """Return a function that starts a process, which then runs one command after the other."""
    started: list[subprocess.Popen[str]] = []

    def ask_new(home: Path, **variables: str) -> Ask:
        process = subprocess.Popen(
            [sys.executable, "-c", _COMMANDS], env=_environment(hub, home, **variables),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        started.append(process)
        assert process.stdin is not None
        assert process.stdout is not None
        writer, reader = process.stdin, process.stdout

        def ask(*arguments: object) -> Any:
            writer.write(json.dumps(arguments, default=str) + "\n")
            writer.flush()
            return json.loads(reader.readline())

        return ask

    yield ask_new
    for process in started:
        process.kill()
        process.communicate()
