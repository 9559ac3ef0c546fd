"""Every kind of damage is found and named; what is whole gives no fault."""

from __future__ import annotations

import functools
import importlib
import json
import shutil

import numpy as np
import pytest
import scipy.sparse
import xarray as xr
import zarr

import storage
from storage.errors import MissingInputError
from storage.inventory import CONSOLIDATED, INVENTORY
from storage.rundir import RunDirectory
from storage.verify import verify

verify_module = importlib.import_module("storage.verify")


def result_at(path, rng):
    manifest = storage.new_manifest("correlate", {}, {"keep_above": 0.1})
    variables = {"mean_a": ("feature_a", rng.random(9)), "zero": ("feature_b", np.zeros(7))}
    with storage.claim(path, manifest) as target:
        folder = target.begin()
        storage.add_variables(xr.Dataset(variables), folder)
        dims = ("feature_a", "feature_b")
        storage.create_sparse_array(folder, "r", (9, 7), "f8", dims=dims, shard_rows=4, chunk=(2, 3))
        for i, rows in enumerate((4, 4, 1)):
            storage.write_sparse_shard(folder, "r", i, scipy.sparse.csr_array(rng.random((rows, 7))))
        target.finish()


@pytest.fixture
def run(whole_run, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(whole_run, tmp_path / "run")


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    """A run directory with a sparse and a dense store, a corpus, and a result."""
    folder, rng = tmp_path_factory.mktemp("whole") / "run", np.random.default_rng(7)
    tokens = coordinates
    sparse, dense = folder / "activations/a/x.zarr", folder / "activations/b/y.zarr"
    decoder = rng.standard_normal((50, 6))
    writer = storage.ActivationWriter.create(
        sparse, n_tokens=100, n_features=50, tokens=tokens(100), decoder=decoder, shard_rows=32, chunk=(16, 20)
    )
    for i, rows in enumerate((32, 32, 32, 4)):
        writer.write_shard(i, sparse_rows(rng, rows), sink=np.arange(rows) == i)
    writer.finalise()
    storage.write_activations(
        dense, rng.standard_normal((100, 12)), tokens=tokens(100), layout="dense", shard_rows=32, chunk=(16, 5)
    )
    storage.write_corpus(folder / "corpus.zarr", ["one", "zwei €"], names=["a", "b"])
    result_at(folder / "correlation/x--y.zarr", rng)
    (folder / "experiment.json").write_text('{"a": {"sites": []}, "b": {"sites": []}}')
    return folder


def sparse_rows(rng, rows):
    return scipy.sparse.random_array((rows, 50), density=0.2, rng=rng, format="csr", dtype=np.float32)


def coordinates(n):
    row = np.arange(n)
    return dict.fromkeys(("document", "position", "char_start", "token_id", "group"), row) | {"char_end": row + 3}


def group_of(run, name):
    return run / f"{name.split('.zarr')[0]}.zarr"


def flip(file, at=-3):
    data = bytearray(file.read_bytes())
    data[at] ^= 0x10
    file.write_bytes(bytes(data))


def test_a_whole_run_has_no_faults(run):
    report = verify(run)
    assert report.ok
    assert sorted(path.removeprefix(f"{run}/") for path in report.checked) == [
        "activations/a/x.zarr",
        "activations/b/y.zarr",
        "corpus.zarr",
        "correlation/x--y.zarr",
    ]
    # 4 shards of 2 × 3 chunks, but 7 down in 100 rows; then 5 coordinates of 7 chunks, and so on
    assert report.checked[f"{run}/activations/a/x.zarr"] > 21


EVERY_FILE = [
    "activations/a/x.zarr/activation/c/2/0",
    "activations/b/y.zarr/activation/c/1/0",
    "activations/a/x.zarr/sink/c/1",
    "activations/a/x.zarr/document/c/0",
    "activations/a/x.zarr/token_id/c/0",
    "activations/a/x.zarr/mean/c/0",
    "activations/a/x.zarr/n_active/c/0",
    "activations/a/x.zarr/decoder/c/0/0",
    "corpus.zarr/text/c/0",
    "corpus.zarr/offsets/c/0",
    "correlation/x--y.zarr/r/c/1/0",
    "correlation/x--y.zarr/mean_a/c/0",
]


@pytest.mark.parametrize("name", EVERY_FILE)
@pytest.mark.parametrize("at", [-3, 5])
def test_a_flipped_bit_is_found_in_its_file(run, name, at):
    flip(run / name, at)
    report = verify(group_of(run, name), threads=2)
    assert [f"{fault.path}/{fault.file}" for fault in report.faults] == [f"{run}/{name}"]
    assert report.faults[0].shard == int(name.split("/c/")[1].split("/")[0])


@pytest.mark.parametrize("name", EVERY_FILE)
def test_a_truncated_file_is_found(run, name):
    file = run / name
    file.write_bytes(file.read_bytes()[:-7])
    assert {f"{fault.path}/{fault.file}" for fault in verify(group_of(run, name)).faults} == {str(file)}


@pytest.mark.parametrize("name", EVERY_FILE)
def test_a_missing_file_is_found(run, name):
    (run / name).unlink()
    report = verify(group_of(run, name))
    assert [(f"{fault.path}/{fault.file}", fault.what) for fault in report.faults] == [
        (str(run / name), "the file is missing")
    ]


@pytest.mark.parametrize("at", [0, 1, 2])
def test_the_damaged_chunk_is_named(run, at):
    """Shards of 32 × 60 in chunks of 16 × 20: the second chunk of the file is at (0, 1), the fourth at (1, 0)."""
    file = run / "activations/a/x.zarr/activation/c/0/0"
    index = np.frombuffer(file.read_bytes()[-6 * 16 - 4 : -4], "<u8").reshape(2, 3, 2)
    flip(file, int(index[1, at, 0]) + 9)
    (fault,) = verify(run).faults
    assert (fault.file, fault.shard, fault.chunk) == ("activation/c/0/0", 0, (1, at))
    assert "checksum" in fault.what
    assert f"activation/c/0/0, shard 0, chunk 1, {at}" in str(fault)


def test_all_faults_are_named_at_once(run):
    for name in EVERY_FILE:
        flip(run / name)
    assert {f"{fault.path}/{fault.file}" for fault in verify(run).faults} == {f"{run}/{name}" for name in EVERY_FILE}


@pytest.mark.parametrize("store", ["activations/a/x.zarr", "corpus.zarr", "correlation/x--y.zarr"])
def test_changed_attributes_are_found(run, store):
    file = run / store / "zarr.json"
    metadata = json.loads(file.read_text())
    metadata["attributes"]["model"] = "another"
    file.write_text(json.dumps(metadata))
    (fault,) = verify(run).faults
    assert fault.what == "the attributes are not those that were written"


def test_metadata_that_differ_or_break_are_found(run):
    file = run / "activations/a/x.zarr/mean/zarr.json"
    file.write_text(file.read_text().replace("feature", "featurf"))
    (run / "corpus.zarr/zarr.json").write_text("{")
    (run / "correlation/x--y.zarr/mean_a/zarr.json").write_text("[")
    (run / "experiment.json").write_text("{")
    report = {f"{fault.path}/{fault.file}" for fault in verify(run).faults}
    assert report == {
        str(file),
        f"{run}/corpus.zarr/zarr.json",
        f"{run}/correlation/x--y.zarr/mean_a/zarr.json",
        f"{run}/experiment.json",
    }


def test_a_missing_file_among_chunks_of_fill_values_is_named(run):
    values = np.zeros(50)
    values[45:] = 1
    with storage.claim(run / "x.zarr", storage.new_manifest("x", {}, {})) as target:
        group = zarr.open_group(str(target.begin()), mode="a")
        group.create_array("v", data=values, chunks=(10,), dimension_names=("x",))
        target.finish()
    assert verify(run / "x.zarr").ok
    (run / "x.zarr/v/c/4").unlink()
    assert [str(fault) for fault in verify(run / "x.zarr").faults] == [
        f"{run}/x.zarr: v/c/4, shard 4: the file is missing"
    ]


@pytest.mark.parametrize("name", EVERY_FILE)
def test_a_file_whose_place_a_folder_took_is_found(run, name):
    (run / name).unlink()
    (run / name).mkdir()
    assert str(run / name) in {f"{fault.path}/{fault.file}" for fault in verify(group_of(run, name)).faults}


def test_chunks_that_were_exchanged_are_found(run):
    """Both are whole and pass their own checksums."""
    one, two = (run / f"activations/a/x.zarr/activation/c/{i}/0" for i in (0, 1))
    data = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(data)
    assert {fault.file for fault in verify(run).faults} == {"activation/c/0/0", "activation/c/1/0"}


def test_a_foreign_chunk_is_found(run):
    (run / "activations/a/x.zarr/mean/c/7").write_bytes(b"x")
    (fault,) = verify(run).faults
    assert fault.file == "mean/c/7"
    assert "foreign" in fault.what


def test_a_store_that_lost_its_metadata_is_found(run):
    (run / "activations/a/x.zarr/zarr.json").unlink()
    (fault,) = verify(run).faults
    assert str(fault) == f"{run}/activations/a/x.zarr: zarr.json: the file is missing"


def test_a_group_that_lost_its_attributes_is_found(run):
    file = run / "correlation/x--y.zarr/zarr.json"
    metadata = json.loads(file.read_text())
    del metadata["attributes"]
    file.write_text(json.dumps(metadata))
    assert "the attributes are not those that were written" in {fault.what for fault in verify(run).faults}


def test_what_another_program_wrote_in_the_place_of_a_result_is_found(run):
    (run / "experiment.json").write_text('{"a": {"sites": ["x"]}, "b": {"sites": ["y"]}}')
    shutil.rmtree(run / "correlation/x--y.zarr")
    xr.Dataset({"r": ("pair", [0.5])}).to_zarr(run / "correlation/x--y.zarr", zarr_format=3, consolidated=False)
    assert f"{run}/correlation/x--y.zarr: zarr.json: another program wrote this file" in {
        str(fault) for fault in verify(run).faults
    }


def test_results_that_a_run_lacks_are_faults_where_others_were_made_from_them(run):
    (run / "experiment.json").write_text('{"a": {"sites": ["x"]}, "b": {"sites": ["y"]}}')
    report = verify(run)
    assert [str(fault) for fault in report.faults] == [
        f"{run}/{name}: is missing, and results that were made from it are there"
        for name in ("rows.zarr", "contexts/a/x.zarr", "contexts/b/y.zarr")
    ]
    assert report.missing == [f"{run}/{name}" for name in ("pairs/x--y.zarr", "scores/x--y.zarr", "report.html")]


def copied_by_xarray(store, factor=1):
    """Save a store anew under its name, as a user does who edits it in a notebook."""
    ds = xr.open_zarr(store, consolidated=(INVENTORY in (store / "zarr.json").read_text())).load()
    ds["activation"] *= factor
    ds.to_zarr(store, mode="w", zarr_format=3, consolidated=False)


def test_an_unchanged_copy_made_by_xarray_has_no_fault_and_an_edited_one_has(run):
    for store in ("activations/a/x.zarr", "activations/b/y.zarr"):
        copied_by_xarray(run / store)
        assert verify(run / store).ok
        copied_by_xarray(run / store, 2)
        assert "content has the hash" in verify(run / store).faults[0].what


def test_a_missing_array_is_found(run):
    shutil.rmtree(run / "activations/a/x.zarr/token_id")
    assert {fault.file for fault in verify(run).faults} >= {"token_id/c/0", "token_id/zarr.json"}


def rewrite(store, name, values):
    """Change values without leaving a trace in the checksums, as a program that writes the group anew would."""
    zarr.open_array(str(store / name), mode="r+")[...] = values
    without_inventory(store)


def without_inventory(store):
    metadata = json.loads((store / "zarr.json").read_text())
    del metadata[CONSOLIDATED][INVENTORY]
    (store / "zarr.json").write_text(json.dumps(metadata))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("mean", lambda x: x + 1e-6, "50 features have another mean"),
        ("n_active", lambda x: x + (np.arange(50) == 7), "1 features have another n_active than their values: 7"),
        ("max", lambda x: x * 2, "another max"),
        ("char_end", lambda x: x + 1, "row hash"),
        ("token_id", lambda x: x + 1, "token hash"),
        ("group", lambda x: x + 1, "token hash"),
        ("group", lambda x: x + 1, "content has the hash"),
        ("decoder", lambda x: x + 1, "content has the hash"),
        ("sink", lambda x: ~x, "content has the hash"),
    ],
)
def test_values_that_do_not_belong_together_are_found(run, name, change, message):
    store = run / "activations/a/x.zarr"
    rewrite(store, name, change(zarr.open_array(str(store / name))[...]))
    assert any(message in fault.what for fault in verify(store).faults)


