"""Stages cut into shares: together they are one run, whoever does which part."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from distributed import Client

import storage
from pipeline.experiment.run import RunResult
from pipeline.settings.correlate import CorrelateSettings
from pipeline.work.share import Share
from storage.errors import InputError, MissingInputError

correlation = importlib.import_module("pipeline.correlate.run")
running = importlib.import_module("pipeline.experiment.run")


@pytest.mark.parametrize("text", ["3/3", "1", "begin", "-1/3", "1/0", "a/2"])
def test_what_is_no_share(text: str) -> None:
    with pytest.raises(InputError, match="I from 0 to N"):
        Share.parse(text)


def test_shares_are_all_of_it_once() -> None:
    items = list(range(17))
    shares = [Share.parse(f"{i}/5").of(items) for i in range(5)]
    assert sorted(item for share in shares for item in share) == items
    assert Share.parse("begin/5").of(items) == []


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """Stores of both layouts: 700 rows, and features for at least three panels."""
    folder, draw = tmp_path_factory.mktemp("stores"), np.random.default_rng(0)
    made = {}
    for layout, (n_a, n_b) in {"sparse": (90, 70), "dense": (1600, 40)}.items():
        for side, n in (("a", n_a), ("b", n_b)):
            values = draw.normal(size=(700, n)).astype("f4")
            if layout == "sparse":
                values = sp.csr_array(np.maximum(values - 1.2, 0))
            storage.write_activations(folder / f"{layout}-{side}.zarr", values, overwrite=True)
        made[layout] = (folder / f"{layout}-a.zarr", folder / f"{layout}-b.zarr")
    return made


def same(one: Any, other: Any) -> bool:
    """Say whether two correlation results have the same bits."""
    names = sorted(one.data_vars)
    assert names == sorted(other.data_vars)
    return all(one[name].values.tobytes() == other[name].values.tobytes() for name in names)


@pytest.mark.parametrize(
    ("layout", "measure", "strips"),
    [
        ("sparse", "pearson", False),
        ("dense", "pearson", False),
        ("dense", "spearman", False),
        ("sparse", "spearman", True),
    ],
)
def test_panels_in_shares(
    stores: dict[str, tuple[Path, Path]],
    layout: str,
    measure: str,
    strips: bool,
    client: Client,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    a, b = stores[layout]
    settings = CorrelateSettings(top_k=5, keep_above=0.05, measure=measure)
    whole = correlation.correlate(a, b, settings, out=tmp_path / "whole.zarr", client=client)
    if strips:
        plan = importlib.import_module("pipeline.correlate.plan")
        monkeypatch.setattr(plan, "_with_strips", lambda _, ways, shape: plan._plan(ways[0], plan.Cut(64, 32), shape))
    out = tmp_path / "shared.zarr"
    with pytest.raises(MissingInputError, match="share begin/3"):
        correlation.correlate_share(a, b, settings, share=Share(1, 3), out=out, client=client)
    assert not out.with_name("shared.zarr.partial").exists()
    correlation.correlate_share(a, b, settings, share=Share(None, 3), out=out, client=client)
    n_done, pattern = [], "panels/tile-*.npz" if strips else "panels/panel-*.npz"
    for i in (2, 0):  # and one that fails: the run behind them makes up for it
        correlation.correlate_share(a, b, settings, share=Share(i, 3), out=out, client=client)
        n_done.append(len(list(out.with_name("shared.zarr.partial").glob(pattern))))
    assert 0 < n_done[0] < n_done[1]
    other = settings.model_copy(update={"top_k": 4})
    with pytest.raises(MissingInputError, match="with these inputs and settings"):
        correlation.correlate_share(a, b, other, share=Share(1, 3), out=out, client=client)
    finished = correlation.correlate(a, b, settings, out=out, client=client)
    assert same(whole, finished)
    correlation.correlate_share(a, b, settings, share=Share(1, 3), out=out, client=client)  # nothing is left to do


def test_a_run_in_shares(tiny_inputs: Path, tiny_run: RunResult, client: Client, tmp_path: Path) -> None:
    experiment = tiny_inputs / "experiment.yaml"

    def go(share: str | None, until: str = "correlate") -> None:
        part = None if share is None else Share.parse(share)
        running.run(experiment, run_dir=tmp_path / "shared", until=until, share=part, client=client)

    with pytest.raises(InputError, match="harvest or correlate"):
        go("0/2", "match")
    go("begin/2", "harvest")
    activations = tmp_path / "shared" / "activations"
    assert not list(activations.glob("*/*.zarr")), "begun, not finished"
    with pytest.raises(MissingInputError):
        go("0/2")
    go("1/2", "harvest")
    written = {path.name for path in activations.glob("*/*.partial/activation/c/*")}
    assert written
    assert all(int(name) % 2 for name in written)
    go("0/2", "harvest")
    go("begin/2")
    assert len(list(activations.glob("*/*.zarr"))) == 4
    go("0/2")
    go("1/2")
    go(None)
    for name in ("a/layers.1", "b/encoder.layer.0"):
        shared, whole = (
            storage.open_activations(run / "activations" / f"{name}.zarr")
            for run in (tmp_path / "shared", tiny_run.directory.root)
        )
        assert shared.attrs["content_hash"] == whole.attrs["content_hash"]
    one, other = (
        storage.open_result(run / "correlation" / "layers.0--encoder.layer.1.zarr")
        for run in (tmp_path / "shared", tiny_run.directory.root)
    )
    assert same(one, other)
