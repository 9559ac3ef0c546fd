"""Floors and ceilings of a finished run, by the stages of the run, through the command line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from distributed import Client

from pipeline.experiment.run import RunResult
from pipeline.experiment.status import status
from pipeline.report.yardsticks import yardsticks_findings
from pipeline.settings.experiment import stored_experiment
from pipeline.settings.rematch import RematchSettings
from pipeline.work.task import Task
from pipeline.yardsticks.__main__ import show_yardsticks, with_yardsticks
from pipeline.yardsticks.kinds.replacements import OtherWindows
from pipeline.yardsticks.replaced import Place
from pipeline.yardsticks.stage import run_yardsticks
from storage import new_manifest, open_activations, open_result, write_result
from storage.errors import FormatError, InputError, MissingInputError, SubspaceError
from storage.rundir import RunDirectory, Side

pytest.importorskip("torch")


@pytest.fixture(scope="module")
def finished(once: Callable[..., Path], tiny_run: RunResult, tiny_inputs: Path, client: Client) -> RunDirectory:
    """The tiny run at one pair of its sites, with yardsticks; not to be changed."""

    def make(folder: Path) -> None:
        shutil.copytree(tiny_run.directory.root, folder)
        use = [
            {"name": "random_directions", "seed": 4},
            {"name": "other_windows"},
            # that of the run: nothing can be more alike
            {"name": "other_dictionary", "a": str(tiny_inputs / "sae-llama")},
        ]
        directory = RunDirectory(folder)
        whole = stored_experiment(directory)
        sides = {side: model.model_copy(update={"sites": model.sites[:1]}) for side, model in whole.models.items()}
        config = with_yardsticks(whole.model_copy(update=sides), {"use": use})
        run_yardsticks(config, directory, client)
        directory.write_experiment(config.model_dump(mode="json"))

    return RunDirectory(once("tiny-yardsticks", make))


def test_random_directions_are_as_many_and_as_active(finished: RunDirectory) -> None:
    place = RunDirectory(finished.root / "yardsticks" / "random_directions")
    sites: tuple[tuple[Side, str], ...] = ("a", "layers.0"), ("b", "encoder.layer.0")
    for side, site in sites:
        real, random = (open_activations(run.activations(side, site)) for run in (finished, place))
        assert real.sizes == random.sizes
        active = [float(store.n_active.sum()) for store in (real, random)]
        assert active[1] == pytest.approx(active[0], rel=0.15)
    assert open_result(place.pairs("layers.0", "encoder.layer.0"), "match").sizes["pair"]


def test_the_same_dictionary_is_the_highest_ceiling(finished: RunDirectory) -> None:
    result = open_result(finished.yardsticks("layers.0", "encoder.layer.0"), "yardsticks").load()
    assert result.kind.values.tolist() == ["floor", "ceiling", "ceiling"]
    same = result.sel(yardstick="other_dictionary")
    assert same.value.sel(quantity="r").item() == pytest.approx(1)
    assert same.decoder_cosine.item() == pytest.approx(1)
    assert (result.attrs["floor"], result.attrs["ceiling"]) == ("random_directions", "other_windows")
    windows = result.sel(yardstick="other_windows", quantity="r")
    assert windows.matchings == 2
    assert result.value.sel(yardstick="random_directions", quantity="r").item() < windows.value.item() < 1


def test_nothing_of_the_run_is_made_again_and_it_is_current(finished: RunDirectory, tiny_run: RunResult) -> None:
    for path in tiny_run.directory.root.glob("activations/*/*/zarr.json"):
        assert (finished.root / path.relative_to(tiny_run.directory.root)).read_bytes() == path.read_bytes()
    items = status(stored_experiment(finished), finished)
    states = [item.state for item in items if finished.root / "yardsticks" in item.path.parents]
    assert set(states) == {"current"}
    assert len(states) > 10


def test_tables_and_sentence(finished: RunDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = RunDirectory(tmp_path / "run")
    shutil.copytree(finished.root, run.root)
    show_yardsticks(stored_experiment(run), run, as_json=True)
    shown: dict[str, Any] = json.loads(capsys.readouterr().out)
    table = pd.read_csv(run.normalised_table)
    assert len(shown["between"]) == len(table) == 6
    assert table["note"].str.contains("pairs, at least (?:10|60) are needed").sum() == 5, "the models are tiny"
    beside = pd.read_csv(run.yardsticks_table)
    assert set(beside["yardstick"]) == {"random directions", "other windows", "other dictionary seed"}
    cosines = beside[beside["quantity"] == "decoder_cosine"]
    np.testing.assert_allclose(cosines["value"], 1, rtol=1e-5)
    (sentence,) = yardsticks_findings(table)
    assert "between a floor (random directions) and a ceiling (other windows)" in sentence
    assert "the scores go: r " in sentence


def test_results_that_do_not_serve_are_refused_before_workers_are_waited_for(
    tiny_run: RunResult, tmp_path: Path
) -> None:
    run, whole = RunDirectory(tmp_path / "run"), stored_experiment(tiny_run.directory)
    shutil.copytree(tiny_run.directory.pairs("x", "y").parent, run.pairs("x", "y").parent)
    config = with_yardsticks(whole.model_copy(update={"rematch": RematchSettings()}), {"use": [{"name": "token"}]})
    remade = rf"subspace run EXPERIMENT.yaml --run-dir {run.root}"

    def refused(kind: type[SubspaceError], message: str) -> None:
        with pytest.raises(kind, match=message):
            run_yardsticks(config, run, lambda: pytest.fail("workers were waited for"))

    refused(MissingInputError, f"lacks rematched/.*finish it with: {remade}")
    result = xr.Dataset({"value": 0.5}, attrs={"n_draws": 1})
    for sites in config.site_pairs:
        write_result(result, run.rematched(*sites), new_manifest("rematch", {}, {}))
    refused(FormatError, f"was made by an earlier release, and lacks what the yardstick token reads.*{remade}")
    current = result.assign(matched_null=("matched", np.zeros(3, np.int32)), overlap=("null", [0.5]))
    for sites in config.site_pairs:
        write_result(
            current, run.rematched(*sites), new_manifest("rematch", {"pairs": "of others"}, {}), overwrite=True
        )
    refused(InputError, rf"rematched/\S+ was made from other inputs than the present ones \(pairs/.*{remade}")


def test_windows_that_are_the_same_are_no_others(tiny_run: RunResult, tmp_path: Path, client: Client) -> None:
    place = Place(tmp_path, tiny_run.directory, own_rows=True)
    shutil.copytree(tiny_run.directory.rows, place.rows)
    made = Task("rows", "", {place.rows: lambda _: new_manifest("rows", {}, {})}, (), lambda _: None)
    with pytest.raises(InputError, match="reads the same windows as the run"):
        OtherWindows().same_rows(made, tiny_run.directory, place).run(client)


def test_what_a_yardstick_lacks_is_said_first(tiny_run: RunResult) -> None:
    config = stored_experiment(tiny_run.directory)
    for use, message in (
        ({"name": "token"}, "give 'rematch: {}', or leave token out"),
        ({"name": "frozen_decoder"}, "frozen_decoder has nothing to replace: give a or b"),
    ):
        with pytest.raises(InputError, match=message):
            run_yardsticks(with_yardsticks(config, {"use": [use]}), tiny_run.directory)
    for changes, message in (
        ({"use": [{"name": "tokens"}]}, "no yardstick 'tokens'; did you mean 'token'"),
        ({"ceiling": "token"}, r"ceiling is one of the ceilings that are used \(other_windows\), not 'token'"),
        ({"use": [{"name": "random_directions", "sead": 1}]}, "sead: unknown key; did you mean 'seed'"),
    ):
        with pytest.raises(InputError, match=message):
            with_yardsticks(config, changes)
