"""Every kind of source gives its documents; what cannot be used is named, and nothing is written."""

from __future__ import annotations

import json

import pytest

from pipeline.harvest.corpus import build_corpus
from pipeline.settings.harvest import CorpusSettings
from storage.errors import InputError, MissingInputError


def texts_of(corpus):
    return corpus.texts(0, len(corpus))


def write_jsonl(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def test_text_file_is_split_at_blank_lines(tmp_path):
    (tmp_path / "t.txt").write_text("one\nstill one\n\n \t\ntwo\n\n\n\nthree é🐦\n", encoding="utf-8")
    corpus = build_corpus(CorpusSettings(path=str(tmp_path / "t.txt")), tmp_path / "c.zarr")
    assert texts_of(corpus) == ["one\nstill one", "two", "three é🐦\n"]


def test_jsonl_keeps_names_and_drops_empty_documents(tmp_path):
    source = write_jsonl(tmp_path / "t.jsonl", [{"text": "a", "name": "first"}, {"text": " \n"}, "bare string"])
    corpus = build_corpus(CorpusSettings(path=str(source)), tmp_path / "c.zarr")
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
    corpus = build_corpus(CorpusSettings(path=str(folder), column="body"), tmp_path / "c.zarr")
    assert texts_of(corpus) == ["whole\n\nfile", "p1", "p2"]


def test_local_dataset(tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_dict({"text": ["x", "y"]}).save_to_disk(str(tmp_path / "d"))
    corpus = build_corpus(CorpusSettings(dataset=str(tmp_path / "d")), tmp_path / "c.zarr")
    assert texts_of(corpus) == ["x", "y"]
    with pytest.raises(InputError, match=r"no text column 'body' \(it has \['text'\]\)"):
        build_corpus(CorpusSettings(dataset=str(tmp_path / "d"), column="body"), tmp_path / "e.zarr")
    assert not (tmp_path / "e.zarr").exists()


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "folder", "dataset"])
def test_groups_come_from_a_column(tmp_path, kind):
    """With every kind of source that has columns; sampled documents keep their groups."""
    records = [{"text": f"d{i}", "body": f"b{i}", "article": f"a{i // 3}"} for i in range(30)]
    source = {"path": str(tmp_path / "in" / f"t.{kind}")}
    (tmp_path / "in").mkdir()
    if kind == "jsonl":
        write_jsonl(tmp_path / "in/t.jsonl", records)
    elif kind == "folder":
        write_jsonl(tmp_path / "in/t.jsonl", records)
        source = {"path": str(tmp_path / "in")}
    elif kind == "parquet":
        pa = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet").write_table(pa.Table.from_pylist(records), tmp_path / "in/t.parquet")
    else:
        pytest.importorskip("datasets").Dataset.from_list(records).save_to_disk(str(tmp_path / "in"))
        source = {"dataset": str(tmp_path / "in")}
    config = CorpusSettings(**source, column="body", group="article", documents=9, seed=0)
    corpus = build_corpus(config, tmp_path / "c.zarr")
    assert corpus.groups(0, 9) == [f"a{int(text[1:]) // 3}" for text in texts_of(corpus)]
    plain = build_corpus(config.model_copy(update={"group": None}), tmp_path / "d.zarr")
    assert texts_of(plain) == texts_of(corpus)
    assert not plain.has_groups


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.jsonl", '{"text": "a", "topic": "x"}\n{"text": "b"}\n', r"line 2 has no 'topic' \(it has \['text'\]\)"),
        ("t.jsonl", '{"text": "a", "topic": null}\n', "line 1 has None under 'topic': .* text or a whole number"),
        ("t.jsonl", '{"text": "a", "topic": 1.5}\n', "line 1 has 1.5 under 'topic'"),
        ("t.jsonl", '"a"\n', "line 1 has no text under 'text'"),
        ("t.txt", "a\n\nb", r"t\.txt is plain text, and has no 'topic'.*\.jsonl"),
    ],
)
def test_documents_without_a_group_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    for path in (tmp_path / name, tmp_path):
        with pytest.raises(InputError, match=message):
            build_corpus(CorpusSettings(path=str(path), group="topic"), tmp_path / "out" / "c.zarr")
    assert not (tmp_path / "out" / "c.zarr").exists()


