"""What a matching is like: who is used how often, how many pairs are one to one, how r falls with rank.

Many-to-one matchings collapse onto few features (in one published run, 17 features took 7,434 of 32,768), and which
method chose decides what later scores say. So: look at the hubs, and at all methods side by side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from pipeline.match.edges import read_edges
from pipeline.match.filters import Candidates, TextInputs, heldout_note, mean_or_none
from pipeline.match.methods.greedy import best, best_of_b
from pipeline.match.run import check_inputs, make_pairs
from pipeline.settings.base import keywords
from pipeline.settings.match import MatchSettings, heldout_note_of
from pipeline.settings.registries import METHODS
from pipeline.text.top_tokens import TopTokens
from storage import open_result


@keywords(MatchSettings)
def compare_methods(
    cor: str | Path,
    settings: MatchSettings,
    *,
    methods: Sequence[str] | None = None,
    contexts: tuple[str | Path, str | Path] | None = None,
    stores: tuple[str | Path, str | Path] | None = None,
    corpus: str | Path | None = None,
    non_concept: tuple[str | Path, str | Path] | None = None,
) -> xr.Dataset:
    """Match by every method, or by some `methods`, and set the results side by side; the kept pairs are read once.

    The settings and inputs are those of :func:`pipeline.match`; their `method` is not looked at. Returned is, over
    ``matching`` (the name of the method), what :func:`summarise` returns; ``heldout_note`` is an attribute.

    Raises
    ------
    InputError
        As :func:`pipeline.match`.
    """
    correlation = open_result(cor, "correlate")
    chosen = [settings.by(method) for method in methods or METHODS]
    text = check_inputs(cor, correlation, chosen, TextInputs.of(contexts, stores, corpus, non_concept))
    data = Candidates(str(cor), correlation, read_edges(cor, correlation, settings.min_correlation), text)
    rows = [summarise(make_pairs(data, each)) for each in chosen]
    note = heldout_note(settings.filters)
    names = [name for name in rows[0] if name not in note]
    columns = {name: ("matching", np.array([_number(row[name]) for row in rows])) for name in names}
    before = {f"mean_best_r_{side}": value for side, value in mean_best_r(data).items()}
    attrs = {"min_correlation": settings.min_correlation, **before, **note}
    return xr.Dataset(columns, coords={"matching": [each.method for each in chosen]}, attrs=attrs)


def _number(value: float | None) -> float | int:
    return np.nan if value is None else value


def mean_best_r(data: Candidates) -> dict[str, float | None]:
    """Return the mean over the features of each side of the r with their best partner: what there is before matching.

    Features without a candidate do not count.
    """
    edges = data.edges
    return {"a": mean_or_none(edges.r[best(edges)]), "b": mean_or_none(edges.r[best_of_b(edges)])}


def summarise(pairs: xr.Dataset) -> dict[str, Any]:
    """Return the figures by which matchings are compared.

    Parameters
    ----------
    pairs
        The result of ``match``.

    Returns
    -------
    dict
        ``pairs``; ``mean_r``, ``median_r``, ``total_r``; ``mean_r_heldout``; ``matched_a`` and ``matched_b``, features
        in a pair; ``share_unique``, of the pairs, those whose features are in no other pair; ``share_mutual``, those
        whose features are each other's best; ``most_uses_a`` and ``most_uses_b``; and ``heldout_note``, where held-out
        r took part in the choice.

    Examples
    --------
    >>> numbers = {"r": [0.5, 0.25], "r_heldout": [0.5, np.nan], "rank_a": [0, 0], "rank_b": [0, 1]}
    >>> numbers |= {"feature_a": [0, 1], "feature_b": [3, 3], "uses_a": [1, 1], "uses_b": [2, 2]}
    >>> found = summarise(xr.Dataset({name: ("pair", values) for name, values in numbers.items()}))
    >>> found["mean_r"], found["matched_b"], found["share_unique"], found["share_mutual"], found["most_uses_b"]
    (0.375, 1, 0.0, 0.5, 2)
    """
    r = pairs["r"].values
    uses = {side: pairs[f"uses_{side}"].values for side in "ab"}
    ranks = {side: pairs[f"rank_{side}"].values for side in "ab"}
    return {
        "pairs": len(r),
        "mean_r": mean_or_none(r),
        "median_r": float(np.median(r)) if len(r) else None,
        "total_r": float(r.sum()),
        "mean_r_heldout": mean_or_none(pairs["r_heldout"].values),
        **{f"matched_{side}": len(np.unique(pairs[f"feature_{side}"].values)) for side in "ab"},
        "share_unique": _share((uses["a"] == 1) & (uses["b"] == 1)),
        "share_mutual": _share((ranks["a"] == 0) & (ranks["b"] == 0)),
        **{f"most_uses_{side}": int(uses[side].max(initial=0)) for side in "ab"},
        **heldout_note_of(pairs.attrs),
    }


def _share(chosen: NDArray[np.bool_]) -> float | None:
    return float(chosen.mean()) if len(chosen) else None


def uses_histogram(pairs: xr.Dataset, side: str) -> dict[int, int]:
    """Return how many features of a side are in how many pairs; those in none are not counted.

    Examples
    --------
    >>> uses_histogram(xr.Dataset({"feature_b": ("pair", [3, 3, 3, 5])}), "b")
    {1: 1, 3: 1}
    """
    uses = np.unique(pairs[f"feature_{side}"].values, return_counts=True)[1]
    return {int(n): int(count) for n, count in zip(*np.unique(uses, return_counts=True), strict=True)}


def hubs(pairs: xr.Dataset, side: str, n: int = 10, top: TopTokens | None = None) -> list[dict[str, Any]]:
    """Return the features of a side that are in the most pairs, most used first, ties by id.

    Parameters
    ----------
    pairs
        The result of ``match``.
    side
        ``a`` or ``b``.
    n
        How many.
    top
        Their top tokens, to say what they fire on.

    Returns
    -------
    list of dict
        ``feature``, ``uses``, ``mean_r`` of its pairs, and ``tokens``.
    """
    ids, inverse, uses = np.unique(pairs[f"feature_{side}"].values, return_inverse=True, return_counts=True)
    totals = np.bincount(inverse, pairs["r"].values, minlength=len(ids))
    order = np.argsort(-uses, kind="stable")[:n]
    found: list[dict[str, Any]] = [
        {"feature": int(ids[i]), "uses": int(uses[i]), "mean_r": float(totals[i] / uses[i])} for i in order
    ]
    if top is not None:
        for each in found:
            each["tokens"] = top.texts(each["feature"])
    return found


def r_by_rank(pairs: xr.Dataset, side: str) -> list[dict[str, float]]:
    """Return mean r of the pairs by the place of the partner in the feature's own list, in bins 0, 1, 2–3, 4–7, ….

    Parameters
    ----------
    pairs
        The result of ``match``.
    side
        Whose place: ``b``, of the B feature in the A feature's list; ``a`` the other way round.

    Examples
    --------
    >>> pairs = xr.Dataset({"rank_b": ("pair", [0, 0, 3]), "r": ("pair", [0.75, 0.25, 0.125])})
    >>> r_by_rank(pairs, "b")
    [{'from': 0, 'to': 0, 'pairs': 2, 'mean_r': 0.5}, {'from': 2, 'to': 3, 'pairs': 1, 'mean_r': 0.125}]
    """
    rank, r = pairs[f"rank_{side}"].values, pairs["r"].values
    group = np.frexp(rank)[1]  # 0 → 0, 1 → 1, 2 and 3 → 2, 4 to 7 → 3
    return [
        {
            "from": int(2 ** (g - 1)) if g else 0,
            "to": int(2**g - 1),
            "pairs": int((group == g).sum()),
            "mean_r": float(r[group == g].mean()),
        }
        for g in np.unique(group).tolist()
    ]


def diagnose(pairs: xr.Dataset, tops: Mapping[str, TopTokens] | None = None, n_hubs: int = 10) -> dict[str, Any]:
    """Return all that this module knows of one matching, as JSON values; `tops` are the top tokens by side."""
    by_side = {
        f"{name}_{side}": value
        for side in "ab"
        for name, value in (
            ("uses", uses_histogram(pairs, side)),
            ("hubs", hubs(pairs, side, n_hubs, (tops or {}).get(side))),
            ("r_by_rank", r_by_rank(pairs, side)),
        )
    }
    counts, bounds = np.histogram(pairs["r"].values, bins=20, range=(0, 1))
    histogram = {"r_histogram": {f"{low:.2f}": int(n) for low, n in zip(bounds[:-1], counts, strict=True)}}
    return {**summarise(pairs), **histogram, **by_side}
