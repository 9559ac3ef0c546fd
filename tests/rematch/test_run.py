"""Matchings of permuted rows: what is planted is found, and is found beyond the token only where it is."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from typer.testing import CliRunner

import storage
from jobs.cli import app
from pipeline.correlate import plan
from pipeline.correlate.run import correlate
from pipeline.match.run import match
from pipeline.rematch import run as module
from pipeline.rematch.nulls import Rows
from pipeline.rematch.run import drawn_pairs
from pipeline.settings.registries import ROW_NULLS
from pipeline.work.workers import local_client
from storage.errors import InputError
from tests.rematch.conftest import plant


def covers_zero(result, quantity):
    row = result.sel(null="token", quantity=quantity)
    return float(row.difference_low) <= 0 <= float(row.difference_high)


@pytest.fixture(scope="module")
def token_only(tmp_path_factory, client):
    """Both sides fire on the same words, each in senses of its own."""
    case = plant(tmp_path_factory.mktemp("token"), shared_sense=False, seed=3)
    return case, case.rematch(nulls=["token"], draws=5, metrics=["rsa"], client=client)


@pytest.fixture(scope="module")
def sense(tmp_path_factory, client):
    """Both sides fire on the same words in the same senses."""
    case = plant(tmp_path_factory.mktemp("sense"), shared_sense=True)
    return case, case.rematch(draws=4, metrics=["rsa"], client=client)


def test_stores_that_share_the_token_alone_have_nothing_beyond_it(token_only):
    case, result = token_only
    token = result.sel(null="token")
    assert token.value.sel(quantity="pairs") == case.n_features
    for quantity in ("pairs", "r", "r_heldout", "rsa"):
        assert covers_zero(result, quantity), quantity
    assert token.value.sel(quantity="r_heldout") > 0.3, "there is something to explain"
    assert token.beyond_low.sel(quantity="r") <= 0 <= token.beyond_high.sel(quantity="r") < 0.3
    assert token.value.sel(quantity="rsa") > 0.9
    assert token.beyond.sel(quantity="rsa") == 0, "the same pairs have the same geometry"
    assert (token.p >= 1 / 6).all()


def test_documents_in_each_others_place_leave_what_chance_gives(sense):
    _, result = sense
    chance = result.sel(null="document")
    assert chance.null_mean.sel(quantity="pairs") < 1
    assert chance.difference_low.sel(quantity="pairs") > 5
    assert chance[["p", "difference_low"]].sel(quantity=["r", "r_heldout"]).to_array().isnull().all(), "of other pairs"
    assert chance.beyond.sel(quantity="pairs") == pytest.approx(1)
    assert np.isnan(chance.null_mean.sel(quantity="rsa")), "there are no pairs to score"


def test_what_depends_on_context_is_beyond_the_token(sense):
    token = sense[1].sel(null="token")
    for quantity in ("r", "r_heldout"):
        assert not covers_zero(sense[1], quantity)
        assert 0.2 < token.beyond_low.sel(quantity=quantity) < token.beyond_high.sel(quantity=quantity) < 0.8
    assert token.p.sel(quantity="r_heldout") == pytest.approx(1 / 5)


def test_features_that_are_shared_stand_out_against_documents(sense):
    case, result = sense
    assert (result.best_r_q < 0.05).all()
    assert (result.best_r_p >= 1 / (4 * case.n_features + 1)).all()


def test_real_values_are_those_of_the_rows_that_are_used(sense, client):
    case, result = sense
    assert result.n_left_out.sel(null="token") == 0
    assert result.n_groups.sel(null="token") == 2 * case.n_features
    assert result.n_rows.values.tolist() == [2000, 2000]
    plain = match(correlate(*case.stores, keep_above=0.2, client=client), min_correlation=0.2)
    assert float(result.value.sel(null="token", quantity="r")) == pytest.approx(plain.mean_r, abs=1e-12)


def test_the_pairs_of_all_nulls_are_kept_with_their_r(sense, client):
    case, result = sense
    plain = match(correlate(*case.stores, keep_above=0.2, client=client), min_correlation=0.2)
    for null in ("token", "document"):
        real, *draws = drawn_pairs(result, null)
        if null == "token":
            features = plain.feature_a.values.tolist(), plain.feature_b.values.tolist()
            assert {*zip(real["a"].tolist(), real["b"].tolist(), strict=True)} == {*zip(*features, strict=True)}
        values = result.null_value.sel(null=null)
        assert [len(pairs["a"]) for pairs in draws] == values.sel(quantity="pairs").values.tolist()
        for quantity in ("r", "r_heldout"):
            means = [pairs[quantity].mean() if len(pairs["r"]) else np.nan for pairs in draws]
            np.testing.assert_allclose(means, values.sel(quantity=quantity), rtol=1e-6)


def test_shares_of_the_text_are_matched_as_if_there_were_no_more(sense, client):
    case, result = sense
    assert result.fraction.values.tolist() == [0.25, 0.5, 1.0]
    assert result.size_pairs[-1] == result.value.sel(null="token", quantity="pairs")
    assert result.size_null_pairs[-1] == result.null_value.sel(null="token", quantity="pairs").mean()
    half = module.read_halves(*case.stores, "half", seed=0)
    rows = Rows(half, storage.open_activations(case.path("a")), storage.open_corpus(case.path("corpus")))
    quarter, some = (module.share_of_texts(rows, fraction).half for fraction in (0.25, 0.5))
    np.testing.assert_array_equal(quarter[quarter >= 0], some[quarter >= 0])
    documents = rows.document
    assert [len(set(documents[some == h])) for h in (0, 1)] == [-(-len(set(documents[half == h])) // 2) for h in (0, 1)]
    used = np.where(ROW_NULLS["token"].function(module.share_of_texts(rows, 0.5)).used, half, -1).astype("i1")
    assert result.size_rows[1] == np.count_nonzero(used >= 0)
    plain = match(correlate(*case.stores, keep_above=0.2, halves=used, client=client), min_correlation=0.2)
    assert result.size_pairs[1] == plain.sizes["pair"]


def test_rows_alone_with_their_text_are_left_out_on_both_sides(sense, client):
    case, _ = sense
    result = case.rematch("bigrams", nulls=["token"], previous=2, draws=1, client=client)
    assert result.n_left_out > 0
    assert result.n_left_out + result.n_rows == result.attrs["n_counted"] == 2000
    half = module.read_halves(*case.stores, "half", seed=0)
    rows = Rows(half, storage.open_activations(case.path("a")), storage.open_corpus(case.path("corpus")), 2)
    halves = np.where(ROW_NULLS["token"].function(rows).used, half, -1).astype("i1")
    plain = match(correlate(*case.stores, keep_above=0.2, halves=halves, client=client), min_correlation=0.2)
    assert float(result.value.sel(quantity="r_heldout").item()) == pytest.approx(plain.mean_r_heldout, abs=1e-12)
    x, y = (storage.read_csr(path).toarray().astype("f8") for path in case.stores)
    first, chosen = plain.isel(pair=0), halves == 0
    expected = np.corrcoef(x[chosen, int(first.feature_a)], y[chosen, int(first.feature_b)])[0, 1]
    assert float(first.r) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("layout", ["csr", "dense"])
def test_the_same_bytes_with_one_and_two_workers_streaming_and_in_several_passes(planted, client, layout, monkeypatch):
    case = planted(shared_sense=True, n_documents=12, layout=layout)
    given = {"nulls": ["token"], "draws": 1, "metrics": ["rsa"]}
    with local_client(n_workers=1, threads_per_worker=1) as lone:
        one = case.rematch("one", **given, client=lone)
    with monkeypatch.context() as patched:
        # B is read in passes, and never held as a whole
        patched.setattr(module, "allowed_memory", lambda _: 2)
        if layout == "csr":
            patched.setattr(plan, "_methods", lambda _: ["streaming"])
        streaming = case.rematch("streaming", **given, client=client)
    two = case.rematch("two", **given, client=client)
    for other in (streaming, two):
        for name in one.data_vars:
            assert one[name].values.tobytes() == other[name].values.tobytes(), name


def test_work_that_was_stopped_goes_on_with_the_next_draw(planted, client, monkeypatch):
    case, given = planted(shared_sense=True, n_documents=12), {"nulls": ["token"], "draws": 2, "client": client}
    given["fractions"] = []
    whole = case.rematch("whole", **given)
    made = module._Draws.make

    def stops(self, matching, scratch, client):
        if matching.draw == 1:
            raise InputError("stopped")
        return made(self, matching, scratch, client)

    with monkeypatch.context() as patched:
        patched.setattr(module._Draws, "make", stops)
        with pytest.raises(InputError, match="stopped"):
            case.rematch("resumed", **given)
    partial = case.folder / "resumed.zarr.partial"
    assert module.draws_done(partial) == "2 matchings are done"
    made_again = []
    monkeypatch.setattr(module._Draws, "make", lambda *args: made_again.append(args[1].file) or made(*args))
    assert case.rematch("resumed", **given).equals(whole)
    assert made_again == ["token-00001.npz"]
    left = [path.name for path in case.folder.iterdir() if "resumed" in path.name]
    assert left == ["resumed.zarr"]
    assert not (case.folder / "resumed.zarr" / "draws").exists()


def test_filters_of_the_pairs_take_part(planted, client):
    case = planted(shared_sense=True, n_documents=12)
    case.pairs(filters=[{"name": "fraction", "fraction": 0.5, "when": "after"}, {"name": "min_firing", "n": 5}])
    result = case.rematch(nulls=["token"], draws=1, client=client)
    assert result.value.sel(quantity="pairs").item() == case.n_features / 2


def test_what_does_not_belong_together_is_refused_before_anything_is_written(planted, tmp_path):
    case = planted(shared_sense=True, n_documents=12)
    pairs = case.pairs()
    a, b = case.stores
    out = case.path("out")
    with pytest.raises(InputError, match="not the store of side A"):
        module.rematch(pairs, case.path("cor"), b, a, out=out, corpus=case.path("corpus"))
    with pytest.raises(InputError, match="give the corpus"):
        module.rematch(pairs, case.path("cor"), a, b, out=out)
    other = shutil.copytree(case.folder, tmp_path / "other")
    correlate(a, b, out=other / "cor.zarr", keep_above=0.15, overwrite=True)
    with pytest.raises(InputError, match="were not chosen from the correlation"):
        module.rematch(pairs, other / "cor.zarr", a, b, out=out, corpus=case.path("corpus"))
    halves = module.read_halves(a, b, "half", seed=0)
    match(correlate(a, b, out=other / "given.zarr", halves=halves), out=other / "of-given.zarr")
    with pytest.raises(InputError, match="halves that were given"):
        module.rematch(other / "of-given.zarr", other / "given.zarr", a, b, out=out, corpus=case.path("corpus"))
    storage.write_corpus(case.path("foreign"), ["another text"])
    with pytest.raises(InputError, match="was not harvested from the corpus"):
        module.rematch(pairs, case.path("cor"), a, b, out=out, corpus=case.path("foreign"))
    assert not list(case.folder.glob("out*"))


def test_the_verb_shows_effects_and_writes_the_same(planted):
    case = planted(shared_sense=True, n_documents=12)
    case.pairs()
    arguments = [
        case.path("pairs"),
        case.path("cor"),
        *case.stores,
        "--corpus",
        case.path("corpus"),
        "--null",
        "token",
        "--draws",
        1,
    ]
    done = CliRunner().invoke(app, ["rematch", *map(str, arguments), "--out", str(case.path("typed"))])
    assert done.exit_code == 0, done.output
    assert "beyond" in done.output
    typed = storage.open_result(case.path("typed"), "rematch")
    assert dict(typed.sizes) == {"null": 1, "draw": 1, "quantity": 5, "metric": 2, "size": 3, "matched": 24}
