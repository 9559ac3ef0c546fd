"""Whatever stands in a ``zarr.json``, only errors of this package leave the functions that read it."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import xarray as xr

import storage
from storage.errors import SubspaceError
from storage.inspect import inspect
from storage.inventory import CONSOLIDATED, INVENTORY
from storage.verify import verify

VALUES = [None, -1, 0, 1, 0.5, "", "x", "\0", [], [1], {}, {"name": [1]}, [None], True, "../x", 10**30]
#: Mutations of each kind of group.
N = 60


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A store and a result, each with and without its inventory."""
    folder = tmp_path_factory.mktemp("whole")
    row = np.arange(12)
    tokens = dict.fromkeys(("document", "char_start", "char_end", "token_id"), row)
    storage.write_activations(folder / "store.zarr", np.eye(12, 7), tokens=tokens, decoder=np.ones((7, 2)))
    storage.write_activations(folder / "dense.zarr", np.eye(12, 7), layout="dense")
    manifest = storage.new_manifest("match", {"correlation": "1"}, {})
    storage.write_result(xr.Dataset({"r": ("pair", [0.9, 0.4])}), folder / "result.zarr", manifest)
    for name in ("store", "dense", "result"):
        shutil.copytree(folder / f"{name}.zarr", folder / f"{name}-edited.zarr")
        file = folder / f"{name}-edited.zarr/zarr.json"
        metadata = json.loads(file.read_text())
        del metadata[CONSOLIDATED][INVENTORY]
        file.write_text(json.dumps(metadata))
    return folder


def claim(path):
    with storage.claim(path, storage.new_manifest("match", {"correlation": "1"}, {})):
        pass


def current(path):
    storage.is_current(path, storage.new_manifest("match", {"correlation": "1"}, {}))


def load(path):
    storage.open_result(path, "match").load()


def load_store(path):
    storage.open_activations(path).load()


READERS = [storage.fingerprint, current, load, load_store, verify, inspect, claim, storage.is_sparse]


def read(path):
    """Call every function that reads a group; only errors of this package may leave them."""
    for function in READERS:
        try:
            function(path)
        except SubspaceError:
            continue
        except MemoryError:
            continue


def places(node, *prefix):
    """Yield the place of every value inside of JSON."""
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, child in children:
        yield (*prefix, key)
        yield from places(child, *prefix, key)


def change(file, place, value):
    """Put a value at a place, or remove what is there."""
    metadata = json.loads(file.read_text())
    node = metadata
    for key in place[:-1]:
        node = node[key]
    if value is Ellipsis:
        del node[place[-1]]
    else:
        node[place[-1]] = value
    file.write_text(json.dumps(metadata))


@pytest.mark.parametrize("name", ["store", "dense", "result", "store-edited", "dense-edited", "result-edited"])
@pytest.mark.filterwarnings("ignore")
def test_only_errors_of_this_package_leave_the_readers(whole, tmp_path, name):
    rng = np.random.default_rng(11)
    groups = sorted((whole / f"{name}.zarr").rglob("zarr.json"))
    for i in range(N):
        path = tmp_path / f"{i}.zarr"
        shutil.copytree(whole / f"{name}.zarr", path)
        file = path / groups[rng.integers(len(groups))].relative_to(whole / f"{name}.zarr")
        known = list(places(json.loads(file.read_text())))
        place, value = known[rng.integers(len(known))], [*VALUES, ...][rng.integers(len(VALUES) + 1)]
        change(file, place, value)
        try:
            read(path)
        except Exception as error:
            raise AssertionError(f"{file.relative_to(path)}: {place} = {value!r}") from error


@pytest.mark.parametrize(
    ("file", "place", "value"),
    [
        ("mean/zarr.json", ("dimension_names",), None),
        ("mean/zarr.json", ("dimension_names",), ...),
        ("mean/zarr.json", ("codecs", 0, "name"), [1]),
        ("mean/zarr.json", ("codecs",), ""),
        ("mean/zarr.json", ("chunk_grid", "configuration"), [1]),
        ("mean/zarr.json", ("attributes",), {"_FillValue": -1}),
        ("zarr.json", ("attributes", "manifest"), "x"),
        ("zarr.json", ("attributes", "content_hash"), {}),
    ],
)
@pytest.mark.parametrize("name", ["store", "store-edited"])
def test_one_damaged_array_does_not_keep_the_rest_from_being_checked(whole, tmp_path, name, file, place, value):
    for copy in ("1.zarr", "2.zarr"):
        shutil.copytree(whole / f"{name}.zarr", tmp_path / copy)
    change(tmp_path / "1.zarr" / file, place, value)
    shard = tmp_path / "2.zarr/activation/c/0/0"
    shard.write_bytes(shard.read_bytes()[:-1])
    read(tmp_path / "1.zarr")
    assert f"{tmp_path}/2.zarr" in {fault.path for fault in verify(tmp_path).faults}


@pytest.mark.parametrize("lost", ["sink", "n_active", "mean", "document"])
def test_an_array_that_a_store_without_inventory_lacks_is_a_fault(whole, tmp_path, lost):
    path = tmp_path / "a.zarr"
    shutil.copytree(whole / "store-edited.zarr", path)
    shutil.rmtree(path / lost)
    file = path / "zarr.json"
    change(file, (CONSOLIDATED, "metadata", lost), ...)
    assert any(lost in str(fault) or "row hash" in str(fault) for fault in verify(path).faults)
    read(path)


def test_a_group_of_another_program_can_be_inspected(tmp_path):
    xr.Dataset({"v": ("z", [1.0])}).to_zarr(tmp_path / "o.zarr", zarr_format=3, consolidated=False)
    xr.Dataset({"w": ("z", [1.0])}).to_zarr(tmp_path / "o.zarr", group="obs", zarr_format=3, mode="a")
    assert inspect(tmp_path / "o.zarr")["arrays"].keys() == {"v"}
