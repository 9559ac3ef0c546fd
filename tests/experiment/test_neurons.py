"""Raw units beside the features of dictionaries."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import storage
from benchmarks import neurons
from pipeline.experiment import neurons as module
from pipeline.experiment.neurons import (
    KINDS,
    check_finished,
    concepts_beside,
    neurons_experiment,
    neurons_table,
    plot_neurons,
    statement,
)
from pipeline.experiment.run import RunResult
from pipeline.settings.experiment import Experiment
from storage.errors import InputError, MissingInputError
from storage.rundir import RunDirectory


def test_units_take_the_place_of_features_and_get_as_many_times_the_contexts(tiny_run: RunResult) -> None:
    before, after = tiny_run.experiment, neurons_experiment(tiny_run.directory)
    with storage.open_activations(tiny_run.directory.activations("a", "layers.0")) as store:
        more = store.sizes["feature"] / store.sizes["d_model"]
    assert more > 1
    assert after.name == "tiny-neurons"
    assert {after.a.dictionary, after.b.dictionary} == {"identity"}
    assert after.report.contexts == np.ceil(before.report.contexts * more)
    assert after.semantics.rule.of == np.ceil(before.semantics.rule.of * more)
    assert after.semantics.rule.at_least == before.semantics.rule.at_least
    assert Experiment.model_validate(after.model_dump(mode="json")) == after
    unchanged = {"correlate", "match", "compare", "corpus", "align", "contexts", "store"}
    assert after.model_dump(include=unchanged) == before.model_dump(include=unchanged)


def test_clusters_are_not_compared_and_units_have_too_few_pairs_for_as_many(
    tiny_run: RunResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    semantics = tiny_run.experiment.semantics.model_copy(update={"clusters": 20})
    for approaches in (semantics.approaches, []):
        changed = semantics.model_copy(update={"approaches": approaches})
        stored = tiny_run.experiment.model_copy(update={"semantics": changed})
        monkeypatch.setattr(module, "stored_experiment", lambda _, stored=stored: stored)
        after = neurons_experiment(tiny_run.directory)
        assert Experiment.model_validate(after.model_dump(mode="json")) == after
        assert after.semantics.clusters == 0 if approaches else after.semantics is None


def test_a_run_beside_itself_is_no_better_than_itself(tiny_run: RunResult, tmp_path: Path) -> None:
    run = tiny_run.directory
    other = RunDirectory(tmp_path / "units")
    other.root.symlink_to(run.root)
    with pytest.raises(InputError, match="each once"):
        neurons_table(run, other)


def lines(**columns: Any) -> pd.DataFrame:
    """Two pairs of sites, features first."""
    sites = {"site_a": ["x", "x", "y", "y"], "site_b": "z", "kind": [*KINDS] * 2, "n_pairs": [90, 20, 80, 30]}
    figures = {"share_paired": [0.9, 0.5, 0.4, 0.6], "mean_r": 0.5, "mean_r_heldout": [0.5, 0.1, 0.4, 0.2]}
    return pd.DataFrame(sites | figures | columns)


def test_the_sentence_counts_where_features_are_better() -> None:
    concepts = pd.DataFrame({
        "name": ["time", "food"], "pairs_features": [99, 3], "tested_features": [2, 0], "coherence_features": 0.2,
        "pairs_units": [4, 0], "tested_units": [0, 0], "coherence_units": [0.1, np.nan],
    })  # fmt: skip
    table = lines(above_svcca=[0.2, -0.00001, 0.3, 0.0], above_rsa=[0.1, np.nan, 0.2, np.nan])
    assert statement(table, concepts, 5.33) == (
        "Pairs of features have a higher mean held-out r than pairs of units at 2 of 2 pairs of sites (0.40 to 0.50 "
        "against 0.10 to 0.20), and a larger share is paired at 1 of 2 (40 to 90 % against 50 to 60 %). svcca is above "
        "chance by 0.200 to 0.300 against 0.000. rsa of raw units is undefined. With 5.3 times as many top contexts "
        "for a unit, 102 pairs of features belong to the 2 concepts (0.60 of all) and 4 pairs of units (0.08); 1 and 0 "
        "of the concepts have pairs enough for a test somewhere."
    )
    assert len(plot_neurons(table, concepts).axes) == 3
    assert len(plot_neurons(table, concepts.iloc[:0]).axes) == 2
    unknown = statement(lines(mean_r_heldout=np.nan), concepts.iloc[:0], 1.0)
    assert unknown.startswith("Pairs of features have a higher mean r than pairs of units at 0 of 2")


def test_concepts_are_summed_over_the_pairs_of_sites(tiny_run: RunResult) -> None:
    run = tiny_run.directory
    table = storage.open_result(run.semantics_table, "semantics-table")
    wanted = (table["kind"].values == "concept") & (table["approach"].values == table["approach"].values[0])
    beside = concepts_beside(run, run).set_index("name")
    assert set(beside.index) == {"animals", "calendar"}
    for name in beside.index:
        at = wanted & (table["name"].values == name)
        assert beside.loc[name, "pairs_units"] == table["n_pairs"].values[at].sum()
        assert beside.loc[name, "tested_features"] == np.isfinite(table["score"].values[at]).any(axis=1).sum()


def test_what_is_refused(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    side = {"store": "x.zarr", "sites": ["x"]}
    run.write_experiment({"name": "toy", "corpus": {"path": "x.txt"}, "a": side, "b": side})
    with pytest.raises(InputError, match="raw units are read from models"):
        neurons_experiment(run)
    with pytest.raises(MissingInputError, match="is not there yet"):
        check_finished(run)


def test_the_tables_of_the_page_are_those_of_the_stored_result() -> None:
    page = neurons.PAGE.read_text(encoding="utf-8")
    stored = json.loads(neurons.RESULT.read_text(encoding="utf-8"))
    assert neurons.page_with_tables(page, stored) == page
