"""A corpus of known sentences, its words as rows, and stores whose features fire where a test says."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp

import storage


@dataclass(frozen=True)
class Text:
    """A corpus on disk and the coordinates of its rows."""

    folder: Path
    tokens: dict[str, np.ndarray]
    pieces: list[str]

    @property
    def corpus(self) -> Path:
        return self.folder / "corpus.zarr"

    def store(self, active: np.ndarray, name: str = "a", **options: Any) -> Path:
        """Write a store of activations over the rows."""
        path = self.folder / f"{name}.zarr"
        data = active if options.get("layout") == "dense" else sp.csr_array(active)
        attrs = {"corpus_hash": storage.open_corpus(self.corpus).hash, "model": "toy", "site": "layers.0"}
        storage.write_activations(path, data, tokens=self.tokens, attrs=attrs, **options)
        return path

    def rows_of(self, *pieces: str) -> np.ndarray:
        """Return the rows whose text, blanks cut, is one of `pieces`."""
        return np.flatnonzero([piece.strip() in pieces for piece in self.pieces])


def make_text(folder: Path, documents: Sequence[str], pattern: str = r"\s?\w+|\s?[^\w\s]|\s") -> Text:
    """Write a corpus whose rows are what `pattern` matches, one after the other."""
    storage.write_corpus(folder / "corpus.zarr", documents)
    found = [
        (i, *match.span(), match.group()) for i, text in enumerate(documents) for match in re.finditer(pattern, text)
    ]
    columns = [np.array(column) for column in list(zip(*found, strict=True))[:3]]
    tokens = dict(zip(("document", "char_start", "char_end"), columns, strict=True))
    tokens["position"] = np.concatenate([np.arange(n) for n in np.bincount(tokens["document"])])
    return Text(folder, tokens, [one[3] for one in found])


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """Take back what a command of a test did to logging: its handlers write to streams that are closed by now."""
    root = logging.getLogger()
    before = root.handlers[:], root.level
    yield
    root.handlers[:] = before[0]
    root.setLevel(before[1])


@pytest.fixture
def text_of(tmp_path: Path) -> Callable[..., Text]:
    def make(*documents: str, **options: Any) -> Text:
        return make_text(tmp_path, documents, **options)

    return make
