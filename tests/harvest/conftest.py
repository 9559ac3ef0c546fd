"""Tiny random models in the layout of the hub, one folder for each architecture."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SENTENCES = [
    "The quick brown fox jumps over the lazy dog, again and again; nobody knows why.",
    "Café society in São Paulo: naïve, élite and très chic — or so they say!",
    "Seven green birds 🐦🐦 flew over 東京 in March, said the man (aged 57).",
    "Unaffable players' unbelievable under-performance cost $1,234.56 million.",
]


def _byte_level(special: list[str]) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return tokenizer


def _word_piece() -> Any:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    tokenizer.train_from_iterator(SENTENCES, trainers.WordPieceTrainer(vocab_size=150, special_tokens=special))
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    # As the files of sentence encoders on the hub do: a trap for whoever forgets to switch it off.
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(pad_id=0, pad_token="[PAD]", length=8)
    return tokenizer


def _network(kind: str, vocabulary: int) -> Any:
    import transformers as t

    sizes: dict[str, Any] = {"vocab_size": vocabulary, "max_position_embeddings": 64, "num_hidden_layers": 3}
    wide = sizes | {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
    made: dict[str, Callable[[], Any]] = {
        "llama": lambda: t.LlamaForCausalLM(t.LlamaConfig(**wide, num_key_value_heads=2)),
        "neox": lambda: t.GPTNeoXForCausalLM(t.GPTNeoXConfig(**wide)),
        "gpt2": lambda: t.GPT2LMHeadModel(
            t.GPT2Config(vocab_size=vocabulary, n_positions=64, n_embd=16, n_layer=3, n_head=2)
        ),
        "bert": lambda: t.BertModel(t.BertConfig(**wide | {"hidden_size": 12})),
        "gemma2": lambda: t.Gemma2ForCausalLM(t.Gemma2Config(**wide, num_key_value_heads=1, head_dim=8)),
        "neo": lambda: t.GPTNeoForCausalLM(
            t.GPTNeoConfig(
                vocab_size=vocabulary,
                max_position_embeddings=64,
                hidden_size=16,
                num_layers=3,
                num_heads=2,
                intermediate_size=24,
                attention_types=[[["global", "local", "global"], 1]],
            )
        ),
        "mixtral": lambda: t.MixtralForCausalLM(t.MixtralConfig(**wide, num_key_value_heads=2, num_local_experts=2)),
    }
    return made[kind]()


@pytest.fixture(scope="session")
def make_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return a function (kind, padding_side) → model folder; made once a session."""
    import torch
    from transformers import PreTrainedTokenizerFast

    root = tmp_path_factory.mktemp("models")

    def make(kind: str, padding_side: str = "right") -> Path:
        folder = root / f"{kind}-{padding_side}"
        if folder.exists():
            return folder
        if padding_side == "left":  # the very same model: tokenizers are trained in no fixed order
            shutil.copytree(make(kind), folder)
            settings = json.loads((folder / "tokenizer_config.json").read_text())
            (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"padding_side": "left"}))
            return folder
        if kind == "bert":
            names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
            tokenizer = _word_piece()
        else:
            names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
            tokenizer = _byte_level(list(names.values()))
        fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)
        fast.save_pretrained(folder)
        torch.manual_seed(7)
        network = _network(kind, len(fast))
        # The final norm of a fresh model is the identity up to scale, and its blocks add next to nothing.
        for name, weight in network.named_parameters():
            if weight.ndim > 1 and not any(part in name for part in ("emb", "wte", "wpe", "lm_head")):
                weight.data *= 6
            if weight.ndim == 1:
                torch.nn.init.uniform_(weight, 0.5, 1.5) if name.endswith("weight") else None
        network.save_pretrained(folder)
        return folder

    return make


KINDS = {
    "llama": "layers.{}", "neox": "layers.{}", "gpt2": "h.{}", "bert": "encoder.layer.{}", "gemma2": "layers.{}",
    "neo": "h.{}",
}  # fmt: skip


@pytest.fixture(params=sorted(KINDS))
def kind(request: pytest.FixtureRequest) -> str:
    """Each architecture in turn."""
    return str(request.param)


@pytest.fixture
def site_of() -> Callable[[str, int], str]:
    """Return a function (architecture, block) → site."""
    return lambda kind, block: KINDS[kind].format(block)