def test_text_that_was_rewritten_is_found(run):
    rewrite(run / "corpus.zarr", "text", np.frombuffer(b"two" + "zwei €".encode(), "u1"))
    assert "the text has the hash" in verify(run).faults[0].what


def test_broken_rows_inside_a_good_checksum_are_found(run):
    """A writer of its own that gets the format wrong: unsorted ids, an entry outside of the array, NaN."""
    from storage import sparse_array
    from storage.codec import Panel

    store = run / "activations/a/x.zarr"
    layout = sparse_array.read_layout(store, "activation")
    lengths = np.zeros(16, "<u4")
    lengths[:2] = 2, 1
    values = np.array([1, 2, np.nan], "<f4")
    panel = Panel(lengths, np.array([5, 3, 15], "<u2"), values.view("<u4"))
    payload = sparse_array._compress(sparse_array.pack(panel))
    index = np.full((2, 3, 2), sparse_array.NO_CHUNK, "<u8")
    index[0, 2] = 0, len(payload)
    layout.shard_file(1).write_bytes(payload + sparse_array._with_checksum(index.tobytes()))
    report = [fault for fault in verify(store).faults if fault.shard == 1]
    assert {fault.chunk for fault in report} == {(0, 2)}
    assert [fault.what for fault in report] == [
        "column ids are not strictly increasing inside a row",
        "entries lie outside of the array",
        "values are not finite numbers",
    ]


