"""Vectors of words, from what the user has: word2vec files, a sentence encoder, or a language model's own embeddings.

Sources are named ``KIND:PLACE``:

* ``gensim:PATH``: a file in word2vec's or GloVe's format, text (``.txt``, ``.vec``) or binary (``.bin``), with or
  without ``.gz``. Gensim's own ``.kv`` files are pickles, which may run any code, and are refused.
* ``sentence-transformers:FOLDER``: a sentence encoder in a local folder; a word is encoded like a sentence.
* ``model:FOLDER``: the input embeddings of a transformers model, read from its safetensors without loading or running
  the model; a word is the mean of its tokens' rows.
"""

from __future__ import annotations

import gzip
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from storage.errors import InputError, MissingInputError
from storage.extras import need
from storage.json_files import read_json_object

logger = logging.getLogger(__name__)

#: How the input embeddings are called in the weights of the architectures that are read.
EMBEDDING_NAMES = (
    "embed_tokens.weight",
    "word_embeddings.weight",
    "wte.weight",
    "embed_in.weight",
    "tok_embeddings.weight",
)
#: Rows of an embedding matrix that are read at a time.
BLOCK_ROWS = 8192
TEXT_SUFFIXES = (".txt", ".vec")
BINARY_SUFFIXES = (".bin",)

Vectors = NDArray[np.float32]


def word_vectors(words: Sequence[str], source: str) -> Vectors:
    r"""Return an embedding of each word, float32, shape (word, dimension); NaN for one that the source does not know.

    Memory beside the result: for binary word2vec files the whole file, for the others a block of rows or words. An
    unknown kind, a place without what can be read, and a package that is not installed are errors.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "tiny.txt"
    >>> _ = path.write_text("cat 1 0\ndog 0.9 0.1\n")
    >>> word_vectors(["dog", "yak"], f"gensim:{path}")
    array([[0.9, 0.1],
           [nan, nan]], dtype=float32)
    """
    kind, _, place = source.partition(":")
    if kind not in READERS or not place:
        raise InputError(f"No source of embeddings {source!r}; give one of {', '.join(f'{k}:PATH' for k in READERS)}")
    if not Path(place).exists():
        raise MissingInputError(f"No embeddings at {place}; check the source {source!r}")
    vectors = READERS[kind](words, Path(place))
    unknown = int(np.isnan(vectors).any(axis=1).sum())
    logger.info("Embeddings of %d words from %s; %d are unknown there", len(words), source, unknown)
    return vectors


def _gensim(words: Sequence[str], path: Path) -> Vectors:
    suffix = next((end for end in reversed(path.suffixes) if end != ".gz"), "")
    if suffix in TEXT_SUFFIXES:
        return _looked_up(words, _read_text(path, {form for word in words for form in _forms(word)}))
    if suffix not in BINARY_SUFFIXES:
        raise InputError(
            f"{path} is not in word2vec's format (.txt, .vec or .bin, or one of these and .gz). Gensim's own files are "
            "pickles; write it again with KeyedVectors.save_word2vec_format(…)"
        )
    models = need("gensim.models", "semantic")
    try:
        vectors = models.KeyedVectors.load_word2vec_format(str(path), binary=True)
    except (ValueError, EOFError) as error:
        raise InputError(f"{path} cannot be read as binary word vectors: {error}") from error
    forms = [form for word in words for form in _forms(word) if form in vectors]
    return _looked_up(words, {form: vectors[form] for form in forms}, vectors.vector_size)


def _read_text(path: Path, wanted: set[str]) -> dict[str, Vectors]:
    """Return the wanted vectors of a text file, with word2vec's header (two counts) or, as GloVe's files, without."""
    vectors: dict[str, Vectors] = {}
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            word, *numbers = line.rstrip().split(" ")
            if word not in wanted or (number == 1 and len(numbers) == 1):
                continue
            try:
                vectors[word] = np.array(numbers, np.float32)
            except ValueError as error:
                raise InputError(f"{path} is not a file of word vectors: line {number} is {line[:60]!r}…") from error
    return vectors


def _forms(word: str) -> tuple[str, str]:
    """Return how a file may write a word: as it is, or with a capital."""
    return word, word.capitalize()


