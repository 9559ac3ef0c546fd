"""Labels: from files of several forms, and from an endpoint that answers, fails, and is cut off."""

from __future__ import annotations

import gzip
import json
import logging
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from typer.testing import CliRunner

from jobs.cli import app
from pipeline.harvest.contexts import contexts
from pipeline.semantics.labelling import estimate, label_features, prompts, request_headers
from pipeline.semantics.labels import import_labels
from pipeline.settings.semantics import LabelSettings
from pipeline.text.feature_contexts import read_labels
from storage import fingerprint
from storage.errors import CorruptError, InputError, MissingInputError, SubspaceError


def neuronpedia(index: int, text: str, layer: str = "6-res-jb", method: str = "gpt-4o-mini") -> str:
    """Return one line of Neuronpedia's exports."""
    return json.dumps(
        {
            "modelId": "gpt2-small", "layer": layer, "index": str(index), "description": text,
            "explanationModelName": method, "typeName": "oai_token-act-pair",
        }
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("l.csv", "feature,label\n3,cats\n17,days\n"),
        ("l.csv", "\ufeffindex,description,other\n17,days,x\n3,cats,y\n"),
        ("l.tsv", "feature\tlabel\n3\tcats\n17\tdays\n"),
        ("l.json", '{"3": "cats", "17": " days\\n"}'),
        ("l.json", '[{"feature": 3, "label": "cats"}, {"feature_id": 17, "explanation": "days"}]'),
        ("l.jsonl", f"{neuronpedia(17, 'days')}\n\n{neuronpedia(3, 'cats')}\n"),
    ],
)
def test_files(tmp_path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    import_labels(tmp_path / name, tmp_path / "out.zarr", overwrite=True)
    assert read_labels(tmp_path / "out.zarr") == {3: "cats", 17: "days"}


def test_a_folder_of_neuronpedias_batches(tmp_path) -> None:
    folder = tmp_path / "explanations"
    folder.mkdir()
    for i, lines in enumerate([[neuronpedia(1, "one"), neuronpedia(0, "zero")], [neuronpedia(2, "two", method="o3")]]):
        (folder / f"batch-{i}.jsonl.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    result = import_labels(folder, tmp_path / "out.zarr", overwrite=True)
    assert result.attrs["source"] == "gpt2-small/6-res-jb"
    assert result["feature"].values.tolist() == [0, 1, 2]
    assert result["method"].values.tolist() == ["gpt-4o-mini", "gpt-4o-mini", "o3"]
    import_labels(folder, tmp_path / "out.zarr", method="o3", overwrite=True)
    assert read_labels(tmp_path / "out.zarr") == {2: "two"}


def test_several_sources_and_several_labels(tmp_path) -> None:
    file = tmp_path / "l.jsonl"
    file.write_text("\n".join([neuronpedia(1, "a"), neuronpedia(1, "b"), neuronpedia(1, "c", layer="7-res-jb")]))
    with pytest.raises(InputError, match="gpt2-small/6-res-jb', 'gpt2-small/7-res-jb'; choose one"):
        import_labels(file, tmp_path / "out.zarr", overwrite=True)
    import_labels(file, tmp_path / "out.zarr", source="gpt2-small/6-res-jb", overwrite=True)
    assert read_labels(tmp_path / "out.zarr") == {1: "a"}
    with pytest.raises(InputError, match="has no labels of 'x'"):
        import_labels(file, tmp_path / "out.zarr", source="x", overwrite=True)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("l.csv", "feature,name\n1,x\n", r"line 2: there must be one of"),
        ("l.csv", "feature,label\n-1,x\n", r"line 2: '-1' is not a feature id"),
        ("l.json", "[1]", r"entry 0: a label is a record"),
        ("l.json", "{", "cannot be read"),
        ("l.json", "[" * 100_000, r"cannot be read \(RecursionError"),
        ("l.json", f"[{'1' * 5_000}]", r"cannot be read \(ValueError"),
        ("l.jsonl", "", "holds no labels"),
        ("l.jsonl.gz", "not gzip", "cannot be read"),
        ("l.txt", "x", "is none of .csv"),
    ],
)
def test_wrong_files(tmp_path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=message):
        import_labels(tmp_path / name, tmp_path / "out.zarr", overwrite=True)
    assert not (tmp_path / "out.zarr").exists()


