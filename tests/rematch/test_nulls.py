"""Units and draws: nothing leaves its group or half, nothing stays where it is, what is alone is left out."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from pipeline.rematch.nulls import LEFT_OUT, Rows, Units, check_units
from pipeline.settings.registries import ROW_NULLS
from storage import write_corpus
from storage.errors import InputError


class Labelled(Rows):
    """Rows whose texts are given by their numbers."""

    def same_text(self):
        return np.asarray(self.store["text"].values, np.int64)


def rows_of(half, document, text=None):
    columns = {"document": document, "text": document if text is None else text}
    store = xr.Dataset({name: ("token", np.asarray(values)) for name, values in columns.items()})
    store.encoding["source"] = "a.zarr"
    return Labelled(np.asarray(half, np.int8), store)


row = st.tuples(st.integers(-1, 1), st.integers(0, 5), st.integers(0, 4))


@given(st.lists(row, min_size=1, max_size=60), st.sampled_from(["token", "document"]), st.integers(0, 3))
def test_a_draw_keeps_rows_in_their_group_and_half_and_moves_all_of_them(listed, name, draw):
    half, document, text = map(np.array, zip(*listed, strict=True))
    null, rows = ROW_NULLS[name], rows_of(half, document, text)
    units = null.function(rows)
    order = null.order(units, 0, draw)
    used = np.flatnonzero(units.used)
    assert (half[used] >= 0).all()
    np.testing.assert_array_equal(np.sort(order[used]), used)
    assert (order[~units.used] == LEFT_OUT).all()
    np.testing.assert_array_equal(half[order[used]], half[used])
    assert (order[used] != used).all()
    group = units.group[units.unit[used]]
    np.testing.assert_array_equal(units.group[units.unit[order[used]]], group)
    if name == "token":
        np.testing.assert_array_equal(text[order[used]], text[used])
        alone = {(h, t) for h, t in zip(half, text, strict=True) if h >= 0}
        alone = {one for one in alone if np.count_nonzero((half == one[0]) & (text == one[1])) == 1}
        expected = [h >= 0 and (h, t) not in alone for h, t in zip(half, text, strict=True)]
        np.testing.assert_array_equal(units.used, expected)


@given(st.lists(row, min_size=1, max_size=60))
def test_documents_move_as_wholes_and_row_for_row(listed):
    half, document, _ = map(np.array, zip(*sorted(listed), strict=True))
    units = ROW_NULLS["document"].function(rows_of(half, document))
    order = ROW_NULLS["document"].order(units, 0, 0)
    place = np.zeros(len(half), int)
    for key in set(zip(half.tolist(), document.tolist(), strict=True)):
        mine = (half == key[0]) & (document == key[1])
        place[mine] = np.arange(np.count_nonzero(mine))
        assert len(set(document[order[mine & units.used]].tolist())) <= 1
    np.testing.assert_array_equal(place[order[units.used]], place[units.used])


@pytest.mark.parametrize(
    ("unit", "group", "half", "message"),
    [
        ([0, 0, 1], [0, 0], [0, 0, 0], "units of 1 and 2 rows into one group"),
        ([0, 1], [0, 0], [0, 1], "units of halves 0 and 1 into one group"),
        ([0, 0, 1, 1], [0, 0], [0, 1, 0, 1], "units of halves 0 and 1 into one group"),
        ([0, 1, 2], [0, 0, 1], [0, 0, 0], "groups of one unit"),
    ],
)
def test_units_that_cannot_change_places_are_refused(unit, group, half, message):
    with pytest.raises(InputError, match=message):
        check_units("mine", Units(np.array(unit), np.array(group)), np.array(half, np.int8))


@given(st.lists(row, min_size=1, max_size=60), st.sampled_from(["token", "document"]))
def test_units_of_the_package_can(listed, name):
    half, document, text = map(np.array, zip(*listed, strict=True))
    check_units(name, ROW_NULLS[name].function(rows_of(half, document, text)), half.astype(np.int8))


def test_draws_differ_and_are_the_same_again():
    null = ROW_NULLS["token"]
    units = Units(np.arange(50), np.repeat(np.arange(5), 10))
    orders = [null.order(units, seed, draw).tolist() for seed in range(2) for draw in range(3)]
    assert len(set(map(tuple, orders))) == 6
    assert null.order(units, 1, 2).tolist() == orders[-1]
    assert ROW_NULLS["document"].order(units, 1, 2).tolist() != orders[-1]


def test_every_partner_of_a_group_is_as_likely():
    null, units = ROW_NULLS["token"], Units(np.arange(4), np.zeros(4, np.int64))
    drawn = np.array([null.order(units, 0, draw) for draw in range(900)])
    for unit in range(4):
        counts = np.bincount(drawn[:, unit], minlength=4)
        assert counts[unit] == 0
        assert counts.sum() == 900
        assert (np.abs(np.delete(counts, unit) - 300) < 60).all()


def test_long_documents_change_places_with_long_ones():
    lengths = np.repeat([3, 30], 20)
    document = np.repeat(np.arange(40), lengths)
    units = ROW_NULLS["document"].function(rows_of(np.zeros(len(document)), document))
    assert units.used.all()
    order = ROW_NULLS["document"].order(units, 0, 0)
    np.testing.assert_array_equal(lengths[document[order]], lengths[document])


def test_documents_of_one_group_change_places_together():
    """As in `compare-activations`: an article of two sections goes beside articles of two sections."""
    lengths = np.tile([4, 6, 5, 6], 4)
    document = np.repeat(np.arange(16), lengths)
    rows = rows_of(np.zeros(len(document)), document)
    rows.store["group"] = "token", document // 2
    units = ROW_NULLS["document"].function(rows)
    order = ROW_NULLS["document"].order(units, 0, 0)
    used = np.flatnonzero(units.used)
    moved_to = {tuple(pair) for pair in zip(document[used] // 2, document[order[used]] // 2, strict=True)}
    assert len(moved_to) == 8, "each article has one other in its place"
    np.testing.assert_array_equal(document[order[used]] % 2, document[used] % 2)
    assert len(used) == 8 * (4 + 6)


def text_rows(tmp_path, previous=0):
    corpus = write_corpus(tmp_path / "corpus.zarr", ["a b a b", "b a"])
    columns = {
        "document": [0, 0, 0, 0, 1, 1], "char_start": [0, 2, 4, 6, 0, 2], "char_end": [1, 3, 5, 7, 1, 3]
    }  # fmt: skip
    store = xr.Dataset({name: ("token", values) for name, values in columns.items()})
    store.encoding["source"] = "a.zarr"
    return Rows(np.zeros(6, np.int8), store, corpus, previous)


@pytest.mark.parametrize(
    ("previous", "same"), [(0, [[0, 2, 5], [1, 3, 4]]), (1, [[1, 3], [2, 5]]), (2, []), (8, [])]
)  # fmt: skip
def test_same_text_and_the_same_segments_before_it(tmp_path, previous, same):
    units = ROW_NULLS["token"].function(text_rows(tmp_path, previous))
    groups = [np.flatnonzero(units.used)[units.group == group].tolist() for group in np.unique(units.group)]
    assert sorted(groups) == same


def test_without_text_or_documents_the_remedy_is_named():
    store = xr.Dataset({"x": ("token", np.zeros(3))})
    store.encoding["source"] = "a.zarr"
    rows = Rows(np.zeros(3, np.int8), store)
    with pytest.raises(InputError, match=r"--corpus CORPUS\.zarr"):
        ROW_NULLS["token"].function(rows)
    with pytest.raises(InputError, match=r"a\.zarr has no token coordinates"):
        ROW_NULLS["document"].function(rows)
