"""Intervals over documents and convergence, against plain loops in NumPy that weigh and cut the rows themselves."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import scipy.spatial.distance
import scipy.stats
import xarray as xr
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from sklearn.metrics.pairwise import cosine_similarity

import storage
from pipeline.correlate.convergence import FRACTIONS, convergence, plot_convergence
from pipeline.correlate.intervals import intervals
from pipeline.correlate.rows import splitmix64
from pipeline.match.run import match
from pipeline.work.outputs import claim_outputs
from pipeline.work.workers import local_client

LAYOUTS = (("csr", "csr"), ("dense", "dense"), ("csr", "dense"))


def pearson(x, y):
    """Pearson of two columns; NaN where either has one value."""
    if len(x) == 0 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return np.nan
    return np.corrcoef(x.astype(np.float64), y.astype(np.float64))[0, 1]


def cosine(x, y):
    return cosine_similarity([x.astype(np.float64)], [y.astype(np.float64)])[0, 0] if x.any() and y.any() else np.nan


def jaccard(x, y):
    return 1 - scipy.spatial.distance.jaccard(x != 0, y != 0) if x.any() and y.any() else np.nan


ORACLES = {
    "pearson": pearson,
    "cosine": cosine,
    "jaccard": jaccard,
    "phi": lambda x, y: pearson(1.0 * (x != 0), 1.0 * (y != 0)),
}


@pytest.fixture
def texts(make_case, values):
    """Documents of unequal length, not in order, with sinks; a pair twice, a copy, a feature that never fires."""

    def make(layouts=("csr", "csr"), n=400, n_documents=30, seed=0, offset=0.0):
        rng = np.random.default_rng(seed)
        documents = rng.integers(0, n_documents, n) * 3
        x, y = values(rng, n, 12, 0.3), values(rng, n, 9, 0.3)
        y[:, :5] += x[:, :5]
        x[:, 6], y[:, 7] = 0, x[:, 7]
        y[:, 0] += offset
        case = make_case(x, y, documents=documents, sink=rng.random(n) < 0.05, layouts=layouts)
        pairs = [0, 1, 2, 3, 7, 6, 0, 11], [0, 1, 2, 3, 7, 2, 0, 8]
        return case, pairs

    return make


def weighted(measure, x, y, w):
    """Return r of rows with weights."""
    x, y = (v.astype(np.float64) for v in (x, y))
    if measure in ("phi", "jaccard"):
        x, y = 1.0 * (x != 0), 1.0 * (y != 0)
    if measure == "jaccard":
        return w @ (x * y) / (w @ np.maximum(x, y))
    if measure == "cosine":
        return w @ (x * y) / np.sqrt((w @ (x * x)) * (w @ (y * y)))
    cov = np.cov(x, y, aweights=w)
    return cov[0, 1] / np.sqrt(cov[0, 0] * cov[1, 1])


def interval(case, rows, pair, measure, level):
    """Weigh each document a little more and a little less; return r, its interval and effective documents."""
    x, y, documents = case.x[rows, pair[0]], case.y[rows, pair[1]], case.documents[rows]
    r, numbers, step = ORACLES[measure](x, y), np.unique(documents), 1e-4
    if np.isnan(r) or abs(r) > 1 - 1e-9:
        return [r, r, r, np.nan]
    influence = np.array(
        [
            (weighted(measure, x, y, 1 + step * own) - weighted(measure, x, y, 1 - step * own)) / (2 * step)
            for own in (documents == number for number in numbers)
        ]
    )
    n_effective = (influence**2).sum() ** 2 / (influence**4).sum()
    freedom = n_effective - 1 if n_effective >= 2 else np.nan
    error = np.sqrt((influence**2).sum() * len(numbers) / (len(numbers) - 1)) / (1 - r * r)
    ends = np.tanh(np.arctanh(r) + scipy.stats.t.ppf([(1 - level) / 2, (1 + level) / 2], freedom) * error)
    return [r, *(np.maximum(ends, 0) if measure == "jaccard" else ends), n_effective]


@pytest.mark.parametrize("layouts", LAYOUTS)
@pytest.mark.parametrize("measure", sorted(ORACLES))
def test_intervals_are_those_of_weighted_documents(client, texts, layouts, measure):
    case, pairs = texts(layouts, offset=1e4 if measure == "pearson" and layouts[1] == "dense" else 0)
    ds = intervals(pairs, case.a, case.b, level=0.9, measure=measure, client=client)
    assert ds.attrs["unit"] == "documents"
    for rows, suffix in zip(case.halves("half"), ("", "_heldout"), strict=True):
        for i, pair in enumerate(zip(*pairs, strict=True)):
            expected = interval(case, rows, pair, measure, 0.9)
            names = [f"r{suffix}", f"r{suffix}_low", f"r{suffix}_high", f"n_effective{suffix}"]
            found = [float(ds[name].values[i]) for name in names]
            np.testing.assert_allclose(found[:3], expected[:3], atol=1e-5)
            np.testing.assert_allclose(found[3], expected[3], rtol=1e-3)
            if layouts == ("csr", "csr"):
                both = (case.x[rows, pair[0]] != 0) & (case.y[rows, pair[1]] != 0)
                assert ds[f"n_cofiring{suffix}"].values[i] == len(np.unique(case.documents[rows][both]))


def test_a_copy_is_certain_and_chance_is_not(client, texts):
    case, _ = texts(n=2000, n_documents=100)
    ds = intervals(([7, 8], [7, 8]), case.a, case.b, client=client)
    np.testing.assert_allclose([ds[name].values[0] for name in ("r", "r_low", "r_heldout_high")], 1)
    assert ds["r_heldout_low"].values[1] < 0 < ds["r_heldout_high"].values[1]
    assert "note" not in ds.attrs


def test_few_effective_documents_and_none_are_said(client, make_case, values, caplog):
    rng = np.random.default_rng(1)
    x, documents = rng.random((400, 2)) * 0.1, np.arange(400) // 10
    for n_documents in range(2):
        x[documents == n_documents * 7] *= 1e3  # all variance
    case = make_case(x, x + rng.random((400, 2)), documents=documents)
    ds = intervals(([0, 1], [0, 1]), case.a, case.b, select="all", client=client)
    assert (ds["n_effective"].values < 3).all()
    x[documents == 7] = 0.05
    case = make_case(x, x[:, ::-1] + rng.random((400, 2)), documents=documents)
    ds = intervals(([0, 1], [0, 1]), case.a, case.b, select="all", client=client)
    assert np.isnan(ds["r_low"].values).all()
    assert np.isfinite(ds["r"].values).all()
    assert "2 of 2 pairs have fewer than 2 effective documents" in ds.attrs["note"]
    assert ds.attrs["note"] in caplog.text
    case = make_case(values(rng, 12_000, 3, 0.5), values(rng, 12_000, 3, 0.5))
    ds = intervals(([0], [1]), case.a, case.b, client=client)
    assert ds.attrs["unit"] == "blocks of 256 rows"
    assert ds.attrs["n_documents"] == [24, 24]
    assert "know no documents" in ds.attrs["note"]


def test_one_document_alone_has_no_interval(client, texts):
    case, pairs = texts(n_documents=2)
    ds = intervals(pairs, case.a, case.b, split_seed=1, client=client)
    assert ds.attrs["n_documents"] == [1, 1]
    assert np.isnan(ds["r_low"].values[0])
    assert np.isfinite(ds["r"].values[0])


def test_the_halves_are_those_of_the_correlation(client, texts, tmp_path):
    case, _ = texts()
    cor = case.correlate(split_seed=4, client=client)
    pairs = match(cor, method="greedy", min_correlation=0.15, out=tmp_path / "pairs.zarr")
    for result in (cor, pairs):
        assert intervals(result, case.a, case.b, client=client).attrs["split_seed"] == 4
        assert convergence(result, case.a, case.b, client=client).attrs["split_seed"] == 4
    ds = intervals(pairs, case.a, case.b, client=client)
    curve = convergence(pairs, case.a, case.b, client=client)
    for h, name in enumerate(("r", "r_heldout")):
        np.testing.assert_allclose(ds[name], pairs[name], atol=1e-9)
        np.testing.assert_allclose(curve["r"][-1, h], pairs[name], atol=1e-9)
    other = intervals(pairs, case.a, case.b, split_seed=5, client=client)
    assert np.abs(other["r"] - pairs["r"]).max() > 0.01


def test_that_heldout_r_took_part_in_the_choice_stays_with_the_pairs(client, texts, tmp_path):
    case, _ = texts()
    cor = case.correlate(client=client)
    filters = [{"name": "min_heldout_r", "value": 0.15}]
    pairs = match(cor, min_correlation=0.15, filters=filters, out=tmp_path / "pairs.zarr")
    for ds in (intervals(pairs, case.a, case.b, client=client), convergence(pairs, case.a, case.b)):
        assert ds.attrs["heldout_note"] == pairs.attrs["heldout_note"]
    assert "heldout_note" not in intervals(cor, case.a, case.b, client=client).attrs


def test_the_same_bits_for_any_memory_and_workers(client, texts, monkeypatch):
    case, _ = texts()
    pairs = np.tile(np.arange(12), 9), np.repeat(np.arange(9), 12)
    one = intervals(pairs, case.a, case.b, client=client), convergence(pairs, case.a, case.b, client=client)
    with local_client(n_workers=3, threads_per_worker=1) as other:
        two = (
            intervals(pairs, case.a, case.b, client=other, memory="4GB"),
            convergence(pairs, case.a, case.b, client=other, memory="4GB"),
        )
    for first, second in zip(one, two, strict=True):
        xr.testing.assert_identical(first, second)
    with pytest.raises(storage.BudgetError, match=r"Sums over 30 documents.*projected.*allowed.*reserved"):
        intervals(pairs, case.a, case.b, client=client, memory="100MB")


@pytest.mark.parametrize("layouts", LAYOUTS)
@pytest.mark.parametrize("measure", ["pearson", "cosine"])
def test_convergence_measures_growing_sets_of_documents(client, texts, layouts, measure):
    case, pairs = texts(layouts, n=900, n_documents=80)
    ds = convergence(pairs, case.a, case.b, threshold=0.4, measure=measure, client=client)
    assert ds["fraction"].values.tolist() == list(FRACTIONS[1:])  # a sixteenth of 40 documents would be 3
    expected = np.empty(ds["r"].shape)
    n_rows = np.zeros(ds.sizes["size"], int)
    for h, rows in enumerate(case.halves("half")):
        numbers = np.unique(case.documents[rows])
        in_order = numbers[np.argsort(splitmix64(numbers))]
        for size, fraction in enumerate(ds["fraction"].values):
            taken = rows & np.isin(case.documents, in_order[: int(np.ceil(fraction * len(numbers)))])
            n_rows[size] += taken.sum()
            for i, pair in enumerate(zip(*pairs, strict=True)):
                expected[size, h, i] = ORACLES[measure](case.x[taken, pair[0]], case.y[taken, pair[1]])
    np.testing.assert_allclose(ds["r"].values, expected, atol=1e-9)
    np.testing.assert_array_equal(ds["n_rows"].values, n_rows)
    np.testing.assert_array_equal(ds["n_good"].values, (expected >= 0.4).all(axis=1).sum(axis=1))
    np.testing.assert_allclose(ds["mean_r"].values, np.nanmean(expected, axis=2), atol=1e-9)


def test_verdicts(client, texts, make_case, values):
    rng = np.random.default_rng(2)
    n = 4000
    x = values(rng, n, 20, 0.5)
    documents = np.arange(n) // 20
    settled = make_case(x, x + values(rng, n, 20, 0.5), documents=documents)
    same = np.arange(20), np.arange(20)
    assert convergence(same, settled.a, settled.b, threshold=0.3, client=client).attrs["verdict"] == "enough"
    ds = convergence(same, settled.a, settled.b, threshold=1, client=client)
    assert ds.attrs["verdict"] == "cannot tell"
    assert "lower threshold" in ds.attrs["explanation"]
    few = make_case(values(rng, 160, 20, 0.5), values(rng, 160, 20, 0.5), documents=np.arange(160) // 8)
    cor = few.correlate(client=client, keep_above=0.05)
    ds = convergence(cor, few.a, few.b, threshold=-0.1, client=client)
    assert ds.attrs["verdict"] == "not enough"
    assert "harvest more text" in ds.attrs["explanation"]
    one, pairs = texts(n_documents=3)
    assert convergence(pairs, one.a, one.b, client=client).attrs["verdict"] == "cannot tell"


def test_matches_and_correlations_give_pairs_and_settings(client, texts, tmp_path, caplog):
    case, _ = texts()
    cor = case.correlate(measure="cosine", select="all", client=client, keep_above=0.2)
    pairs = match(cor, method="greedy", min_correlation=0.25, out=tmp_path / "pairs.zarr")
    ds = intervals(tmp_path / "pairs.zarr", case.a, case.b, out=tmp_path / "i.zarr", client=client)
    assert (ds.attrs["measure"], ds.attrs["select"]) == ("cosine", "all")
    assert "r_heldout" not in ds
    np.testing.assert_allclose(ds["r"].values, pairs["r"].values, atol=1e-9)
    before = (tmp_path / "i.zarr").stat().st_mtime_ns
    intervals(tmp_path / "pairs.zarr", case.a, case.b, out=tmp_path / "i.zarr", client=client)
    assert (tmp_path / "i.zarr").stat().st_mtime_ns == before
    curve = convergence(cor, case.a, case.b, client=client)
    best_b, best_a = cor["best_b"].values[:, 0], cor["best_a"].values[:, 0]
    mutual = [f for f in range(12) if best_b[f] >= 0 and best_a[best_b[f]] == f]
    assert curve["feature_a"].values.tolist() == mutual
    assert curve.attrs["threshold"] == 0.2
    assert "other stores" not in caplog.text
    intervals(tmp_path / "pairs.zarr", case.a, case.a, client=client)
    assert "matched on other stores" in caplog.text


def test_bad_input_is_named(client, texts):
    case, pairs = texts()
    for arguments, message in (
        ({"level": 1.0}, "level: .* less than 1"),
        ({"measure": "spearman"}, "Ranks change with the rows"),
        ({"measure": "kendall"}, "measure: .*kendall"),
    ):
        with pytest.raises(storage.InputError, match=message):
            intervals(pairs, case.a, case.b, client=client, **arguments)
    with pytest.raises(storage.InputError, match=r"B features 9 to 9, and .* has 0 to 8"):
        intervals(([0], [9]), case.a, case.b, client=client)
    with pytest.raises(storage.InputError, match="two lists of one length"):
        convergence(([0, 1], [9]), case.a, case.b, client=client)
    with pytest.raises(storage.InputError, match="no pairs"):
        convergence(([], []), case.a, case.b, client=client)
    with pytest.raises(storage.InputError, match="holds no pairs"):
        convergence(case.a, case.a, case.b, client=client)
    with pytest.raises(storage.InputError, match=r"threshold: .* less than or equal to 1"):
        convergence(pairs, case.a, case.b, threshold=2, client=client)


def test_plot_and_verbs(client, texts, tmp_path):
    case, pairs = texts(n=900, n_documents=80)
    figure = plot_convergence(convergence(pairs, case.a, case.b, client=client))
    with claim_outputs(figure=tmp_path / "curve.png") as outputs:
        outputs.write_figure(figure)
    assert (tmp_path / "curve.png").read_bytes()[:4] == b"\x89PNG"
    case.correlate(client=client)
    started = {}
    for verb, options in (("intervals", ["--level", "0.9"]), ("convergence", ["--threshold", "0.2"])):
        command = [sys.executable, "-m", "jobs.cli", verb, case.folder / "cor.zarr", case.a, case.b]
        command += ["--out", tmp_path / f"{verb}.zarr", *options, "--json"]
        started[verb] = subprocess.Popen(
            [*map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
    for verb, key in (("intervals", "median_width"), ("convergence", "verdict")):
        output, errors = started[verb].communicate()
        assert started[verb].returncode == 0, errors
        assert key in json.loads(output)
        assert storage.open_result(tmp_path / f"{verb}.zarr", verb).sizes["pair"] > 0


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=4)
@given(seed=st.integers(0, 2**32 - 1), n_documents=st.integers(2, 40), split_seed=st.integers(0, 2**62 - 1))
def test_r_of_the_whole_is_that_of_the_correlation(client, texts, seed, n_documents, split_seed):
    case, pairs = texts(n=120, n_documents=n_documents, seed=seed)
    halves = case.halves("half", split_seed)
    assume(min(rows.sum() for rows in halves) >= 2)
    ds = intervals(pairs, case.a, case.b, split_seed=split_seed, client=client)
    for rows, name in zip(halves, ("r", "r_heldout"), strict=True):
        expected = [pearson(case.x[rows, i], case.y[rows, j]) for i, j in zip(*pairs, strict=True)]
        np.testing.assert_allclose(ds[name].values, expected, atol=1e-9)
