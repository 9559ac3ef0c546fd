"""Every kind of source gives its documents; what cannot be used is named, and nothing is written."""

from __future__ import annotations

import json

import pytest

from pipeline.config import CorpusConfig
from pipeline.harvest.corpus import build_corpus
from storage.errors import InputError, MissingInputError


def texts_of(corpus):
    return corpus.texts(0, len(corpus))


def write_jsonl(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def test_text_file_is_split_at_blank_lines(tmp_path):
    (tmp_path / "t.txt").write_text("one\nstill one\n\n \t\ntwo\n\n\n\nthree é🐦\n", encoding="utf-8")
    corpus = build_corpus(CorpusConfig(path=str(tmp_path / "t.txt")), tmp_path / "c.zarr")
    assert texts_of(corpus) == ["one\nstill one", "two", "three é🐦\n"]


def test_jsonl_keeps_names_and_drops_empty_documents(tmp_path):
    source = write_jsonl(tmp_path / "t.jsonl", [{"text": "a", "name": "first"}, {"text": " \n"}, "bare string"])
    corpus = build_corpus(CorpusConfig(path=str(source)), tmp_path / "c.zarr")
    assert texts_of(corpus) == ["a", "bare string"]
    assert corpus.name(0) == "first"


def test_parquet_and_folder(tmp_path):
    pq = pytest.importorskip("pyarrow.parquet")
    import pyarrow as pa

    folder = tmp_path / "in"
    folder.mkdir()
    pq.write_table(pa.table({"body": ["p1", "p2"]}), folder / "b.parquet")
    (folder / "a.txt").write_text("whole\n\nfile")
    (folder / "ignored.md").write_text("no")
    corpus = build_corpus(CorpusConfig(path=str(folder), column="body"), tmp_path / "c.zarr")
    assert texts_of(corpus) == ["whole\n\nfile", "p1", "p2"]


def test_local_dataset(tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_dict({"text": ["x", "y"]}).save_to_disk(str(tmp_path / "d"))
    corpus = build_corpus(CorpusConfig(dataset=str(tmp_path / "d")), tmp_path / "c.zarr")
    assert texts_of(corpus) == ["x", "y"]
    with pytest.raises(InputError, match=r"no text column 'body' \(it has \['text'\]\)"):
        build_corpus(CorpusConfig(dataset=str(tmp_path / "d"), column="body"), tmp_path / "e.zarr")
    assert not (tmp_path / "e.zarr").exists()


def test_first_documents_and_seeded_sample(tmp_path):
    source = write_jsonl(tmp_path / "t.jsonl", [f"d{i}" for i in range(50)])
    first = build_corpus(CorpusConfig(path=str(source), documents=3), tmp_path / "c.zarr")
    assert texts_of(first) == ["d0", "d1", "d2"]
    samples = [
        texts_of(build_corpus(CorpusConfig(path=str(source), documents=9, seed=seed), tmp_path / f"{i}.zarr"))
        for i, seed in enumerate([1, 1, 2])
    ]
    assert samples[0] == samples[1] != samples[2]
    assert samples[0] == sorted(samples[0], key=lambda name: int(name[1:]))
    assert len(set(samples[0])) == 9


def test_finished_corpus_is_kept_and_a_changed_source_is_read_again(tmp_path):
    source = write_jsonl(tmp_path / "t.jsonl", ["one"])
    config = CorpusConfig(path=str(source))
    before = build_corpus(config, tmp_path / "c.zarr").hash
    time = (tmp_path / "c.zarr" / "zarr.json").stat().st_mtime_ns
    assert build_corpus(config, tmp_path / "c.zarr").hash == before
    assert (tmp_path / "c.zarr" / "zarr.json").stat().st_mtime_ns == time
    write_jsonl(source, ["two"])
    assert texts_of(build_corpus(config, tmp_path / "c.zarr")) == ["two"]


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        ("t.jsonl", '{"text": "a"}\n{"body": "b"}\n', InputError, "line 2 has no text under 'text'.*'body'"),
        ("t.jsonl", "{oops\n", InputError, "line 1 is not valid JSON"),
        ("t.jsonl", '{"text": " "}\n', InputError, "holds no text: 1 empty documents"),
        ("t.txt", "", InputError, "holds no text"),
        ("t.doc", "x", InputError, r"a \.doc file; expected"),
    ],
)
def test_bad_sources_are_named_and_leave_nothing(tmp_path, name, content, error, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(error, match=message):
        build_corpus(CorpusConfig(path=str(tmp_path / name)), tmp_path / "out" / "c.zarr")
    assert not (tmp_path / "out" / "c.zarr").exists()


def test_missing_source(tmp_path):
    with pytest.raises(MissingInputError, match="No corpus at"):
        build_corpus(CorpusConfig(path=str(tmp_path / "none.jsonl")), tmp_path / "c.zarr")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"holds no \.txt"):
        build_corpus(CorpusConfig(path=str(tmp_path / "empty")), tmp_path / "c.zarr")


def test_bytes_that_are_not_utf8(tmp_path):
    (tmp_path / "t.txt").write_bytes(b"caf\xe9")
    with pytest.raises(InputError, match="not UTF-8"):
        build_corpus(CorpusConfig(path=str(tmp_path / "t.txt")), tmp_path / "c.zarr")
