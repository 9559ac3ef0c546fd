"""Every metric against an independent implementation, and what all metrics promise."""

from __future__ import annotations

import dataclasses
import importlib
import pickle

import numpy as np
import pytest
from cca_zoo.linear import CCA as ZooCCA
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import block_diag, orthogonal_procrustes, subspace_angles
from scipy.spatial import procrustes as scipy_procrustes
from scipy.stats import binomtest
from sklearn.linear_model import LinearRegression
from sklearn.metrics.pairwise import cosine_similarity
from sklearn.neighbors import NearestNeighbors

from pipeline.compare.base import Family, families
from pipeline.compare.linear import decompose
from pipeline.compare.metrics.cca import Cca, Pwcca, Svcca
from pipeline.compare.metrics.cka import Cka, CkaDebiased
from pipeline.compare.metrics.neighbours import JaccardKnn, MutualKnn
from pipeline.compare.metrics.procrustes import Procrustes
from pipeline.compare.metrics.transfer import TransferLinear, TransferRotation
from pipeline.settings.compare import parse_metric, parse_metrics
from pipeline.settings.registries import METRICS
from storage.errors import InputError

LINEAR = ["svcca", "svcca:k=3", "pwcca", "cca", "svcca_pc1", "cka", "cka_debiased", "procrustes"]
ALL = [
    *LINEAR,
    *("rsa", "rsa:inside=euclidean,outside=pearson", "rsa:outside=kendall", "mutual_knn:k=4", "jaccard_knn:k=4"),
    *("transfer_linear", "transfer_linear:judged=mrr", "transfer_rotation", "transfer_rotation:judged=mrr,seed=3"),
]


