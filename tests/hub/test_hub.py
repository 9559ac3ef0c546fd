"""What comes from the hub is what is in its repositories, whatever the network does; what does not come is said why.

The hub is on loopback, and speaks its own protocol (:mod:`benchmarks.hub`): huggingface_hub, datasets, transformers and
sae-lens are the real ones.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from benchmarks.hub import Hub
from benchmarks.table import README
from pipeline.experiment.run import RunResult
from storage import open_corpus, read_csr
from tests.hub.conftest import Ask, Run

SITES = {"a": ["layers.0", "layers.1"], "b": ["encoder.layer.0", "encoder.layer.1"]}
MODELS = {"a": "llama", "b": "bert"}


def readme_experiment(**corpus: object) -> dict[str, Any]:
    """Return the README's experiment on the hub's tiny repositories, with less text and fewer runs of the null."""
    (text,) = re.findall(r"```yaml\n(name: pythia.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)
    experiment: dict[str, Any] = yaml.safe_load(text)
    experiment["corpus"] |= {"dataset": "tiny/parquet", "documents": 60, "max_length": 40, **corpus}
    for side, name in MODELS.items():
        assert set(experiment[side]) == {"model", "dictionary", "sites"}
        experiment[side] = {"model": f"tiny/{name}", "dictionary": f"tiny/sae-{name}", "sites": SITES[side]}
    experiment["compare"] = {"null_runs": 20}
    experiment["store"] = {"shard_rows": 256}  # batches are those of the local run, to the last bit
    return experiment


@pytest.fixture
def file_of(tmp_path: Path) -> Callable[[dict[str, Any]], Path]:
    def write(experiment: dict[str, Any]) -> Path:
        path = tmp_path / "experiment.yaml"
        path.write_text(yaml.safe_dump(experiment))
        return path

    return write


def assert_same_harvest(run: Path, local: RunResult) -> None:
    """Hold text and activations against those of the same repositories as local folders."""
    ours, theirs = open_corpus(run / "corpus.zarr"), open_corpus(local.directory.corpus)
    assert list(ours.iter_texts(range(len(ours)))) == list(theirs.iter_texts(range(len(theirs))))
    for side, sites in SITES.items():
        for site in sites:
            stores = [folder / "activations" / side / f"{site}.zarr" for folder in (run, local.directory.root)]
            a, b = map(read_csr, stores)
            for part in ("data", "indices", "indptr"):
                np.testing.assert_array_equal(getattr(a, part), getattr(b, part))


def test_the_readme_experiment_runs_whatever_is_cut(
    hub: Hub, subspace: Run, file_of: Callable[..., Path], tiny_run: RunResult, tmp_path: Path
) -> None:
    """... with the activations of local folders; and then without a network, which is not needed any more."""
    hub.faults.cuts, hub.faults.generator, hub.faults.limited = 0.12, random.Random(5), 1
    hub.seen.clear()
    home, out, file = tmp_path / "home", tmp_path / "run", file_of(readme_experiment())
    done = subspace(home, "run", file, "--run-dir", out)
    assert done.returncode == 0, done.stderr
    assert hub.seen["cut"] >= 4
    assert hub.seen["429 Too Many Requests"] == 1
    assert_same_harvest(out, tiny_run)
    assert (out / "report.html").stat().st_size > 100_000


# --- one process for many commands: importing takes longer than they do -----------------------------------------------


@pytest.fixture(scope="module")
def ask(start: Callable[..., Ask], tmp_path_factory: pytest.TempPathFactory) -> Ask:
    return start(tmp_path_factory.mktemp("home"))


def harvest(ask: Ask, file: Path, *options: str) -> tuple[int, str, list[str]]:
    """Return the status, the last line said, and what of results was written."""
    out = file.parent / "out"
    status, output = ask("harvest", file, "--run-dir", out, *options)
    results = sorted(path.name for path in out.rglob("*.zarr*"))
    return status, output.strip().splitlines()[-1], results


REFUSALS: list[tuple[str, dict[str, Any], set[str], str]] = [
    (
        "model",
        {"model": "tiny/bert"},
        {"tiny/bert"},
        r"Model 'tiny/bert' is gated: ask for access at http://127.*/tiny/",
    ),
    (
        "dictionary",
        {},
        {"tiny/sae-llama"},
        "Dictionary 'tiny/sae-llama' is gated: ask .* log in with `hf auth login` or",
    ),
    ("dataset", {"dataset": "tiny/parquet"}, {"tiny/parquet"}, "Dataset 'tiny/parquet' is gated: ask for access at"),
    (
        "model",
        {"model": "tiny/none"},
        set(),
        r"Model 'tiny/none' is neither a folder here nor readable from the hub\. Give",
    ),
    ("model", {"revision": "v9"}, set(), "Model 'tiny/llama' has no such revision on the hub: check 'revision'"),
    ("dataset", {"revision": "v9"}, set(), "Dataset 'tiny/parquet' has no such revision on the hub: check 'revision'"),
    (
        "dictionary",
        {"dictionary": "tiny/none"},
        set(),
        "Dictionary 'tiny/none' is neither a folder .* the repository tiny",
    ),
    (
        "dataset",
        {"dataset": "tiny/none"},
        set(),
        "Dataset 'tiny/none' is neither .*; if it is private, log in with `hf",
    ),
    (
        "dataset",
        {"split": "test"},
        set(),
        r"split 'test', subset None, cannot be read: .*Available splits: \['train'\]",
    ),
    ("model", {"sites": ["layers.2"]}, set(), "holds no dictionary for site 'layers.2'; it has layers.0, layers.1"),
]


@pytest.mark.parametrize(("part", "changes", "gated", "message"), REFUSALS)
def test_what_the_hub_refuses_is_said_with_the_remedy(
    hub: Hub, ask: Ask, file_of: Callable[..., Path], part: str, changes: dict[str, Any], gated: set[str], message: str
) -> None:
    hub.faults.gated = gated
    experiment = readme_experiment()
    experiment["corpus" if part == "dataset" else "a"] |= changes
    status, line, results = harvest(ask, file_of(experiment))
    assert re.search(f"^Error: .*{message}", line), line
    assert (status, results) == (2, [])


def test_a_hub_out_of_order_is_no_mistake_of_the_user(hub: Hub, ask: Ask, file_of: Callable[..., Path]) -> None:
    hub.faults.failing = 1000
    experiment = readme_experiment()
    experiment["a"]["revision"] = hub.commit("models", "tiny/llama")[:-1]  # not in the cache
    status, line, results = harvest(ask, file_of(experiment))
    assert re.search(r"Model 'tiny/llama' cannot be read: the hub at http\S+ does not answer .*HF_HUB_OFFLINE=1", line)
    assert (status, results) == (1, [])


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_a_stream_that_breaks_off_goes_on(hub: Hub, ask: Ask, kind: str, tmp_path: Path, tiny_inputs: Path) -> None:
    hub.faults.cuts, hub.faults.cut, hub.faults.generator = 0.5, r"cdn|\.jsonl$", random.Random(1)
    hub.seen.clear()
    settings = {"dataset": f"tiny/{kind}", "documents": 45}
    assert ask("build_corpus", settings, tmp_path / "c.zarr") == 45
    assert hub.seen["cut"] >= 2
    lines = (tiny_inputs / "texts.jsonl").read_text().splitlines()[:45]
    assert list(open_corpus(tmp_path / "c.zarr").iter_texts(range(45))) == [json.loads(line)["text"] for line in lines]


def test_a_release_of_sae_lens_comes_from_its_repository(hub: Hub, ask: Ask) -> None:
    hub.faults.cuts, hub.faults.generator = 0.4, random.Random(2)
    name = "gpt2-small-res-jb/blocks.0.hook_resid_pre"
    assert ask("load_dictionary", name, 12) == [name, "blocks.0.hook_resid_pre"]