def test_a_column_that_is_not_there_is_named(tmp_path):
    pa = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet").write_table(pa.table({"text": ["x"]}), tmp_path / "t.parquet")
    with pytest.raises(InputError, match=r"no column 'topic' \(it has \['text'\]\): set 'corpus: group'"):
        build_corpus(CorpusSettings(path=str(tmp_path / "t.parquet"), group="topic"), tmp_path / "c.zarr")


def test_first_documents_and_seeded_sample(tmp_path):
    source = write_jsonl(tmp_path / "t.jsonl", [f"d{i}" for i in range(50)])
    first = build_corpus(CorpusSettings(path=str(source), documents=3), tmp_path / "c.zarr")
    assert texts_of(first) == ["d0", "d1", "d2"]
    samples = [
        texts_of(build_corpus(CorpusSettings(path=str(source), documents=9, seed=seed), tmp_path / f"{i}.zarr"))
        for i, seed in enumerate([1, 1, 2])
    ]
    assert samples[0] == samples[1] != samples[2]
    assert samples[0] == sorted(samples[0], key=lambda name: int(name[1:]))
    assert len(set(samples[0])) == 9


def test_finished_corpus_is_kept_and_a_changed_source_is_read_again(tmp_path):
    source = write_jsonl(tmp_path / "t.jsonl", ["one"])
    config = CorpusSettings(path=str(source))
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
        build_corpus(CorpusSettings(path=str(tmp_path / name)), tmp_path / "out" / "c.zarr")
    assert not (tmp_path / "out" / "c.zarr").exists()


def test_missing_source(tmp_path):
    with pytest.raises(MissingInputError, match="No corpus at"):
        build_corpus(CorpusSettings(path=str(tmp_path / "none.jsonl")), tmp_path / "c.zarr")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"holds no \.txt"):
        build_corpus(CorpusSettings(path=str(tmp_path / "empty")), tmp_path / "c.zarr")


def test_bytes_that_are_not_utf8(tmp_path):
    (tmp_path / "t.txt").write_bytes(b"caf\xe9")
    with pytest.raises(InputError, match="not UTF-8"):
        build_corpus(CorpusSettings(path=str(tmp_path / "t.txt")), tmp_path / "c.zarr")


