"""Segments and pooling: against brute force over characters and dense arrays, on real tokenizers and random Unicode."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

from pipeline.harvest import rows as module
from pipeline.harvest.pool import any_of_tokens, pool_tokens

TRAINED_ON = [
    "The quick brown fox jumps over the lazy dog, again and again; nobody knows why.",
    "Café society in São Paulo: naïve, élite — or so they say! 東京 is big, İstanbul too. ﬁne ½",
    "Seven green birds flew; 👩\u200d🔬 and 👨\u200d👩\u200d👧 saw them. Straße, naı\u0308ve, Å and A\u030a.",
]
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}


def byte_level():
    """GPT-2's kind: every byte is a token at worst; tokens may cut inside of a character."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return tokenizer, trainers.BpeTrainer(vocab_size=330, special_tokens=[*SPECIAL.values()], initial_alphabet=alphabet)


def uncased():
    """BERT's kind: lower-cased, accents and control characters removed, so that the text changes its length."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer, trainers.WordPieceTrainer(vocab_size=150, special_tokens=[*SPECIAL.values()])


def compatibility_unigram():
    """SentencePiece's kind: compatibility forms are written out (ﬁ becomes two letters), a blank is put in front."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    return tokenizer, trainers.UnigramTrainer(vocab_size=120, unk_token="<unk>", special_tokens=[*SPECIAL.values()])


MAKERS = {"bytes": byte_level, "uncased": uncased, "unigram": compatibility_unigram}


@pytest.fixture(scope="module")
def tokenizers():
    from transformers import PreTrainedTokenizerFast

    made = {}
    for name, make in MAKERS.items():
        tokenizer, trainer = make()
        tokenizer.train_from_iterator(TRAINED_ON, trainer)
        made[name] = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL)
    return made


NASTY = (
    "a Z é e\u0301 ß İ Ǆ ﬁ ① 東 🐦 👩\u200d🔬 👨\u200d👩\u200d👧 🇩🇪 \u200d \u0301 . , ' "
    "\u0000 \u0007 \ufeff \ufffd the again </s> <pad>"
)
PIECES = st.sampled_from([*NASTY.split(" "), "\u00a0", "\u2028", "\t", "\n", " ", "  ", " birds"])
TEXTS = st.lists(st.one_of(PIECES, st.text(st.characters(codec="utf-8"), max_size=4)), max_size=14).map("".join)


def read(tokenizer, text, prefix, suffix, capacity):
    """Return one side's reading, and the oracle's: (id, start, end, special) of every token."""
    side = module._Side(None, module.Template(prefix, suffix), capacity)
    tokens = module.tokenize(tokenizer, [text])[0]
    reading = module._Reading(tokens, module._StructuralTokens(tokenizer)(tokens, text), side)
    encoding = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False)
    structural = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
    plain = [(i, *span, i in structural) for i, span in zip(encoding.ids, encoding.offsets, strict=True)]
    return reading, plain


def expected_rows(a, b):
    """Brute force over character offsets: (end, ids of A's tokens, ids of B's tokens) of every row there may be."""
    rows, before = [], 0
    for end in range(1, 1 + max((token[2] for token in a + b), default=0)):
        enders = [[token for token in side if token[1] < token[2] == end] for side in (a, b)]
        if not all(enders):
            continue
        if not any(side[-1][3] for side in enders):
            inside = [
                [token[0] for token in side if token[1] < token[2] and before < token[2] <= end and not token[3]]
                for side in (a, b)
            ]
            rows.append((end, *inside))
        before = end
    return rows


@given(text=TEXTS, names=st.tuples(*[st.sampled_from(sorted(MAKERS))] * 2), lengths=st.tuples(*[st.integers(1, 9)] * 2))
def test_rows_windows_and_pooled_tokens_against_brute_force(tokenizers, text, names, lengths):
    around = {"a": ((7,), (8, 9)), "b": ((), (5,))}
    (a, plain_a), (b, plain_b) = (
        read(tokenizers[name], text, *around[side], capacity)
        for side, name, capacity in zip("ab", names, lengths, strict=True)
    )
    part = module._align_document(0, a, b, "max")
    expected = expected_rows(plain_a, plain_b)
    ends = part["char_end"].tolist()
    assert set(ends) <= {row[0] for row in expected}
    if part["n_outside"] == 0:
        assert ends == [row[0] for row in expected]
    if names[0] == names[1]:  # the same tokenizer: rows are its tokens
        assert {row[0] for row in expected} >= {
            token[2] for token in plain_a if token[1] < token[2] and not token[3]
        } - {token[2] for token in plain_a if token[3]}
    assert (part["char_start"] < part["char_end"]).all()
    assert (part["char_start"][1:] >= part["char_end"][:-1]).all()
    wanted = {row[0]: row[1:] for row in expected}
    for number, side in enumerate("ab"):
        slots = part[f"input_{side}"].tolist()
        windows = list(zip(part[f"first_{side}"], part[f"stop_{side}"], strict=True))
        assert all(stop - first <= lengths[number] + sum(map(len, around[side])) for first, stop in windows)
        pooled, seen = part[f"pooled_{side}"], 0
        behind = 0
        for row, end in enumerate(ends):
            first = int(windows[part["window_of_row"][row]][0])
            last = first + int(part[f"position_{side}"][row])
            mine = [slots[i] for i in range(max(behind, first), last + 1) if pooled[i]]
            assert mine == wanted[end][number]
            assert pooled[last]
            behind, seen = last + 1, seen + len(mine)
        assert seen == pooled.sum(), "no token without a row is pooled"


@st.composite
def token_rows(draw):
    """Random sparse activations of tokens, some negative, and the row of each token."""
    sizes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=6))
    values = st.sampled_from([0.0, 0.0, 0.0, 1.0, -1.0, 2.5, -0.25, 1e-3, 3e7])
    n_features = draw(st.integers(1, 5))
    count = sum(sizes) * n_features
    flat = draw(st.lists(values, min_size=count, max_size=count))
    numbers = np.repeat(np.cumsum(draw(st.lists(st.integers(1, 3), min_size=len(sizes), max_size=len(sizes)))), sizes)
    return np.array(flat, np.float32).reshape(-1, n_features), numbers


@given(token_rows(), st.sampled_from(["last", "max", "mean"]))
def test_pooling_against_dense_loops(case, how):
    dense, numbers = case
    by_row = [dense[numbers == row].astype(np.float64) for row in np.unique(numbers)]
    what = {"last": lambda x: x[-1], "max": lambda x: x.max(axis=0), "mean": lambda x: x.mean(axis=0)}[how]
    expected = np.array([what(x) for x in by_row])
    np.testing.assert_allclose(pool_tokens(dense, numbers, how), expected, rtol=1e-6)
    pooled = pool_tokens(sp.csr_array(dense), numbers, how)
    np.testing.assert_allclose(pooled.toarray(), expected, rtol=1e-6)
    assert pooled.has_canonical_format
    if how != "last" and len(by_row) < len(numbers):
        assert (pooled.data != 0).all()
    large = np.abs(dense).max(axis=1) > 2
    np.testing.assert_array_equal(
        any_of_tokens(large, numbers), [large[numbers == row].any() for row in np.unique(numbers)]
    )


def test_nothing_to_pool():
    none = np.zeros(0, np.int64)
    assert pool_tokens(sp.csr_array((0, 3), dtype=np.float32), none, "max").shape == (0, 3)
    empty = pool_tokens(sp.csr_array((2, 3), dtype=np.float32), np.array([0, 0]), "mean")
    assert empty.shape == (1, 3)
    assert empty.nnz == 0
