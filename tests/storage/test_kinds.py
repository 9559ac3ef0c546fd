"""Two quantities under one name are not compared."""

from __future__ import annotations

import numpy as np
import pytest

import storage
from pipeline.correlate.run import correlate
from pipeline.match.run import match
from storage.errors import InputError
from storage.kinds import check_same_kind


@pytest.fixture
def stores(tmp_path):
    """Return a function (kind) → path of a store of that kind; always the same rows."""

    def make(kind):
        random = np.random.default_rng(0)
        values = random.exponential(size=(60, 5)) * (random.random((60, 5)) < 0.4)
        path = tmp_path / f"{kind}.zarr"
        storage.write_activations(path, values, attrs={"kind": kind} if kind else {}, overwrite=True)
        return path

    return make


def test_before_and_behind_a_top_k_are_not_correlated(stores, client, tmp_path):
    for a, b in (("post", "pre_topk"), ("pre_topk", "post")):
        with pytest.raises(InputError, match=f"kind '{a}', B's of kind '{b}'.*Harvest both with the same 'kind'"):
            correlate(stores(a), stores(b), out=tmp_path / "c.zarr", client=client)
    assert not (tmp_path / "c.zarr").exists()
    correlate(stores("pre_topk"), stores("pre_topk"), out=tmp_path / "c.zarr", client=client)


def test_nor_matched(stores, client, tmp_path):
    """A correlation of an earlier version may hold such a pair."""
    correlate(stores("post"), stores("post"), out=tmp_path / "c.zarr", client=client)
    storage.variables.update_attrs(tmp_path / "c.zarr", {"kind_b": "pre_topk"})
    with pytest.raises(InputError, match="two different quantities"):
        match(tmp_path / "c.zarr", method="greedy", min_correlation=0.2)


def test_raw_units_stand_against_either_and_that_is_said(caplog):
    check_same_kind("raw", "post")
    assert "kind raw are compared with post" in caplog.text
    caplog.clear()
    for same in (("post", "post"), ("pre_topk", "pre_topk"), (None, "post"), (None, None)):
        check_same_kind(*same)
    assert not caplog.text
