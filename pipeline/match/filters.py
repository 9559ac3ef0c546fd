"""Filters that drop candidates before a method chooses, or pairs after it.

The order flips results: dropping the features that fire on full stops *before* matching frees their partners for
others; dropping them *after* leaves those partners without. So every filter acts when and in the order that it is told,
and reports what it dropped.

A filter is a function from a setting, the candidates and the positions of those still in the race to a boolean array
over these positions. To add one, write the function, name it in :data:`FILTERS`, give it a class in
``pipeline/config.py`` and a fate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from pipeline.config import NEED_CONTEXTS, PairFilter
from pipeline.match.edges import Edges, lookup
from pipeline.match.fates import Fate
from pipeline.match.greedy import best, best_of_b
from pipeline.text.top_tokens import NONE, TopTokens, top_tokens
from storage import open_result
from storage.errors import FormatError, InputError
from storage.yaml_files import read_yaml

NON_CONCEPT_FILE = Path(__file__).with_name("non_concept.yaml")
#: Edges whose top tokens are compared at a time.
BLOCK_EDGES = 65_536

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class TextInputs:
    """Where the filters that look at tokens find them.

    Attributes
    ----------
    contexts
        Results of ``contexts`` for A and B.
    store
        Either side's activation store, for the coordinates of its rows.
    corpus
        The text.
    non_concept
        Results of ``non_concept`` for A and B, for the filter of that name with ``by: data``.
    """

    contexts: tuple[str, str]
    store: str
    corpus: str
    non_concept: tuple[str, str] | None = None


@dataclass(frozen=True)
class Candidates:
    """The candidate pairs, and what filters may ask about them; each is read once, when it is first asked for."""

    path: str
    correlation: xr.Dataset
    edges: Edges
    text: TextInputs | None = None

    @cached_property
    def r_heldout(self) -> NDArray[np.float64]:
        """R on the rows that did not choose, (edge,); NaN where it is not defined or there are no such rows."""
        if "r_heldout" not in self.correlation:
            return np.full(len(self.edges), np.nan)
        return lookup(self.path, "r_heldout", self.edges.ids_a, self.edges.ids_b, self.edges.n_a)

    @cached_property
    def tops(self) -> Sequence[TopTokens]:
        """The top tokens of both sides."""
        if self.text is None:
            raise InputError("The top tokens of features were asked for, but match was given no contexts")
        return top_tokens(self.text.contexts, self.text.store, self.text.corpus)

    @cached_property
    def concept_features(self) -> tuple[Mask, Mask]:
        """Which features of either side were not recognised as standing for no concept."""
        if self.text is None or self.text.non_concept is None:
            raise InputError("Non-concept features were asked for, but match was given no such results")
        a, b = (~open_result(path, "non_concept")["non_concept"].values for path in self.text.non_concept)
        return a, b

    def of_features(self, good_a: Mask, good_b: Mask, at: NDArray[np.int64]) -> Mask:
        """Return which edges join two good features."""
        return good_a[self.edges.ids_a[at]] & good_b[self.edges.ids_b[at]]


def parse_filters(filters: Sequence[Any], text: TextInputs | None, *, heldout: bool = True) -> list[PairFilter]:
    """Validate filters given as mappings or as settings, and that what they need is there.

    Raises
    ------
    InputError
        If a name, key or value is wrong, or a filter needs contexts or held-out rows that are not given.

    Examples
    --------
    >>> parse_filters([{"name": "max_uses", "n": 3, "when": "after"}], None)[0].side
    'both'
    """
    plain = [each if isinstance(each, Mapping) else each.model_dump() for each in filters]
    try:
        parsed = TypeAdapter(list[PairFilter]).validate_python(plain)
    except ValidationError as error:
        lines = [f"filter {'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()]
        raise InputError("\n".join(lines)) from error
    for each in parsed:
        if each.name in NEED_CONTEXTS and text is None:
            raise InputError(
                f"The filter {each.name} looks at the tokens of top contexts: give match the contexts of both sides, "
                "their stores, and the corpus (subspace match --contexts A B --stores A B --corpus CORPUS); "
                "`subspace run` does"
            )
        if each.name == "non_concept" and each.by == "data" and (text is None or text.non_concept is None):
            raise InputError(
                "The filter non_concept with by: data needs to know which features were recognised: make them with "
                "`subspace non-concept` for both sides and give match both (--non-concept A B); `subspace run` does"
            )
        if each.name in ("min_heldout_r", "reproducible") and not heldout:
            raise InputError(
                f"The filter {each.name} needs r on held-out rows, and all rows chose candidates; correlate again with "
                "select='half'"
            )
    return parsed


def read_token_list(path: str | Path | None) -> list[str]:
    """Return the tokens of a YAML list, the package's own if `path` is None, in the form in which they are compared.

    >>> "." in read_token_list(None)
    True
    """
    file = NON_CONCEPT_FILE if path is None else Path(path)
    content = read_yaml(file, f"There is no list of tokens at {file}; copy {NON_CONCEPT_FILE} and edit it")
    if not isinstance(content, list) or not all(isinstance(token, str) for token in content):
        raise FormatError(f"{file} must be a YAML list of strings; put numbers and true or false in quotes")
    return sorted({token.strip().casefold() for token in content})


def _minimum(setting: Any, data: Candidates, at: NDArray[np.int64]) -> Mask:
    values = data.edges.r if setting.name == "min_r" else data.r_heldout
    return values[at] >= setting.value  # an undefined r is no evidence, and compares false


def _fraction(setting: Any, data: Candidates, at: NDArray[np.int64]) -> Mask:
    n = math.ceil(setting.fraction * len(at))
    order = np.argsort(-data.edges.r[at], kind="stable")
    kept = np.zeros(len(at), bool)
    kept[order[:n] if setting.keep == "top" else order[len(at) - n :]] = True
    return kept


def _max_uses(setting: Any, data: Candidates, at: NDArray[np.int64]) -> Mask:
    edges, kept = data.edges.take(at), np.ones(len(at), bool)
    for side, ids, n, of_best in (("a", edges.ids_a, edges.n_a, best_of_b), ("b", edges.ids_b, edges.n_b, best)):
        if setting.side in (side, "both"):
            used = ids[of_best(edges)] if setting.when == "before" else ids
            kept &= (np.bincount(used, minlength=n) <= setting.n)[ids]
    return kept


def _min_firing(setting: Any, data: Candidates, at: NDArray[np.int64]) -> Mask:
    active = [data.correlation[f"n_active_{side}"].values >= setting.n for side in "ab"]
    return data.of_features(active[0], active[1], at)


def _reproducible(setting: Any, data: Candidates, at: NDArray[np.int64]) -> Mask:
    return np.abs(data.edges.r[at] - data.r_heldout[at]) <= setting.tolerance


def _non_concept(setting: Any, data: Candidates, at: NDArray[np.int64]) -> Mask:
    if setting.by == "data":
        good_a, good_b = data.concept_features
        return data.of_features(good_a, good_b, at)
    listed = set(read_token_list(setting.tokens))
    wanted = np.array([word in listed for word in data.tops[0].vocabulary] or [False])
    good = [~(top.share_in(wanted) > setting.share) for top in data.tops]
    return data.of_features(good[0], good[1], at)


def _shared_token(setting: Any, data: Candidates, at: NDArray[np.int64]) -> Mask:  # noqa: ARG001
    kept = np.zeros(len(at), bool)
    top_a, top_b = (top.ids for top in data.tops)
    for start in range(0, len(at), BLOCK_EDGES):
        block = at[start : start + BLOCK_EDGES]
        a, b = top_a[data.edges.ids_a[block]], top_b[data.edges.ids_b[block]]
        kept[start : start + BLOCK_EDGES] = ((a[:, :, None] == b[:, None, :]) & (a >= 0)[:, :, None]).any(axis=(1, 2))
    return kept


def _easy_kind(setting: Any, data: Candidates, at: NDArray[np.int64]) -> Mask:
    good = [~easy_features(top, setting.kinds, setting.share) for top in data.tops]
    return data.of_features(good[0], good[1], at)


def easy_features(top: TopTokens, kinds: Sequence[str], share: float) -> Mask:
    """Return which features fire, in at least `share` of their top contexts, on what is easy to match.

    Parameters
    ----------
    top
        The top tokens of one side.
    kinds
        ``single_token``: one and the same token; ``position``: one and the same position in the window;
        ``punctuation``: tokens without a letter or digit.
    share
        From 0 to 1.

    Examples
    --------
    >>> top = TopTokens(np.array([[0, 0], [0, 1], [2, 2]]), np.array([[1, 2], [3, 4], [0, 0]]), ["the", "cat", "."])
    >>> easy_features(top, ["single_token"], 1.0), easy_features(top, ["punctuation"], 1.0)
    (array([ True, False,  True]), array([False, False,  True]))
    """
    punctuation = np.array([not any(map(str.isalnum, word)) for word in top.vocabulary] or [False])
    shares = {
        "single_token": lambda: share_of_commonest(top.ids),
        "position": lambda: share_of_commonest(top.positions),
        "punctuation": lambda: top.share_in(punctuation),
    }
    return np.any([(top.n > 1) & (shares[kind]() >= share) for kind in kinds], axis=0)


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


Keep = Callable[[Any, Candidates, NDArray[np.int64]], Mask]

FILTERS: Mapping[str, tuple[Keep, Fate]] = {
    "min_r": (_minimum, Fate.below_min_r),
    "min_heldout_r": (_minimum, Fate.low_heldout_r),
    "fraction": (_fraction, Fate.outside_fraction),
    "max_uses": (_max_uses, Fate.overused),
    "min_firing": (_min_firing, Fate.rarely_fires),
    "reproducible": (_reproducible, Fate.not_reproducible),
    "non_concept": (_non_concept, Fate.non_concept),
    "shared_token": (_shared_token, Fate.no_shared_token),
    "easy_kind": (_easy_kind, Fate.easy_kind),
}


def apply_filter(setting: Any, data: Candidates, at: NDArray[np.int64]) -> tuple[NDArray[np.int64], dict[str, Any]]:
    """Apply one filter.

    Parameters
    ----------
    setting
        One of the filters of ``pipeline.config``.
    data
        The candidates.
    at
        Positions of the edges that are still there, ascending.

    Returns
    -------
    tuple
        The positions that stay, and a report: the filter's settings, ``pairs_before``, ``pairs_dropped``,
        ``features_dropped_a`` and ``_b`` (features that lost their last pair), ``mean_r_before`` and ``_after``.
    """
    kept = at[FILTERS[setting.name][0](setting, data, at)]
    report = {
        **setting.model_dump(exclude_none=True),
        "pairs_before": len(at),
        "pairs_dropped": len(at) - len(kept),
        **{
            f"features_dropped_{side}": int(len(np.unique(ids[at])) - len(np.unique(ids[kept])))
            for side, ids in (("a", data.edges.ids_a), ("b", data.edges.ids_b))
        },
        "mean_r_before": mean_or_none(data.edges.r[at]),
        "mean_r_after": mean_or_none(data.edges.r[kept]),
    }
    return kept, report


def mean_or_none(values: NDArray[np.float64]) -> float | None:
    """Return the mean of what is defined; None, which unlike NaN is valid JSON, if nothing is."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else None