def test_unfinished_work_is_no_fault_but_is_told(run):
    storage.ActivationWriter.create(run / "activations/a/z.zarr", n_tokens=5, n_features=4)
    report = verify(run)
    assert report.ok
    assert report.unfinished == [f"{run}/activations/a/z.zarr.partial"]


def test_a_store_without_inventory_can_be_checked(run):
    """Stores of earlier releases have none; chunks of fill values have no file, so nothing is missed."""
    without_inventory(run / "correlation/x--y.zarr")
    assert verify(run).ok


def test_results_are_the_same_whatever_the_threads(run):
    for name in EVERY_FILE:
        flip(run / name)
    assert verify(run, threads=1).as_dict() == verify(run, threads=5).as_dict()


def test_nothing_to_verify_is_an_error(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingInputError, match="no store or result in"):
        verify(tmp_path / "empty")
    with pytest.raises(MissingInputError, match="nothing to verify at"):
        verify(tmp_path / "nowhere")


def test_shards_in_memory_are_bounded():
    """No more shards are read ahead than there are threads."""
    from concurrent.futures import ThreadPoolExecutor

    from storage.verify import in_order

    started = []
    with ThreadPoolExecutor(2) as pool:
        for done, i in enumerate(in_order(pool, lambda i: started.append(i) or i, range(20))):
            assert i == done
            assert len(started) <= done + 1 + 2 + 1


