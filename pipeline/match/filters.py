"""Filters that drop candidates before a method chooses, or pairs after it.

The order flips results: dropping the features that fire on full stops *before* matching frees their partners for
others; dropping them *after* leaves those partners without. So every filter acts when and in the order that it is told,
and reports what it dropped.

A filter is a class: its fields are its settings, and :meth:`Filter.select` says which candidates stay. See
``docs/extending.md`` for how to add one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from pydantic import Field, PositiveInt, model_validator

from pipeline.match.edges import Edges, lookup
from pipeline.match.fates import BELOW_MIN_R, Fate
from pipeline.match.methods.greedy import best, best_of_b
from pipeline.settings.base import Section
from pipeline.settings.match import HELDOUT_NOTE
from pipeline.settings.registries import FILTERS
from pipeline.text.top_tokens import NONE, TopTokens, top_tokens
from storage import open_result
from storage.errors import FormatError, InputError
from storage.yaml_files import read_yaml

NON_CONCEPT_FILE = Path(__file__).with_name("non_concept.yaml")
#: Edges whose top tokens are compared at a time.
BLOCK_EDGES = 65_536

Mask = NDArray[np.bool_]
Need = Literal["heldout", "contexts", "non_concept"]
FilterType = TypeVar("FilterType", bound="Filter")


@dataclass(frozen=True)
class TextInputs:
    """Where the filters that look at tokens find them.

    Attributes
    ----------
    contexts
        Results of ``contexts`` for A and B.
    stores
        The activation stores of A and B, for the coordinates of their rows.
    corpus
        The text.
    non_concept
        Results of ``non_concept`` for A and B, for the filter of that name with ``by: data``.
    """

    contexts: tuple[str | Path, str | Path]
    stores: tuple[str | Path, str | Path]
    corpus: str | Path
    non_concept: tuple[str | Path, str | Path] | None = None

    @classmethod
    def of(
        cls,
        contexts: tuple[str | Path, str | Path] | None,
        stores: tuple[str | Path, str | Path] | None,
        corpus: str | Path | None,
        non_concept: tuple[str | Path, str | Path] | None = None,
    ) -> TextInputs | None:
        """Return the inputs, or None where a part is missing."""
        if contexts is None or stores is None or corpus is None:
            return None
        return cls(contexts, stores, corpus, non_concept)


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
        return top_tokens(self.text.contexts, self.text.stores[0], self.text.corpus)

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


class Filter(Section):
    """What all filters of pairs have in common; the order in which they are given is the order in which they act.

    Attributes
    ----------
    name
        What users write; a field with its one value.
    when
        See there.
    fate
        What becomes of a feature that loses its last pair to the filter.
    reads
        What it reads besides the correlation result.
    paths
        Names of settings that are paths; in an experiment file they start at the file's folder.
    """

    fate: ClassVar[Fate]
    reads: ClassVar[tuple[Need, ...]] = ()
    paths: ClassVar[tuple[str, ...]] = ()
    when: Literal["before", "after"] = Field("before", description="apply to the candidates, or to the chosen pairs")
    name: str

    @property
    def needs(self) -> tuple[Need, ...]:
        """What it reads with these settings."""
        return self.reads

    def settings(self) -> dict[str, Any]:
        """Return all that the result of the filter depends on."""
        return self.model_dump()

    def select(self, data: Candidates, at: NDArray[np.int64]) -> Mask:
        """Return which of the candidates at positions `at` stay, bool, of the same shape."""
        raise NotImplementedError(type(self).__name__)


def register(kind: type[FilterType]) -> type[FilterType]:
    """Add a filter by the one value of its field ``name``; to be used as a decorator."""
    FILTERS.add(kind.__pydantic_fields__["name"].default, kind)
    return kind


#: What is missing where a filter needs something that match was not given.
MISSING: Mapping[Need, str] = {
    "contexts": "The filter {} looks at the tokens of top contexts: give match the contexts of both sides, their "
    "stores, and the corpus (subspace match --contexts A B --stores A B --corpus CORPUS); `subspace run` does",
    "non_concept": "The filter {} with by: data needs to know which features were recognised: make them with "
    "`subspace non-concept` for both sides and give match both (--non-concept A B); `subspace run` does",
    "heldout": "The filter {} needs r on held-out rows, and all rows chose candidates; correlate again with "
    "select='half'",
}


def check_needs(filters: Sequence[Filter], text: TextInputs | None, *, heldout: bool) -> None:
    """Raise an InputError if a filter reads contexts, non-concept features or held-out r that are not there."""
    there = {
        "contexts": text is not None,
        "non_concept": text is not None and text.non_concept is not None,
        "heldout": heldout,
    }
    for each in filters:
        if missing := next((need for need in each.needs if not there[need]), None):
            raise InputError(MISSING[missing].format(each.name))


def heldout_note(filters: Sequence[Filter]) -> dict[str, str]:
    """Return the attribute that says that held-out r took part in a choice; empty if no filter reads it.

    >>> heldout_note([MinR(value=0.2), MinHeldoutR(value=0.2)])[HELDOUT_NOTE]
    'Held-out r took part in choosing these pairs (min_heldout_r): their held-out r is biased, usually upwards.'
    """
    names = dict.fromkeys(each.name for each in filters if "heldout" in each.needs)
    if not names:
        return {}
    listed = ", ".join(names)
    return {
        HELDOUT_NOTE: f"Held-out r took part in choosing these pairs ({listed}): their held-out r is biased, usually "
        "upwards."
    }


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


def easy_features(top: TopTokens, kinds: Sequence[str], share: float) -> Mask:
    """Return which features fire, in at least `share` of their top contexts, on what is easy to match.

    ``single_token``: one and the same token; ``position``: one and the same position in the window; ``punctuation``:
    tokens without a letter or digit.

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


