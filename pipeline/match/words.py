"""The tokens on which features fire most, as numbers that mean the same on both sides.

Both models read the same rows of text, so the piece of text of a row serves for both, whatever their tokenizers. It is
compared without surrounding white space and in small letters.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from storage import Corpus, fingerprint, open_activations, open_corpus, open_result, read_manifest
from storage.errors import InputError, RowMismatchError

NONE = -1


@dataclass(frozen=True)
class TopTokens:
    """The tokens of the top contexts of one side's features.

    Attributes
    ----------
    tokens
        (feature, rank) int64, numbers into `vocabulary`; −1 where the feature has fewer contexts.
    positions
        (feature, rank) int64, position of the token in its window; −1 where there is none or it is not known.
    vocabulary
        The texts, shared by both sides.
    """

    tokens: NDArray[np.int64]
    positions: NDArray[np.int64]
    vocabulary: list[str]

    @property
    def n(self) -> NDArray[np.int64]:
        """How many contexts each feature has, (feature,)."""
        return np.count_nonzero(self.tokens != NONE, axis=1)

    def share_in(self, wanted: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Return each feature's share of top tokens that are `wanted` (vocabulary,); NaN without contexts.

        Examples
        --------
        >>> top = TopTokens(np.array([[0, 1], [1, -1], [-1, -1]]), np.full((3, 2), -1), ["the", "cat"])
        >>> top.share_in(np.array([True, False]))
        array([0.5, 0. , nan])
        """
        hits = (self.tokens != NONE) & wanted[self.tokens]
        with np.errstate(invalid="ignore"):
            return np.where(self.n > 0, hits.sum(axis=1) / self.n, np.nan)

    def words(self, feature: int) -> list[str]:
        """Return the top tokens of a feature, best first."""
        return [self.vocabulary[token] for token in self.tokens[feature] if token != NONE]


def share_of_commonest(values: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return, of each row of (feature, rank), the share of its commonest value; −1 does not count, NaN if all are.

    Examples
    --------
    >>> share_of_commonest(np.array([[5, 5, 7, -1], [-1, -1, -1, -1]])).round(2)
    array([0.67,  nan])
    """
    same = (values[:, :, None] == values[:, None, :]) & (values != NONE)[:, :, None]
    n = np.count_nonzero(values != NONE, axis=1)
    with np.errstate(invalid="ignore"):
        return np.where(n > 0, same.sum(axis=1).max(axis=1, initial=0) / n, np.nan)


def read_top_tokens(
    contexts: tuple[str | Path, str | Path], store: str | Path, corpus: str | Path
) -> tuple[TopTokens, TopTokens]:
    """Read the top tokens of both sides.

    Parameters
    ----------
    contexts
        Results of ``contexts`` for A and B.
    store
        Either side's activation store; only its token coordinates are read.
    corpus
        The text.

    Returns
    -------
    tuple of TopTokens
        Memory: the contexts, and the texts of their tokens.

    Raises
    ------
    RowMismatchError
        If contexts and store are not of the same rows.
    InputError
        If the store has no token coordinates.
    """
    results = [open_result(path, "contexts") for path in contexts]
    coordinates = open_activations(store)
    _check_rows(contexts, results, store, coordinates)
    rows = [np.asarray(result["row"].values) for result in results]
    used = np.unique(np.concatenate([each.ravel() for each in rows]))
    used = used[used >= 0]
    vocabulary: dict[str, int] = {}
    numbers = np.array(
        [vocabulary.setdefault(text, len(vocabulary)) for text in _texts(open_corpus(corpus), coordinates, used)],
        np.int64,
    )
    positions = _positions(coordinates, used)
    found = [TopTokens(_pick(numbers, used, each), _pick(positions, used, each), list(vocabulary)) for each in rows]
    return found[0], found[1]


def check_contexts(contexts: tuple[str | Path, str | Path], stores: dict[str, str], what: str = "contexts") -> None:
    """Raise unless the contexts are those of the correlated stores, whose fingerprints are given by side."""
    for side, path in zip("ab", contexts, strict=True):
        manifest = read_manifest(path)
        if manifest is None or manifest.inputs.get("activations") != stores.get(side):
            raise InputError(
                f"The {what} at {path} are not of the store of side {side.upper()} that was correlated; "
                "make them from that store"
            )


def check_stores(stores: tuple[str | Path, str | Path], expected: dict[str, str]) -> None:
    """Raise unless the stores are the correlated ones, whose fingerprints are given by side."""
    for side, path in zip("ab", stores, strict=True):
        if fingerprint(path) != expected.get(side):
            raise InputError(f"{path} is not the store of side {side.upper()} that was correlated; give that one")


def _check_rows(
    contexts: tuple[str | Path, str | Path], results: list[xr.Dataset], store: str | Path, coordinates: xr.Dataset
) -> None:
    if "document" not in coordinates.variables:
        raise InputError(f"{store} has no token coordinates, so the tokens of contexts are not known; harvest it again")
    for path, result in zip(contexts, results, strict=True):
        if result.attrs.get("row_hash") != coordinates.attrs["row_hash"]:
            raise RowMismatchError(f"The contexts at {path} are of other rows than {store}; make them from that store")


def _texts(corpus: Corpus, coordinates: xr.Dataset, rows: NDArray[np.int64]) -> Iterator[str]:
    """Yield the piece of text of each row, made comparable; rows ascend, and with them documents."""
    names = ("document", "char_start", "char_end")
    document, start, end = (np.asarray(coordinates[name].values)[rows].tolist() for name in names)
    for text, left, right in zip(corpus.iter_texts(document), start, end, strict=True):
        yield text[left:right].strip().casefold()


def _positions(coordinates: xr.Dataset, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    if "position" not in coordinates.variables:
        return np.full(len(rows), NONE)
    return np.asarray(coordinates["position"].values, np.int64)[rows]


def _pick(values: NDArray[np.int64], rows: NDArray[np.int64], wanted: NDArray[np.int64]) -> NDArray[np.int64]:
    if not len(rows):
        return np.full(wanted.shape, NONE)
    at = np.minimum(np.searchsorted(rows, wanted), len(rows) - 1)
    return np.where(wanted >= 0, values[at], NONE)