def test_stores_that_were_exchanged_or_made_from_other_rows_are_found(tmp_path):
    run = RunDirectory(tmp_path / "run")
    run.write_experiment({"a": {"sites": ["x", "y"]}, "b": {"sites": []}})
    run.models.write_text("{}")
    storage.write_corpus(run.corpus, ["one", "two"])
    storage.write_result(xr.Dataset({"row": ("token", [1])}), run.rows, storage.new_manifest("rows", {}, {}))
    inputs = {"corpus": storage.fingerprint(run.corpus), "rows": storage.fingerprint(run.rows)}
    for i, site in enumerate("xy"):
        made = storage.new_manifest("harvest", inputs, {"side": "a"})
        storage.write_activations(run.activations("a", site), (i + 1) * np.eye(3), manifest=made, attrs={"site": site})
    assert verify(run.root).ok
    x, y = (run.activations("a", site) for site in "xy")
    for source, to in ((x, tmp_path / "z"), (y, x), (tmp_path / "z", y)):
        source.rename(to)
    assert {str(fault) for fault in verify(run.root).faults} == {
        f"{x}: is the store of y of side a",
        f"{y}: is the store of x of side a",
    }
    for source, to in ((x, tmp_path / "z"), (y, x), (tmp_path / "z", y)):
        source.rename(to)
    storage.write_corpus(run.corpus, ["three"], overwrite=True)
    assert {str(fault) for fault in verify(run.root).faults} == {
        f"{path}: was made from other inputs than the present ones: corpus" for path in (x, y)
    }


def test_texts_are_no_fault(tmp_path):
    ds = xr.Dataset({"name": ("i", np.array(["one", "two"], dtype=object))})
    storage.write_result(ds, tmp_path / "x.zarr", storage.new_manifest("match", {}, {}))
    assert not storage.verify.verify(tmp_path / "x.zarr").faults


@pytest.mark.parametrize(
    ("then", "now", "changed"),
    [
        ({"pairs": "1", "a": "2"}, {"pairs": "1", "a": "3"}, ["a"]),
        ({"pairs": "1"}, {"pairs": "1", "words": "4"}, []),
        ({"pairs": "1", "words": "4"}, {"pairs": "1"}, []),
    ],
)
def test_an_input_that_only_another_release_or_setting_knows_is_no_fault(tmp_path, then, now, changed):
    manifests = [storage.new_manifest("compare", inputs, {}) for inputs in (then, now)]
    recorded, expected = (functools.partial(lambda manifest: manifest, manifest) for manifest in manifests)
    report = verify_module.Verification()
    verify_module._check_inputs(verify_module.ExpectedResult(tmp_path, (), recorded, expected), report)
    assert [fault.what for fault in report.faults] == [f"{verify_module.OTHER_INPUTS}: {name}" for name in changed]
