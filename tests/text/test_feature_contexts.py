"""Contexts as text: what is shown is what stands in the corpus, with the activations of the store."""

from __future__ import annotations

import json

import numpy as np
import pytest
from typer.testing import CliRunner

import storage
from jobs.cli import app
from pipeline.harvest.contexts import contexts
from pipeline.text import feature_contexts
from pipeline.text.feature_contexts import read_contexts
from storage.errors import InputError, RowMismatchError

DOCUMENTS = ("She saw a cat.\nThe cat saw her, too.", "No cats here", "A cat!")


@pytest.fixture(params=["csr", "dense"])
def case(request, text_of, client):
    text = text_of(*DOCUMENTS)
    rng = np.random.default_rng(0)
    active = np.where(rng.random((len(text.pieces), 7)) < 0.4, rng.random((len(text.pieces), 7)) + 0.1, 0)
    active[:, 2] = 0
    active = active.astype(np.float32)
    options = {"chunk": (4, 3)} if request.param == "csr" else {"layout": "dense", "chunk": (4, 3)}
    store = text.store(active, **options)
    contexts(store, text.folder / "c.zarr", top_n=3, quantiles=(0, 1), client=client)
    return text, active, store, text.folder / "c.zarr"


def test_pieces_are_the_text_with_the_activations(case, monkeypatch) -> None:
    text, active, store, path = case
    monkeypatch.setattr(feature_contexts, "BLOCK_FEATURES", 2)
    result = list(read_contexts(path, store, text.corpus, reach=3))
    assert [item.feature for item in result] == list(range(7))
    for item in result:
        column = active[:, item.feature]
        order = np.argsort(-column, kind="stable")
        assert [one.row for one in item.top] == [row for row in order[:3] if column[row] > 0]
        assert item.firing_rate == pytest.approx((column != 0).mean())
        assert item.maximum == pytest.approx(column.max())
        for one in item.top + item.sampled:
            own = np.flatnonzero(text.tokens["document"] == one.document)
            rows = own[abs(own - one.row) <= 3]
            assert one.text == "".join(text.pieces[row] for row in rows).strip()
            assert one.text in DOCUMENTS[one.document]
            tokens = [piece for piece in one.pieces if not piece.text.isspace()]
            assert all(piece.activation == 0 for piece in one.pieces if piece.text.isspace())
            np.testing.assert_array_equal([piece.activation for piece in tokens], column[rows])
            assert [piece.peak for piece in tokens] == (rows == one.row).tolist()
            assert one.token == text.pieces[one.row].strip()
            assert (one.starts, one.ends) == (rows[0] == own[0], rows[-1] == own[-1])
    assert result[2].top == result[2].sampled == ()


def test_samples_carry_their_quantile_and_some_features_are_enough(case) -> None:
    text, active, store, path = case
    (result,) = read_contexts(path, store, text.corpus, [4], top_n=1)
    assert len(result.top) == 1
    assert [one.quantile for one in result.sampled] == [0, 1]
    column = active[:, 4]
    assert [one.activation for one in result.sampled] == [column[column > 0].min(), column.max()]


def test_text_between_rows_is_shown(text_of, client) -> None:
    text = text_of("one, two", pattern=r"\w+")
    store = text.store(np.array([[1.0], [2.0]], np.float32))
    contexts(store, text.folder / "c.zarr", client=client)
    (result,) = read_contexts(text.folder / "c.zarr", store, text.corpus)
    assert [(piece.text, piece.activation) for piece in result.top[0].pieces] == [("one", 1), (", ", 0), ("two", 2)]


def test_tokens_are_shown_with_their_counts(text_of, client) -> None:
    text = text_of("cat dog cat", "cat")
    text.tokens["token_id"] = np.array([5, 6, 5, 5])
    store = text.store(np.ones((4, 1), np.float32))
    contexts(store, text.folder / "c.zarr", client=client)
    (result,) = read_contexts(text.folder / "c.zarr", store, text.corpus)
    assert result.tokens == (("cat", 3), (" dog", 1))


def test_bad_input(case, tmp_path) -> None:
    text, _, store, path = case
    with pytest.raises(InputError, match="has features 0 to 6, not 7"):
        list(read_contexts(path, store, text.corpus, [7]))
    storage.write_corpus(tmp_path / "other.zarr", ["other"], overwrite=True)
    with pytest.raises(RowMismatchError, match="was not harvested from the corpus"):
        list(read_contexts(path, store, tmp_path / "other.zarr"))


def invoke(*arguments) -> str:
    done = CliRunner().invoke(app, [str(item) for item in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_the_verb(case) -> None:
    text, active, store, path = case
    given = ("--corpus", text.corpus, "--contexts", path)
    result = json.loads(invoke("contexts", store, "--feature", 3, *given, "--json"))["features"][0]
    assert result["feature"] == 3
    assert result["top"][0]["row"] == int(active[:, 3].argmax())
    labels = text.folder / "labels.csv"
    labels.write_text("feature,label\n3,felines\n")
    invoke("labels", labels, "--out", text.folder / "labels.zarr", "--store", store)
    shown = invoke("contexts", store, "--feature", 3, *given, "--labels", text.folder / "labels.zarr")
    assert "feature 3  felines" in shown
    assert f"{active[:, 3].max():.3g}" in shown
    made = json.loads(invoke("contexts", store, "--top-n", 2, "--out", text.folder / "made.zarr", "--json"))
    assert (made["feature"], made["rank"]) == (7, 2)


def test_the_verb_says_what_is_missing(case) -> None:
    text, _, store, path = case
    given = ("--corpus", text.corpus, "--contexts", path)
    for arguments, message in (
        ((store,), "Give the features to show"),
        ((store, "--feature", 1), "is in no run directory: give --contexts PATH"),
        ((store, "--feature", 1, *given, "--labels", "none.zarr"), "There are no labels at none.zarr"),
    ):
        done = CliRunner().invoke(app, ["contexts", *map(str, arguments)], env={"COLUMNS": "500"})
        assert done.exit_code == 2
        assert message in done.output
