"""The dictionaries that the demo's yardsticks need: trained once, with what each of them is to be."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from jobs.demo import yardsticks
from jobs.demo.models import MINILM, SMOLLM2
from jobs.demo.train_dictionaries import Recipe, fit
from pipeline.settings.yardsticks import YardsticksSettings

pytestmark = pytest.mark.skipif(importlib.util.find_spec("sae_lens") is None, reason="needs sae-lens")


def directions(samples: int, *, frozen: bool) -> np.ndarray:
    rows = np.random.default_rng(0).normal(size=(256, 8)).astype(np.float16)
    recipe = Recipe(n_features=16, k=2, samples=samples, batch=64)
    decoder = fit(rows, recipe, frozen=frozen).W_dec.detach().numpy()
    return decoder / np.linalg.norm(decoder, axis=1, keepdims=True)


def test_a_frozen_decoder_stays_as_it_was_drawn() -> None:
    short, long = (directions(samples, frozen=True) for samples in (64 * 20, 64 * 80))
    np.testing.assert_allclose(short, long, atol=1e-6)
    assert np.abs(directions(64 * 80, frozen=False) - long).max() > 0.01


def test_what_is_in_the_cache_is_not_trained_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUBSPACE_CACHE", str(tmp_path))
    folder = tmp_path / f"demo-yardsticks-{yardsticks._digest(yardsticks.RECIPE)}"
    for name in yardsticks.TRAININGS:
        for site in (*SMOLLM2.sites, *MINILM.sites):
            (folder / name / site).mkdir(parents=True)
            (folder / name / site / "cfg.json").touch()
    settings = YardsticksSettings.make(use=yardsticks.demo_yardsticks())
    assert (settings.named("floor"), settings.named("ceiling")) == ("token", "other_dictionary")
    assert {*yardsticks.TRAININGS} <= {item.name for item in settings.use}
    assert not list(folder.glob("raw*"))
