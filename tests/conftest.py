"""Shared fixtures: a Dask client for the whole session, a tiny experiment, hypothesis profiles."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from distributed import Client
from hypothesis import HealthCheck, settings

from pipeline import workers
from pipeline.workers import local_client

settings.register_profile("default", deadline=None, max_examples=30, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("thorough", deadline=None, max_examples=500)
settings.load_profile("default")

# several test processes on one host would race for the usual port
workers.DASHBOARD_PORT = 0

EXPERIMENT = """
name: tiny
corpus: {path: texts.jsonl, max_length: 40}
a: {model: llama, dictionary: sae-llama, sites: [layers.0, layers.1]}
b: {model: bert, dictionary: sae-bert, sites: [encoder.layer.0, encoder.layer.1]}
store: {shard_rows: 256}
correlate: {top_k: 4, keep_above: 0.05}
match: {min_correlation: 0.05}
compare: {null_runs: 50}
semantics:
  only: [animals, calendar]
  rule: {name: count, at_least: 1, of: 4}
  null_runs: 20
  min_pairs: 3
  embedding: "model:a"
report: {contexts: 4, pairs: 5}
"""


@pytest.fixture(scope="session")
def client() -> Iterator[Client]:
    """A local client of two threads in this process."""
    with local_client(threads_per_worker=2) as own:
        yield own


TEXT = (
    "the cat sat on a mat while seven green birds flew over Paris in March and nobody said why Monday was cold or "
    "where the river went because old maps were wrong about mountains, bridges; towns and their kings!"
)


def _texts(n: int) -> list[str]:
    draw = random.Random(0)
    return [" ".join(draw.choices(TEXT.split(), k=draw.randint(20, 60))) + "." for _ in range(n)]


def _tiny_llama(folder: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        _texts(20), trainers.BpeTrainer(vocab_size=340, special_tokens=["<s>", "<pad>"], initial_alphabet=alphabet)
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", pad_token="<pad>")
    fast.save_pretrained(folder)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_key_value_heads": 2}
    config = LlamaConfig(vocab_size=len(fast), num_hidden_layers=3, max_position_embeddings=128, **sizes)
    LlamaForCausalLM(config).save_pretrained(folder)


def _tiny_bert(folder: Path) -> None:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    tokenizer.train_from_iterator(_texts(20), trainers.WordPieceTrainer(vocab_size=120, special_tokens=special))
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )
    fast.save_pretrained(folder)
    sizes = {"hidden_size": 12, "intermediate_size": 16, "num_attention_heads": 2}
    BertModel(
        BertConfig(vocab_size=len(fast), num_hidden_layers=3, max_position_embeddings=64, **sizes)
    ).save_pretrained(folder)


def _signed_units(folder: Path, d_model: int, k: int) -> None:
    """Save a TopK dictionary whose features are the units and their negatives: it explains most of the variance."""
    import torch
    from sae_lens import TopKSAE, TopKSAEConfig

    sae = TopKSAE(TopKSAEConfig(d_in=d_model, d_sae=2 * d_model, k=k))
    units = torch.eye(d_model)
    with torch.no_grad():
        sae.W_dec.copy_(torch.cat([units, -units]))
        sae.W_enc.copy_(sae.W_dec.T)
    sae.save_model(folder)


@pytest.fixture(scope="session")
def tiny_inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two tiny random models, their dictionaries, a corpus, and ``experiment.yaml``."""
    import torch

    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    _tiny_llama(folder / "llama")
    _tiny_bert(folder / "bert")
    _signed_units(folder / "sae-llama", 16, 6)
    _signed_units(folder / "sae-bert", 12, 5)
    lines = [json.dumps({"text": text}) for text in _texts(60)]
    (folder / "texts.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "experiment.yaml").write_text(EXPERIMENT)
    return folder
