"""The token null of concepts against independent computations, and the verdict that it takes part in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

import storage
from pipeline.compare.arrays import compare_rows
from pipeline.compare.statistics import TIE, holm
from pipeline.rematch.run import rematch
from pipeline.semantics.run import semantics
from pipeline.semantics.tables import BEYOND, beyond_the_word, semantics_table, study_frame
from pipeline.semantics.token_null import COLUMNS, beyond_draws
from pipeline.settings.rematch import SHUFFLES
from storage.errors import InputError

JUDGED = ["svcca:k=4", "rsa"]
#: As many as a corrected p takes: four tests, two concepts by two metrics.
ENOUGH = 80


def write_rematched(planted: Any, path: Path, draws: list[tuple[np.ndarray, np.ndarray]]) -> Path:
    """Write pairs as if rows had been permuted; the real ones come first."""
    counts = [len(a) for a, _ in draws]
    columns = {
        "null": np.zeros(sum(counts)),
        "in": np.repeat(np.arange(len(draws)) - 1, counts),
        "a": np.concatenate([a for a, _ in draws]),
        "b": np.concatenate([b for _, b in draws]),
    }
    result = xr.Dataset({f"matched_{name}": ("matched", values.astype("i4")) for name, values in columns.items()})
    result = result.assign(overlap=("null", [0.0])).assign_coords(null=np.array(["token"], object))
    manifest = storage.new_manifest("rematch", {"pairs": storage.fingerprint(planted.pairs)}, {"n": len(draws)})
    storage.write_result(result.assign_attrs(n_draws=len(draws) - 1), path, manifest, overwrite=True)
    return path


@pytest.fixture(scope="module")
def beyond(planted: Any, settings: Any, client: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Scores beside draws in which the pairs of weather have other partners, and all others their own."""
    pairs = storage.open_result(planted.pairs, "match")
    a, b = pairs.feature_a.values, pairs.feature_b.values
    weather = np.flatnonzero((a < 16) & (b < 16))
    rng, draws = np.random.default_rng(0), [(a, b)]
    for _ in range(ENOUGH):
        other = b.copy()
        other[weather] = rng.permutation(b[weather])
        draws.append((a, other))
    folder = tmp_path_factory.mktemp("beyond")
    path = write_rematched(planted, folder / "rematched.zarr", draws)
    paths, out = (planted.pairs, planted.correlation, planted.sites, planted.run.corpus), folder / "semantics.zarr"
    return draws, semantics(*paths, settings, rematched=path, out=out, client=client).load(), out


def cell(result: xr.Dataset, name: str, approach: str = "global") -> xr.Dataset:
    (place,) = np.flatnonzero((result["name"].values == name) & (result["approach"].values == approach))
    return result.isel({dim: place for dim in ("subspace", "row") if dim in result.dims})


real = st.floats(-1, 1) | st.just(float("nan"))


@given(real, st.lists(real, min_size=1, max_size=30), st.sampled_from([0.0, 0.5]))
def test_what_is_said_of_draws_is_what_counting_says(value: float, listed: list[float], overlap: float) -> None:
    draws = np.array(listed)
    found = dict(zip(COLUMNS, beyond_draws(value, draws, overlap), strict=True))
    if np.isnan(value):
        assert np.isnan(list(found.values())).all()
        return
    as_high = sum(bool(np.isnan(draw) or draw >= value - TIE) for draw in draws)
    assert (found["above"], found["undefined"]) == (as_high, np.isnan(draws).sum())
    defined = draws[~np.isnan(draws)]
    if len(defined) > 1:
        n, mean = len(defined), defined.mean()
        error = defined.std(ddof=1) * np.sqrt((1 + overlap) / (1 - overlap) + 1 / n)
        reach = stats.t.ppf(0.975, n - 1) * error
        expected = value - mean, value - mean - reach, value - mean + reach
        assert [found[f"difference{end}"] for end in ("", "_low", "_high")] == pytest.approx(expected, abs=1e-9)
        by_student = stats.t.sf((value - mean) / error, n - 1) if error > TIE else 0
        assert found["p"] == pytest.approx(max((as_high + 1) / (len(draws) + 1), by_student))
    else:
        assert np.isnan(found["p"])
        assert np.isnan(found["difference_low"])


def test_scores_of_draws_are_those_of_an_independent_computation(beyond: Any, planted: Any) -> None:
    draws, found, _ = beyond
    decoders = [storage.open_activations(site.store)["decoder"].values for site in planted.sites]
    heights = []
    for a, b in draws[:4]:
        own = np.flatnonzero((a < 16) & (b < 16))
        scores = compare_rows(
            decoders[0][a[own]], decoders[1][b[own]], metrics=["rsa"], nulls=["shuffled"], null_runs=SHUFFLES
        )
        heights.append(float(scores.score.item() - scores.null_score.mean()))
    weather = cell(found, "weather").sel(metric="rsa")
    assert float(weather.token_value) == pytest.approx(heights[0], abs=1e-6)
    assert float(weather.token_value - weather.token_mean) == pytest.approx(float(weather.token_difference))
    assert heights[0] > 0.5 > max(heights[1:])
    assert float(weather.token_above) == 0
    assert float(weather.token_p) == pytest.approx(1 / (ENOUGH + 1))
    assert (int(weather.token_pairs), float(weather.token_pairs_mean)) == (16, 16)


