"""Pairs of a grid share what is known of their B store, and get the results of pairs on their own."""

from __future__ import annotations

import importlib

import numpy as np
import pytest

import storage
from pipeline.correlate.grid import KnownB, forget_rows_after
from pipeline.correlate.run import correlate

job_module = importlib.import_module("pipeline.correlate.job")
panel_module = importlib.import_module("pipeline.correlate.panel")
run_module = importlib.import_module("pipeline.correlate.run")


@pytest.fixture
def stores(tmp_path, values):
    rng = np.random.default_rng(0)
    for name in ("a1", "a2", "b1", "b2"):
        storage.write_activations(tmp_path / name, values(rng, 300, 40, 0.2), layout="csr", overwrite=True)
    return tmp_path


@pytest.mark.parametrize(
    ("method", "measure"), [("resident", "pearson"), ("streaming", "spearman"), ("dense", "cosine")]
)
def test_b_is_read_once_and_results_are_those_of_pairs_alone(stores, client, force, monkeypatch, method, measure):
    force(method)
    kernel = "dense" if method == "dense" else "sparse"
    pairs = [(a, b) for b in ("b1", "b2") for a in ("a1", "a2")]

    def every_pair(label, known_b=None):
        return {
            pair: correlate(
                *(stores / name for name in pair), kernel=kernel, measure=measure, client=client, known_b=known_b,
                out=stores / f"{label}-{'-'.join(pair)}",
            )
            for pair in pairs
        }  # fmt: skip

    alone = every_pair("alone")
    loaded, measured = [], []
    load, measure_panels = job_module.Strip._load_rows, run_module.run_tasks
    monkeypatch.setattr(job_module.Strip, "_load_rows", lambda strip: loaded.append(strip.job.b) or load(strip))

    def run_tasks(*arguments, name, **settings):
        items = list(arguments[2])
        measured.extend((i for side, i in items if side == "b") if name == "correlate-moments" else [])
        return measure_panels(*arguments, name=name, **settings)

    monkeypatch.setattr(run_module, "run_tasks", run_tasks)
    with forget_rows_after(client):
        together = every_pair("together", KnownB())
        assert len(job_module.PROCESS.rows) == (1 if method == "resident" else 0)
    assert not job_module.PROCESS.rows
    panels_of_b = -(-40 // 16) if method == "dense" else 1
    assert (len(loaded), len(measured)) == ((2, 0) if method == "resident" else (0, 2 * panels_of_b))
    for pair in pairs:
        for name in alone[pair].variables:
            np.testing.assert_array_equal(alone[pair][name].values, together[pair][name].values)


def test_other_rows_halves_or_measures_share_nothing(stores, client, force, monkeypatch):
    force("resident")
    loaded, load = [], job_module.Strip._load_rows
    monkeypatch.setattr(job_module.Strip, "_load_rows", lambda strip: loaded.append(strip.job.b) or load(strip))
    known_b = KnownB()
    with forget_rows_after(client):
        for i, settings in enumerate([{}, {"select": "all"}, {"measure": "phi"}]):
            out = stores / f"out-{i}"
            correlate(
                stores / "a1", stores / "b1", kernel="sparse", out=out, client=client, known_b=known_b, **settings
            )
    assert len(loaded) == 3
    correlate(stores / "a2", stores / "b1", kernel="sparse", out=stores / "alone", client=client)
    assert not job_module.PROCESS.rows
