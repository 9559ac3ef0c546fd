"""Text to stores on tiny models: against a bare loop over one text at a time, whatever the padding and the workers."""

from __future__ import annotations

import hashlib
import importlib
import json
import shutil

import numpy as np
import pytest
import torch
import xarray as xr
from transformers import AutoModel, AutoTokenizer

from pipeline.harvest.corpus import build_corpus
from pipeline.harvest.run import SINK_MULTIPLE, harvest, make_rows
from pipeline.harvest.site_check import variance_unexplained
from pipeline.settings.harvest import CorpusSettings, ModelSettings, StoreSettings
from pipeline.work.workers import local_client
from storage import check_same_rows, open_activations, open_corpus, read_csr, read_dense
from storage.errors import InputError, RowMismatchError
from storage.verify import verify

STORE = StoreSettings(shard_rows=64)
LENGTH = 24

TEXTS = [
    "The quick brown fox jumps over the lazy dog, again and again; nobody knows why.",
    "Café society in São Paulo: naïve, élite and très chic — or so they say! 🐦🐦 flew over 東京.",
    "A text with </s> and <pad> and [SEP] written out, as pages on the web have.",
    "Short.",
    "Unaffable players' unbelievable under-performance cost $1,234.56 million. " * 4,
    "seven green birds flew over the river " * 6,
]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "t.jsonl").write_text("".join(json.dumps(text) + "\n" for text in TEXTS), encoding="utf-8")
    build_corpus(CorpusSettings(path=str(folder / "t.jsonl")), folder / "corpus.zarr")
    return folder / "corpus.zarr"


@pytest.fixture
def sides(make_model):
    """Return a function giving both sides' settings: a Llama without BOS of its own, and a lower-casing BERT."""

    def make(padding_side="right", **options):
        return (
            ModelSettings(
                model=str(make_model("llama", padding_side)), dictionary="identity",
                sites=["layers.0", "layers.1"], batch_size=3, **options,
            ),
            ModelSettings(
                model=str(make_model("bert", padding_side)), dictionary="identity",
                sites=["encoder.layer.0"], batch_size=3,
            ),
        )  # fmt: skip

    return make


def run(corpus, a, b, folder, client, store=STORE):
    rows = make_rows(corpus, a, b, LENGTH, folder / "rows.zarr", client=client)
    stores = harvest(corpus, rows, a, "a", store, folder / "a", client=client)
    return rows, stores | harvest(corpus, rows, b, "b", store, folder / "b", client=client)


@pytest.fixture(scope="module")
def harvested(corpus, make_model, tmp_path_factory, client):
    a = ModelSettings(
        model=str(make_model("llama")), dictionary="identity", sites=["layers.0", "layers.1"], batch_size=3
    )
    b = ModelSettings(model=str(make_model("bert")), dictionary="identity", sites=["encoder.layer.0"], batch_size=3)
    return run(corpus, a, b, tmp_path_factory.mktemp("run"), client)


def test_values_are_those_of_a_bare_loop_over_single_windows(harvested, make_model):
    """The oracle: one window at a time, no padding, the whole model, ``hidden_states[L + 1]`` of an inner block."""
    rows, stores = harvested
    table = xr.open_zarr(rows)
    for side, kind, sites in (("a", "llama", ["layers.0", "layers.1"]), ("b", "bert", ["encoder.layer.0"])):
        network = AutoModel.from_pretrained(make_model(kind)).eval()
        for block, site in enumerate(sites):
            values = read_dense(stores[site])
            assert values.shape[0] == table.sizes["token"] > 3 * STORE.shard_rows
            for window in range(table.sizes["window"]):
                lo, hi = int(table[f"first_{side}"][window]), int(table[f"stop_{side}"][window])
                ids = torch.from_numpy(table[f"input_{side}"].values[lo:hi].astype(np.int64))[None]
                with torch.no_grad():
                    states = network(input_ids=ids, output_hidden_states=True).hidden_states[block + 1][0].numpy()
                mine = np.flatnonzero(table["window_of_row"].values == window)
                positions = table[f"position_{side}"].values[mine]
                np.testing.assert_allclose(values[mine], states[positions], atol=1e-5)


