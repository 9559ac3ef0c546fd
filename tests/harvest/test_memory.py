"""What a harvest takes grows with the rows of a shard as the formula says, and not with the corpus; fresh processes."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from benchmarks.measure import run_measured
from pipeline.harvest.corpus import build_corpus
from pipeline.harvest.plan import SiteNeed, task_bytes
from pipeline.harvest.rows import make_rows
from pipeline.settings.harvest import CorpusSettings, ModelSettings

WIDTH = 512
THREADS = 2
DRIVER_BYTES = 100
SLACK = 24 << 20

PROGRAM = f"""
import importlib
from pipeline.settings.harvest import ModelSettings, StoreSettings
from pipeline.work.workers import local_client
harvest = importlib.import_module("pipeline.harvest.run").harvest
model, store = ModelSettings(**arguments.pop("model")), StoreSettings(shard_rows=arguments.pop("shard_rows"))
with local_client(threads_per_worker={THREADS}) as client:
    harvest(model=model, side="a", store=store, client=client, **arguments)
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A network of one wide block whose raw units are stored, so that most of the memory is activations."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("wide")
    vocabulary = {"<s>": 0} | {f"w{i}": i + 1 for i in range(50)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, "<s>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>").save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": WIDTH, "intermediate_size": 32, "num_attention_heads": 4, "num_key_value_heads": 1}
    LlamaModel(LlamaConfig(vocab_size=51, num_hidden_layers=1, **sizes)).save_pretrained(folder)
    return ModelSettings(model=str(folder), dictionary="identity", sites=["layers.0"], batch_size=4)


def measure(folder, model, client, n_documents, shard_rows):
    """Harvest so many documents of a hundred words; return the peak of all processes, in bytes."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    lines = [json.dumps(" ".join(f"w{i}" for i in rng.integers(0, 50, 100))) for _ in range(n_documents)]
    (folder / "t.jsonl").write_text("\n".join(lines))
    corpus = build_corpus(CorpusSettings(path=str(folder / "t.jsonl")), folder / "corpus.zarr").path
    rows = make_rows(corpus, model, model, 128, folder / "rows.zarr", client=client)
    said = {"corpus_path": str(corpus), "rows_path": str(rows), "out_dir": str(folder / "a")}
    said |= {"model": model.model_dump(mode="json"), "shard_rows": shard_rows}
    return run_measured(PROGRAM, said)["peak_gb"] * 1e9


def test_peak_memory_grows_as_the_formula_says(tmp_path, model, client):
    few, many, small, large = 120, 700, 1024, 2048
    grown = measure(tmp_path / "many", model, client, many, large) - measure(
        tmp_path / "few", model, client, few, small
    )
    need = {"layers.0": SiteNeed(WIDTH, WIDTH, "dense", "float32", np.zeros((WIDTH, WIDTH), np.float32))}
    shards = task_bytes(need, large, 4 * 128) - task_bytes(need, small, 4 * 128)
    allowed = THREADS * shards + 100 * (many - few) * DRIVER_BYTES + SLACK
    assert grown < allowed
    everything = 100 * (many - few) * WIDTH * 4
    assert everything > 1.5 * allowed, "a harvest that keeps all rows would be found out"
