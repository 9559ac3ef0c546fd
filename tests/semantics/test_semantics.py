"""The planted meanings are read correctly by both approaches; the stage resumes, and does not depend on workers."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
import xarray as xr
from scipy import stats
from typer.testing import CliRunner

from pipeline.correlate.run import correlate
from pipeline.match.run import match
from pipeline.semantics.__main__ import with_semantics
from pipeline.semantics.run import semantics
from pipeline.semantics.tables import VERDICTS, frame, semantics_table, study_frame, unstacked, write_tables
from pipeline.settings.experiment import Experiment
from pipeline.settings.semantics import PmiRule, SemanticsSettings, SubspaceSettings
from pipeline.work.options import options
from pipeline.work.workers import local_client
from storage import open_activations, open_result
from storage.errors import InputError, MissingInputError

APPROACHES = ("global", "within")
MODEL = {"model": "gpt2", "dictionary": "identity", "sites": ["layers.1"]}


@pytest.fixture(scope="module")
def table(planted: Any, found: xr.Dataset) -> xr.Dataset:
    return semantics_table({("s", "s"): planted.run.semantics("s", "s")})


def cell(table: xr.Dataset, name: str, approach: str) -> xr.Dataset:
    (row,) = np.flatnonzero((table["name"].values == name) & (table["approach"].values == approach))
    return table.isel(row=row)


def members(found: xr.Dataset, name: str, approach: str) -> xr.Dataset:
    (row,) = np.flatnonzero((found["name"].values == name) & (found["approach"].values == approach))
    return found.isel(member=np.flatnonzero(found["subspace_of"].values == row))


def test_that_heldout_r_took_part_in_the_choice_is_said(planted: Any, tmp_path: Path, client: Any) -> None:
    stores = [site.store for site in planted.sites]
    correlate(*stores, top_k=4, keep_above=0.05, memory="1GB", out=tmp_path / "cor.zarr", client=client)
    filters = [{"name": "min_heldout_r", "value": 0.1}]
    rest = tmp_path / "cor.zarr", planted.sites, planted.run.corpus, SubspaceSettings(metrics=["rsa"], null_runs=9)
    for name, chosen in (("filtered", filters), ("plain", [])):
        pairs = match(tmp_path / "cor.zarr", min_correlation=0.1, filters=chosen, out=tmp_path / f"{name}.zarr")
        result = semantics(tmp_path / f"{name}.zarr", *rest)
        note = pairs.attrs.get("heldout_note", "")
        assert result.attrs.get("heldout_note", "").startswith(note)
        assert ("heldout_note" in result.attrs) == bool(note) == bool(chosen)


@pytest.mark.parametrize("approach", APPROACHES)
class TestPlanted:
    def test_the_shared_meaning_passes_both(self, table: xr.Dataset, approach: str) -> None:
        weather = cell(table, "weather", approach)
        assert VERDICTS[int(weather["verdict"])] == ("passes_both" if approach == "global" else "not_judged")
        assert int(weather["n_pairs"]) == 16
        assert float(weather["score"].sel(metric="rsa")) > 0.8
        nulls = ["shuffled", "random_pairs", *(["random_keywords"] if approach == "global" else [])]
        assert (weather["p_bh"].sel(metric=["rsa", "svcca:k=4"], null=nulls) < 0.05).all()

    def test_the_meaning_of_one_model_has_no_pairs(self, table: xr.Dataset, approach: str) -> None:
        law = cell(table, "law", approach)
        assert VERDICTS[int(law["verdict"])] == "too_few_pairs"
        assert (int(law["n_a"]), int(law["n_b"])) == (16, 0)
        assert int(law["n_pairs"]) == 0
        assert np.isnan(law["score"]).all()
        assert np.isnan(law["p"]).all()

    def test_the_shuffled_meaning_passes_nothing(self, table: xr.Dataset, approach: str) -> None:
        sport = cell(table, "sport", approach)
        assert VERDICTS[int(sport["verdict"])] == ("neither" if approach == "global" else "not_judged")
        assert int(sport["n_pairs"]) == 16
        assert float(sport["score"].sel(metric="rsa")) < 0.4

    def test_the_pairs_are_those_that_were_planted(self, found: xr.Dataset, approach: str) -> None:
        weather, sport = members(found, "weather", approach), members(found, "sport", approach)
        assert sorted(zip(weather["feature_a"].values, weather["feature_b"].values, strict=True)) == [
            (i, i) for i in range(16)
        ]
        # A has 16 features of law between weather and sport
        assert sorted(zip(sport["feature_a"].values, sport["feature_b"].values, strict=True)) == [
            (i + 32, i + 16) for i in range(16)
        ]
        assert (weather["r"].values > 0.9).all()

    def test_saturation_is_said(self, table: xr.Dataset, approach: str) -> None:
        weather = cell(table, "weather", approach).sel(metric="svcca")
        assert str(weather["note"].item()).startswith("saturated: 16 pairs")
        assert float(weather["null_mean"].sel(null="shuffled")) > 0.9


def test_scores_agree_with_an_independent_computation(planted: Any, found: xr.Dataset) -> None:
    weather = members(found, "weather", "global")
    x, y = (
        open_activations(site.store)["decoder"].values.astype(np.float64)[weather[f"feature_{side}"].values]
        for side, site in zip("ab", planted.sites, strict=True)
    )
    upper = np.triu_indices(16, 1)
    cosines = [1 - np.array([[stats_cosine(u, v) for v in rows] for u in rows])[upper] for rows in (x, y)]
    (row,) = np.flatnonzero((found["name"].values == "weather") & (found["approach"].values == "global"))
    rsa = float(found["score"].sel(metric="rsa").values[row])
    assert rsa == pytest.approx(stats.spearmanr(*cosines).statistic, abs=1e-6)


def stats_cosine(u: np.ndarray, v: np.ndarray) -> float:
    from scipy.spatial.distance import cosine

    return cosine(u, v)


def test_both_approaches_overlap(table: xr.Dataset) -> None:
    assert float(cell(table, "weather", "global")["overlap"]) == 1.0
    assert np.isnan(float(cell(table, "law", "within")["overlap"]))


def test_correction_is_over_concepts_of_one_approach(table: xr.Dataset) -> None:
    p = np.array(
        [float(cell(table, name, "global")["p"].sel(metric="rsa", null="shuffled")) for name in ("weather", "sport")]
    )
    adjusted = [
        float(cell(table, name, "global")["p_bh"].sel(metric="rsa", null="shuffled")) for name in ("weather", "sport")
    ]
    np.testing.assert_allclose(adjusted, stats.false_discovery_control(p))


def test_the_verdict_takes_the_largest_p_and_corrects_over_all_tests(table: xr.Dataset) -> None:
    judged = ["svcca:k=4", "rsa"]
    nulls = ["shuffled", "random_pairs", "random_keywords"]
    largest = [
        float(max(cell(table, name, "global")["p"].sel(metric=metric, null=null) for null in nulls))
        for name in ("weather", "sport")
        for metric in judged
    ]
    found = [
        [
            float(cell(table, name, "global")[column].sel(metric=metric))
            for name in ("weather", "sport")
            for metric in judged
        ]
        for column in ("p_joint", "p_joint_bh")
    ]
    assert found[0] == largest
    np.testing.assert_allclose(found[1], stats.false_discovery_control(largest))
    assert table.attrs["n_tests"] == 4
    assert np.isnan(cell(table, "weather", "within")["p_joint"]).all()
    assert "cut out by keywords" in str(cell(table, "weather", "within")["no_keywords"].item())


def test_the_same_whatever_the_workers(planted: Any, settings: SubspaceSettings, found: xr.Dataset) -> None:
    few = settings.model_copy(update={"null_runs": 60})
    paths = planted.pairs, planted.correlation, planted.sites, planted.run.corpus
    results = []
    for workers in (1, 3):
        with local_client(n_workers=workers, threads_per_worker=1) as client:
            results.append(semantics(*paths, few, client=client))
    xr.testing.assert_identical(results[0].drop_attrs(), results[1].drop_attrs())


def test_a_finished_result_is_not_made_again(
    planted: Any, settings: SubspaceSettings, found: xr.Dataset, client: Any
) -> None:
    out = planted.run.semantics("s", "s")
    before = {file: file.stat().st_mtime_ns for file in out.rglob("*")}
    semantics(planted.pairs, planted.correlation, planted.sites, planted.run.corpus, settings, out=out, client=client)
    assert {file: file.stat().st_mtime_ns for file in out.rglob("*")} == before


def test_a_changed_setting_makes_it_again(
    planted: Any, settings: SubspaceSettings, tmp_path: Path, client: Any
) -> None:
    paths = planted.pairs, planted.correlation, planted.sites, planted.run.corpus
    few = settings.model_copy(update={"null_runs": 20, "approaches": ["global"]})
    semantics(*paths, few, out=tmp_path / "one.zarr", client=client)
    either = semantics(*paths, few, sides="either", out=tmp_path / "one.zarr", client=client)
    assert either.attrs["manifest"]["settings"]["sides"] == "either"
    # all features of law on side A that were matched with anything
    law = either["n_pairs"].values[either["name"].values == "law"]
    assert law[0] <= 16


def test_clusters_find_what_the_concepts_found(planted: Any, settings: SubspaceSettings, client: Any) -> None:
    paths = planted.pairs, planted.correlation, planted.sites, planted.run.corpus
    result = semantics(*paths, settings, clusters=3, geometry="a", null_runs=20, min_pairs=3, client=client)
    clusters = result.isel(subspace=np.flatnonzero(result["kind"].values == "cluster"))
    assert clusters["name"].values.tolist() == ["cluster 1", "cluster 2", "cluster 3"]
    assert int(clusters["n_pairs"].sum()) == open_result(planted.pairs, "match").sizes["pair"]
    assert np.isnan(clusters["overlap"].values).all()


class TestBadInput:
    def test_an_approach_twice(self) -> None:
        with pytest.raises(InputError, match="approaches are some of global, within"):
            SubspaceSettings.make(approaches=["global", "global"])

    @pytest.mark.parametrize("name", ["approaches", "sides", "geometry"])
    def test_unknown_choice(self, name: str) -> None:
        value = ["c"] if name == "approaches" else "c"
        with pytest.raises(InputError, match=rf"{name}.*: must be .*\(given: 'c'\)"):
            SubspaceSettings.make(**{name: value})

    def test_missing_pairs(self, planted: Any, tmp_path: Path) -> None:
        with pytest.raises(MissingInputError, match="nowhere"):
            semantics(tmp_path / "nowhere.zarr", planted.correlation, planted.sites, planted.run.corpus)

    def test_unknown_metric_before_any_work(self, planted: Any, settings: SubspaceSettings, client: Any) -> None:
        paths = planted.pairs, planted.correlation, planted.sites, planted.run.corpus
        with pytest.raises(InputError, match="no metric 'svcka'"):
            semantics(*paths, settings, metrics=["svcka"], client=client)

    def test_concepts_of_other_sites_differ(
        self, planted: Any, settings: SubspaceSettings, tmp_path: Path, client: Any
    ) -> None:
        from pipeline.semantics.concepts import Concept
        from pipeline.semantics.membership import concept_features

        site = planted.sites[1]
        other = tmp_path / "other.zarr"
        concept_features(
            site.contexts, site.store, planted.run.corpus, {"x": Concept("x", ("xx",))}, out=other, client=client
        )
        sites = planted.sites[0], dataclasses.replace(site, concepts=other)
        with pytest.raises(InputError, match="different concepts"):
            semantics(planted.pairs, planted.correlation, sites, planted.run.corpus, settings, client=client)


class TestTables:
    def test_unstacked_has_sites_as_dimensions(self, table: xr.Dataset) -> None:
        grid = unstacked(table)
        assert grid["score"].dims[:4] == ("name", "approach", "site_a", "site_b") or set(grid["score"].dims) == {
            "name", "approach", "site_a", "site_b", "metric",
        }  # fmt: skip
        chosen = grid["p"].sel(name="weather", approach="within", site_a="s", site_b="s", metric="rsa", null="shuffled")
        assert float(chosen) == float(cell(table, "weather", "within")["p"].sel(metric="rsa", null="shuffled"))

    def test_frames_have_the_columns_of_the_study(self, table: xr.Dataset) -> None:
        study = study_frame(table)
        for column in (
            "Pairs",
            "RSA",
            "RSA shuffled",
            "RSA p random pairs",
            "Coherence",
            "random coherence",
            "Overlap",
        ):
            assert column in study.columns
        assert set(study["Verdict"]) == {"passes both", "neither", "too few pairs", "not judged"}
        assert len(frame(table)) == table.sizes["row"] * 3 * 4

    def test_files_are_written_and_escaped(self, table: xr.Dataset, tmp_path: Path) -> None:
        evil = table.assign(name=("row", np.array(["<script>_%&", *table["name"].values[1:]], object)))
        paths = write_tables(evil, tmp_path / "semantics.zarr")
        assert [path.suffix for path in paths] == [".csv", ".html", ".tex"]
        html, latex = paths[1].read_text(), paths[2].read_text()
        assert "<script>" not in html
        assert "\\toprule" in latex
        assert "\\_\\%\\&" in latex
        assert list(tmp_path.glob("*.partial")) == []


def test_the_verb_changes_only_what_is_given(tmp_path: Path) -> None:
    given: list[dict[str, Any]] = []
    app = typer.Typer()

    @app.command()
    @options(SemanticsSettings, changes=True)
    def command(settings: dict[str, Any]) -> None:
        given.append(settings)

    done = CliRunner().invoke(app, ["--concepts", "default", "--concepts", "mine.yaml", "--approach", "global",
        "--rule", "pmi:at_least=2", "--metric", "rsa", "--metric", "cka", "--embedding", "none", "--null-runs", "7",
    ])  # fmt: skip
    assert done.exit_code == 0, done.output
    (changes,) = given
    assert set(changes) == {"concepts", "approaches", "rule", "metrics", "embedding", "null_runs"}
    content = {"name": "x", "corpus": {"path": "t.txt"}, **dict.fromkeys("ab", MODEL), "semantics": {"seed": 5}}
    section = with_semantics(Experiment.model_validate(content), changes).semantics
    assert section == SemanticsSettings(
        concepts=["default", "mine.yaml"], approaches=["global"], rule=PmiRule(at_least=2), metrics=["rsa", "cka"],
        judged=["rsa", "cka"], embedding=None, null_runs=7, seed=5,
    )  # fmt: skip
    with pytest.raises(InputError, match="give --metric twice"):
        with_semantics(Experiment.model_validate(content), {"metrics": ["cka"]})
