"""Filters: what each drops, that the order matters, that each reports, and that no feature vanishes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import yaml
from hypothesis import given
from hypothesis import strategies as st

import storage
from pipeline.harvest.contexts import contexts
from pipeline.match.edges import make_edges
from pipeline.match.fates import BELOW_MIN_R, DEAD, MATCHED, Fates
from pipeline.match.filters import (
    Candidates,
    apply_filter,
    easy_features,
    heldout_note,
    read_token_list,
    share_of_commonest,
)
from pipeline.match.run import choose, match
from pipeline.settings.match import MatchSettings
from pipeline.settings.registries import FILTERS, METHODS
from pipeline.text.top_tokens import TopTokens
from storage.errors import FormatError, InputError, MissingInputError

NAN = np.nan


class FakeCandidates(Candidates):
    """Candidates whose held-out r and top tokens are given."""


def fate_names(fate: xr.DataArray) -> list[str]:
    names = dict(zip(fate.attrs["flag_values"], fate.attrs["flag_meanings"].split(), strict=True))
    return [names[code] for code in fate.values.tolist()]


def candidates(r, heldout=None, n_active=None, tops=None):
    r = np.asarray(r, float)
    a, b = np.indices(r.shape)
    edges = make_edges(a.ravel(), b.ravel(), r.ravel(), *r.shape)
    made = FakeCandidates("", n_active or {}, edges)
    made.__dict__["r_heldout"] = (
        np.full(len(edges), NAN) if heldout is None else np.asarray(heldout)[edges.ids_a, edges.ids_b]
    )
    made.__dict__["tops"] = tops
    return made


def kept_pairs(setting, data, at=None):
    (parsed,) = MatchSettings.make(filters=[setting]).filters
    at = np.arange(len(data.edges)) if at is None else at
    kept, report = apply_filter(parsed, data, at)
    assert report["pairs_before"] - report["pairs_dropped"] == len(kept)
    assert report["name"] == setting["name"]
    return list(zip(data.edges.ids_a[kept].tolist(), data.edges.ids_b[kept].tolist(), strict=True))


R = [[0.9, 0.5, NAN], [0.8, 0.7, 0.2], [0.6, NAN, 0.3]]


def test_minimum_r_and_heldout_r():
    assert kept_pairs({"name": "min_r", "value": 0.7}, candidates(R)) == [(0, 0), (1, 0), (1, 1)]
    heldout = [[0.1, 0.5, NAN], [NAN, 0.7, 0.2], [0.6, NAN, 0.3]]
    assert kept_pairs({"name": "min_heldout_r", "value": 0.5}, candidates(R, heldout)) == [(0, 1), (1, 1), (2, 0)]


@pytest.mark.parametrize(("fraction", "n"), [(1.0, 7), (0.5, 4), (0.01, 1)])
def test_fraction_keeps_the_best_or_the_worst(fraction, n):
    data = candidates(R)
    by_r = sorted(zip(-data.edges.r, data.edges.ids_a, data.edges.ids_b, strict=True))
    top = kept_pairs({"name": "fraction", "fraction": fraction}, data)
    bottom = kept_pairs({"name": "fraction", "fraction": fraction, "keep": "bottom"}, data)
    assert top == sorted((a, b) for _, a, b in by_r[:n])
    assert bottom == sorted((a, b) for _, a, b in by_r[len(by_r) - n :])


def test_max_uses_before_looks_at_the_best_and_drops_the_hub_whole():
    data = candidates(R)  # B 0 is the best of all three
    assert kept_pairs({"name": "max_uses", "n": 2}, data) == [(0, 1), (1, 1), (1, 2), (2, 2)]
    assert kept_pairs({"name": "max_uses", "n": 3}, data) == kept_pairs({"name": "min_r", "value": 0}, data)
    # B's features prefer A 0, A 1, A 2: no feature of A is used twice
    assert len(kept_pairs({"name": "max_uses", "n": 1, "side": "a"}, data)) == 7


def test_max_uses_after_looks_at_the_pairs():
    data = candidates(R)
    pairs = np.array([0, 2, 3])  # (0, 0), (1, 0), (1, 1)
    assert kept_pairs({"name": "max_uses", "n": 1, "side": "b", "when": "after"}, data, pairs) == [(1, 1)]
    assert kept_pairs({"name": "max_uses", "n": 1, "side": "a", "when": "after"}, data, pairs) == [(0, 0)]
    assert kept_pairs({"name": "max_uses", "n": 1, "when": "after"}, data, pairs) == []


def test_min_firing():
    counts = xr.Dataset({"n_active_a": ("feature_a", [9, 3, 9]), "n_active_b": ("feature_b", [9, 9, 4])})
    assert kept_pairs({"name": "min_firing", "n": 4}, candidates(R, n_active=counts)) == [
        (0, 0),
        (0, 1),
        (2, 0),
        (2, 2),
    ]


def test_reproducible():
    heldout = [[0.8, 0.1, NAN], [NAN, 0.75, 0.45], [0.6, NAN, -0.3]]
    setting = {"name": "reproducible", "tolerance": 0.11}
    assert kept_pairs(setting, candidates(R, heldout)) == [(0, 0), (1, 1), (2, 0)]


def top(tokens, vocabulary, positions=None):
    tokens = np.asarray(tokens)
    return TopTokens(tokens, np.full(tokens.shape, -1) if positions is None else np.asarray(positions), vocabulary)


WORDS = ["the", ".", "", "cat"]


def test_non_concept_counts_tokens_not_any_of_them():
    a = top([[1, 0, 3, 3], [1, 2, 1, 0], [-1, -1, -1, -1]], WORDS)
    b = top([[3, 3, 3, 3], [0, 0, 0, 0], [3, 3, -1, -1]], WORDS)
    data = candidates(R, tops=(a, b))
    # A 1 has three of four in the list; A 0 one of four; a feature without contexts says nothing
    assert {i for i, _ in kept_pairs({"name": "non_concept"}, data)} == {0, 2}
    assert {i for i, _ in kept_pairs({"name": "non_concept", "share": 0.75}, data)} == {0, 1, 2}
    assert {i for i, _ in kept_pairs({"name": "non_concept", "share": 0.2}, data)} == {2}


def test_shared_token():
    a, b = top([[0, 1], [3, 3], [-1, -1]], WORDS), top([[1, 2], [2, -1], [3, -1]], WORDS)
    assert kept_pairs({"name": "shared_token"}, candidates(R, tops=(a, b))) == [(0, 0), (1, 2)]


@given(st.integers(0, 2**32 - 1))
def test_shared_token_equals_sets(seed):
    rng = np.random.default_rng(seed)
    a, b = (top(rng.integers(-1, 12, (n, 3)), [str(i) for i in range(12)]) for n in (7, 5))
    expected = [(i, j) for i, j in np.ndindex(7, 5) if (set(a.ids[i].tolist()) & set(b.ids[j].tolist())) - {-1}]
    assert kept_pairs({"name": "shared_token"}, candidates(np.full((7, 5), 0.5), tops=(a, b))) == expected


def test_easy_kinds():
    same = top([[0, 0, 0], [0, 3, 1], [1, 2, 1], [0, -1, -1]], WORDS, [[1, 2, 3], [4, 4, 4], [5, 6, 7], [1, -1, -1]])
    assert easy_features(same, ["single_token"], 1.0).tolist() == [True, False, False, False]
    assert easy_features(same, ["position"], 1.0).tolist() == [False, True, False, False]
    assert easy_features(same, ["punctuation"], 1.0).tolist() == [False, False, True, False]
    assert easy_features(same, ["single_token", "punctuation"], 0.6).tolist() == [True, False, True, False]
    one_context_proves_nothing = easy_features(same, ["single_token", "position", "punctuation"], 0.1)[3]
    assert not one_context_proves_nothing


@given(st.integers(0, 2**32 - 1))
def test_share_of_commonest_equals_counting(seed):
    values = np.random.default_rng(seed).integers(-1, 4, (6, 5))
    expected = []
    for row in values:
        known = [value for value in row.tolist() if value >= 0]
        expected.append(max(map(known.count, known)) / len(known) if known else NAN)
    np.testing.assert_allclose(share_of_commonest(values), expected)


@given(st.integers(0, 2**32 - 1), st.sampled_from(sorted(METHODS)))
def test_no_feature_vanishes_and_reports_add_up(seed, method):
    """Any sequence of filters: every feature has one fate, and the reports chain from the candidates to the pairs."""
    rng = np.random.default_rng(seed)
    n_a, n_b = rng.integers(1, 12, 2)
    r = np.where(rng.random((n_a, n_b)) < 0.6, rng.integers(1, 6, (n_a, n_b)) / 5, NAN)
    vocabulary = [*WORDS, "a", "b"]
    tops = tuple(top(rng.integers(-1, 6, (n, 3)), vocabulary, rng.integers(0, 3, (n, 3))) for n in (n_a, n_b))
    data = candidates(r, r + rng.normal(0, 0.2, r.shape), tops=tops)
    pool = [
        {"name": "min_r", "value": 0.4},
        {"name": "min_heldout_r", "value": 0.3},
        {"name": "fraction", "fraction": 0.7},
        {"name": "max_uses", "n": 2},
        {"name": "reproducible", "tolerance": 0.2},
        {"name": "non_concept"},
        {"name": "shared_token"},
        {"name": "easy_kind", "share": 0.9},
    ]
    picked = [{**pool[i], "when": str(rng.choice(["before", "after"]))} for i in rng.integers(0, 8, rng.integers(0, 5))]
    settings = MatchSettings.make(method=method, filters=picked)
    defined = [rng.random(n) < 0.9 for n in (n_a, n_b)]
    defined[0][data.edges.ids_a], defined[1][data.edges.ids_b] = True, True
    fates = Fates(data.edges, *defined, (each.fate for each in settings.filters))
    chosen, reports = choose(data, settings, fates)
    assert [(one["name"], one["when"]) for one in reports] == sorted(
        ((one["name"], one["when"]) for one in picked), key=lambda one: one[1] == "after"
    )
    left = len(data.edges)
    for report in (one for one in reports if one["when"] == "before"):
        assert report["pairs_before"] == left
        left -= report["pairs_dropped"]
    if reports and reports[-1]["when"] == "after":
        assert reports[-1]["pairs_before"] - reports[-1]["pairs_dropped"] == len(chosen)
    for side, ids, n, alive in (("a", data.edges.ids_a, n_a, defined[0]), ("b", data.edges.ids_b, n_b, defined[1])):
        fate = fates.finish(chosen)[side]
        counts = [int((fate == one.code).sum()) for one in fates.known.values()]
        assert sum(counts) == n
        assert set(np.flatnonzero(fate == MATCHED.code)) == set(ids[chosen].tolist())
        assert ((fate == DEAD.code) == ~alive).all()
        without_candidates = alive & ~np.isin(np.arange(n), ids)
        assert (fate[without_candidates] == BELOW_MIN_R.code).all()


def test_the_order_of_filter_and_matching_flips_the_result(correlation):
    """A 0 and A 1 both want B 0, which is dropped: if before, A 0 gets B 1; if after, nobody gets anything."""
    path = correlation([[0.9, 0.5], [0.8, 0.3]], r_heldout=[[0.1, 0.5], [0.1, 0.3]])
    setting = {"name": "min_heldout_r", "value": 0.2}
    before = match(path, method="unique", filters=[{**setting, "when": "before"}])
    after = match(path, method="unique", filters=[{**setting, "when": "after"}])
    assert list(zip(before.feature_a.values, before.feature_b.values, strict=True)) == [(0, 1)]
    assert after.sizes["pair"] == 0
    assert fate_names(before.fate_b) == ["low_heldout_r", "matched"]
    assert before.fate_b.attrs["flag_meanings"].split()[-2:] == ["taken", "low_heldout_r"]
    assert fate_names(after.fate_a) == ["low_heldout_r", "taken"]


def test_trap_9_every_filter_says_what_it_dropped_and_a_filter_that_drops_nothing_says_so(correlation):
    path = correlation([[0.9, 0.5], [0.8, 0.3]], r_heldout=[[0.1, 0.5], [0.1, 0.3]])
    filters = [{"name": "min_heldout_r", "value": 0.2}, {"name": "min_r", "value": 0.2}]
    pairs = match(path, filters=filters)
    assert [(one["pairs_before"], one["pairs_dropped"]) for one in pairs.filters] == [(4, 2), (2, 0)]
    first = pairs.filters[0]
    assert (first["features_dropped_a"], first["features_dropped_b"]) == (0, 1)
    assert (first["mean_r_before"], first["mean_r_after"]) == (pytest.approx(0.625), pytest.approx(0.4))
    assert first["value"] == 0.2


#: Settings of every filter, and whether it reads held-out r.
EVERY = [
    ({"name": "min_r", "value": 0.2}, False),
    ({"name": "min_heldout_r", "value": 0.2}, True),
    ({"name": "fraction", "fraction": 0.5}, False),
    ({"name": "max_uses", "n": 2}, False),
    ({"name": "min_firing", "n": 2}, False),
    ({"name": "reproducible", "tolerance": 0.2}, True),
    ({"name": "non_concept"}, False),
    ({"name": "shared_token"}, False),
    ({"name": "easy_kind"}, False),
]


def test_every_filter_is_here():
    own = {name for name, kind in FILTERS.items() if kind.__module__ == "pipeline.match.filters"}
    assert {setting["name"] for setting, _ in EVERY} == own


@pytest.mark.parametrize(("setting", "reads"), EVERY)
def test_filters_that_read_heldout_r_say_so(setting, reads):
    """By what they do: held-out r is looked up when it is first asked for."""
    words = top(np.zeros((3, 2), int), WORDS, np.zeros((3, 2), int))
    n_active = xr.Dataset({f"n_active_{side}": (f"feature_{side}", np.full(3, 5)) for side in "ab"})
    data = candidates(R, tops=(words, words), n_active=n_active)
    del data.__dict__["r_heldout"]
    (parsed,) = MatchSettings.make(filters=[setting]).filters
    parsed.select(data, np.arange(len(data.edges)))
    assert ("r_heldout" in data.__dict__) == reads == bool(heldout_note([parsed]))


@pytest.mark.parametrize("when", ["before", "after"])
def test_pairs_that_heldout_r_chose_say_so(correlation, when, caplog):
    caplog.set_level("INFO")
    path = correlation([[0.9, 0.5], [0.8, 0.3]], r_heldout=[[0.1, 0.5], [0.1, 0.3]])
    chosen = {"name": "min_heldout_r", "value": 0.2, "when": when}
    told = "Held-out r took part in choosing these pairs (min_heldout_r, reproducible): their held-out r is biased"
    pairs = match(path, filters=[{"name": "min_r", "value": 0.2}, chosen, {"name": "reproducible", "tolerance": 1}])
    assert pairs.attrs["heldout_note"].startswith(told)
    assert pairs["r_heldout"].attrs["comment"] == pairs.attrs["heldout_note"]
    assert told in caplog.text
    plain = match(path, filters=[{"name": "min_r", "value": 0.2}])
    assert "heldout_note" not in plain.attrs
    assert "comment" not in plain["r_heldout"].attrs


def test_ranks_count_all_candidates_whatever_the_filters(correlation):
    path = correlation([[0.9, 0.5]], r_heldout=[[0.1, 0.5]])
    pairs = match(path, filters=[{"name": "min_heldout_r", "value": 0.2}])
    assert (pairs.feature_b.values.tolist(), pairs.rank_b.values.tolist()) == ([1], [1])


def test_uses_are_counted_on_both_sides(correlation):
    pairs = match(correlation([[0.9, 0.5], [0.8, 0.3]]), method="best")
    assert pairs.uses_a.values.tolist() == [1, 1]
    assert pairs.uses_b.values.tolist() == [2, 2]
    assert pairs.uses_b.dtype == np.int32


def test_unique_with_more_uses_through_the_stage(correlation):
    path = correlation([[0.9], [0.8], [0.7]])
    assert match(path, method="unique", max_uses=2).feature_a.values.tolist() == [0, 1]
    with pytest.raises(InputError, match="belongs to the method 'unique'"):
        match(path, method="greedy", max_uses=2)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"name": "nope"}, "min_heldout_r"),
        ({"name": "min_r"}, "min_r.value: is required"),
        ({"name": "fraction", "fraction": 1.5}, "less than or equal to 1"),
        ({"name": "min_r", "value": 0.3, "wen": "after"}, r"wen: unknown key; did you mean 'when'\?"),
        ({"name": "shared_token"}, "give match the contexts of both sides"),
        ({"name": "reproducible"}, "needs r on held-out rows"),
    ],
)
def test_wrong_filters_say_what_is_wrong(correlation, setting, message):
    with pytest.raises(InputError, match=message):
        match(correlation([[0.5]]), filters=[setting])


def test_a_token_list_that_users_edit(tmp_path):
    (tmp_path / "own.yaml").write_text("- ' The '\n- '7'\n- ''\n")
    assert read_token_list(tmp_path / "own.yaml") == ["", "7", "the"]
    (tmp_path / "bad.yaml").write_text("- 7\n")
    with pytest.raises(FormatError, match="list of strings; put numbers"):
        read_token_list(tmp_path / "bad.yaml")
    (tmp_path / "worse.yaml").write_text("- [\n")
    with pytest.raises(FormatError, match="not valid YAML"):
        read_token_list(tmp_path / "worse.yaml")
    with pytest.raises(MissingInputError, match=r"no list of tokens at .*copy .*non_concept\.yaml"):
        read_token_list(tmp_path / "nowhere.yaml")
    assert set(read_token_list(None)) >= {"", ".", ",", "<bos>"}
    assert yaml.safe_load("- a")


def test_the_how_to_names_every_method_and_filter():
    text = (Path(__file__).parents[2] / "docs" / "matching.md").read_text(encoding="utf-8")
    assert not [name for name in (*METHODS, *FILTERS) if f"`{name}`" not in text]


DOCUMENTS = ["The cat sat. A dog ran.", "the cat. Dogs!"]


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    """Two stores over real text, their contexts, the corpus, and the correlation; features fire on chosen words."""
    from pipeline.correlate.run import correlate

    folder = tmp_path_factory.mktemp("words")
    storage.write_corpus(folder / "corpus.zarr", DOCUMENTS * 20, overwrite=True)
    pieces = []
    for document, text in enumerate(DOCUMENTS * 20):
        start = 0
        for position, word in enumerate(text.replace(".", " .").replace("!", " !").split()):
            at = text.index(word, start)
            pieces.append((document, position, at if at == 0 or text[at - 1] != " " else at - 1, at + len(word), word))
            start = at + len(word)
    tokens = {
        name: np.array([piece[i] for piece in pieces])
        for i, name in enumerate(("document", "position", "char_start", "char_end"))
    }
    words = np.array([piece[4].lower() for piece in pieces])
    rng = np.random.default_rng(0)
    wanted = ["the", "cat", ".", "dog"]
    a = np.stack([(words == word) * (1 + 0.1 * rng.random(len(words))) for word in wanted], axis=1)
    b = np.stack([(words == word) * (1 + 0.1 * rng.random(len(words))) for word in ["cat", ".", "the", "ran"]], axis=1)
    for name, x in {"a": a, "b": b}.items():
        storage.write_activations(
            folder / f"{name}.zarr", x, tokens=tokens, layout="csr", shard_rows=64, chunk=(64, 2), overwrite=True
        )
        contexts(folder / f"{name}.zarr", out=folder / f"contexts-{name}.zarr", top_n=5)
    correlate(folder / "a.zarr", folder / "b.zarr", keep_above=0.01, out=folder / "cor.zarr")
    return folder


def inputs(folder):
    return {
        "contexts": (folder / "contexts-a.zarr", folder / "contexts-b.zarr"),
        "stores": (folder / "a.zarr", folder / "b.zarr"),
        "corpus": folder / "corpus.zarr",
    }


def test_filters_that_look_at_tokens_from_disk_to_disk(experiment, tmp_path):
    plain = match(experiment / "cor.zarr", min_correlation=0.01)
    assert {(0, 2), (1, 0), (2, 1)} <= set(zip(plain.feature_a.values, plain.feature_b.values, strict=True))
    out = tmp_path / "pairs.zarr"
    filters = [{"name": "non_concept"}, {"name": "shared_token", "when": "after"}]
    pairs = match(experiment / "cor.zarr", min_correlation=0.01, filters=filters, out=out, **inputs(experiment))
    assert sorted(zip(pairs.feature_a.values, pairs.feature_b.values, strict=True)) == [(0, 2), (1, 0)]
    assert fate_names(pairs.fate_a)[2] == "non_concept"
    own = tmp_path / "own.yaml"
    own.write_text("- the\n")
    other = match(
        experiment / "cor.zarr",
        min_correlation=0.01,
        filters=[{"name": "non_concept", "tokens": str(own)}],
        out=out,
        **inputs(experiment),
    )
    assert 0 not in other.feature_a.values, "an edited list makes the result anew"
    assert 2 in other.feature_a.values


def test_contexts_of_another_store_are_refused(experiment):
    given = inputs(experiment)
    swapped = given | {"contexts": given["contexts"][::-1]}
    with pytest.raises(InputError, match="not of the store of side A"):
        match(experiment / "cor.zarr", min_correlation=0.01, filters=[{"name": "shared_token"}], **swapped)
    with pytest.raises(InputError, match="is not the store of side A"):
        match(experiment / "cor.zarr", min_correlation=0.01, **(given | {"stores": given["stores"][::-1]}))