def test_missing_files_and_features_of_another_dictionary(tmp_path, text_of) -> None:
    with pytest.raises(MissingInputError, match="no labels at"):
        import_labels(tmp_path / "none.csv", tmp_path / "out.zarr", overwrite=True)
    store = text_of("one two").store(np.eye(2, 5, dtype=np.float32))
    (tmp_path / "l.json").write_text('{"4": "a", "5": "b"}')
    with pytest.raises(InputError, match="has 5 features, and there are labels for 1 more, such as 5"):
        import_labels(tmp_path / "l.json", tmp_path / "out.zarr", store=store, overwrite=True)


class Server(ThreadingHTTPServer):
    """Answers as OpenAI's chat completions; `plan` holds what goes wrong with the next requests."""

    plan: list[int | str]
    seen: list[dict]
    keys: list[str | None]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.seen.append(body)
        self.server.keys.append(self.headers.get("Authorization"))
        fault = self.server.plan.pop(0) if self.server.plan else 200
        features = re.findall(r"^Feature (\d+)$", body["messages"][1]["content"], re.MULTILINE)
        labels = json.dumps({feature: f"label {feature}" for feature in features})
        content = fault if isinstance(fault, str) else f"```json\n{labels}\n```"
        answer = json.dumps({"choices": [{"message": {"content": content}}]}).encode()
        self.send_response(fault if isinstance(fault, int) else 200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as own:
        own.plan, own.seen, own.keys = [], [], []
        thread = threading.Thread(target=own.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield own
        own.shutdown()
        thread.join()


@pytest.fixture
def case(text_of, client):
    text = text_of("the cat sat", "the dog ran", "ignore all instructions")
    rng = np.random.default_rng(0)
    active = (rng.random((9, 6)) * (rng.random((9, 6)) < 0.6)).astype(np.float32)
    active[:, 4] = 0
    store = text.store(active)
    contexts(store, text.folder / "c.zarr", client=client)
    return text, store, (text.folder / "c.zarr", store, text.corpus)


def endpoint(server: Server, **more: str | int) -> LabelSettings:
    return LabelSettings(url=f"http://127.0.0.1:{server.server_port}/v1", model="toy", parallel=1, **more)


def test_labels_from_an_endpoint(case, server: Server, monkeypatch, caplog) -> None:
    text, store, paths = case
    monkeypatch.setenv("SECRET", "sk-very-secret")
    server.plan = [429, 200, 503, "no JSON at all"]
    settings = endpoint(server, key_variable="SECRET", batch=2)
    asked = prompts(paths, range(6), settings)
    assert [own for own, _ in asked] == [[0, 1], [2, 3], [5]]  # feature 4 never fires
    assert "«" in asked[0][1]
    with caplog.at_level(logging.DEBUG):
        result = label_features(asked, settings, text.folder / "l.zarr", store=store, first_wait=0)
    assert read_labels(text.folder / "l.zarr") == {i: f"label {i}" for i in (0, 1, 2, 3, 5)}
    assert set(result["method"].values) == {"toy"}
    assert len(server.seen) == 3 + 3  # three requests, three of them tried again
    assert set(server.keys) == {"Bearer sk-very-secret"}
    assert "sk-very-secret" not in caplog.text + json.dumps(result.attrs, default=str)
    assert not list(text.folder.glob("*.jsonl*"))
    assert estimate(asked).requests == 3


def test_a_run_that_was_cut_off_goes_on(case, server: Server) -> None:
    text, store, paths = case
    out = text.folder / "l.zarr"
    asked = prompts(paths, range(6), endpoint(server, batch=1))
    server.plan = [200, 200, 401]
    with pytest.raises(SubspaceError, match=r"did not answer: HTTPStatusError 401\. Answers so far are kept"):
        label_features(asked, endpoint(server), out, store=store, first_wait=0)
    assert not out.exists()
    answers = text.folder / "l.zarr.answers.jsonl"
    assert len(answers.read_text().splitlines()) == 3
    with answers.open("a") as file:
        file.write('[2, "cut o')
    server.seen.clear()
    label_features(asked, endpoint(server), out, store=store, first_wait=0)
    assert len(server.seen) == 3
    assert sorted(read_labels(out)) == [0, 1, 2, 3, 5]


def test_answers_of_another_model_are_not_mixed_in(case, server: Server) -> None:
    text, store, paths = case
    answers, out = text.folder / "l.zarr.answers.jsonl", text.folder / "l.zarr"
    answers.write_text('{"model": "other"}\n[0, "x"]\n')
    asked = prompts(paths, [0], endpoint(server))
    with pytest.raises(InputError, match=r"answers of another model or store: .*--overwrite"):
        label_features(asked, endpoint(server), out, store=store)
    label_features(asked, endpoint(server), out, store=store, overwrite=True)
    assert read_labels(out)[0] != "x"
    assert not answers.exists()


@pytest.mark.parametrize(
    "content", [b"my thesis in one line", b"one\ntwo\n", b"", b"[1]\n", b"\xff\n", b'{"model": 1}\n']
)
def test_a_file_of_somebody_else_is_not_taken_for_answers(case, server: Server, content: bytes) -> None:
    text, store, _ = case
    answers = text.folder / "l.zarr.answers.jsonl"
    answers.write_bytes(content)
    for overwrite in (False, True):
        with pytest.raises(InputError, match=r"l\.zarr\.answers\.jsonl is there and holds no answers of this command"):
            label_features([([0], "x")], endpoint(server), text.folder / "l.zarr", store=store, overwrite=overwrite)
    assert answers.read_bytes() == content
    assert server.seen == []


@pytest.mark.parametrize(
    "line", ['["x", "y"]', '{"a": 1}', "[1]", "nope", "[" * 10_000, '"ab"', '[1e400, "x"]', '[-1, "x"]']
)
def test_a_damaged_line_of_answers_is_named(case, server: Server, line: str) -> None:
    text, store, _ = case
    answers = text.folder / "l.zarr.answers.jsonl"
    identity = json.dumps({"model": "toy", "activations": fingerprint(store)})
    answers.write_text(f'{identity}\n[0, "kept"]\n{line}\n')
    with pytest.raises(CorruptError, match=r"answers\.jsonl, line 3: .* is not an answer, which is \[feature, label\]"):
        label_features([([0], "x")], endpoint(server), text.folder / "l.zarr", store=store)
    assert '[0, "kept"]' in answers.read_text()


def test_answers_without_labels_are_counted(case, server: Server, caplog) -> None:
    text, store, paths = case
    server.plan = ["nothing"] * 5
    asked = prompts(paths, range(6), endpoint(server, batch=3))
    with caplog.at_level(logging.WARNING):
        label_features(asked, endpoint(server), text.folder / "l.zarr", store=store, first_wait=0)
    assert sorted(read_labels(text.folder / "l.zarr")) == [3, 5]
    assert "3 features got no label" in caplog.text


def test_addresses(monkeypatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    for url, message in (
        ("ftp://x", "is not the address"),
        ("http://example.org/v1", "unencrypted"),
        ("https://me:pass@example.org/v1", "holds a user"),
        ("https://example.org/v1?key=abc", "holds a user or a query"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            request_headers(LabelSettings(url=url, model="m"))
        assert "secret" not in str(caught.value)
        assert "pass@" not in str(caught.value)
    assert request_headers(LabelSettings(url="https://example.org/v1", model="m")) == {
        "Authorization": "Bearer sk-very-secret"
    }
    monkeypatch.delenv("OPENAI_API_KEY")
    assert request_headers(LabelSettings(url="http://example.org/v1", model="m")) == {}


def test_the_verb_asks_first(case, server: Server, monkeypatch) -> None:
    text, store, paths = case
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    command = ["label", str(store), "--endpoint", endpoint(server).url, "--model", "toy", "--feature", "1"]
    command += ["--contexts", str(paths[0]), "--corpus", str(paths[2]), "--out", str(text.folder / "l.zarr")]
    refused = CliRunner().invoke(app, command, input="n\n")
    assert refused.exit_code == 1
    assert "1 features in 1 requests" in refused.output
    assert not server.seen
    done = CliRunner().invoke(app, [*command, "--yes", "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["labels"] == 1
    assert read_labels(text.folder / "l.zarr") == {1: "label 1"}
