"""The stage: score the matched pairs' decoder rows, beside what the same metrics give by chance."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from pipeline.compare.engine import Bank, score_pairs
from pipeline.compare.rows import DecoderRows, matched_features, open_pairs
from pipeline.settings.base import keywords
from pipeline.settings.compare import CompareSettings
from pipeline.settings.registries import NULLS
from pipeline.text.top_tokens import NONE, dominant_words, top_words
from pipeline.work.workers import ClientSource
from storage import Manifest, fingerprint, make_result, new_manifest, open_activations
from storage.errors import InputError
from storage.identity import hash_of_ids
from storage.lazy import source_of
from storage.rows import check_order

logger = logging.getLogger(__name__)

STAGE = "compare"
Store = xr.Dataset | str | Path


@keywords(CompareSettings)
def compare(
    pairs: Store,
    a: Store,
    b: Store,
    settings: CompareSettings,
    *,
    pool: Store | None = None,
    control: tuple[Store | None, Store | None] | None = None,
    contexts: tuple[str | Path, str | Path] | None = None,
    corpus: str | Path | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
    client: ClientSource = None,
) -> xr.Dataset:
    """Score how similar the decoder rows of matched features are, each score with its nulls.

    Each null is another answer to "by chance?". Shuffled pairings keep the rows: what they score is due to the numbers
    of rows and dimensions, and to the shape of either side, but not to who was matched with whom. Decompositions and
    ranks are computed once and reused by every shuffled run; the other nulls prepare other rows in every run, and cost
    accordingly. Results do not depend on the number of workers.

    Parameters
    ----------
    pairs
        Matched pairs, or the path of a result of :func:`pipeline.match`.
    a, b
        Activation stores with decoder rows, or their paths.
    settings
        Each setting of :class:`~pipeline.settings.compare.CompareSettings` is a keyword; or all of them as one. Metrics
        and nulls may be others that were registered (``docs/extending.md``).
    pool
        A matching of which `pairs` is a part (that of the whole space), or its path; for ``random_pairs``.
    control
        Stores of A and of B that were harvested with a ``random:…`` dictionary, or their paths; None for a side that
        keeps its rows. For ``random_dictionary``.
    contexts, corpus
        What the features of both sides fire on, and the text: for nulls of words and ``n_effective``. The word of a
        pair is that at most of the top contexts of its two features.
    out
        Path of the result; an up-to-date one is left unchanged. Without it, the result is only in memory.
    overwrite
        Whether a result at `out` that came from other inputs may be replaced.
    client
        Where the tasks run; threads of this process by default.

    Returns
    -------
    xarray.Dataset
        ``score(metric)``; ``null_score(null, metric, run)`` and, over (null, metric), ``null_mean``, ``null_std``,
        ``null_q05``, ``null_q95``, ``difference`` (score - null_mean), ``z`` and ``p``; ``low(metric)`` and
        ``high(metric)``, the 95 % interval, NaN without `intervals`; all float64. ``p_runs(null, metric)`` int64, how
        many runs p rests on; ``n_pairs`` int64; ``n_effective`` float64, how many pairs there would be if all of one
        word were one (NaN without contexts); ``note(metric)``, text: why a score or null is undefined, or means
        little. With fewer than 3 pairs, or where a metric is undefined on these rows, scores are NaN. Where a null has
        too few rows to draw from, it is NaN, and so are runs that were not needed (`stop_after`).

    Raises
    ------
    InputError
        If a setting is wrong, a null lacks what it is drawn from, a store has no decoder rows or not the
        features of the pairs, or a metric fails in runs of a null.
    MissingInputError
        If a path leads nowhere.
    BudgetError
        If the pairs are too many for the memory; before anything is computed.

    Examples
    --------
    >>> import tempfile, storage
    >>> folder = Path(tempfile.mkdtemp())
    >>> decoder = np.random.default_rng(0).normal(size=(30, 3))
    >>> for name, rows in {"a": decoder, "b": decoder @ [[0, 1, 0], [1, 0, 0], [0, 0, 2]]}.items():
    ...     storage.write_activations(folder / f"{name}.zarr", np.eye(5, 30), decoder=rows)
    >>> pairs = xr.Dataset({f"feature_{side}": ("pair", np.arange(30)) for side in "ab"})
    >>> scores = compare(pairs, folder / "a.zarr", folder / "b.zarr", metrics=["svcca", "rsa"], null_runs=99)
    >>> scores.score.values.round(2).tolist(), scores.p.sel(null="shuffled").values.tolist()
    ([1.0, 0.89], [0.01, 0.01])
    """
    matched = open_pairs(pairs)
    sides = _sides(matched, a, b)
    check_order(matched.attrs.get("stores"), _inputs(sides), "only decoder rows")
    banks = _banks(settings.nulls, sides, pool, control)
    words = _words(settings.nulls, sides, contexts, corpus)
    manifest = _manifest(sides, banks, settings, words)

    def make() -> xr.Dataset:
        features = sides[0].features.astype(np.int64)
        ids = features if len(np.unique(features)) == len(features) else None  # one that is paired twice is no label
        scores = score_pairs(sides, banks, settings, client, words=words, ids=ids)
        return scores.assign_attrs(manifest.to_attrs())

    return make_result(out, manifest, make, overwrite=overwrite)


def compare_manifest(
    pairs: Path,
    stores: tuple[Path, Path],
    settings: CompareSettings,
    contexts: tuple[str | Path, str | Path],
    corpus: str | Path,
) -> Manifest:
    """Return what scores depend on: which features are paired, of which word, both stores, and the settings."""
    sides = _sides(open_pairs(pairs), *stores)
    words = _words(settings.nulls, sides, contexts, corpus)
    return _manifest(sides, _banks(settings.nulls, sides, None, None), settings, words)


def _manifest(
    sides: tuple[DecoderRows, DecoderRows],
    banks: Mapping[str, Bank],
    settings: CompareSettings,
    words: NDArray[np.int64] | None,
) -> Manifest:
    by_word = {} if words is None else {"words": hashlib.sha256(words.astype("<i8").tobytes()).hexdigest()}
    return new_manifest(STAGE, _inputs(sides) | _bank_inputs(banks) | by_word, settings.record())


def _words(
    nulls: list[str],
    sides: tuple[DecoderRows, DecoderRows],
    contexts: tuple[str | Path, str | Path] | None,
    corpus: str | Path | None,
) -> NDArray[np.int64] | None:
    """Return a number for the word of each pair, (pair,), a negative one of its own where it has none."""
    if contexts is None or corpus is None:
        if of_words := [name for name in nulls if NULLS[name].source == "words"]:
            raise InputError(
                f"the null {of_words[0]} moves pairs by their words: give contexts=(A, B) and corpus=… "
                "(--contexts A B --corpus CORPUS.zarr), or leave this null out"
            )
        return None
    top = top_words(contexts, sides[0].path, corpus)
    word = dominant_words(top, (sides[0].features, sides[1].features)).word
    return np.where(word == NONE, NONE - np.arange(len(word)), word)


def _inputs(rows: tuple[DecoderRows, DecoderRows]) -> dict[str, str]:
    """Return fingerprints of what the scores depend on: both stores, and which features are paired, in which order."""
    stores = {name: fingerprint(side.path) for name, side in zip("ab", rows, strict=True)}
    return {"pairs": hash_of_ids(rows[0].features, rows[1].features), **stores}


def _sides(pairs: xr.Dataset, a: Store, b: Store) -> tuple[DecoderRows, DecoderRows]:
    return _decoder_rows(pairs, a, "a"), _decoder_rows(pairs, b, "b")


def _banks(
    nulls: list[str],
    sides: tuple[DecoderRows, DecoderRows],
    pool: Store | None,
    control: tuple[Store | None, Store | None] | None,
) -> dict[str, Bank]:
    """Return what the rows of each null are drawn from, by its name; nothing is read but which features are live."""
    banks = {}
    for null in map(NULLS.__getitem__, nulls):
        if null.source == "features":
            banks[null.name] = Bank(*(_live_rows(side.path) for side in sides))
        elif null.source == "pool":
            banks[null.name] = _pool(null.name, sides, pool)
        elif null.source == "control":
            banks[null.name] = _control(null.name, sides, control)
    return banks


def _pool(null: str, sides: tuple[DecoderRows, DecoderRows], pool: Store | None) -> Bank:
    if pool is None:
        raise InputError(
            f"the null {null} draws pairs of a larger matching: give pool=…, the matching of the whole space "
            "(--pool PAIRS.zarr), or leave this null out"
        )
    larger = open_pairs(pool)
    return Bank(*(_decoder_rows(larger, own.path, side) for own, side in zip(sides, "ab", strict=True)))


def _control(
    null: str, sides: tuple[DecoderRows, DecoderRows], control: tuple[Store | None, Store | None] | None
) -> Bank:
    if control is None or control == (None, None):
        raise InputError(
            f"the null {null} draws rows of a control: give control=(A, B), stores harvested with the dictionary "
            "'random:FEATURES:K' (--control-a, --control-b), or leave this null out"
        )
    return Bank(*(_control_rows(own, store, side) for own, store, side in zip(sides, control, "AB", strict=True)))


def _live_rows(path: str) -> DecoderRows:
    """Return the decoder rows of all features that are ever active and have a direction."""
    with open_activations(path) as store:
        decoder = store["decoder"]
        live = store["n_active"].values > 0 if "n_active" in store else np.ones(decoder.shape[0], bool)
        live &= np.any(decoder.values != 0, axis=1)
        return DecoderRows(path, np.flatnonzero(live).astype(np.int32), decoder.shape[1])


def _control_rows(own: DecoderRows, store: Store | None, side: str) -> DecoderRows | None:
    if store is None:
        return None
    path = DecoderRows.of(source_of(store)).path
    rows = _live_rows(path)
    if rows.d_model != own.d_model:
        raise InputError(
            f"the control {path} has rows of {rows.d_model} dimensions, side {side} of {own.d_model}: harvest the "
            "control at the same site of the same model"
        )
    return rows


def _bank_inputs(banks: Mapping[str, Bank]) -> dict[str, str]:
    """Return fingerprints of what the nulls are drawn from."""
    inputs = {}
    for null, bank in banks.items():
        for side, rows in (("a", bank.a), ("b", bank.b)):
            if isinstance(rows, DecoderRows):
                inputs[f"{null}_{side}"] = f"{fingerprint(rows.path)} {hash_of_ids(rows.features)}"
    return inputs


def _decoder_rows(pairs: xr.Dataset, store: Store, side: str) -> DecoderRows:
    """Return where to read one side's rows, after checking that they are there; nothing is read yet."""
    path = source_of(store)
    n_features, d_model = DecoderRows.of(path).shape
    return DecoderRows(str(path), matched_features(pairs, side, path, n_features), d_model)
