"""Dictionaries that the library dictionary_learning wrote encode as it does; see files/make_dictionary_learning.py."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.harvest.dictionaries import load_dictionary
from storage.errors import InputError

FILES = Path(__file__).parent / "files" / "dictionary_learning"
KINDS = sorted(folder.name for folder in FILES.iterdir())
D = 12


def test_all_classes_of_the_library_are_there():
    assert KINDS == [
        "batch_top_k", "gated", "jump_relu", "matryoshka", "standard", "standard_april", "standard_new", "top_k",
    ]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_encodes_and_decodes_as_the_library_does(kind):
    loaded = load_dictionary(str(FILES / kind), D)
    with np.load(FILES / kind / "encoded.npz") as stored:
        encoded = loaded.encode(stored["rows"]).toarray()
        np.testing.assert_allclose(encoded, stored["encoded"], rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(loaded.reconstruct(stored["rows"]), stored["decoded"], rtol=1e-5, atol=1e-5)
        assert 0.05 < (encoded > 0).mean() < 0.9
    assert (loaded.site, loaded.context, loaded.prepend_bos) == ("blocks.3.hook_resid_post", 128, None)
    assert loaded.config["format"] == "dictionary_learning"


@pytest.fixture
def changed(tmp_path):
    """Return a function (kind, trainer, buffer, tensors) → a folder with other settings or further tensors."""

    def make(kind, trainer=None, buffer=None, tensors=None):
        folder = shutil.copytree(FILES / kind, tmp_path / "changed", dirs_exist_ok=True)
        config = json.loads((folder / "config.json").read_text())
        config["trainer"] |= trainer or {}
        config["buffer"] |= buffer or {}
        (folder / "config.json").write_text(json.dumps(config))
        torch.save(torch.load(folder / "ae.pt", weights_only=True) | (tensors or {}), folder / "ae.pt")
        return str(folder)

    return make


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trainer": {"dict_class": "CrossCoder"}}, "dict_class 'CrossCoder' is not read; AutoEncoder,"),
        ({"trainer": {"k": 9}}, r"k is 9 in config\.json and 4 in ae\.pt"),
        ({"buffer": {"io": "in_and_out"}}, r"a transcoder \(io: in_and_out\)"),
        ({"tensors": {"W_skip": torch.zeros(D, D)}}, "has W_skip, which may change what the dictionary computes"),
        ({"tensors": {"b_dec": torch.zeros(3)}}, r"b_dec has shape \(3,\), expected \(12,\)"),
    ],
)
def test_what_is_another_formula_is_refused(changed, change, message):
    with pytest.raises(InputError, match=message):
        load_dictionary(changed("top_k", **change), D)


def test_a_batch_top_k_needs_its_threshold(changed):
    folder = changed("batch_top_k")
    tensors = torch.load(f"{folder}/ae.pt", weights_only=True)
    del tensors["threshold"]
    torch.save(tensors, f"{folder}/ae.pt")
    with pytest.raises(InputError, match="has no number 'threshold'"):
        load_dictionary(folder, D)


def test_nothing_but_tensors_is_unpickled(changed):
    folder = changed("top_k")
    torch.save({"W_enc": Path("/")}, f"{folder}/ae.pt")
    with pytest.raises(InputError, match="cannot be read as tensors alone"):
        load_dictionary(folder, D)
