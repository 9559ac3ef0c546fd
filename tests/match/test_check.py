"""r of matched pairs on other text: against NumPy, in the manifest, and refused where it would say nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from typer.testing import CliRunner

import storage
from jobs.cli import app
from pipeline.correlate.run import correlate
from pipeline.match.run import match
from pipeline.match.stage import check, tasks
from pipeline.settings.experiment import Experiment
from storage.errors import BudgetError, InputError, MissingInputError
from storage.rundir import RunDirectory

N_FEATURES, DOCUMENTS, ROWS = 6, 30, 20


def write_text(folder: Path, seed: int, *, keep: int, **attrs: Any) -> tuple[Path, Path]:
    """Write stores of one text, on which B's features are A's in another order; all but `keep` are of their own."""
    rng = np.random.default_rng(seed)
    n = DOCUMENTS * ROWS
    x, own = (rng.exponential(size=(n, N_FEATURES)) * (rng.random((n, N_FEATURES)) < 0.3) for _ in range(2))
    y = np.roll(np.where(np.arange(N_FEATURES) < keep, x, own), 1, axis=1) + 0.1 * rng.random((n, N_FEATURES))
    place = np.arange(n) + 1000 * seed
    tokens = {"document": np.arange(n) // ROWS, "char_start": place, "char_end": place + 1}
    paths = folder / f"a{seed}.zarr", folder / f"b{seed}.zarr"
    for path, values, model in zip(paths, (x, y), ("one", "two"), strict=True):
        known = {"model": f"/models/{model}", "site": "layers.1", "dictionary": "d@1", "kind": "post"} | attrs
        storage.write_activations(path, sp.csr_array(values), tokens=tokens, attrs=known, overwrite=True)
    return paths


@pytest.fixture
def correlated(tmp_path: Path) -> Path:
    """A correlation of features all of which are shared on its text."""
    correlate(*write_text(tmp_path, 0, keep=N_FEATURES), out=tmp_path / "cor.zarr")
    return tmp_path / "cor.zarr"


def test_r_is_that_of_all_rows_of_the_other_text(correlated: Path, tmp_path: Path, client: Any) -> None:
    other = write_text(tmp_path, 1, keep=4)
    pairs = match(correlated, check_on=other, client=client, out=tmp_path / "pairs.zarr")
    x, y = (storage.read_csr(path).toarray().astype(float) for path in other)
    expected = [np.corrcoef(x[:, a], y[:, b])[0, 1] for a, b in zip(pairs.feature_a, pairs.feature_b, strict=True)]
    np.testing.assert_allclose(pairs.r_check, expected, atol=1e-9)
    assert pairs.mean_r_check == pytest.approx(np.mean(expected))
    assert (pairs.n_rows_check, pairs.n_documents_check) == (DOCUMENTS * ROWS, DOCUMENTS)
    assert ((pairs.r_check_low < pairs.r_check) & (pairs.r_check < pairs.r_check_high)).all()
    shared = pairs.feature_a.values < 4
    assert (pairs.r_check.values[shared] > 0.9).all()
    assert (np.abs(pairs.r_check.values[~shared]) < 0.2).all(), "what was shared on one text only"
    plain = match(correlated)
    for name in ("feature_a", "feature_b", "r", "r_heldout"):
        np.testing.assert_array_equal(pairs[name], plain[name])


def test_another_store_is_another_result(correlated: Path, tmp_path: Path) -> None:
    other, out = write_text(tmp_path, 1, keep=4), tmp_path / "pairs.zarr"
    before = match(correlated, check_on=other, out=out)
    write_text(tmp_path, 1, keep=2)
    with pytest.raises(InputError, match="came from other inputs"):
        match(correlated, check_on=other, out=out)
    again = match(correlated, check_on=other, out=out, overwrite=True)
    assert again.mean_r_check < before.mean_r_check


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"site": "layers.2"}, "is of the site 'layers.2', and the pairs of 'layers.1' on side A"),
        ({"dictionary": "d@2"}, "is of the dictionary 'd@2'"),
        ({"model": "/models/three"}, "is of the model '/models/three'"),
    ],
)
def test_stores_of_other_features_are_refused(
    change: dict[str, str], message: str, correlated: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        match(correlated, check_on=write_text(tmp_path, 1, keep=4, **change), out=tmp_path / "pairs.zarr")
    assert not list(tmp_path.glob("pairs*"))


def test_the_same_text_and_too_little_memory_are_refused(correlated: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a0\.zarr holds the rows that the pairs were chosen on"):
        match(correlated, check_on=(tmp_path / "a0.zarr", tmp_path / "b0.zarr"))
    narrow = tmp_path / "narrow.zarr"
    storage.write_activations(narrow, np.ones((9, 2)))
    with pytest.raises(InputError, match="has 2 features, and the pairs are of 6 on side A"):
        match(correlated, check_on=(narrow, narrow))
    with pytest.raises(BudgetError, match="Raise memory"):
        match(correlated, check_on=write_text(tmp_path, 1, keep=4), memory="1MB")


def test_rows_without_coordinates_are_taken_on_trust(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    values = rng.exponential(size=(2, 400, 6)) * (rng.random((2, 400, 6)) < 0.3)
    for text, x in zip(("here", "there"), values, strict=True):
        for side in "ab":
            storage.write_activations(tmp_path / text / f"{side}.zarr", x)
    stores = [[tmp_path / text / f"{side}.zarr" for side in "ab"] for text in ("here", "there")]
    cor = correlate(*stores[0], out=tmp_path / "cor.zarr")
    pairs = match(cor, check_on=tuple(stores[1]))
    np.testing.assert_allclose(pairs["r_check"], 1)


def test_the_verb_shows_and_writes_it(correlated: Path, tmp_path: Path) -> None:
    a, b = write_text(tmp_path, 1, keep=4)
    table = tmp_path / "pairs.csv"
    arguments = ["match", correlated, "--check-on", a, b, "--out", tmp_path / "pairs.zarr", "--csv", table, "--json"]
    done = CliRunner().invoke(app, [*map(str, arguments)])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout.splitlines()[-1])["n_rows_check"] == DOCUMENTS * ROWS
    assert "r_check" in table.read_text().splitlines()[0].split(",")


def test_no_pairs_have_no_r(correlated: Path, tmp_path: Path) -> None:
    pairs = match(correlated, min_correlation=1.0, check_on=write_text(tmp_path, 1, keep=4))
    assert pairs.sizes["pair"] == pairs.r_check.size == 0
    assert pairs.mean_r_check is None


def test_an_experiment_names_the_store_that_the_other_run_lacks(tmp_path: Path) -> None:
    model = {"model": "gpt2", "dictionary": "identity", "sites": ["layers.1"]}
    given: dict[str, Any] = {"name": "x", "corpus": {"path": "t.jsonl"}, "a": model, "b": model}
    config = Experiment.model_validate(given | {"match": {"check_on": str(tmp_path / "other")}})
    with pytest.raises(MissingInputError, match=r"match\.check_on: there is no .*other/activations/a/layers\.1\.zarr"):
        check(config)
    (task,) = tasks(config, RunDirectory(tmp_path / "run"))
    assert RunDirectory(tmp_path / "other").activations("b", "layers.1") in task.inputs
