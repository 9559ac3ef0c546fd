"""Tables of tokens in every format: the same places and the same text, and what is wrong is said with its remedy."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.errors import InputError
from storage.token_tables import has_tokens, iter_texts, read_documents, read_tokens

DOCUMENTS = [["NA", " was", "", " null"], ["Ünï", "\n"], ["x"]]
NAMES = ["zebra", "007", "a"]


def write(folder: Path, suffix: str, columns: dict) -> Path:
    path = folder / f"tokens{suffix}"
    if suffix == ".npz":
        np.savez(path, **{name: np.array(values, None) for name, values in columns.items()})
    elif suffix == ".csv":
        pd.DataFrame(columns).to_csv(path)
    else:
        pd.DataFrame(columns).to_parquet(path)
    return path


def flat(documents: list[list[str]] = DOCUMENTS) -> tuple[list[int], list[str]]:
    return [i for i, tokens in enumerate(documents) for _ in tokens], [
        token for tokens in documents for token in tokens
    ]


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".npz", ".jsonl"])
@pytest.mark.parametrize("named", [False, True])
def test_the_same_places_from_every_format(tmp_path: Path, suffix: str, named: bool) -> None:
    document, token = flat()
    if suffix == ".jsonl":
        path = tmp_path / "tokens.jsonl"
        lines = [{"tokens": tokens} if named else tokens for tokens in DOCUMENTS]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    else:
        names = [NAMES[i] for i in document] if named else document
        path = write(tmp_path, suffix, {"document": names, "token": token})
        assert has_tokens(path)
    columns = read_tokens(path, len(token))
    texts = [text.text for text in iter_texts(path)]
    assert texts == ["".join(tokens) for tokens in DOCUMENTS]
    assert columns["document"].tolist() == document
    spans = zip(*(columns[name].tolist() for name in ("document", "char_start", "char_end")), strict=True)
    assert [texts[i][start:end] for i, start, end in spans] == token
    assert columns["token_id"].tolist() == list(range(len(token))), "no token comes twice"
    assert list(read_documents(path, len(token))) == ["document"]
    with pytest.raises(InputError, match=r"8"):
        read_tokens(path, 8)


@given(st.lists(st.tuples(st.integers(0, 3), st.text(max_size=3)), min_size=1, max_size=20))
@settings(max_examples=10)
def test_rows_in_any_order_are_places_in_the_text(tmp_path_factory: pytest.TempPathFactory, rows: list) -> None:
    path = tmp_path_factory.mktemp("tokens") / "tokens.parquet"
    pd.DataFrame(rows, columns=["document", "token"]).to_parquet(path)
    columns, texts = read_tokens(path, len(rows)), [document.text for document in iter_texts(path)]
    for i, (number, token) in enumerate(rows):
        assert columns["document"][i] == number
        assert texts[number][columns["char_start"][i] : columns["char_end"][i]] == token


def test_what_is_not_known_is_named_and_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path, ".csv", {"document": [0, 0, 1], "speaker": ["x", "y", "z"], "group": ["p", "p", "q"]})
    with caplog.at_level(logging.WARNING):
        columns = read_tokens(path, 3)
    assert sorted(columns) == ["document", "group"]
    assert "speaker is not read; what is known is document" in caplog.text
    assert "Unnamed" not in caplog.text
    assert not has_tokens(path)


def test_entries_of_a_vocabulary_are_not_taken_for_text_in_silence(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path, ".csv", {"document": [0, 0], "token": ["She", "Ġsaw"]})
    read_tokens(path, 2)
    assert "1 of 2 tokens begin with Ġ or ▁ or ##" in caplog.text
    assert "tokenizer.decode" in caplog.text


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"text": ["a", "b"]}, "text and no 'document': give each row the number or the name of its document"),
        ({"document": ["a", ""]}, "document is '' in row 1; give each row the number or the name"),
        ({"document": [0, 10**9], "token": ["a", "b"]}, "document 1000000000 is beyond the number of rows, 2"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, columns: dict, message: str) -> None:
    path = write(tmp_path, ".csv", columns)
    with pytest.raises(InputError, match=message):
        read_tokens(path, 2)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "a"}', "line 2 has no list of tokens: write a list of texts, or an object with 'tokens'"),
        ("[17, 4]", "line 2 has 17 among its tokens, which are pieces of text: decode ids one by one"),
        ("[", "line 2 is not valid JSON"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "tokens.jsonl"
    path.write_text(f'["a"]\n{line}\n')
    with pytest.raises(InputError, match=message):
        read_tokens(path, 2)


def test_too_many_tokens_end_the_reading_early(tmp_path: Path) -> None:
    path = tmp_path / "tokens.jsonl"
    path.write_text('["a", "b", "c"]\n[1]\n')
    with pytest.raises(InputError, match=r"more than 2 tokens \(in document 0\), one for each activation"):
        read_tokens(path, 2)
