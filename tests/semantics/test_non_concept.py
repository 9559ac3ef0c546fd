"""Features without a meaning are recognised by what they do, and can be left out of matching."""

from __future__ import annotations

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from jobs.cli import app
from pipeline.correlate.run import correlate
from pipeline.harvest.contexts import contexts
from pipeline.match.run import match
from pipeline.semantics.non_concept import non_concept_features
from storage.errors import InputError

KINDS = ["punctuation", "blank", "beginning", "position", "frequent", "single_token"]
# what each feature does
FIRES = ["commas", "newlines", "beginnings", "position 3", "everywhere", "only on cat", "pets", "never"]


@pytest.fixture
def case(text_of, client):
    words = ["cat", "dog", "bird", "fish", "rat"]
    rng = np.random.default_rng(0)
    documents = [" ".join(rng.choice(words, 9)) + ",\n\n" + " ".join(rng.choice(words, 9)) for _ in range(12)]
    text = text_of(*documents)
    ids = {piece: i for i, piece in enumerate(dict.fromkeys(map(str.strip, text.pieces)))}
    text.tokens["token_id"] = np.array([ids[piece.strip()] for piece in text.pieces])
    n = len(text.pieces)
    x = np.zeros((n, len(FIRES)), np.float32)
    x[text.rows_of(","), 0] = 1
    x[[i for i, piece in enumerate(text.pieces) if piece == "\n"], 1] = 1
    x[text.tokens["position"] == 0, 2] = 1
    x[text.tokens["position"] == 3, 3] = 1
    x[:, 4] = 1
    x[text.rows_of("cat")[::4], 5] = 1
    x[rng.choice(text.rows_of(*words), n // 12, replace=False), 6] = 1
    x *= 1 + rng.random(x.shape, dtype=np.float32)
    store = text.store(x)
    contexts(store, text.folder / "c.zarr", client=client)
    return text, x, store, text.folder / "c.zarr"


def test_shares_and_reasons(case, client) -> None:
    text, x, store, path = case
    result = non_concept_features(path, store, text.corpus, client=client)
    assert result["kind"].values.tolist() == KINDS
    share = result["share"].values
    pieces = np.array(text.pieces)
    rows = {
        "punctuation": np.array([not any(map(str.isalnum, piece)) for piece in pieces]),
        "blank": np.char.strip(pieces) == "",
        "beginning": text.tokens["position"] == 0,
    }
    for feature in range(7):
        fires = x[:, feature] > 0
        for kind, column in zip(KINDS, share[feature], strict=True):
            if kind in rows:
                assert column == pytest.approx(rows[kind][fires].mean())
        assert share[feature, 4] == pytest.approx(fires.mean())
        commonest = np.bincount(text.tokens["token_id"][fires]).max()
        assert share[feature, 5] == pytest.approx(commonest / fires.sum())
    assert np.isnan(share[7, [0, 1, 2, 3, 5]]).all()
    reasons = [KINDS[reason] if reason >= 0 else None for reason in result["reason"].values.tolist()]
    assert reasons == ["punctuation", "blank", "beginning", "position", "frequent", None, None, None]
    assert result["non_concept"].values.tolist() == 5 * [True] + 3 * [False]


def test_kinds_and_limits_are_chosen(case, client) -> None:
    text, _, store, path = case
    single = non_concept_features(path, store, text.corpus, kinds=["single_token"], client=client)
    assert {"commas", "only on cat"} <= {FIRES[i] for i in np.flatnonzero(single["non_concept"])}
    strict = non_concept_features(
        path, store, text.corpus, kinds=["frequent"], limits={"frequent": 0.01}, client=client
    )
    assert strict["non_concept"].sum() == 7
    with pytest.raises(InputError, match=r"kinds.0: .*'single_token' \(given: 'odd'\)"):
        non_concept_features(path, store, text.corpus, kinds=["odd"], client=client)
    with pytest.raises(InputError, match=r"limits.frequent: .* less than or equal to 1"):
        non_concept_features(path, store, text.corpus, limits={"frequent": 2}, client=client)


def test_as_a_filter_of_match(case, client) -> None:
    text, x, store, path = case
    other = text.store(x[:, ::-1].copy(), "b")
    contexts(other, text.folder / "cb.zarr", client=client)
    folder = text.folder
    correlate(store, other, out=folder / "cor.zarr", select="all", client=client)
    for name, own, its in (("na", store, path), ("nb", other, folder / "cb.zarr")):
        non_concept_features(its, own, text.corpus, out=folder / f"{name}.zarr", client=client)
    paths = {"contexts": (path, folder / "cb.zarr"), "stores": (store, other), "corpus": text.corpus}
    recognised = (folder / "na.zarr", folder / "nb.zarr")
    by_data = [{"name": "non_concept", "by": "data"}]
    pairs = match(folder / "cor.zarr", filters=by_data, non_concept=recognised, **paths)
    assert sorted(pairs["feature_a"].values.tolist()) == [5, 6]
    assert sorted(match(folder / "cor.zarr")["feature_a"].values.tolist()) == list(range(7))
    # the list of tokens sees the comma and the newline only
    by_tokens = match(folder / "cor.zarr", filters=[{"name": "non_concept"}], **paths)
    assert set(by_tokens["feature_a"].values.tolist()) == {2, 3, 4, 5, 6}
    with pytest.raises(InputError, match="make them with `subspace non-concept`"):
        match(folder / "cor.zarr", filters=by_data, **paths)
    with pytest.raises(InputError, match=r"non-concept features at .* are not of the store of side A"):
        match(folder / "cor.zarr", filters=by_data, non_concept=recognised[::-1], **paths)
    with pytest.raises(InputError, match="belongs to by: tokens"):
        match(folder / "cor.zarr", filters=[{"name": "non_concept", "by": "data", "tokens": "x"}], **paths)


def test_the_verbs(case) -> None:
    text, _, store, path = case
    given = [str(store), "--contexts", str(path), "--corpus", str(text.corpus), "--json", "--out"]
    done = CliRunner().invoke(app, ["non-concept", *given, str(text.folder / "n.zarr"), "--limit", "frequent=0.5"])
    assert done.exit_code == 0, done.output
    result = {line["kind"]: line["features"] for line in json.loads(done.stdout)["kinds"]}
    assert result == {"punctuation": [0], "blank": [1], "beginning": [2], "position": [3], "frequent": [4]}
    concepts = text.folder / "mine.yaml"
    concepts.write_text("cats: [cat]\n")
    rule = ["--concepts", str(concepts), "--rule", "count:at_least=4:of=5"]
    done = CliRunner().invoke(app, ["concepts", *given, str(text.folder / "k.zarr"), *rule])
    assert done.exit_code == 0, done.output
    (line,) = json.loads(done.stdout)["concepts"]
    assert (line["concept"], line["rows"]) == ("cats", len(text.rows_of("cat")))
    assert 5 in line["features"]
    done = CliRunner().invoke(app, ["concepts", *given, str(text.folder / "k.zarr"), "--rule", "most"])
    assert done.exit_code == 2
    assert "give it as count:at_least=2:of=5" in done.output