# --- number of tokens -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def counted(make_model):
    """A model, and the number of tokens that its tokenizer makes of a text."""
    from transformers import AutoTokenizer

    from pipeline.settings.harvest import ModelSettings

    folder = str(make_model("llama"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = ModelSettings(model=folder, dictionary="identity", sites=["layers.0"])
    return model, lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"])


@pytest.fixture
def numbered(tmp_path):
    """Forty documents of one to seven sentences."""
    return write_jsonl(tmp_path / "t.jsonl", [f"Document {i}. " + "More of it. " * (i % 7) for i in range(40)])


def test_documents_until_a_number_of_tokens(counted, numbered, tmp_path):
    model, count = counted
    config = CorpusSettings(path=str(numbered), tokens=200)
    texts = texts_of(build_corpus(config, tmp_path / "c.zarr", model))
    assert sum(map(count, texts)) >= 200 > sum(map(count, texts[:-1]))
    assert [text.split(".")[0] for text in texts] == [f"Document {i}" for i in range(len(texts))]
    fewer = build_corpus(config.model_copy(update={"documents": 2}), tmp_path / "d.zarr", model)
    assert len(fewer) == 2


def test_special_tokens_written_in_the_text_do_not_count(counted, tmp_path):
    model, count = counted
    source = write_jsonl(tmp_path / "t.jsonl", ["</s>" * 50, "some words", "never read"])
    corpus = build_corpus(CorpusSettings(path=str(source), tokens=count("some words")), tmp_path / "c.zarr", model)
    assert texts_of(corpus) == ["</s>" * 50, "some words"]


def test_random_documents_until_a_number_of_tokens(counted, numbered, tmp_path):
    """No document can be left out of the sample; another seed gives another one; the same seed the same."""
    model, count = counted
    samples = []
    for i, seed in enumerate([1, 1, 2]):
        config = CorpusSettings(path=str(numbered), tokens=200, seed=seed)
        samples.append(texts_of(build_corpus(config, tmp_path / f"{i}.zarr", model)))
        counts = [count(text) for text in samples[-1]]
        assert sum(counts) >= 200 > sum(counts) - max(counts)
    assert samples[0] == samples[1] != samples[2]
    numbers = [int(text.split()[1].rstrip(".")) for text in samples[0]]
    assert numbers == sorted(set(numbers))
    assert numbers != list(range(len(numbers)))
    few = CorpusSettings(path=str(numbered), tokens=200, documents=3, seed=1)
    assert len(set(texts_of(build_corpus(few, tmp_path / "few.zarr", model))) & set(samples[0])) == 3


def test_every_document_is_as_likely_in_a_sample_by_tokens(tmp_path):
    """By the random order itself: documents of one token each, so that the sample is a prefix of a permutation."""
    from collections import Counter

    from pipeline.harvest.corpus import _sample_tokens
    from pipeline.harvest.sources import Document

    documents = [Document(str(i), "x") for i in range(10)]
    samples = (_sample_tokens(documents, 4, None, lambda text: 1, seed) for seed in range(3000))
    drawn = Counter(document.name for sample in samples for document in sample)
    assert sum(drawn.values()) == 3000 * 4
    assert all(abs(times - 1200) < 5 * (3000 * 0.4 * 0.6) ** 0.5 for times in drawn.values())


def test_too_few_tokens_are_said(counted, numbered, tmp_path, caplog):
    model, _ = counted
    for seed in (None, 3):
        config = CorpusSettings(path=str(numbered), tokens=10**6, seed=seed)
        assert len(build_corpus(config, tmp_path / f"{seed}.zarr", model)) == 40
    assert caplog.text.count("1000000 were asked for") == 2


def test_a_number_of_tokens_needs_a_tokenizer(numbered, tmp_path):
    with pytest.raises(InputError, match="needs a model"):
        build_corpus(CorpusSettings(path=str(numbered), tokens=5), tmp_path / "c.zarr")


# --- datasets ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def data_folder(tmp_path):
    """A folder as on the hub: two splits, one of them in two Parquet files; a missing value."""
    pq = pytest.importorskip("pyarrow.parquet")
    import pyarrow as pa

    folder = tmp_path / "hub"
    folder.mkdir()
    pq.write_table(pa.table({"text": ["one", None], "n": [1, 2]}), folder / "train-00000-of-00002.parquet")
    pq.write_table(pa.table({"text": ["two"], "n": [3]}), folder / "train-00001-of-00002.parquet")
    pq.write_table(pa.table({"text": ["three"], "n": [4]}), folder / "test.parquet")
    return folder


def test_folder_that_load_dataset_reads(data_folder, tmp_path, caplog):
    corpus = build_corpus(CorpusSettings(dataset=str(data_folder)), tmp_path / "c.zarr")
    assert texts_of(corpus) == ["one", "two"]
    test = CorpusSettings(dataset=str(data_folder), split="test")
    assert texts_of(build_corpus(test, tmp_path / "d.zarr")) == ["three"]
    (data_folder / "test.parquet").write_bytes((data_folder / "train-00001-of-00002.parquet").read_bytes())
    assert texts_of(build_corpus(test, tmp_path / "d.zarr")) == ["two"], "its files have changed"


def test_saved_splits(tmp_path):
    datasets = pytest.importorskip("datasets")
    parts = {name: datasets.Dataset.from_dict({"text": [name]}) for name in ("train", "test")}
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "d"))
    config = CorpusSettings(dataset=str(tmp_path / "d"), split="test")
    assert texts_of(build_corpus(config, tmp_path / "c.zarr")) == ["test"]
    with pytest.raises(InputError, match=r"no split 'dev'; it has \['test', 'train'\]"):
        build_corpus(config.model_copy(update={"split": "dev"}), tmp_path / "e.zarr")


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"split": "dev"}, InputError, r"split 'dev'.*\['test', 'train'\]|split 'dev'.*\['train', 'test'\]"),
        ({"subset": "en"}, InputError, r"subset 'en'.*Available: \['default'\]"),
        ({"column": "body"}, InputError, r"no text column 'body' \(it has \['n', 'text'\]\)"),
        ({"column": "n"}, InputError, r"Document 0 of .* has int, not text under 'n'"),
        ({"dataset": "/no/such/folder"}, MissingInputError, "No dataset folder at /no/such/folder"),
    ],
)
def test_bad_datasets_are_named_and_leave_nothing(data_folder, tmp_path, changes, error, message):
    config = CorpusSettings(dataset=str(data_folder)).model_copy(update=changes)
    with pytest.raises(error, match=message):
        build_corpus(config, tmp_path / "out" / "c.zarr")
    assert not (tmp_path / "out").exists()