def test_groups_of_documents_reach_the_stores(sides, tmp_path, client):
    a, b = sides()
    article = ["x", "y", "x", "z", "y", "y"]
    records = [json.dumps({"text": text, "article": name}) for text, name in zip(TEXTS, article, strict=True)]
    (tmp_path / "t.jsonl").write_text("\n".join(records), encoding="utf-8")
    config = CorpusSettings(path=str(tmp_path / "t.jsonl"), group="article")
    grouped = build_corpus(config, tmp_path / "corpus.zarr")
    _, stores = run(grouped.path, a, b, tmp_path, client)
    numbers = [int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") // 2 for name in article]
    for path in stores.values():
        store = open_activations(path)
        np.testing.assert_array_equal(store["group"], np.array(numbers)[store["document"].values])
        assert "group" in store.coords
    assert not verify(tmp_path / "a" / "layers.0.zarr").faults


def test_windows_read_the_document_and_hold_both_models(harvested, make_model, corpus):
    rows, _ = harvested
    table = xr.open_zarr(rows)
    for side, kind, prefix, suffix in (("a", "llama", "<s>", None), ("b", "bert", "[CLS]", "[SEP]")):
        tokenizer = AutoTokenizer.from_pretrained(make_model(kind))
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()
        pieces = {}
        for window in range(table.sizes["window"]):
            ids = table[f"input_{side}"].values[
                int(table[f"first_{side}"][window]) : int(table[f"stop_{side}"][window])
            ]
            assert len(ids) <= LENGTH
            assert ids[0] == tokenizer.convert_tokens_to_ids(prefix)
            if suffix:
                assert ids[-1] == tokenizer.convert_tokens_to_ids(suffix)
            pieces.setdefault(int(table["window_document"][window]), []).extend(ids[1 : len(ids) - bool(suffix)])
        for number, ids in pieces.items():
            whole = tokenizer.backend_tokenizer.encode(TEXTS[number], add_special_tokens=False).ids
            assert ids == whole[: len(ids)]
            assert len(whole) - len(ids) <= 2


def test_rows_are_real_tokens_that_end_where_the_row_ends(harvested, make_model):
    """Trap 4: neither added nor written-out special tokens are rows."""
    rows, _ = harvested
    table = xr.open_zarr(rows)
    assert table.attrs["n_special"] == 3  # </s>, <pad> and [SEP], each a special token on one side
    for side, kind in (("a", "llama"), ("b", "bert")):
        tokenizer = AutoTokenizer.from_pretrained(make_model(kind))
        special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
        assert not special & set(table[f"token_id_{side}"].values.tolist())
        assert (table[f"position_{side}"].values >= 1).all()
        first = table[f"first_{side}"].values[table["window_of_row"].values]
        same = table[f"input_{side}"].values[first + table[f"position_{side}"].values]
        np.testing.assert_array_equal(same, table[f"token_id_{side}"].values)
    words = [
        TEXTS[d][i:j]
        for d, i, j in zip(table["document"].values, table["char_start"].values, table["char_end"].values, strict=True)
    ]
    assert all(word.strip() == word and word for word in words)
    assert words[0] == "The"


def test_both_sides_have_the_same_rows(harvested):
    """Trap 5."""
    _, stores = harvested
    hashes = {open_activations(path).attrs["row_hash"] for path in stores.values()}
    assert len(hashes) == 1
    check_same_rows(stores["layers.0"], stores["encoder.layer.0"])


def test_other_windows_are_other_rows(harvested, corpus, sides, tmp_path, client):
    a, _ = sides()
    rows = make_rows(corpus, a, a, LENGTH, tmp_path / "rows.zarr", client=client)
    other = harvest(corpus, rows, a, "a", STORE, tmp_path / "a", client=client)
    with pytest.raises(RowMismatchError, match="differ from row 1 on"):
        check_same_rows(harvested[1]["layers.0"], other["layers.0"])


def test_one_tokenizer_gives_its_tokens(corpus, sides, tmp_path, client):
    a, _ = sides()
    table = xr.open_zarr(make_rows(corpus, a, a, LENGTH, tmp_path / "rows.zarr", client=client))
    tokenizer = AutoTokenizer.from_pretrained(a.model)
    texts = open_corpus(corpus).texts(0, len(TEXTS))
    encodings = [tokenizer.backend_tokenizer.encode(text, add_special_tokens=False) for text in texts]
    ends = {
        (number, end)
        for number, encoding in enumerate(encodings)
        for id_, (start, end) in zip(encoding.ids, encoding.offsets, strict=True)
        if end > start and id_ not in tokenizer.all_special_ids
    }
    assert set(zip(table["document"].values.tolist(), table["char_end"].values.tolist(), strict=True)) == ends


def test_padding_side_changes_nothing(harvested, corpus, sides, tmp_path, client):
    _, stores = run(corpus, *sides("left"), tmp_path, client)
    for site, path in stores.items():
        np.testing.assert_allclose(read_dense(path), read_dense(harvested[1][site]), atol=1e-5)
        check_same_rows(path, harvested[1][site])


@pytest.mark.parametrize("kind", ["gpt2", "neox", "gemma2", "neo"])
def test_padding_side_changes_nothing_on_other_architectures(corpus, make_model, site_of, tmp_path, client, kind):
    """Learned, rotary and windowed positions; blocks, and parts of blocks."""
    sites = [site_of(kind, 1), "blocks.1.hook_mlp_out", "blocks.1.mlp.hook_post"]
    stores = {}
    for side in ("left", "right"):
        model = ModelSettings(model=str(make_model(kind, side)), dictionary="identity", sites=sites, batch_size=3)
        rows = make_rows(corpus, model, model, LENGTH, tmp_path / side / "rows.zarr", client=client)
        stores[side] = harvest(corpus, rows, model, "a", STORE, tmp_path / side, client=client)
    for site in sites:
        check_same_rows(stores["left"][site], stores["right"][site])
        np.testing.assert_allclose(read_dense(stores["left"][site]), read_dense(stores["right"][site]), atol=1e-5)


def test_batch_size_changes_nothing_beyond_rounding(harvested, corpus, sides, tmp_path, client):
    a, b = (side.model_copy(update={"batch_size": 1}) for side in sides())
    _, stores = run(corpus, a, b, tmp_path, client)
    for site, path in stores.items():
        np.testing.assert_allclose(read_dense(path), read_dense(harvested[1][site]), atol=1e-5)


def shard_files(path):
    return {file.relative_to(path): file.read_bytes() for file in path.rglob("c/*") if file.is_file()} | {
        file.relative_to(path): file.read_bytes() for file in path.rglob("c/**/*") if file.is_file()
    }


def test_bytes_do_not_depend_on_the_number_of_workers(harvested, corpus, sides, tmp_path):
    with local_client(threads_per_worker=1) as one:
        _, stores = run(corpus, *sides(), tmp_path, one)
    for site, path in stores.items():
        files = shard_files(path)
        assert len(files) > 3
        assert files == shard_files(harvested[1][site])


def test_finished_stores_are_kept_and_half_finished_ones_resumed(corpus, sides, tmp_path, client, monkeypatch):
    a, b = sides()
    rows, stores = run(corpus, a, b, tmp_path, client)
    whole = {site: shard_files(path) for site, path in stores.items()}
    module = importlib.import_module("pipeline.harvest.run")
    original, log = module._harvest_shard, tmp_path / "shards.txt"  # a file: tasks get copies of what they close over

    def counted(item, *args):
        with log.open("a") as file:
            file.write(f"{item[0]}\n")
        if item[0] == 3 and (tmp_path / "broken").exists():
            raise InputError("power cut")
        return original(item, *args)

    def harvest_a():
        log.write_text("")
        return harvest(corpus, rows, a, "a", STORE, tmp_path / "a", client=client)

    monkeypatch.setattr(module, "_harvest_shard", counted)
    harvest_a()
    assert not log.read_text()
    shutil.rmtree(tmp_path / "a")
    (tmp_path / "broken").touch()
    with pytest.raises(InputError, match="power cut"):
        harvest_a()
    assert not (tmp_path / "a" / "layers.0.zarr").exists()
    assert {"0", "1"} <= set(log.read_text().split())
    (tmp_path / "broken").unlink()
    again = harvest_a()
    assert "3" in log.read_text().split()
    assert not {"0", "1"} & set(log.read_text().split())
    assert {site: shard_files(path) for site, path in again.items()} == {site: whole[site] for site in again}


def test_changed_settings_are_harvested_again(corpus, sides, tmp_path, client):
    a, b = sides()
    rows, stores = run(corpus, a, b, tmp_path, client)
    assert open_activations(stores["layers.0"])["activation"].dtype == np.float32
    half = StoreSettings(shard_rows=64, dtype="float16")
    stores = harvest(corpus, rows, a, "a", half, tmp_path / "a", client=client)
    assert open_activations(stores["layers.0"])["activation"].dtype == np.float16


def save_dictionary(folder, d_model, scale=1.0, **options):
    """Save a TopK dictionary of the units and their negatives; with k = 2 × d_model it explains everything."""
    from sae_lens import TopKSAE, TopKSAEConfig

    sae = TopKSAE(TopKSAEConfig(d_in=d_model, d_sae=2 * d_model, k=2 * d_model, **options))
    units = torch.eye(d_model)
    with torch.no_grad():
        sae.W_dec.copy_(torch.cat([units, -units]) * scale)
        sae.W_enc.copy_(torch.cat([units, -units]).T)
    sae.save_model(folder)
    return folder


def test_features_of_a_dictionary_are_stored_as_csr(harvested, corpus, sides, tmp_path, client):
    a, b = sides()
    a = a.model_copy(update={"dictionary": str(save_dictionary(tmp_path / "sae", 16))})
    rows = make_rows(corpus, a, b, LENGTH, tmp_path / "rows.zarr", client=client)
    stores = harvest(corpus, rows, a, "a", STORE, tmp_path / "a", client=client)
    raw = read_dense(harvested[1]["layers.1"])
    wanted = np.concatenate([raw, -raw], axis=1).clip(0)
    np.testing.assert_allclose(read_csr(stores["layers.1"]).toarray(), wanted, atol=1e-6)
    store = open_activations(stores["layers.1"])
    assert store.attrs["layout"] == "csr"
    assert store.attrs["kind"] == "post"
    assert store.attrs["calibration"]["fvu"] < 1e-9
    assert store.attrs["calibration"]["l0"] == pytest.approx(16, abs=0.1)
    np.testing.assert_array_equal(store["decoder"].values, np.concatenate([np.eye(16), -np.eye(16)]))


def test_dictionary_of_another_site_is_refused(corpus, sides, tmp_path, client):
    a, b = sides()
    a = a.model_copy(update={"dictionary": str(save_dictionary(tmp_path / "sae", 16, scale=-3.0))})
    rows = make_rows(corpus, a, b, LENGTH, tmp_path / "rows.zarr", client=client)
    with pytest.raises(InputError, match=r"times the variance of layers\.0 unexplained"):
        harvest(corpus, rows, a, "a", STORE, tmp_path / "a", client=client)
    assert not list((tmp_path).glob("a/*"))


def test_dictionary_of_another_width_is_refused_before_anything_is_written(corpus, sides, tmp_path, client):
    a, b = sides()
    wrong = a.model_copy(update={"dictionary": str(save_dictionary(tmp_path / "sae", 12))})
    with pytest.raises(InputError, match=r"width 12.*width 16"):
        make_rows(corpus, wrong, b, LENGTH, tmp_path / "out" / "rows.zarr", client=client)
    assert not (tmp_path / "out").exists()


def test_sinks_are_marked_and_left_out_of_statistics(corpus, sides, tmp_path, client, monkeypatch):
    """A threshold below some rows' norms: exactly these are sinks."""
    module = importlib.import_module("pipeline.harvest.site_check")
    monkeypatch.setattr(module, "SINK_MULTIPLE", 1.2)
    a, b = sides()
    _, stores = run(corpus, a, b, tmp_path, client)
    store = open_activations(stores["layers.0"])
    values = read_dense(stores["layers.0"])
    sink = np.linalg.norm(values, axis=1) > store.attrs["sink_threshold"]
    assert 0 < sink.sum() < len(sink)
    np.testing.assert_array_equal(store["sink"].values, sink)
    np.testing.assert_allclose(store["mean"].values, values[~sink].mean(axis=0), atol=1e-6)
    assert SINK_MULTIPLE == 10


@pytest.mark.parametrize(
    ("wanted", "trained", "bos"), [(None, None, True), (False, None, False), (None, False, False), (True, False, True)]
)
def test_bos_as_the_dictionary_was_trained_unless_told_otherwise(corpus, sides, tmp_path, client, wanted, trained, bos):
    folder = save_dictionary(tmp_path / "sae", 16)
    config = json.loads((folder / "cfg.json").read_text())
    if trained is not None:
        config["metadata"]["prepend_bos"] = trained
        (folder / "cfg.json").write_text(json.dumps(config))
    a, b = sides()
    a = a.model_copy(update={"dictionary": str(folder), "prepend_bos": wanted})
    table = xr.open_zarr(make_rows(corpus, a, b, LENGTH, tmp_path / "rows.zarr", client=client))
    tokenizer = AutoTokenizer.from_pretrained(a.model)
    starts = table["input_a"].values[table["first_a"].values]
    assert (starts == tokenizer.bos_token_id).all() == bos
    assert (table["position_a"].values.min() == 1) == bos


def test_bos_that_does_not_exist(corpus, sides, tmp_path, client):
    a, b = sides()
    with pytest.raises(InputError, match="has no BOS token"):
        make_rows(corpus, a, b.model_copy(update={"prepend_bos": True}), LENGTH, tmp_path / "rows.zarr", client=client)
    with pytest.raises(InputError, match="'<none>' is not a token of the tokenizer"):
        make_rows(corpus, a.model_copy(update={"prepend_bos": "<none>"}), b, LENGTH, tmp_path / "r.zarr", client=client)


def without_bos(model, tmp_path):
    """Copy a model, and take BOS from its tokenizer, as Qwen's tokenizers have none."""
    folder = shutil.copytree(model, tmp_path / "without-bos")
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (folder / name).exists():
            stated = json.loads((folder / name).read_text())
            stated.pop("bos_token", None)
            (folder / name).write_text(json.dumps(stated))
    return folder


@pytest.mark.parametrize(
    ("hook", "wanted", "first", "said"),
    [
        ("blocks.0.hook_resid_post", None, "</s>", "windows begin with '</s>', as in TransformerLens"),
        ("layers.0", None, None, "nothing is put in front; set prepend_bos to the token"),
        ("layers.0", "<pad>", "<pad>", ""),
        ("blocks.0.hook_resid_post", False, None, ""),
    ],
)
def test_bos_that_a_dictionary_wants_and_the_tokenizer_lacks(
    corpus, sides, tmp_path, client, caplog, hook, wanted, first, said
):
    a, b = sides()
    folder = save_dictionary(tmp_path / "sae", 16)
    config = json.loads((folder / "cfg.json").read_text())
    config["metadata"] |= {"prepend_bos": True, "hook_name": hook}
    (folder / "cfg.json").write_text(json.dumps(config))
    model = without_bos(a.model, tmp_path)
    assert AutoTokenizer.from_pretrained(model).bos_token is None
    a = a.model_copy(
        update={"model": str(model), "dictionary": str(folder), "prepend_bos": wanted, "sites": ["layers.0"]}
    )
    with caplog.at_level("INFO"):
        table = xr.open_zarr(make_rows(corpus, a, b, LENGTH, tmp_path / "rows.zarr", client=client))
    starts = table["input_a"].values[table["first_a"].values]
    id_ = AutoTokenizer.from_pretrained(model).get_vocab().get(first)
    assert list(table.attrs["prefix_a"]) == ([] if first is None else [id_])
    assert first is None or (starts == id_).all()
    assert said in caplog.text


def test_tokens_that_are_special_in_the_tokenizers_own_list_alone_are_no_rows(tmp_path, sides, client):
    """Llama 3 marks ``<|start_header_id|>`` as special among the added tokens, and in no other list."""
    from tokenizers import AddedToken, Tokenizer

    a, _ = sides()
    folder = shutil.copytree(a.model, tmp_path / "chat")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_special_tokens([AddedToken("<|start|>", special=True)])
    tokenizer.save(str(folder / "tokenizer.json"))
    fast = AutoTokenizer.from_pretrained(folder)
    assert "<|start|>" not in fast.all_special_tokens
    (tmp_path / "t.jsonl").write_text(json.dumps("<|start|>the fox<|start|>jumps") + "\n")
    build_corpus(CorpusSettings(path=str(tmp_path / "t.jsonl")), tmp_path / "c.zarr")
    chat = a.model_copy(update={"model": str(folder)})
    table = xr.open_zarr(make_rows(tmp_path / "c.zarr", chat, chat, LENGTH, tmp_path / "rows.zarr", client=client))
    assert table.attrs["n_special"] == 2
    assert fast.convert_tokens_to_ids("<|start|>") not in table["token_id_a"].values


def test_windows_are_as_short_as_the_shorter_context(corpus, sides, tmp_path, client):
    a, b = sides()
    table = xr.open_zarr(make_rows(corpus, a, b, 500, tmp_path / "rows.zarr", client=client))
    for side in ("a", "b"):
        assert (table[f"stop_{side}"] - table[f"first_{side}"]).max() <= 64


def test_no_shared_row(tmp_path, sides, client):
    (tmp_path / "t.jsonl").write_text(json.dumps("</s>") + "\n")
    build_corpus(CorpusSettings(path=str(tmp_path / "t.jsonl")), tmp_path / "c.zarr")
    a, _ = sides()
    with pytest.raises(InputError, match="no rows"):
        make_rows(tmp_path / "c.zarr", a, a, LENGTH, tmp_path / "rows.zarr", client=client)
    assert not (tmp_path / "rows.zarr").exists()


def test_variance_unexplained_against_the_definition():
    generator = np.random.default_rng(0)
    rows, error = generator.normal(5, 2, (300, 7)), generator.normal(0, 1, (300, 7))
    wanted = (error**2).sum() / (rows.var(axis=0) * len(rows)).sum()
    assert variance_unexplained(rows.astype(np.float32), error.astype(np.float32)) == pytest.approx(wanted, rel=1e-6)