def test_a_concept_whose_pairs_are_the_same_in_every_draw_is_its_words(beyond: Any) -> None:
    sport = cell(beyond[1], "sport")
    np.testing.assert_array_equal(sport.token_difference, 0)
    np.testing.assert_array_equal(sport.token_p, 1)


def test_what_is_not_cut_out_of_the_draws_has_no_token_null(beyond: Any) -> None:
    for name, approach in (("weather", "within"), ("law", "global")):
        of_row = cell(beyond[1], name, approach)
        assert all(np.isnan(of_row[f"token_{column}"]).all() for column in COLUMNS)


def test_the_verdict_is_that_of_the_largest_p(beyond: Any) -> None:
    table = semantics_table({("s", "s"): beyond[2]})
    weather, sport = cell(table, "weather"), cell(table, "sport")
    assert (BEYOND[int(weather.beyond)], BEYOND[int(sport.beyond)]) == ("beyond", "not_shown")
    assert BEYOND[int(cell(table, "weather", "within").beyond)] == "not_judged"
    assert (table.attrs["token_draws"], table.attrs["token_draws_needed"]) == (ENOUGH, ENOUGH)
    judged = [np.maximum(of.p_joint, of.token_p).sel(metric=JUDGED).values for of in (weather, sport)]
    np.testing.assert_allclose([of.p_beyond_holm.sel(metric=JUDGED) for of in (weather, sport)], holm(np.array(judged)))
    shown = study_frame(table)
    assert (
        shown.loc[(shown["Concept"] == "weather") & (shown["Approach"] == "global"), "Beyond the word"].item() == "yes"
    )
    assert {"RSA beyond the word", "RSA draws above"} <= set(shown.columns)


@pytest.mark.parametrize(
    ("above", "p", "enough", "passes", "said"),
    [
        (0, 0.05, False, True, "open"),
        (1, 0.1, False, True, "not_shown"),
        (0, 0.05, False, False, "not_shown"),
        (0, 0.001, True, True, "beyond"),
        (3, 0.04, True, True, "not_shown"),
        (np.nan, np.nan, True, True, "not_judged"),
    ],
)
def test_too_few_draws_leave_open_what_no_draw_reaches(
    above: float, p: float, enough: bool, passes: bool, said: str
) -> None:
    def columns(value: float) -> tuple[tuple[str, str], np.ndarray]:
        return ("row", "metric"), np.full((1, 2), value)

    table = xr.Dataset(
        {
            "p_joint": columns(0.001), "token_p": columns(p), "token_above": columns(above),
            "verdict": ("row", [4 if passes else 2]), "kind": ("row", np.array(["concept"], object)),
        },
        coords={"metric": JUDGED},
    )  # fmt: skip
    assert BEYOND[beyond_the_word(table, "p_holm", JUDGED, enough=enough).beyond.item()] == said


def test_matchings_of_other_pairs_or_without_the_null_are_refused(planted: Any, settings: Any, tmp_path: Path) -> None:
    inputs = planted.pairs, planted.correlation, planted.sites, planted.run.corpus
    other = storage.new_manifest("rematch", {"pairs": "of others"}, {})
    storage.write_result(xr.Dataset({"x": ("y", [1])}), tmp_path / "other.zarr", other)
    with pytest.raises(InputError, match=r"other\.zarr was not made from the pairs"):
        semantics(*inputs, settings, rematched=tmp_path / "other.zarr")
    without = storage.new_manifest("rematch", {"pairs": storage.fingerprint(planted.pairs)}, {})
    storage.write_result(xr.Dataset({"x": ("y", [1])}), tmp_path / "without.zarr", without)
    with pytest.raises(InputError, match="has no draws of the null token"):
        semantics(*inputs, settings, rematched=tmp_path / "without.zarr")


def test_models_that_share_the_words_alone_share_no_meaning_beyond_them(
    planted: Any, settings: Any, client: Any, tmp_path: Path
) -> None:
    """Features of the planted run fire on words, whatever stands around them: every draw has the same pairs."""
    stores = tuple(site.store for site in planted.sites)
    rest = {"corpus": planted.run.corpus, "metrics": [], "fractions": [], "client": client}
    drawn = rematch(
        planted.pairs, planted.correlation, *stores, nulls=["token"], draws=2, out=tmp_path / "drawn.zarr", **rest
    )
    assert "matched_a" in drawn
    inputs = planted.pairs, planted.correlation, planted.sites, planted.run.corpus
    found = semantics(*inputs, settings, rematched=tmp_path / "drawn.zarr", client=client)
    weather = cell(found, "weather")
    np.testing.assert_array_equal(weather.token_above.sel(metric=JUDGED), 2)
    np.testing.assert_array_equal(weather.token_p.sel(metric=JUDGED), 1)
