"""Activations by second moments, against plain NumPy on whole matrices and scikit-learn; nulls, intervals."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.sparse as sp
import xarray as xr
from sklearn.cross_decomposition import CCA

import storage
from benchmarks.compare_activations import write_related_stores
from benchmarks.measure import run_measured
from pipeline.compare import moments as moments_module
from pipeline.compare.activations import compare_activations
from pipeline.compare.moments import Columns, Pass, TokenRows, cut_groups, sum_group, weighted_sum
from pipeline.work.workers import local_client
from storage.errors import BudgetError, InputError, RowMismatchError

LINEAR = ["svcca", "svcca:k=3", "cca", "pwcca", "svcca_pc1", "cka", "procrustes"]


def tokens(n, per_document=25):
    place = np.arange(n)
    return {"document": place // per_document, "char_start": place, "char_end": place + 1}


def without_documents(folder, *sides):
    """Write plain arrays, as users import them."""
    for name, values in zip("ab", sides, strict=True):
        storage.write_activations(folder / f"plain-{name}.zarr", values, overwrite=True)
    return folder / "plain-a.zarr", folder / "plain-b.zarr"


def related(n=900, d_a=7, d_b=10, seed=0, shift=0.0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d_a)) * np.exp(-0.5 * np.arange(d_a)) + shift
    y = x @ rng.normal(size=(d_a, d_b)) + 0.7 * rng.normal(size=(n, d_b)) + 3 * shift
    return x.astype(np.float32), y.astype(np.float32)


@pytest.fixture
def stores(tmp_path):
    def write(x, y, **options):
        for name, values in (("a", x), ("b", y)):
            storage.write_activations(
                tmp_path / f"{name}.zarr", values, tokens=tokens(values.shape[0]), **options, overwrite=True
            )
        return tmp_path / "a.zarr", tmp_path / "b.zarr"

    return write


def plain(x, y):
    """Every metric by singular value decompositions of the whole matrices in float64."""
    x, y = (np.asarray(side, np.float64) - np.asarray(side, np.float64).mean(axis=0) for side in (x, y))
    (u, s, _), (w, t, _) = (np.linalg.svd(side, full_matrices=False) for side in (x, y))
    r_x, r_y = (np.count_nonzero(one > 1e-6 * one[0]) for one in (s, t))

    def correlations(k_x, k_y):
        return np.linalg.svd(u[:, :k_x].T @ w[:, :k_y], compute_uv=False)

    def kept(one):
        return int(np.searchsorted(np.cumsum(one**2) / np.sum(one**2), 0.99)) + 1

    left, rho, _ = np.linalg.svd(u[:, :r_x].T @ w[:, :r_y])
    weights = np.abs((u[:, :r_x] @ left).T @ x).sum(axis=1)[: len(rho)]
    return {
        "svcca": correlations(kept(s), kept(t)).mean(),
        "svcca:k=3": correlations(3, 3).mean(),
        "cca": correlations(r_x, r_y).mean(),
        "pwcca": np.sum(weights * rho) / np.sum(weights),
        "svcca_pc1": abs(np.corrcoef(u[:, 0], w[:, 0])[0, 1]),
        "cka": np.linalg.norm(x.T @ y) ** 2 / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)),
        "procrustes": np.linalg.norm(x.T @ y, "nuc") / (np.linalg.norm(x) * np.linalg.norm(y)),
    }


@pytest.mark.parametrize("shift", [0.0, 50.0])
def test_scores_are_those_of_the_whole_matrices(stores, client, monkeypatch, shift):
    monkeypatch.setattr(moments_module, "FEWEST_ROWS", 16)
    monkeypatch.setattr(moments_module, "SLAB_VALUES", 16 * 17)
    x, y = related(shift=shift)
    found = compare_activations(*stores(x, y, dtype="float32"), metrics=LINEAR, null_runs=0, client=client)
    for name, expected in plain(x, y).items():
        assert float(found.score.sel(metric=name)) == pytest.approx(expected, abs=1e-6), name


def test_cca_equals_scikit_learn(stores, client):
    x, y = related(400, 3, 4)
    found = compare_activations(*stores(x, y), metrics=["cca"], null_runs=0, client=client)
    scores = CCA(n_components=3, max_iter=5000, tol=1e-12).fit(x, y).transform(x, y)
    expected = np.mean([np.corrcoef(scores[0][:, i], scores[1][:, i])[0, 1] for i in range(3)])
    assert float(found.score[0]) == pytest.approx(expected, abs=1e-6)


def debiased_by_the_kernels(x, y):
    """Song et al. 2012, equation 5, with the n × n matrices."""
    n = len(x)

    def hsic(k, m):
        k, m = k - np.diag(np.diag(k)), m - np.diag(np.diag(m))
        one = np.ones(n)
        first = np.trace(k @ m) + (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2))
        return (first - 2 / (n - 2) * (one @ k @ m @ one)) / (n * (n - 3))

    k, m = (side.astype(np.float64) @ side.astype(np.float64).T for side in (x, y))
    return hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m))


def test_debiased_cka_equals_its_definition_on_kernel_matrices(stores, client):
    x, y = related(120, shift=1.0)
    found = compare_activations(*stores(x, y), metrics=["cka_debiased"], null_runs=0, client=client)
    assert float(found.score[0]) == pytest.approx(debiased_by_the_kernels(x, y), abs=1e-6)


def test_sparse_stores_are_compared_over_the_features_of_the_pairs(tmp_path, client):
    rng = np.random.default_rng(0)
    dense = [np.where(rng.random((700, d)) < 0.2, rng.exponential(size=(700, d)), 0).astype("f4") for d in (30, 40)]
    dense[1][:, :30] += 2 * dense[0]
    for name, values in zip("ab", dense, strict=True):
        storage.write_activations(tmp_path / name, sp.csr_array(values), tokens=tokens(700), overwrite=True)
    ids = rng.permutation(30)[:12], rng.permutation(40)[:12]
    pairs = xr.Dataset({f"feature_{side}": ("pair", each) for side, each in zip("ab", ids, strict=True)})
    found = compare_activations(tmp_path / "a", tmp_path / "b", pairs=pairs, metrics=LINEAR, null_runs=0, client=client)
    for name, expected in plain(dense[0][:, ids[0]], dense[1][:, ids[1]]).items():
        assert float(found.score.sel(metric=name)) == pytest.approx(expected, abs=1e-6), name
    assert found.attrs["columns_a"] == 12


def test_pairs_are_not_looked_up_in_swapped_stores(tmp_path, client, caplog):
    rng = np.random.default_rng(0)
    for name in "ab":
        storage.write_activations(tmp_path / name, rng.random((200, 20)), tokens=tokens(200))
    a, b = (storage.fingerprint(tmp_path / name) for name in "ab")
    pairs = xr.Dataset({f"feature_{side}": ("pair", np.arange(9)) for side in "ab"}, attrs={"stores": {"a": a, "b": b}})
    settings = {"pairs": pairs, "metrics": ["cka"], "null_runs": 0}
    with pytest.raises(InputError, match="wrong order"):
        compare_activations(tmp_path / "b", tmp_path / "a", **settings, client=client)
    compare_activations(tmp_path / "a", tmp_path / "b", **settings, client=client)
    assert "other stores" not in caplog.text
    storage.write_activations(tmp_path / "b", rng.random((200, 20)), tokens=tokens(200), overwrite=True)
    compare_activations(tmp_path / "a", tmp_path / "b", **settings, client=client)
    assert "other stores" in caplog.text


def test_sinks_of_either_side_are_left_out(tmp_path, client):
    x, y = related(600)
    sinks = [np.zeros(600, bool), np.zeros(600, bool)]
    sinks[0][[0, 5, 6]], sinks[1][[6, 599]] = True, True
    for name, values, sink in zip("ab", (x, y), sinks, strict=True):
        values[sink] = 1000.0
        writer = storage.ActivationWriter.create(
            tmp_path / name, n_tokens=600, n_features=values.shape[1], layout="dense", tokens=tokens(600)
        )
        writer.write_shard(0, values, sink=sink)
        writer.finalise()
    found = compare_activations(tmp_path / "a", tmp_path / "b", metrics=LINEAR, null_runs=0, client=client)
    kept = ~(sinks[0] | sinks[1])
    for name, expected in plain(x[kept], y[kept]).items():
        assert float(found.score.sel(metric=name)) == pytest.approx(expected, abs=1e-6), name
    assert int(found.n_tokens) == 596


def test_same_bytes_whatever_the_workers(stores, client):
    paths = stores(*related())
    options = {"metrics": LINEAR, "null_runs": 30, "blocks": 8, "intervals": 20, "groups": 24}
    with local_client(n_workers=3, threads_per_worker=1) as other:
        first, second = (compare_activations(*paths, **options, client=each) for each in (client, other))
    for name in first.data_vars:
        assert first[name].values.tobytes() == second[name].values.tobytes() or first[name].dtype == object, name


def test_a_null_that_ends_early(stores, client):
    """One metric is significant, the other not at all: each p rests on its own runs, effects on the first 100."""
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(900, 3)), rng.normal(size=(900, 3))
    y[:, 1] += 0.6 * x[:, 1]
    y[:, 0] *= 30
    paths = stores(x.astype("f4"), y.astype("f4"))
    options = {"metrics": ["cca", "svcca_pc1"], "null_runs": 500, "client": client}
    whole = compare_activations(*paths, **options)
    with local_client(n_workers=3, threads_per_worker=1) as other:
        first, second = (
            compare_activations(*paths, **options | {"stop_after": 60, "client": used}) for used in (client, other)
        )
    for name in first.data_vars:
        assert first[name].dtype == object or first[name].values.tobytes() == second[name].values.tobytes(), name
    runs = first.p_runs.values[0]
    assert runs[0] == 500
    assert 100 < runs[1] < 500
    exceed = whole.null_score.values[0, 1] >= float(whole.score[1]) - 1e-6
    assert exceed[: runs[1]].sum() == 60
    assert exceed[runs[1] - 1]
    assert first.p.values[0].tolist() == [whole.p.values[0, 0], 60 / runs[1]]
    np.testing.assert_array_equal(first.null_score[0, 1, : runs[1]], whole.null_score[0, 1, : runs[1]])
    np.testing.assert_allclose(first.null_mean[0], whole.null_score[0, :, :100].mean("run"))
    np.testing.assert_allclose(first.null_q95[0], np.quantile(whole.null_score[0, :, :100], 0.95, axis=1))
    assert whole.p_runs.values.tolist() == [[500, 500]]


BY_HAND = ["cca", "cka", "cka_debiased", "pwcca", "procrustes"]


def check_runs(found, null, x, paired):
    """Compare the scores of the runs with those of rows that were paired by hand."""
    assert found.null.values.tolist() == [null]
    for run, y in enumerate(paired):
        expected = plain(x, y) | {"cka_debiased": debiased_by_the_kernels(x, y)}
        for name in BY_HAND:
            assert float(found.null_score.sel(metric=name, run=run)[0]) == pytest.approx(expected[name], abs=1e-6)


def orders(blocks, seed, runs=3):
    return [
        np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(run,))).permutation(blocks) for run in range(runs)
    ]


def test_without_documents_the_null_is_the_score_of_b_moved_and_reordered_by_blocks(tmp_path, client):
    """Some orders, made by hand from the rows themselves; rows after the last block count nowhere."""
    x, y = related(434, 3, 4)
    paths = without_documents(tmp_path, x, y)
    found = compare_activations(*paths, metrics=BY_HAND, null_runs=3, blocks=8, seed=5, client=client)
    length, offset = 54, 27
    x, y = x[: 8 * length], y[: 8 * length]
    moved = np.roll(y, -offset, axis=0).reshape(8, length, -1)
    check_runs(found, "shifted_blocks", x, [np.concatenate(moved[order]) for order in orders(8, 5)])
    assert float(found.score.sel(metric="cka")) == pytest.approx(plain(x, y)["cka"], abs=1e-6)
    assert found.attrs["n_left_out"] == 2
    assert "documents are unknown" in str(found.note.values[0])


def test_the_null_is_the_score_of_bs_documents_beside_others_of_like_length(tmp_path, client):
    """Made by hand: 20 documents of eight lengths in 9 blocks, two each; the two shortest are left out."""
    lengths = np.random.default_rng(3).permutation([20, 21, 22, 30, 31, 32, 33, 34, 35, 36, 40] + [41] * 7 + [3, 4])
    x, y = related(int(lengths.sum()), 3, 4)
    table = tokens(len(x)) | {"document": np.repeat(np.arange(20), lengths)}
    for name, values in (("a", x), ("b", y)):
        storage.write_activations(tmp_path / name, values, tokens=table)
    found = compare_activations(
        tmp_path / "a", tmp_path / "b", metrics=BY_HAND, null_runs=3, blocks=9, seed=1, client=client
    )
    ends = np.cumsum(lengths)
    longest_first = np.argsort(-lengths, kind="stable")
    upper, lower = longest_first[:9], longest_first[9:18]
    # a block is the beginnings of its document of the longer nine, and of its one of the shorter nine
    parts = [[np.arange(end, end + lengths[part].min()) for end in (ends - lengths)[part]] for part in (upper, lower)]
    rows = np.array([np.concatenate(both) for both in zip(*parts, strict=True)])
    paired = [y[rows[order].ravel()] for order in orders(9, 1)]
    check_runs(found, "permuted_documents", x[rows.ravel()], paired)
    assert found.attrs["n_left_out"] == len(x) - rows.size
    expected = plain(x[np.sort(rows.ravel())], y[np.sort(rows.ravel())])
    assert float(found.score.sel(metric="cca")) == pytest.approx(expected["cca"], abs=1e-6)


def test_what_recurs_at_a_position_of_every_document_is_no_evidence(tmp_path, client):
    """Features that fire at the start of a document are alike in every order of the documents."""
    p = []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        place = np.tile(np.arange(25), 40)
        sides = [rng.normal(size=(1000, 3)) + 3 * np.exp(-place)[:, None] for _ in "ab"]
        for name, values in zip("ab", sides, strict=True):
            storage.write_activations(tmp_path / name, values, tokens=tokens(1000), overwrite=True)
        found = compare_activations(tmp_path / "a", tmp_path / "b", metrics=["cka"], null_runs=39, client=client)
        assert float(found.score[0]) > 0.05
        p.append(float(found.p[0, 0]))
    assert np.mean(np.array(p) <= 0.05) < 0.3
    assert 0.3 < np.mean(p) < 0.7


def test_there_is_no_null_where_rows_remain_alike_for_too_long(tmp_path, client, caplog):
    x, y = slow(0, 2400, 3, keep=0.99), slow(1, 2400, 3, keep=0.99)
    found = compare_activations(*without_documents(tmp_path, x, y), metrics=["cca"], null_runs=19, client=client)
    assert np.isnan(found.p).all()
    assert float(found.score[0]) == pytest.approx(plain(x, y)["cca"], abs=1e-5)
    for text in (str(found.note.item()), caplog.text):
        assert "no null: documents are unknown" in text
        assert "--documents" in text


def test_the_null_of_sparse_stores_is_that_of_dense_ones(tmp_path, client):
    """What fires together is summed without scores, which would be dense; with rows after the last block, and sinks."""
    rng = np.random.default_rng(0)
    dense = [np.where(rng.random((700, d)) < 0.3, 3 + rng.random((700, d)), 0).astype("f4") for d in (12, 15)]
    dense[1][:, :12] += dense[0]
    options = {"metrics": [*LINEAR, "cka_debiased"], "null_runs": 20, "blocks": 9, "client": client}
    found = {}
    for layout, make in (("sparse", sp.csr_array), ("dense", np.asarray)):
        for name, values in zip("ab", dense, strict=True):
            storage.write_activations(tmp_path / f"{layout}-{name}", make(values), tokens=tokens(700), dtype="float32")
        found[layout] = compare_activations(tmp_path / f"{layout}-a", tmp_path / f"{layout}-b", **options)
    assert storage.open_activations(tmp_path / "sparse-a").attrs["layout"] == "csr"
    np.testing.assert_allclose(found["sparse"].null_score, found["dense"].null_score, rtol=0, atol=1e-6)


def slow(seed, n, d, keep=0.9):
    """Independent series whose neighbours are alike, as tokens of a text are."""
    rng = np.random.default_rng(seed)
    series = np.empty((n, d))
    series[0] = rng.normal(size=d)
    for i in range(1, n):
        series[i] = keep * series[i - 1] + np.sqrt(1 - keep**2) * rng.normal(size=d)
    return series


def test_unrelated_series_of_alike_neighbours_are_not_significant(stores, client):
    p, above_shuffled = [], []
    for seed in range(5):
        x, y = slow(2 * seed, 2400, 3), slow(2 * seed + 1, 2400, 3)
        a, b = stores(x, y)
        p.append(float(compare_activations(a, b, metrics=["cca"], null_runs=19, blocks=8, client=client).p[0, 0]))
        rng = np.random.default_rng(seed)
        above_shuffled.append(plain(x, y)["cca"] > max(plain(x, rng.permutation(y))["cca"] for _ in range(9)))
    assert np.mean(above_shuffled) > 0.8, "shuffled tokens make noise significant"
    assert sum(value <= 0.05 for value in p) <= 1
    assert 0.2 < np.mean(p) < 0.8


def test_groups_end_where_documents_do():
    documents = np.repeat(np.arange(40), np.random.default_rng(0).integers(1, 60, 40))
    groups = cut_groups(documents, len(documents), 12)
    assert groups[0][0] == 0
    assert groups[-1][1] == len(documents)
    for (_, stop), (start, _) in itertools.pairwise(groups):
        assert stop == start
        assert documents[stop - 1] != documents[start]
    assert 10 <= len(groups) <= 12
    assert len(cut_groups(np.zeros(50, int), 50, 10)) == 10
    assert len(cut_groups(np.repeat([1, 2, 3], 20), 60, 10)) == 3


def test_the_sum_of_groups_is_the_sum_of_all(stores):
    x, y = related(500)
    paths = stores(x, y)
    work = Pass(*(Columns.of(str(path)) for path in paths), TokenRows(500, np.array([], np.int64)))
    whole = sum_group((0, 500), work)
    parts = weighted_sum([sum_group(bounds, work) for bounds in cut_groups(None, 500, 7)])
    for name, one, other in zip(whole._fields, whole, parts, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-10, atol=1e-8, err_msg=name)


def test_intervals_hold_the_score_and_narrow_with_more_text(stores, client):
    x, y = related(6000)
    options = {"metrics": ["cka", "cca"], "null_runs": 0, "intervals": 100, "client": client}
    found = [compare_activations(*stores(x[:n], y[:n]), **options) for n in (600, 6000)]
    for one in found:
        assert ((one.low < one.score) & (one.score < one.high)).all()
    assert (found[1].high - found[1].low < 0.6 * (found[0].high - found[0].low)).all()


def test_the_interval_is_over_documents_not_tokens(tmp_path, client):
    """The same token many times in a document is one piece of evidence."""
    x, y = related(100, 3, 3, seed=2)
    for name, values in (("a", x), ("b", y)):
        storage.write_activations(
            tmp_path / name, np.repeat(values, 30, axis=0), tokens=tokens(3000, 30), overwrite=True
        )
        storage.write_activations(tmp_path / f"once-{name}", values, tokens=tokens(100, 1), overwrite=True)
    options = {"metrics": ["cka"], "null_runs": 0, "intervals": 300, "groups": 100, "client": client}
    many = compare_activations(tmp_path / "a", tmp_path / "b", **options)
    once = compare_activations(tmp_path / "once-a", tmp_path / "once-b", **options)
    np.testing.assert_allclose((many.high - many.low).values, (once.high - once.low).values, rtol=1e-6)


def test_notes_say_what_is_missing(tmp_path, client):
    x, y = related(200)
    x[:] = 1.0
    for name, values in (("a", x), ("b", y)):
        storage.write_activations(tmp_path / name, values, tokens=tokens(200, 100), overwrite=True)
    found = compare_activations(tmp_path / "a", tmp_path / "b", metrics=["svcca"], null_runs=5, client=client)
    note = str(found.note.item())
    assert "does not vary" in note
    assert "there are 2 documents" in note
    assert np.isnan(found.p).all()
    assert np.isnan(found.score).all()
    found = compare_activations(tmp_path / "b", tmp_path / "b", metrics=["svcca"], null_runs=0, client=client)
    assert "no null was asked for" in str(found.note.item())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metrics": ["rsa"]}, "rsa compares every two rows"),
        ({"null_runs": 40_320, "blocks": 8}, "8 blocks have 40320 orders"),
        ({"blocks": 4}, "blocks: .* greater than or equal to 8"),
        ({"groups": 1}, "groups: .* greater than or equal to 2"),
        ({"level": 1.0}, "level: .* less than 1"),
        ({"pairs": xr.Dataset({f"feature_{side}": ("pair", [0, 9]) for side in "ab"})}, "has 7 features"),
    ],
)
def test_settings_that_cannot_be(stores, options, message):
    with pytest.raises(InputError, match=message):
        compare_activations(*stores(*related()), **options)


def test_other_rows_are_refused(tmp_path):
    x, y = related(300)
    storage.write_activations(tmp_path / "a", x, tokens=tokens(300), overwrite=True)
    storage.write_activations(tmp_path / "b", y, tokens=tokens(300, 7), overwrite=True)
    with pytest.raises(RowMismatchError):
        compare_activations(tmp_path / "a", tmp_path / "b")


def test_what_does_not_fit_is_refused_before_it_is_read(stores):
    with pytest.raises(BudgetError, match=r"16 blocks.*fewer blocks"):
        compare_activations(*stores(*related()), memory="20kB")


def test_a_current_result_is_left_as_it_is(stores, client, tmp_path):
    paths, out = stores(*related()), tmp_path / "scores.zarr"
    compare_activations(*paths, null_runs=9, out=out, client=client)
    written = (out / "zarr.json").stat().st_mtime_ns
    compare_activations(*paths, null_runs=9, out=out, client=client)
    assert (out / "zarr.json").stat().st_mtime_ns == written
    assert "stop_after" not in storage.read_manifest(out).settings, "results of earlier releases stay current"
    compare_activations(*paths, null_runs=8, out=out, client=client)
    assert (out / "zarr.json").stat().st_mtime_ns != written
    compare_activations(*paths, null_runs=8, stop_after=2, out=out, client=client)
    assert storage.read_manifest(out).settings["stop_after"] == 2


MEMORY = """
import dataclasses, importlib, psutil
import numpy as np
from pipeline.work.workers import local_client
activations = importlib.import_module("pipeline.compare.activations")
works = []
compare = activations._compare
activations._compare = lambda work, client: works.append(work) or compare(work, client)
rng = np.random.default_rng(0)
np.linalg.svd(rng.normal(size=(50, 20)) @ rng.normal(size=(20, 50)))  # BLAS takes its buffers
with local_client(1, 2) as client:
    figures["before"] = psutil.Process().memory_info().rss
    ds = activations.compare_activations(**arguments, client=client)
figures["needed"] = works[0].memory(2)
more = dataclasses.replace(works[0].reading, rows=activations.TokenRows(10**8, np.array([], int)))
figures["with_more_tokens"] = dataclasses.replace(works[0], reading=more).memory(2)
"""


@pytest.mark.parametrize("options", [{"null_runs": 20, "blocks": 8}, {"null_runs": 0, "intervals": 10, "groups": 20}])
def test_measured_memory_is_below_the_stated_one(tmp_path, options):
    write_related_stores(tmp_path, 40_000, 384, 256)
    arguments = {"a": str(tmp_path / "a.zarr"), "b": str(tmp_path / "b.zarr"), "metrics": ["svcca"], **options}
    figures = run_measured(MEMORY, arguments)
    # what the libraries take when they are first used comes on top
    assert figures["peak_gb"] * 1e9 - figures["before"] <= figures["needed"] + 6e7
    assert figures["with_more_tokens"] == figures["needed"]