@register
class MinR(Filter):
    """Drop pairs below a minimum r on the rows that chose."""

    fate: ClassVar[Fate] = BELOW_MIN_R
    name: Literal["min_r"] = "min_r"
    value: Annotated[float, Field(ge=-1, le=1)]

    def select(self, data: Candidates, at: NDArray[np.int64]) -> Mask:
        """Return which pairs reach the minimum; an undefined r is no evidence, and compares false."""
        return data.edges.r[at] >= self.value


@register
class MinHeldoutR(Filter):
    """Drop pairs below a minimum r on the rows that did not choose."""

    fate: ClassVar[Fate] = Fate("low_heldout_r", "r on the held-out rows is below the minimum, or undefined", 4)
    reads: ClassVar[tuple[Need, ...]] = ("heldout",)
    name: Literal["min_heldout_r"] = "min_heldout_r"
    value: Annotated[float, Field(ge=-1, le=1)]

    def select(self, data: Candidates, at: NDArray[np.int64]) -> Mask:
        """Return which pairs reach the minimum; an undefined r compares false."""
        return data.r_heldout[at] >= self.value


@register
class Fraction(Filter):
    """Keep the fraction of pairs with the highest (or lowest) r."""

    fate: ClassVar[Fate] = Fate("outside_fraction", "not in the top or bottom fraction that was asked for", 5)
    name: Literal["fraction"] = "fraction"
    fraction: Annotated[float, Field(gt=0, le=1)]
    keep: Literal["top", "bottom"] = "top"

    def select(self, data: Candidates, at: NDArray[np.int64]) -> Mask:
        """Return which pairs are in the fraction."""
        n = math.ceil(self.fraction * len(at))
        order = np.argsort(-data.edges.r[at], kind="stable")
        inside = np.zeros(len(at), bool)
        inside[order[:n] if self.keep == "top" else order[len(at) - n :]] = True
        return inside


@register
class MaxUses(Filter):
    """Drop features that more than `n` features of the other side use: as their best (before), in pairs (after)."""

    fate: ClassVar[Fate] = Fate("overused", "it or its partners are used by more features than allowed", 6)
    name: Literal["max_uses"] = "max_uses"
    n: PositiveInt
    side: Literal["a", "b", "both"] = "both"

    def select(self, data: Candidates, at: NDArray[np.int64]) -> Mask:
        """Return which pairs have features that are not used too often."""
        edges, inside = data.edges.take(at), np.ones(len(at), bool)
        for side, ids, n, of_best in (("a", edges.ids_a, edges.n_a, best_of_b), ("b", edges.ids_b, edges.n_b, best)):
            if self.side in (side, "both"):
                used = ids[of_best(edges)] if self.when == "before" else ids
                inside &= (np.bincount(used, minlength=n) <= self.n)[ids]
        return inside


@register
class MinFiring(Filter):
    """Drop features that are active on fewer than `n` rows."""

    fate: ClassVar[Fate] = Fate("rarely_fires", "it or its partners are active on fewer rows than asked for", 7)
    name: Literal["min_firing"] = "min_firing"
    n: PositiveInt

    def select(self, data: Candidates, at: NDArray[np.int64]) -> Mask:
        """Return which pairs have two features that are active often enough."""
        active = [data.correlation[f"n_active_{side}"].values >= self.n for side in "ab"]
        return data.of_features(active[0], active[1], at)


