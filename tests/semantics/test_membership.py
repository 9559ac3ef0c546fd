"""Which features belong to a concept, by each of the rules."""

from __future__ import annotations

import logging
import math

import numpy as np
import pytest
import scipy.sparse as sp
from sklearn.metrics import mutual_info_score

import storage
from pipeline.harvest.contexts import contexts
from pipeline.semantics import membership
from pipeline.semantics.concepts import Concept
from pipeline.semantics.membership import concept_features, pointwise_mutual_information
from pipeline.settings.semantics import CountRule, PmiRule, ProbeRule, ShareRule
from storage.errors import InputError, RowMismatchError

CONCEPTS = {"pets": Concept("pets", ("cat", "dog")), "cities": Concept("cities", ("New York",))}
SENTENCES = ("the cat sat in New York", "a dog and a cat saw York", "New shoes for the dog", "it rained in New York")


@pytest.fixture
def text(text_of):
    return text_of(*SENTENCES)


def active(text) -> np.ndarray:
    """Feature 0 fires on pets, 1 on "New" and "York" wherever they stand, 2 on all, 3 never, 4 mostly on "the"."""
    x = np.zeros((len(text.pieces), 5), np.float32)
    x[text.rows_of("cat", "dog"), 0] = [4, 3, 2, 1]
    x[text.rows_of("New", "York"), 1] = [1, 2, 9, 5, 4, 3]
    x[:, 2] = np.arange(1, len(x) + 1)
    x[text.rows_of("the"), 4] = 6
    x[text.rows_of("cat"), 4] = 1
    return x


def find(text, client, rule, top_n: int = 6, name: str = "a", **options):
    store = text.store(active(text), name, **options)
    contexts(store, text.folder / f"contexts-{name}.zarr", top_n=top_n, client=client)
    return concept_features(text.folder / f"contexts-{name}.zarr", store, text.corpus, CONCEPTS, rule, client=client)


def test_hits_and_shares(text, client) -> None:
    result = find(text, client, CountRule(at_least=3, of=4))
    assert result["hits"].dims == ("feature", "concept")
    assert result["hits"].values.tolist() == [[4, 0], [0, 2], [0, 2], [0, 0], [2, 0]]
    assert result["member"].values.tolist() == [[True, False]] + 4 * [[False, False]]
    # of feature 1, the four strongest: York 9 (not in New York), New 5 (shoes), New York 4 and 3
    np.testing.assert_allclose(result["share"].values[1], [0, 7 / 21])
    np.testing.assert_allclose(result["share"].values[4], [2 / 14, 0], rtol=1e-6)
    assert np.isnan(result["share"].values[3]).all()
    assert result["rows"].values.tolist() == [4, 4]
    assert result["members"].values.tolist() == [1, 0]
    assert result.attrs["rule"] == {"name": "count", "at_least": 3, "of": 4}


def test_share_rule(text, client) -> None:
    result = find(text, client, ShareRule(at_least=0.4, of=6))
    np.testing.assert_allclose(result["share"].values[1, 1], 10 / 24)
    assert result["member"].values[:, 0].tolist() == [True, False, False, False, False]
    assert result["member"].values[:, 1].tolist() == [False, True, False, False, False]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("layout", ["csr", "dense"])
def test_pmi(text, client, layout: str, dtype: str, monkeypatch) -> None:
    monkeypatch.setattr(membership, "SLAB_BYTES", 1)
    result = find(
        text, client, PmiRule(at_least=2, min_count=2), layout=layout, dtype=dtype, chunk=(4, 2), shard_rows=8
    )
    x, n = active(text), len(text.pieces)
    stands = {"pets": text.rows_of("cat", "dog"), "cities": np.array([4, 5, 21, 22])}
    assert [text.pieces[i].strip() for i in stands["cities"]] == ["New", "York"] * 2
    for i, rows in enumerate(stands.values()):
        for feature in range(5):
            fires = np.flatnonzero(x[:, feature])
            both = len(np.intersect1d(fires, rows))
            assert result["count"].values[feature, i] == both
            expected = math.nan if not len(fires) else -math.inf if not both else math.log2(both * n / len(fires) / 4)
            np.testing.assert_allclose(result["pmi"].values[feature, i], expected, rtol=1e-6)
    assert result["member"].values[:, 0].tolist() == [True, False, False, False, False]


def test_pmi_adds_up_to_mutual_information() -> None:
    """scikit-learn's mutual information is the mean of PMI over all four outcomes."""
    rng = np.random.default_rng(0)
    x, y = rng.random(500) < 0.3, rng.random(500) < 0.4
    y |= x & (rng.random(500) < 0.5)
    total = 0.0
    for a in (x, ~x):
        for b in (y, ~y):
            pmi = pointwise_mutual_information(
                np.array([[np.sum(a & b)]]), np.array([a.sum()]), np.array([b.sum()]), 500
            )
            total += np.mean(a & b) * pmi.item()
    assert total == pytest.approx(mutual_info_score(x, y) / math.log(2))


