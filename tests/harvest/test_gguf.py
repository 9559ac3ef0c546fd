"""A GGUF file is dequantised once into a folder that loads like any other model."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from pipeline.harvest.gguf import cache_folder, converted
from pipeline.harvest.models import describe, load
from pipeline.settings.harvest import ModelSettings
from storage.errors import InputError, MissingInputError
from storage.files import temporary_path
from storage.locks import lock

gguf = pytest.importorskip("gguf")
pytest.importorskip("accelerate")

D, HIDDEN, BLOCKS = 32, 48, 2


def write_gguf(path, *, tied):
    """Write a tiny Llama with random weights and a byte-level tokenizer; return its embedding."""
    from tokenizers import pre_tokenizers

    generator = np.random.default_rng(0)
    tokens = ["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "th", "the"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(64)
    writer.add_embedding_length(D)
    writer.add_block_count(BLOCKS)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(D // 2)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3] + [1] * (len(tokens) - 2))
    writer.add_token_merges(["t h", "th e"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)

    def weight(name, *shape):
        values = generator.normal(0, 0.3, shape).astype(np.float32)
        writer.add_tensor(f"{name}.weight", values, raw_dtype=gguf.GGMLQuantizationType.F32)
        return values

    embedding = weight("token_embd", len(tokens), D)
    weight("output_norm", D)
    if not tied:
        weight("output", len(tokens), D)
    for i in range(BLOCKS):
        for name, shape in (
            ("attn_norm", (D,)), ("ffn_norm", (D,)), ("attn_q", (D, D)), ("attn_k", (D, D)), ("attn_v", (D, D)),
            ("attn_output", (D, D)), ("ffn_gate", (HIDDEN, D)), ("ffn_up", (HIDDEN, D)), ("ffn_down", (D, HIDDEN)),
        ):  # fmt: skip
            weight(f"blk.{i}.{name}", *shape)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return embedding


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SUBSPACE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize("tied", [True, False])
def test_converted_model_has_all_its_weights(tmp_path, cache, tied):
    """A tied embedding saved under the head's name would leave the base model with a random one."""
    embedding = write_gguf(tmp_path / "tiny.gguf", tied=tied)
    model = ModelSettings(model=str(tmp_path / "tiny.gguf"), dictionary="identity", sites=["layers.0"])
    info = describe(model)
    np.testing.assert_array_equal(load(model).reader.network.embed_tokens.weight.numpy(), embedding)
    assert info.tokenizer.bos_token == "<s>"
    assert info.d_model == D
    assert len(list(cache.iterdir())) == 1


def test_conversion_is_done_once_for_each_content(tmp_path, cache):
    write_gguf(tmp_path / "tiny.gguf", tied=True)
    folder = converted(tmp_path / "tiny.gguf")
    time = (folder / "model.safetensors").stat().st_mtime_ns
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "tiny.gguf").write_bytes((tmp_path / "tiny.gguf").read_bytes())
    assert converted(tmp_path / "copy" / "tiny.gguf") == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == time
    write_gguf(tmp_path / "tiny.gguf", tied=False)
    assert converted(tmp_path / "tiny.gguf") != folder


def test_broken_file_leaves_nothing(tmp_path, cache):
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + b"\0" * 100)
    with pytest.raises(InputError, match="cannot be read as a GGUF language model"):
        converted(tmp_path / "bad.gguf")
    assert not list(cache.glob("*"))


def test_missing_file(tmp_path):
    with pytest.raises(MissingInputError, match="No GGUF file at"):
        describe(ModelSettings(model=str(tmp_path / "none.gguf"), dictionary="identity", sites=["layers.0"]))


def test_place_of_the_cache(monkeypatch, tmp_path):
    monkeypatch.delenv("SUBSPACE_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "semantic-subspace-matching"


def test_a_copy_that_died_is_swept_and_one_in_the_making_is_waited_for(tmp_path, cache):
    write_gguf(tmp_path / "tiny.gguf", tied=True)
    folder = converted(tmp_path / "tiny.gguf")
    shutil.rmtree(folder)
    temporary_path(folder, "new").mkdir()  # by a process that was killed
    with ThreadPoolExecutor(1) as pool, lock(folder):
        waiting = pool.submit(converted, tmp_path / "tiny.gguf")
        with pytest.raises(TimeoutError):
            waiting.result(timeout=0.5)
        assert not folder.exists()
    assert waiting.result(timeout=60) == folder
    assert [entry.name for entry in cache.iterdir()] == [folder.name]