def test_a_file_is_no_dataset(data_folder, tmp_path):
    with pytest.raises(InputError, match="is a file: give it as 'corpus: path'"):
        build_corpus(CorpusSettings(dataset=str(data_folder / "test.parquet")), tmp_path / "c.zarr")


@pytest.mark.parametrize(
    ("settings", "streamed"),
    [({}, False), ({"documents": 2}, True), ({"tokens": 2}, True), ({"documents": 2, "seed": 0}, False),
     ({"streaming": True}, True), ({"documents": 2, "streaming": False}, False)],
)  # fmt: skip
def test_what_is_streamed(data_folder, monkeypatch, tmp_path, counted, settings, streamed):
    """A dataset of the hub, played by a local folder."""
    datasets = pytest.importorskip("datasets")
    load, seen = datasets.load_dataset, {}

    def local(name, subset, *, streaming, **options):
        seen["streaming"] = streaming
        return load(str(data_folder), subset, streaming=True, **options)

    monkeypatch.setattr(datasets, "load_dataset", local)
    config = CorpusSettings(dataset="some/text", revision="abc", subset=None, **settings)
    corpus = build_corpus(config, tmp_path / "c.zarr", counted[0])
    assert seen == {"streaming": streamed}
    assert texts_of(corpus)[0] == "one"


def source_of(kind, tmp_path, value):
    """Write a source of each kind whose second document has this text; return its settings."""
    if kind == "jsonl":
        return {"path": str(write_jsonl(tmp_path / "t.jsonl", [{"text": "one"}, {"text": value}]))}
    if kind == "string":
        return {"path": str(write_jsonl(tmp_path / "t.jsonl", ["one", value]))}
    if kind == "parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.table({"text": ["one", value]}), tmp_path / "t.parquet")
        return {"path": str(tmp_path / "t.parquet")}
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_dict({"text": ["one", value]}).save_to_disk(str(tmp_path / "d"))
    return {"dataset": str(tmp_path / "d")}


@pytest.mark.parametrize("value", [None, "", " \n"])
@pytest.mark.parametrize("kind", ["jsonl", "parquet", "dataset"])
def test_null_and_empty_texts_are_empty_documents_in_every_format(tmp_path, kind, value, caplog):
    with caplog.at_level("INFO"):
        corpus = build_corpus(CorpusSettings(**source_of(kind, tmp_path, value)), tmp_path / "c.zarr")
    assert texts_of(corpus) == ["one"]
    assert "1 empty ones dropped" in caplog.text


@pytest.mark.parametrize("kind", ["jsonl", "string"])
def test_half_a_character_is_named_by_file_and_line(tmp_path, kind):
    source = source_of(kind, tmp_path, "ab\ud83d")
    with pytest.raises(InputError, match=r"t\.jsonl, line 2 has half a character at position 2 .*'\\ud83d'"):
        build_corpus(CorpusSettings(**source), tmp_path / "c.zarr")
    assert not (tmp_path / "c.zarr").exists()


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "dataset"])
def test_numbers_are_no_text_in_any_format(tmp_path, kind):
    settings = source_of(kind, tmp_path, "two")
    if kind == "jsonl":
        write_jsonl(tmp_path / "t.jsonl", [{"text": 1}])
    else:
        settings["column"] = "n"
        if kind == "parquet":
            import pyarrow as pa
            import pyarrow.parquet as pq

            pq.write_table(pa.table({"n": [1]}), tmp_path / "t.parquet")
        else:
            import datasets

            datasets.Dataset.from_dict({"n": [1]}).save_to_disk(str(tmp_path / "d2"))
            settings["dataset"] = str(tmp_path / "d2")
    with pytest.raises(InputError, match=r"has int, not text under '(text|n)'"):
        build_corpus(CorpusSettings(**settings), tmp_path / "c.zarr")


def test_a_line_that_is_not_utf_8_is_named(tmp_path):
    (tmp_path / "t.jsonl").write_bytes(b'{"text": "one"}\n{"text": "caf\xe9"}\n')
    with pytest.raises(InputError, match=r"t\.jsonl, line 2 is not UTF-8 text"):
        build_corpus(CorpusSettings(path=str(tmp_path / "t.jsonl")), tmp_path / "c.zarr")