def test_sinks_do_not_count(text, client) -> None:
    x = active(text)
    writer = storage.ActivationWriter.create(
        text.folder / "s.zarr", n_tokens=len(x), n_features=5, tokens=text.tokens, layout="csr",
        attrs={"corpus_hash": storage.open_corpus(text.corpus).hash},
    )  # fmt: skip
    sink = np.zeros(len(x), bool)
    sink[text.rows_of("cat")[0]] = True
    for i in range(writer.n_shards):
        rows = writer.shard_slice(i)
        writer.write_shard(i, sp.csr_array(x[rows]), sink[rows])
    writer.finalise()
    contexts(text.folder / "s.zarr", text.folder / "c.zarr", client=client)
    paths = (text.folder / "c.zarr", text.folder / "s.zarr", text.corpus)
    result = concept_features(*paths, CONCEPTS, client=client)
    assert result["rows"].values.tolist() == [3, 4]
    assert result["count"].values[0, 0] == 3
    assert result["pmi"].values[0, 0] == pytest.approx(math.log2((len(x) - 1) / 3), rel=1e-6)


def test_probe(text_of, client) -> None:
    rng = np.random.default_rng(0)
    words = np.array(["cat", "dog", "tree", "sun", "road", "New York"])
    text = text_of(*(" ".join(rng.choice(words, 30)) for _ in range(40)))
    pets = np.isin(np.arange(len(text.pieces)), text.rows_of("cat", "dog"))
    x = np.where(rng.random((len(pets), 12)) < 0.2, 1, 0).astype(np.float32)
    x[:, 7] = pets * 50 * (rng.random(len(pets)) < 0.9)
    x[:, 3] = ~pets
    store = text.store(x)
    contexts(store, text.folder / "c.zarr", client=client)
    rule = ProbeRule(features=1, rows=300, rows_of_concept=200, strength=0.1)
    paths = (text.folder / "c.zarr", store, text.corpus)
    result = concept_features(*paths, CONCEPTS, rule, out=text.folder / "found.zarr", client=client)
    assert np.flatnonzero(result["member"].values[:, 0]).tolist() == [7]
    assert result["weight"].values[3, 0] <= 0
    assert result["probe_auc"].values[0] > 0.95
    assert result["members"].values[0] == 1
    again = concept_features(*paths, CONCEPTS, rule, client=client)
    assert again.equals(result.load())


def test_a_probe_needs_rows_on_both_sides(text, client, caplog) -> None:
    with caplog.at_level(logging.WARNING):
        result = find(text, client, ProbeRule())
    assert np.isnan(result["probe_auc"]).all()
    assert not result["member"].any()
    assert "too few rows for a probe" in caplog.text


def test_results_are_kept_until_a_keyword_changes(text, client) -> None:
    store = text.store(active(text))
    contexts(store, text.folder / "c.zarr", client=client)
    paths, out = (text.folder / "c.zarr", store, text.corpus), text.folder / "found.zarr"
    concept_features(*paths, CONCEPTS, out=out, client=client)
    modified = (out / "zarr.json").stat().st_mtime_ns
    concept_features(*paths, CONCEPTS, out=out, client=client)
    assert (out / "zarr.json").stat().st_mtime_ns == modified
    other = {**CONCEPTS, "pets": Concept("pets", ("cat",))}
    assert concept_features(*paths, other, out=out, client=client)["rows"].values.tolist() == [2, 4]
    assert storage.open_result(out, "concepts").attrs["site"] == "layers.0"


def test_bad_input(text, client, tmp_path) -> None:
    store = text.store(active(text))
    contexts(store, tmp_path / "c.zarr", top_n=3, client=client)
    paths = (tmp_path / "c.zarr", store, text.corpus)
    with pytest.raises(InputError, match=r"looks at 5 contexts .* keeps 3; make contexts with top_n=5"):
        concept_features(*paths, CONCEPTS, client=client)
    with pytest.raises(InputError, match="no concept to look for"):
        concept_features(*paths, {}, client=client)
    storage.write_corpus(tmp_path / "other.zarr", ["other"], overwrite=True)
    with pytest.raises(RowMismatchError, match="was not harvested from the corpus"):
        concept_features(*paths[:2], tmp_path / "other.zarr", CONCEPTS, CountRule(at_least=1, of=1), client=client)
    storage.write_activations(tmp_path / "plain.zarr", np.eye(3, dtype=np.float32), overwrite=True)
    with pytest.raises(InputError, match="no token coordinates"):
        concept_features(tmp_path / "c.zarr", tmp_path / "plain.zarr", text.corpus, CONCEPTS, client=client)
