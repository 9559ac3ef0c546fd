"""The token null of concepts, which asks whether two models share more of a meaning than its words.

The pairs of the whole space were matched anew with B's rows permuted among rows of the same text
(:mod:`pipeline.rematch`). A concept's features are the same in every draw, since they are chosen by their real
contexts; its pairs are cut out of each draw's pairs as they are out of the real ones. Scores are those above shuffled
pairings of the same pairs, because draws have different numbers of pairs, and so different chance levels. The real
value is of the rows that the null can move, as everywhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from distributed import Client
from numpy.typing import NDArray

from pipeline.compare.statistics import TIE, expected_range, p_of_overlapping
from pipeline.compare.subsets import compare_subsets
from pipeline.semantics.subspaces import Mask, inside
from pipeline.settings.rematch import SHUFFLES, VOCABULARY
from pipeline.settings.semantics import SubspaceSettings
from storage import fingerprint, open_result, read_manifest
from storage.errors import InputError
from storage.identity import hash_of_ids

Floats = NDArray[np.float64]
Pairs = tuple[NDArray[np.int32], NDArray[np.int32]]
#: Columns over (subspace, metric); see :func:`token_columns`.
COLUMNS = ("value", "mean", "difference", "difference_low", "difference_high", "p", "above", "undefined")


def open_rematched(path: str | Path, pairs: Path) -> xr.Dataset:
    """Open the pairs of all draws of the null ``token``.

    Raises
    ------
    InputError
        If they are of other pairs, or were not drawn.
    """
    result, made = open_result(path, "rematch"), read_manifest(path)
    if made is None or made.inputs.get("pairs") != fingerprint(pairs):
        raise InputError(f"{path} was not made from the pairs {pairs}: run `subspace rematch` on them")
    nulls = result["null"].values.tolist() if "matched_null" in result else []
    if VOCABULARY not in nulls:
        raise InputError(f"{path} has no draws of the null token: run `subspace rematch` with --null token")
    here = result["matched_null"].values == nulls.index(VOCABULARY)
    return result[["matched_in", "matched_a", "matched_b", "overlap"]].isel(matched=np.flatnonzero(here))


def token_columns(
    members: Sequence[tuple[Mask, Mask] | None],
    rematched: xr.Dataset,
    stores: tuple[str | Path, str | Path],
    settings: SubspaceSettings,
    client: Client | None = None,
) -> dict[str, Any]:
    """Return what is left of concepts if the pairs share nothing but the text of their rows, as variables.

    Memory is that of :func:`pipeline.compare.subsets.compare_subsets`, and 12 bytes for each pair of each draw.

    Parameters
    ----------
    members
        For each subspace, which features of A and of B belong to it; None for one that is not tested.
    rematched
        From :func:`open_rematched`.
    stores
        Of A and of B.
    settings
        `sides`, `metrics`, `min_pairs` and `seed` count.
    client
        Where the tasks run.

    Returns
    -------
    dict
        Over (``subspace``, ``metric``), float64: ``token_value``, the score above shuffled pairings of the pairs of the
        rows that change places; ``token_mean`` of the draws; ``token_difference`` of both with its 95 % interval,
        ``token_difference_low`` and ``token_difference_high``, in which it lies if the real value is a draw like the
        others, moved by the difference (:func:`pipeline.compare.statistics.expected_range`); ``token_above``, in how
        many draws the score is at least as high or, where the concept has fewer pairs than `min_pairs`, is not defined,
        ``token_undefined`` of them; ``token_p``, at least (above + 1) / (draws + 1)
        (:func:`pipeline.compare.statistics.p_of_overlapping`). Over ``subspace``: ``token_pairs`` of those rows,
        ``token_pairs_mean`` of the draws. NaN where nothing was tested or too few pairs are left.
    """
    drawn, overlap = list(_by_draw(rematched)), float(rematched["overlap"].sel(null=VOCABULARY))
    cut = [None if member is None else [_cut(pairs, member, settings) for pairs in drawn] for member in members]
    different = {hash_of_ids(*pairs): pairs for of_subspace in cut for pairs in of_subspace or ()}
    scores = _scores(different, stores, settings, client)
    values = np.full((len(members), len(settings.metrics), len(COLUMNS)), np.nan)
    counts = np.full((len(members), 2), np.nan)
    for i, of_subspace in enumerate(cut):
        if of_subspace is not None:
            made = np.array([scores[hash_of_ids(*pairs)] for pairs in of_subspace])
            values[i] = [beyond_draws(of_metric[0], of_metric[1:], overlap) for of_metric in made.T]
            n_pairs = [len(pairs[0]) for pairs in of_subspace]
            counts[i] = n_pairs[0], np.mean(n_pairs[1:])
    return {
        **{f"token_{name}": (("subspace", "metric"), values[..., place]) for place, name in enumerate(COLUMNS)},
        "token_pairs": ("subspace", counts[:, 0]),
        "token_pairs_mean": ("subspace", counts[:, 1]),
    }


def beyond_draws(real: float, draws: Floats, overlap: float) -> tuple[float, ...]:
    """Return what a real value means beside its draws, by the names of :data:`COLUMNS`.

    A draw without a value counts as one that is at least as high: what cannot be said is no evidence. `overlap` is the
    share of partners that two draws have in common.

    Examples
    --------
    >>> found = dict(zip(COLUMNS, beyond_draws(0.5, np.array([0.1, 0.2, np.nan]), 0.0), strict=True))
    >>> round(found["difference"], 2), found["above"], found["undefined"], found["p"]
    (0.35, 1.0, 1.0, 0.5)
    """
    if np.isnan(real):
        return (np.nan,) * len(COLUMNS)
    undefined = np.isnan(draws)
    above = float(np.count_nonzero(undefined | (draws >= real - TIE)))
    null = expected_range(draws, overlap)
    # rounded, so that 0 is 0 where all draws score the same
    difference = (round(real - end, 12) for end in (null.mean, null.high, null.low))
    return (real, null.mean, *difference, p_of_overlapping(real, draws, overlap), above, float(undefined.sum()))


def _by_draw(rematched: xr.Dataset) -> Iterator[Pairs]:
    """Yield the pairs of the real rows, and of each draw."""
    numbers = rematched["matched_in"].values
    for draw in range(-1, rematched.attrs["n_draws"]):
        here = np.flatnonzero(numbers == draw)
        yield rematched["matched_a"].values[here], rematched["matched_b"].values[here]


def _cut(pairs: Pairs, member: tuple[Mask, Mask], settings: SubspaceSettings) -> Pairs:
    places = inside(pairs, member, settings.sides)
    return pairs[0][places], pairs[1][places]


def _scores(
    subsets: Mapping[str, Pairs],
    stores: tuple[str | Path, str | Path],
    settings: SubspaceSettings,
    client: Client | None,
) -> dict[str, Floats]:
    """Return the scores of subsets above shuffled pairings, (metric,) each."""
    if not subsets:
        return {}
    scored = compare_subsets(
        subsets,
        *stores,
        metrics=settings.metrics,
        nulls=["shuffled"],
        null_runs=SHUFFLES,
        seed=settings.seed,
        min_pairs=settings.min_pairs,
        client=client,
    )
    height = scored["difference"].sel(null="shuffled").transpose("subset", "metric").values
    return dict(zip(subsets, height, strict=True))
