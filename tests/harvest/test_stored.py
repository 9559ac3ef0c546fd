"""Experiments on activations that are there: what a run needs of the stores, and what it makes of changed ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import storage
from pipeline.experiment.run import run
from pipeline.experiment.status import expected, status
from pipeline.settings.experiment import Experiment, load_experiment
from storage.errors import InputError, MissingInputError, RowMismatchError
from storage.exchange import import_activations
from storage.rundir import RunDirectory
from storage.verify import verify

DOCUMENTS = [["a", " b"], [], [" c", "d", "e"]]
N_ROWS = 5


def tokens(folder: Path, documents: list[list[str]] = DOCUMENTS, name: str = "tokens.jsonl") -> Path:
    (folder / name).write_text("".join(json.dumps(document) + "\n" for document in documents))
    return folder / name


def store(folder: Path, name: str, **options: Any) -> Path:
    x = np.random.default_rng(len(name)).normal(size=(N_ROWS, 3)).astype("f4")
    np.save(folder / f"{name}.npy", x)
    options = {"tokens": tokens(folder)} | options
    import_activations(folder / f"{name}.npy", folder / f"{name}.zarr", overwrite=True, **options)
    return folder / f"{name}.zarr"


def experiment(folder: Path, **changes: Any) -> Experiment:
    content = {
        "name": "own",
        "corpus": {"path": "tokens.jsonl"},
        "a": {"store": "A.zarr"},
        "b": {"store": {"x": "B.zarr", "y": "B2.zarr"}},
        "compare": None,
    }
    (folder / "own.yaml").write_text(yaml.safe_dump(content | changes))
    return load_experiment(folder / "own.yaml")


def test_stores_take_the_place_of_a_harvest(tmp_path: Path, client) -> None:
    paths = {("a", "A"): store(tmp_path, "A"), ("b", "x"): store(tmp_path, "B"), ("b", "y"): store(tmp_path, "B2")}
    config, directory = experiment(tmp_path), RunDirectory(tmp_path / "run")
    run(config, run_dir=directory.root, until="harvest", client=client)
    for (side, site), path in paths.items():
        copy = directory.activations(side, site)
        assert storage.fingerprint(copy) == storage.fingerprint(path)
        (chunk,) = copy.glob("activation/c/0/0")
        assert chunk.samefile(path / "activation/c/0/0"), "no bytes are copied on one file system"
    rows = storage.open_result(directory.rows, "rows")
    corpus = storage.open_corpus(directory.corpus)
    assert corpus.texts(0, 3) == ["a b", "", " cde"], "an empty document keeps its number"
    places = zip(*(rows[name].values.tolist() for name in ("document", "char_start", "char_end")), strict=True)
    assert [corpus.text(i)[start:end] for i, start, end in places] == [t for document in DOCUMENTS for t in document]
    assert verify(directory.root, expect=expected).ok
    before = {item.path: item.state for item in status(config, directory)}
    assert {before[path] for path in (directory.corpus, directory.rows, directory.activations("a", "A"))} == {"current"}

    np.save(tmp_path / "A.npy", np.ones((N_ROWS, 4)))
    import_activations(tmp_path / "A.npy", paths["a", "A"], tokens=tmp_path / "tokens.jsonl", overwrite=True)
    assert storage.open_activations(directory.activations("a", "A")).sizes["feature"] == 3, "the copy stays as it is"
    states = {item.path: item.state for item in status(config, directory)}
    assert states[directory.activations("a", "A")] == "outdated"
    assert states[directory.activations("b", "x")] == "current"
    run(config, run_dir=directory.root, until="harvest", client=client)
    assert storage.open_activations(directory.activations("a", "A")).sizes["feature"] == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"a": {"model": "gpt2", "dictionary": "identity", "sites": ["layers.0"]}}, "a is a model and the other side"),
        ({"corpus": {"path": "tokens.jsonl", "documents": 3}}, "corpus.documents would take a part of the text"),
        ({"semantics": {"embedding": "model:a"}}, "embedding model:a needs the model, .* give gensim:FILE"),
        ({"a": {"store": "A.zarr", "labels": "x"}}, "a.labels: unknown key; did you mean 'label'"),
        ({"a": {"store": "acts/{site}.zarr"}}, "a.sites: is required"),
        ({"a": {"store": {"../x": "A.zarr"}}}, "a.sites.0: .*pattern"),
    ],
)
def test_settings_that_do_not_fit_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        experiment(tmp_path, **changes)


def test_what_stages_need_is_asked_for_before_anything_is_made(tmp_path: Path, client) -> None:
    for name in ("A", "B", "B2"):
        store(tmp_path, name)
    np.save(tmp_path / "documents.npy", np.zeros(N_ROWS, int))
    store(tmp_path, "D", tokens=None, documents=tmp_path / "documents.npy")

    def refused(error: type[Exception], message: str, **changes: Any) -> None:
        with pytest.raises(error, match=message):
            run(experiment(tmp_path, **changes), run_dir=tmp_path / "run", client=client)

    remedy = r"A.zarr \(a A\) has no decoder rows, which compare needs: import it again with --decoder"
    refused(InputError, remedy, compare={"metrics": ["rsa"]})
    refused(InputError, r"D.zarr \(a D\) does not say where its rows .* --tokens TABLE", a={"store": "D.zarr"})
    refused(MissingInputError, "nowhere.zarr", a={"store": "nowhere.zarr"})
    refused(MissingInputError, "No corpus at .*nowhere.jsonl", corpus={"path": "nowhere.jsonl"})
    assert not (tmp_path / "run").exists()

    tokens(tmp_path, [["a", " b"], [], [" c", "d"]], "short.jsonl")
    message = "Row 4 of .* ends at character 4 of document 2, which has 3"
    refused(RowMismatchError, message, corpus={"path": "short.jsonl"})
    tokens(tmp_path, DOCUMENTS[:2], "fewer.jsonl")
    refused(RowMismatchError, "Row 2 of .* is in document 2, and the text has 2", corpus={"path": "fewer.jsonl"})
    np.savez(tmp_path / "other.npz", document=np.zeros(N_ROWS, int), char_start=np.arange(5), char_end=np.arange(5))
    store(tmp_path, "B2", tokens=tmp_path / "other.npz")
    refused(RowMismatchError, "Rows differ from row")


def test_documents_alone_are_known_and_checked(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name, column in {"A": [0, 0, 1, 1, 1], "B": [0, 0, 0, 1, 1]}.items():
        np.save(tmp_path / f"{name}-documents.npy", column)
        store(tmp_path, name, tokens=None, documents=tmp_path / f"{name}-documents.npy")
    a, b = tmp_path / "A.zarr", tmp_path / "B.zarr"
    assert storage.open_activations(a)["document"].values.tolist() == [0, 0, 1, 1, 1]
    with pytest.raises(RowMismatchError, match=r"Rows differ from row 2 on: .* has document 1, .* has document 0"):
        storage.check_same_rows(a, b)
    storage.check_same_rows(a, a)
    assert "No token coordinates in" in caplog.text, "within a document, rows are taken on trust"
    assert verify(a).ok
    with pytest.raises(InputError, match="give tokens or documents"):
        store(tmp_path, "A", documents=tmp_path / "A-documents.npy")