def related(seed: int, n: int, d_a: int, d_b: int, noise: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Return rows of A, shifted and of unequal columns, and rows of B that depend on them."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d_a)) * np.exp(-0.2 * np.arange(d_a)) @ rng.normal(size=(d_a, d_a)) + rng.normal(size=d_a)
    return x, x @ rng.normal(size=(d_a, d_b)) + noise * rng.normal(size=(n, d_b)) + rng.normal(size=d_b)


def of(text: str, x: np.ndarray, y: np.ndarray) -> float:
    return Family((parse_metric(text),)).scores_of(x, y)[0]


def centred(x: np.ndarray) -> np.ndarray:
    return x - x.mean(axis=0)


# --- independent implementations


@given(st.integers(0, 10_000), st.integers(40, 80), st.integers(2, 8), st.integers(2, 8))
def test_cca_equals_the_angles_between_the_column_spaces(seed, n, d_a, d_b):
    x, y = related(seed, n, d_a, d_b)
    angles = subspace_angles(centred(x), centred(y))
    assert Cca()(x, y) == pytest.approx(np.cos(angles).mean(), abs=1e-6)


def test_cca_equals_cca_zoo():
    x, y = related(0, 120, 6, 4)
    found = ZooCCA(n_components=4).fit([x, y]).transform([x, y])
    correlations = [abs(np.corrcoef(found[0][:, i], found[1][:, i])[0, 1]) for i in range(4)]
    assert Cca()(x, y) == pytest.approx(np.mean(correlations), abs=1e-6)


def pwcca_step_by_step(x: np.ndarray, y: np.ndarray) -> float:
    """Equation by equation of Morcos et al., by the inverse square roots of the covariances."""
    x, y = (centred(side) for side in ((x, y) if x.shape[1] <= y.shape[1] else (y, x)))

    def inverse_root(side):
        values, vectors = np.linalg.eigh(side.T @ side)
        return vectors / np.sqrt(values) @ vectors.T

    whitened = x @ inverse_root(x), y @ inverse_root(y)
    u, rho, _ = np.linalg.svd(whitened[0].T @ whitened[1])
    h = whitened[0] @ u
    alpha = [sum(abs(h[:, i] @ x[:, j]) for j in range(x.shape[1])) for i in range(len(rho))]
    return float(np.dot(alpha, rho) / np.sum(alpha))


@given(st.integers(0, 10_000), st.integers(40, 80), st.integers(2, 7), st.integers(2, 7))
def test_pwcca_equals_the_paper_step_by_step(seed, n, d_a, d_b):
    x, y = related(seed, n, d_a, d_b)
    assert Pwcca()(x, y) == pytest.approx(pwcca_step_by_step(x, y), abs=1e-6)


def hsic(k: np.ndarray, l: np.ndarray) -> float:  # noqa: E741
    n = len(k)
    h = np.eye(n) - 1 / n
    return float(np.trace(k @ h @ l @ h) / (n - 1) ** 2)


def hsic_unbiased(k: np.ndarray, l: np.ndarray) -> float:  # noqa: E741
    n, one = len(k), np.ones(len(k))
    k, l = k - np.diag(np.diag(k)), l - np.diag(np.diag(l))  # noqa: E741
    sums = one @ k @ one * (one @ l @ one) / ((n - 1) * (n - 2))
    return float((np.trace(k @ l) + sums - 2 / (n - 2) * (one @ k @ l @ one)) / (n * (n - 3)))


@given(st.integers(0, 10_000), st.integers(6, 60), st.integers(1, 9), st.integers(1, 9))
def test_cka_equals_the_formulas_over_kernels(seed, n, d_a, d_b):
    x, y = related(seed, n, d_a, d_b)
    k, l = x @ x.T, y @ y.T  # noqa: E741
    assert Cka()(x, y) == pytest.approx(hsic(k, l) / np.sqrt(hsic(k, k) * hsic(l, l)), abs=1e-6)
    own = hsic_unbiased(k, k), hsic_unbiased(l, l)
    if min(own) > 1e-3 * max(hsic(k, k), hsic(l, l)):
        assert CkaDebiased()(x, y) == pytest.approx(hsic_unbiased(k, l) / np.sqrt(own[0] * own[1]), abs=1e-6)


@given(st.integers(0, 10_000), st.integers(5, 60), st.integers(1, 9), st.integers(1, 9))
def test_procrustes_equals_scipy(seed, n, d_a, d_b):
    x, y = related(seed, n, d_a, d_b)
    d = max(d_a, d_b)
    padded = [np.pad(side, ((0, 0), (0, d - side.shape[1]))) for side in (x, y)]
    assert Procrustes()(x, y) ** 2 == pytest.approx(1 - scipy_procrustes(*padded)[2], abs=1e-6)
    unit = [centred(side) / np.linalg.norm(centred(side)) for side in padded]
    assert Procrustes()(x, y) == pytest.approx(orthogonal_procrustes(*unit)[1], abs=1e-6)


@given(st.integers(0, 10_000), st.integers(5, 40), st.integers(1, 12))
def test_neighbours_equal_scikit_learn(seed, n, k):
    x, y = related(seed, n, 4, 6)
    k = min(k, n - 1)
    found = []
    for side in (x, y):
        search = NearestNeighbors(n_neighbors=k, metric="cosine", algorithm="brute").fit(side)
        found.append([set(row) for row in search.kneighbors(return_distance=False)])
    common = [len(one & other) for one, other in zip(*found, strict=True)]
    every = [len(one | other) for one, other in zip(*found, strict=True)]
    assert MutualKnn(k=k)(x, y) == pytest.approx(np.mean(common) / k, abs=1e-9)
    assert JaccardKnn(k=k)(x, y) == pytest.approx(np.mean(np.divide(common, every)), abs=1e-9)


def retrieval(images: np.ndarray, partners: np.ndarray) -> tuple[float, float]:
    cosines = cosine_similarity(images, partners)
    rank = [1 + np.sum(row > row[i]) for i, row in enumerate(cosines)]
    return float(np.mean(np.equal(rank, 1))), float(np.mean(1 / np.array(rank)))


@pytest.mark.parametrize(("n", "d_a", "d_b"), [(60, 5, 7), (61, 7, 5), (12, 9, 4)])
def test_transfer_equals_scikit_learn_and_scipy(n, d_a, d_b):
    x, y = related(n, n, d_a, d_b, noise=2.0)
    order = np.random.default_rng(np.random.SeedSequence(5)).permutation(n)
    fit, held = order[: n // 2], order[n // 2 :]
    y_mean, x_mean = y[fit].mean(axis=0), x[fit].mean(axis=0)
    linear = LinearRegression().fit(x[fit], y[fit]).predict(x[held]) - y_mean
    d = max(d_a, d_b)
    padded = [np.pad(side, ((0, 0), (0, d - side.shape[1]))) for side in (x - x_mean, y - y_mean)]
    rotation = orthogonal_procrustes(padded[0][fit], padded[1][fit])[0]
    for kind, images in ((TransferLinear, linear), (TransferRotation, padded[0][held] @ rotation)):
        if kind is TransferRotation and d_a != d_b and n < 20:
            continue  # with fewer pairs than dimensions, padding leaves SciPy's rotation undetermined
        expected = retrieval(images[:, :d_b], (y - y_mean)[held])
        assert kind(seed=5)(x, y) == pytest.approx(expected[0], abs=1e-9)
        assert kind("mrr", seed=5)(x, y) == pytest.approx(expected[1], abs=1e-9)


# --- what all metrics promise


@pytest.mark.parametrize("text", ALL)
def test_a_shuffled_pairing_equals_the_metric_of_shuffled_rows(text):
    rng = np.random.default_rng(0)
    metric = parse_metric(text)
    family = Family((metric,))
    for n, d_a, d_b in ((60, 5, 8), (50, 8, 5), (12, 9, 9)):
        if n == 12 and text == "pwcca":
            continue  # correlations tie at 1, where the weights are arbitrary: its warning says so
        x, y = related(n, n, d_a, d_b)
        state = family.compact(family.prepare(x, y))
        for pairing in (np.arange(n), rng.permutation(n), rng.permutation(n)):
            assert family.scores(state, pairing)[0] == pytest.approx(of(text, x, y[pairing]), abs=1e-6)


def test_one_product_serves_all_linear_metrics():
    x, y = related(0, 60, 6, 7)
    (family,) = families(parse_metrics(LINEAR).values())
    pairing = np.random.default_rng(0).permutation(60)
    shared = family.scores(family.prepare(x, y), pairing)
    assert shared == pytest.approx([of(text, x, y[pairing]) for text in LINEAR], abs=1e-12)


@pytest.mark.parametrize("text", ALL)
@given(seed=st.integers(0, 1000))
def test_no_metric_sees_a_rotation_or_a_scale(text, seed):
    rng = np.random.default_rng(seed)
    x, y = (centred(side) for side in related(seed, 40, 5, 5))
    if "pearson" in text and "inside" not in text:
        pytest.skip("correlation within rows depends on the axes")
    rotation = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    assert of(text, x, 7 * y @ rotation) == pytest.approx(of(text, x, y), abs=1e-6)


@pytest.mark.parametrize("text", [text for text in ALL if "transfer" not in text])
@given(seed=st.integers(0, 1000))
def test_no_metric_sees_the_order_of_the_pairs_or_which_side_is_which(text, seed):
    x, y = related(seed, 40, 5, 5)
    order = np.random.default_rng(seed).permutation(40)
    assert of(text, x[order], y[order]) == pytest.approx(of(text, x, y), abs=1e-6)
    if not text.startswith("pwcca"):
        assert of(text, y, x) == pytest.approx(of(text, x, y), abs=1e-6)


@pytest.mark.parametrize("text", ["cca", "pwcca", "transfer_linear"])
def test_a_linear_map_of_b_is_not_seen_by_metrics_of_linear_maps(text):
    x, y = related(3, 60, 4, 4, noise=0.0)
    assert of(text, x, y) == pytest.approx(1, abs=1e-6)
    assert of("procrustes", x, y) < 0.99
    assert of("cka", x, y) < 0.99


@pytest.mark.parametrize("text", ALL)
def test_a_space_equals_itself(text):
    x, _ = related(0, 60, 6, 6)
    assert of(text, x, x) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("text", ALL)
def test_rows_that_do_not_vary_are_undefined(text):
    x, _ = related(0, 30, 4, 4)
    flat = np.full((30, 4), 0.1) if "knn" not in text else np.zeros((30, 4))
    assert np.isnan(of(text, x, flat))


@pytest.mark.parametrize("text", ALL)
def test_metrics_travel_to_workers(text):
    metric = parse_metric(text)
    assert pickle.loads(pickle.dumps(metric)) == metric
    assert hash(metric) == hash(parse_metric(text))


# --- chance


def null_mean(text: str, n: int, d_a: int, d_b: int, draws: int) -> float:
    rng = np.random.default_rng(n)
    return float(np.mean([of(text, rng.normal(size=(n, d_a)), rng.normal(size=(n, d_b))) for _ in range(draws)]))


@pytest.mark.parametrize(
    ("text", "expected", "tolerance"),
    [
        ("svcca_pc1", np.sqrt(2 / (np.pi * 150)), 0.008),
        ("rsa", 0, 0.004),
        ("rsa:outside=kendall", 0, 0.004),
        # E ‖XᵀY‖² = n d_a d_b, and ‖XᵀX‖² ≈ n d_a (n + d_a): the bias of independent normal rows
        ("cka", np.sqrt(20 * 30 / ((150 + 20) * (150 + 30))), 0.01),
        ("cka_debiased", 0, 0.005),
        ("mutual_knn", 10 / 149, 0.004),
        ("jaccard_knn:k=1", 1 / 149, 0.003),
        ("transfer_linear", 1 / 75, 0.006),
        ("transfer_rotation:judged=mrr", sum(1 / np.arange(1, 76)) / 75, 0.012),
    ],
)
def test_chance_is_what_the_documentation_says(text, expected, tolerance):
    draws = 12 if "kendall" in text else 60
    assert null_mean(text, 150, 20, 30, draws) == pytest.approx(expected, abs=tolerance)


# --- known failures are said


def warning(metric, x, y) -> str:
    return metric.warning(metric.prepare([metric], x, y))


def test_known_failures_are_said_where_they_apply():
    few, many = related(0, 12, 9, 6), related(0, 400, 9, 6)
    for metric in (Svcca(variance=1.0), Pwcca(), Cca(), Procrustes()):
        assert warning(metric, *few).startswith("saturated: 12 pairs, not more than the 9 + 6 components kept")
        assert "saturated" not in warning(metric, *many)
    assert "of unequal sides: 9 and 6 components; the mean is over 6" in warning(Cca(), *many)
    assert warning(Svcca(k=4), *many) == ""
    independent = np.random.default_rng(0).normal(size=(2, 30, 25))
    assert warning(Cka(), *independent).startswith("biased: 30 pairs for spaces of this many dimensions, so that")
    assert warning(Cka(), *many) == ""
    assert (
        warning(MutualKnn(k=8), *few) == "saturated: 8 of 11 other rows are neighbours, so that any pairing shares most"
    )
    assert warning(MutualKnn(), *many) == ""
    assert warning(TransferLinear(), *few).startswith("under-determined: 6 pairs fit a map of 5 dimensions (chance 1/6")
    assert warning(TransferRotation(judged="mrr"), *many) == ""


@pytest.mark.parametrize("metric", [MutualKnn(k=3), JaccardKnn(k=3)])
def test_repeated_rows_of_independent_sides_are_not_alike(metric):
    """Each side has few different rows, each of them more than k times, so all neighbours are ties."""
    n, runs, experiments = 90, 39, 80
    p, difference = np.empty(experiments), np.empty(experiments)
    for experiment in range(experiments):
        rng = np.random.default_rng(experiment)
        x, y = (rng.normal(size=(10, 6))[rng.integers(0, 10, n)] for _ in "ab")
        state = metric.prepare([metric], x, y)
        null = [metric.score(metric.arrange(state, rng.permutation(n))) for _ in range(runs)]
        score = metric.score(metric.arrange(state, np.arange(n)))
        p[experiment] = (np.count_nonzero(np.array(null) >= score - 1e-9) + 1) / (runs + 1)
        difference[experiment] = score - np.mean(null)
    assert binomtest(int((p <= 0.05).sum()), experiments, 0.05, alternative="greater").pvalue > 0.01
    assert abs(difference.mean()) < 4 * difference.std() / np.sqrt(experiments)


def test_ties_and_hubs_of_neighbours_are_said(monkeypatch):
    x, y = related(0, 60, 4, 4)
    copies = np.repeat(x[:20], 3, axis=0)
    assert "undecided at 60 rows of A and 0 of B, whose last neighbour ties" in warning(MutualKnn(k=1), copies, y)
    monkeypatch.setattr(importlib.import_module("pipeline.compare.metrics.neighbours"), "HUB", 3)
    hub = np.vstack([np.eye(40), np.ones(40)])
    assert "shaped by hubs: one row is a neighbour of 40 rows of A" in warning(
        MutualKnn(k=1), hub, related(0, 41, 3, 3)[0]
    )


def test_copies_win_nothing_in_a_transfer():
    x = np.repeat(np.eye(4), 10, axis=0)
    halves = 4 / 20  # four kinds of partner: each image ties with those of its kind
    assert TransferLinear()(x, x) == pytest.approx(halves, abs=0.1)


def test_blocks_of_unrelated_directions():
    rng = np.random.default_rng(0)
    x = block_diag(rng.normal(size=(30, 3)), rng.normal(size=(30, 3)))
    y = block_diag(x[:30, :3], rng.normal(size=(30, 3)))
    assert 0.45 < MutualKnn(k=3)(x, y) < 0.75, "half of the rows agree"


# --- names and options


def test_options_are_parsed_and_checked():
    assert parse_metric("svcca:k=20") == Svcca(k=20)
    assert parse_metric("rsa:inside=euclidean,outside=kendall") == METRICS["rsa"]("euclidean", "kendall")
    assert parse_metric("mutual_knn:k=3") == MutualKnn(k=3)
    with pytest.raises(InputError, match=r"no metric 'ckaa'; did you mean 'cka'\? There are cca, svcca, .*_rotation"):
        parse_metric("ckaa")
    with pytest.raises(InputError, match=r"rsa has no option 'k' .*; its options are inside=cosine, outside=spearman"):
        parse_metric("rsa:k=3")
    with pytest.raises(
        InputError, match=r"'rsa:inside=l2' is not a metric: inside must be 'cosine', 'pearson' or 'euclidean'"
    ):
        parse_metric("rsa:inside=l2")
    for text in ("svcca:k=0", "svcca:k=some", "svcca:variance=1.5", "mutual_knn:k=-1"):
        with pytest.raises(InputError, match="is not a metric"):
            parse_metric(text)
    with pytest.raises(InputError, match="write options as NAME:OPTION=VALUE"):
        parse_metric("svcca:20")
    with pytest.raises(InputError, match=r"cca has no option 'k'.*; it has no options"):
        parse_metric("cca:k=2")
    with pytest.raises(InputError, match="each once"):
        parse_metrics(["svcca", "svcca:variance=0.99"])


def test_every_metric_says_what_it_is():
    for name, kind in METRICS.items():
        assert kind.name == name
        assert dataclasses.is_dataclass(kind)
        assert kind.__doc__


def test_fixed_k_keeps_as_many_components():
    x, y = related(0, 60, 6, 7)
    assert [[Svcca(k=k).kept(decompose(side).s) for side in (x, y)] for k in (3, 9)] == [[3, 3], [6, 7]]
    assert Svcca(k=1)(x, y) == pytest.approx(of("svcca_pc1", x, y), abs=1e-9)