def _looked_up(words: Sequence[str], known: Mapping[str, Vectors], size: int = 0) -> Vectors:
    """Return the vectors of words in the first form that is known, else NaN."""
    width = size or max((len(vector) for vector in known.values()), default=1)
    result = np.full((len(words), width), np.nan, np.float32)
    for i, word in enumerate(words):
        form = next((form for form in _forms(word) if form in known), None)
        if form is not None:
            result[i] = known[form]
    return result


def _sentence_transformers(words: Sequence[str], folder: Path) -> Vectors:
    package = need("sentence_transformers", "semantic")
    encoder = package.SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    encoded = encoder.encode(list(words), show_progress_bar=False, convert_to_numpy=True)
    return np.asarray(encoded, np.float32).reshape(len(words), -1)


def _model(words: Sequence[str], folder: Path) -> Vectors:
    tokens = _tokens_of(words, folder)
    needed = np.unique(np.concatenate([np.zeros(0, np.int64), *tokens]))
    rows = _embedding_rows(folder, needed)
    result = np.full((len(words), rows.shape[1]), np.nan, np.float32)
    for i, ids in enumerate(tokens):
        if len(ids):
            result[i] = rows[np.searchsorted(needed, ids)].mean(axis=0)
    return result


def _tokens_of(words: Sequence[str], folder: Path) -> list[NDArray[np.int64]]:
    """Return each word's tokens, in the form (alone, after a blank, capitalised) that takes the fewest.

    Byte-level tokenizers have most words with the blank before them, and names with a capital only.
    """
    transformers = need("transformers", "semantic")
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    forms = [[f" {word}", word, f" {word.capitalize()}"] for word in words]
    encoded = tokenizer([form for three in forms for form in three], add_special_tokens=False)["input_ids"]
    best = [min(encoded[3 * i : 3 * i + 3], key=len) for i in range(len(words))]
    return [np.array([token for token in ids if token != tokenizer.unk_token_id], np.int64) for ids in best]


def _embedding_rows(folder: Path, ids: NDArray[np.int64]) -> Vectors:
    """Return some rows of the input embeddings, read a block of rows at a time."""
    file, name = _find_embedding(folder)
    with need("safetensors", "semantic").safe_open(file, framework="pt") as weights:
        matrix = weights.get_slice(name)
        n_rows, size = matrix.get_shape()
        result = np.empty((len(ids), size), np.float32)
        for start in range(0, n_rows, BLOCK_ROWS):
            here = (ids >= start) & (ids < start + BLOCK_ROWS)
            if here.any():
                block = matrix[start : min(start + BLOCK_ROWS, n_rows)]
                result[here] = block.float().numpy()[ids[here] - start]
    return result


def _find_embedding(folder: Path) -> tuple[Path, str]:
    """Return the file that holds the input embeddings and their name in it."""
    candidates = [(file, name) for file, name in _tensors(folder) if name.endswith(EMBEDDING_NAMES)]
    if not candidates:
        raise InputError(
            f"{folder} has no safetensors with input embeddings (a tensor that ends in "
            f"{', '.join(EMBEDDING_NAMES)}); save the model with save_pretrained(…, safe_serialization=True)"
        )
    return min(candidates, key=lambda candidate: len(candidate[1]))


def _tensors(folder: Path) -> Iterator[tuple[Path, str]]:
    """Yield the tensors of a model's folder: from the index where the weights are in several files."""
    safetensors = need("safetensors", "semantic")
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        files = read_json_object(index, f"{index} is gone", "download the model again").get("weight_map")
        if not isinstance(files, dict):
            raise InputError(f"{index} has no weight_map: download the model again")
        yield from ((folder / str(file), name) for name, file in files.items())
        return
    for file in sorted(folder.glob("*.safetensors")):
        with safetensors.safe_open(file, framework="pt") as weights:
            for name in weights.keys():  # noqa: SIM118 - no mapping: it has keys() only
                yield file, name


READERS: Mapping[str, Callable[[Sequence[str], Path], Vectors]] = {
    "gensim": _gensim,
    "sentence-transformers": _sentence_transformers,
    "model": _model,
}
