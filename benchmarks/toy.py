"""A toy experiment: two tiny random models, their dictionaries, a text, and the experiment file that names them."""
# ruff: noqa: S106, S311 - special tokens are no passwords, and words no secrets

from __future__ import annotations

import itertools
import json
import random
from collections import Counter
from pathlib import Path

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

TEXT = (
    "the cat sat on a mat while seven green birds flew over Paris in March and nobody said why Monday was cold or "
    "where the river went because old maps were wrong about mountains, bridges; towns and their kings!"
)


def _texts(n: int) -> list[str]:
    draw = random.Random(0)
    return [" ".join(draw.choices(TEXT.split(), k=draw.randint(20, 60))) + "." for _ in range(n)]


def _tiny_llama(folder: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers  # noqa: PLC0415
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast  # noqa: PLC0415

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


def _pieces(words: list[str], n: int) -> list[str]:
    """Return the most frequent pieces of words, all characters first; a trainer breaks ties otherwise each time."""
    counts = Counter(
        ("##" if start else "") + word[start:stop]
        for word in words
        for start, stop in itertools.combinations(range(len(word) + 1), 2)
    )
    return sorted(counts, key=lambda piece: (len(piece.removeprefix("##")) > 1, -counts[piece], piece))[:n]


def _tiny_bert(folder: Path) -> None:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors  # noqa: PLC0415
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast  # noqa: PLC0415

    split = pre_tokenizers.BertPreTokenizer()
    words = [word.lower() for text in _texts(20) for word, _ in split.pre_tokenize_str(text)]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *_pieces(words, 116)]
    numbers = {piece: number for number, piece in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.WordPiece(vocab=numbers, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = split
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
    """Save a TopK dictionary whose features are the units and their negatives: it explains most of the variance.

    In the format of sparsify, which needs no sae-lens: importing that takes each process some seconds.
    """
    import torch  # noqa: PLC0415
    from safetensors.torch import save_file  # noqa: PLC0415

    units = torch.cat([torch.eye(d_model), -torch.eye(d_model)])
    folder.mkdir()
    weights = {"encoder.weight": units, "encoder.bias": torch.zeros(2 * d_model), "b_dec": torch.zeros(d_model)}
    save_file({**weights, "W_dec": units.clone()}, folder / "sae.safetensors")
    (folder / "cfg.json").write_text(json.dumps({"k": k, "d_in": d_model, "num_latents": 2 * d_model}))


def make_inputs(folder: Path) -> None:
    """Write models, dictionaries, ``texts.jsonl`` and ``experiment.yaml`` into a new folder."""
    import torch  # noqa: PLC0415

    torch.manual_seed(0)
    folder.mkdir()
    _tiny_llama(folder / "llama")
    _tiny_bert(folder / "bert")
    _signed_units(folder / "sae-llama", 16, 6)
    _signed_units(folder / "sae-bert", 12, 5)
    lines = [json.dumps({"text": text}) for text in _texts(60)]
    (folder / "texts.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "empty.jsonl").touch()
    (folder / "experiment.yaml").write_text(EXPERIMENT)