@register
class Reproducible(Filter):
    """Drop pairs whose r on the two halves of the documents differ by more than `tolerance`."""

    fate: ClassVar[Fate] = Fate("not_reproducible", "r differs between the two halves by more than allowed", 8)
    reads: ClassVar[tuple[Need, ...]] = ("heldout",)
    name: Literal["reproducible"] = "reproducible"
    tolerance: Annotated[float, Field(ge=0, le=2)] = 0.1

    def select(self, data: Candidates, at: NDArray[np.int64]) -> Mask:
        """Return which pairs have about the same r on both halves."""
        return np.abs(data.edges.r[at] - data.r_heldout[at]) <= self.tolerance


@register
class NonConcept(Filter):
    """Drop features that stand for no concept: by a list of tokens in their top contexts, or by what they do."""

    fate: ClassVar[Fate] = Fate("non_concept", "it or its partners fire mostly on tokens of the list", 9)
    reads: ClassVar[tuple[Need, ...]] = ("contexts",)
    paths: ClassVar[tuple[str, ...]] = ("tokens",)
    name: Literal["non_concept"] = "non_concept"
    by: Literal["tokens", "data"] = Field(
        "tokens",
        description="tokens: tokens of a list in the top contexts; data: features that `subspace non-concept` listed",
    )
    share: Annotated[float, Field(ge=0, le=1)] = 0.5
    tokens: str | None = Field(None, description="YAML list of tokens; default: the one shipped with the package")

    @model_validator(mode="after")
    def _tokens_belong_to_the_list(self) -> NonConcept:
        if self.by == "data" and self.tokens is not None:
            raise ValueError("a list of tokens belongs to by: tokens; leave one of them out")
        return self

    @property
    def needs(self) -> tuple[Need, ...]:
        """Contexts, and by data what was recognised too."""
        return (*self.reads, "non_concept") if self.by == "data" else self.reads

    def settings(self) -> dict[str, Any]:
        """Return the settings, with the list of tokens by what it holds."""
        return super().settings() | {"tokens": None if self.by == "data" else read_token_list(self.tokens)}

    def select(self, data: Candidates, at: NDArray[np.int64]) -> Mask:
        """Return which pairs have two features that stand for a concept."""
        if self.by == "data":
            good_a, good_b = data.concept_features
            return data.of_features(good_a, good_b, at)
        listed = set(read_token_list(self.tokens))
        wanted = np.array([word in listed for word in data.tops[0].vocabulary] or [False])
        good = [~(top.share_in(wanted) > self.share) for top in data.tops]
        return data.of_features(good[0], good[1], at)


@register
class SharedToken(Filter):
    """Drop pairs that have no token in common among those of their top contexts; needs contexts."""

    fate: ClassVar[Fate] = Fate("no_shared_token", "its top tokens are none of its partners' top tokens", 10)
    reads: ClassVar[tuple[Need, ...]] = ("contexts",)
    name: Literal["shared_token"] = "shared_token"

    def select(self, data: Candidates, at: NDArray[np.int64]) -> Mask:
        """Return which pairs share a token; a block of edges at a time."""
        shared = np.zeros(len(at), bool)
        top_a, top_b = (top.ids for top in data.tops)
        for start in range(0, len(at), BLOCK_EDGES):
            block = at[start : start + BLOCK_EDGES]
            a, b = top_a[data.edges.ids_a[block]], top_b[data.edges.ids_b[block]]
            equal = (a[:, :, None] == b[:, None, :]) & (a >= 0)[:, :, None]
            shared[start : start + BLOCK_EDGES] = equal.any(axis=(1, 2))
        return shared


@register
class EasyKind(Filter):
    """Drop features that fire on one token, at one position, or on punctuation in `share` of contexts; needs them."""

    fate: ClassVar[Fate] = Fate(
        "easy_kind", "it or its partners fire on one token, one position or punctuation only", 11
    )
    reads: ClassVar[tuple[Need, ...]] = ("contexts",)
    name: Literal["easy_kind"] = "easy_kind"
    kinds: list[Literal["single_token", "position", "punctuation"]] = Field(["single_token", "position", "punctuation"])
    share: Annotated[float, Field(gt=0, le=1)] = 1.0

    def select(self, data: Candidates, at: NDArray[np.int64]) -> Mask:
        """Return which pairs have two features that are not easy to match."""
        good = [~easy_features(top, self.kinds, self.share) for top in data.tops]
        return data.of_features(good[0], good[1], at)


def apply_filter(setting: Filter, data: Candidates, at: NDArray[np.int64]) -> tuple[NDArray[np.int64], dict[str, Any]]:
    """Return which of the edges at positions `at`, ascending, stay, and a report.

    The report: the filter's settings, ``pairs_before``, ``pairs_dropped``, ``features_dropped_a`` and ``_b`` (features
    that lost their last pair), ``mean_r_before`` and ``_after``.
    """
    kept = at[setting.select(data, at)]
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
