"""The stage: from a correlation result on disk to matched pairs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from pipeline.match.edges import Edges, lookup, ranks, read_edges
from pipeline.match.fates import FATES, TAKEN, Fate, Fates, count_fates, numbered
from pipeline.match.filters import Candidates, Filter, TextInputs, apply_filter, mean_or_none, parse_filters
from pipeline.settings.correlate import MEASURE_NAMES
from pipeline.settings.registries import METHODS, takes_max_uses
from storage import Manifest, check_same_kind, fingerprint, make_result, new_manifest, open_result, read_manifest
from storage.errors import InputError

logger = logging.getLogger(__name__)

STAGE = "match"

#: Attributes of the correlation result that its pairs keep.
INHERITED = (
    *(f"{name}_{side}" for name in ("model", "site", "dictionary", "kind") for side in "ab"),
    "row_hash",
    "select",
    "measure",
    "keep_above",
    "n_rows_select",
    "n_rows_heldout",
)


def match(
    cor: xr.Dataset | str | Path,
    method: str = "greedy",
    min_correlation: float = 0.1,
    out: str | Path | None = None,
    *,
    max_uses: int = 1,
    filters: Sequence[Any] = (),
    contexts: tuple[str | Path, str | Path] | None = None,
    stores: tuple[str | Path, str | Path] | None = None,
    corpus: str | Path | None = None,
    non_concept: tuple[str | Path, str | Path] | None = None,
    overwrite: bool = False,
) -> xr.Dataset:
    """Choose pairs of features from a correlation result.

    Exact without the correlation matrix: a pair below the minimum r may not be matched, so the kept pairs are the
    whole problem.

    Parameters
    ----------
    cor
        The correlation result, or its path.
    method
        ``best``: each A feature's best B feature, which may serve many (many to one); ``best_of_b``: the other way
        round; ``mutual``: each other's best; ``unique``: of ``best``, each B feature's best pair only; ``greedy``:
        one to one, globally best-first; ``optimal``: one to one with the highest total r; ``rematch``: one to one,
        those of ``best`` whose B feature is used once, and the rest best-first among the free.
    min_correlation
        Lowest r of a pair, inclusive; not below the ``keep_above`` of the correlation.
    out
        Where the result is written; a current one is left as it is. In memory only if absent.
    overwrite
        Whether a result at `out` that came from other inputs may be replaced.
    max_uses
        With ``unique``: how many A features may share a B feature; its best ones are kept.
    filters
        What else is dropped, before or after the method chooses, in this order: mappings as in the experiment file,
        ``{"name": "min_heldout_r", "value": 0.2, "when": "after"}`` (see ``docs/matching.md``).
    contexts, stores, corpus
        The contexts and stores of A and B, and the text; for filters that look at tokens.
    non_concept
        What ``non_concept_features`` found for A and B; for the filter ``{"name": "non_concept", "by": "data"}``.

    Returns
    -------
    xarray.Dataset
        Over ``pair``, from the highest r down and then by ids: ``feature_a``, ``feature_b`` int32; ``r`` float64 on
        the rows that chose; ``r_heldout`` float64 on the others, NaN if there are none; ``rank_b`` int32, the place
        of the B feature in the A feature's list of all candidates, before any filter, best 0; ``rank_a`` the other
        way round; ``uses_a`` and ``uses_b`` int32, how many pairs the feature is in. ``fate_a(id_a)`` and
        ``fate_b(id_b)`` int8 say of every feature, dead ones included, why it is or is not in a pair. The attribute
        ``filters`` says what each filter dropped.

    Raises
    ------
    InputError
        If the method or a filter is unknown, the minimum is below what was kept, `cor` is a dataset without a path, or
        a filter needs something that is not given.
    MissingInputError
        If there is no finished result at the path.
    FormatError
        If it is the result of another stage.

    Examples
    --------
    >>> import tempfile, storage
    >>> from pipeline.correlate.run import correlate
    >>> folder = Path(tempfile.mkdtemp())
    >>> rng = np.random.default_rng(0)
    >>> x = rng.exponential(size=(300, 4)) * (rng.random((300, 4)) < 0.3)
    >>> storage.write_activations(folder / "a.zarr", x)
    >>> storage.write_activations(folder / "b.zarr", x[:, [2, 0, 3, 1]])
    >>> correlation = correlate(folder / "a.zarr", folder / "b.zarr", out=folder / "correlation.zarr")
    >>> pairs = match(correlation, "greedy", 0.2)
    >>> dict(zip(pairs.feature_a.values.tolist(), pairs.feature_b.values.tolist()))
    {0: 1, 1: 3, 2: 0, 3: 2}
    """
    path = _path_of(cor)
    correlation = open_result(path, "correlate")
    choice, text = check_choice(
        path,
        correlation,
        method=method,
        minimum=min_correlation,
        max_uses=max_uses,
        filters=filters,
        contexts=contexts,
        stores=stores,
        corpus=corpus,
        non_concept=non_concept,
    )
    check_same_kind(correlation.attrs.get("kind_a"), correlation.attrs.get("kind_b"))
    manifest = match_manifest(path, choice, text)

    def make() -> xr.Dataset:
        data = Candidates(path, correlation, read_edges(path, correlation, choice.minimum), text)
        pairs = make_pairs(data, choice).assign_attrs(manifest.to_attrs())
        _log(pairs, choice)
        return pairs

    return make_result(out, manifest, make, overwrite=overwrite)


@dataclass(frozen=True)
class Choice:
    """What a matching was asked for, checked."""

    method: str
    minimum: float
    max_uses: int = 1
    filters: tuple[Filter, ...] = ()

    @cached_property
    def fates(self) -> dict[str, Fate]:
        """By name, all that may become of a feature."""
        return numbered(each.fate for each in self.filters)

    def settings(self) -> dict[str, Any]:
        """Return all that the result depends on besides its inputs."""
        filters = [each.settings() for each in self.filters]
        plain = {"method": self.method, "min_correlation": self.minimum, "filters": filters}
        return plain | self._options()

    def run(self, edges: Edges) -> NDArray[np.int64]:
        """Return the positions of the chosen edges."""
        return METHODS[self.method](edges, **self._options())

    def _options(self) -> dict[str, Any]:
        return {"max_uses": self.max_uses} if takes_max_uses(self.method) else {}


def check_choice(
    path: str,
    correlation: xr.Dataset,
    *,
    method: str,
    minimum: float,
    max_uses: int,
    filters: Sequence[Any],
    contexts: tuple[str | Path, str | Path] | None = None,
    stores: tuple[str | Path, str | Path] | None = None,
    corpus: str | Path | None = None,
    non_concept: tuple[str | Path, str | Path] | None = None,
) -> tuple[Choice, TextInputs | None]:
    """Check the arguments of :func:`match`; return what they ask for, and the text inputs if a filter needs them."""
    _check(method, minimum, max_uses, correlation)
    text = _text_inputs(path, contexts, stores, corpus, non_concept)
    chosen = parse_filters(filters, text, heldout="r_heldout" in correlation)
    if not any("contexts" in each.needs for each in chosen):
        text = None  # what is not read is no input
    return Choice(method, float(minimum), max_uses, tuple(chosen)), text


def _text_inputs(
    path: str,
    contexts: tuple[str | Path, str | Path] | None,
    stores: tuple[str | Path, str | Path] | None,
    corpus: str | Path | None,
    non_concept: tuple[str | Path, str | Path] | None,
) -> TextInputs | None:
    if contexts is None or stores is None or corpus is None:
        return None
    manifest = read_manifest(path)
    correlated = {} if manifest is None else manifest.inputs
    check_stores(stores, correlated)
    _check_contexts(contexts, correlated)
    if non_concept is not None:
        _check_contexts(non_concept, correlated, "non-concept features")
    recognised = None if non_concept is None else (str(non_concept[0]), str(non_concept[1]))
    return TextInputs((str(contexts[0]), str(contexts[1])), str(stores[0]), str(corpus), recognised)


def _check_contexts(contexts: tuple[str | Path, str | Path], stores: dict[str, str], what: str = "contexts") -> None:
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


def match_manifest(
    path: str, choice: Choice, text: TextInputs | None, identify: Callable[[str | Path], str] = fingerprint
) -> Manifest:
    """Return what the pairs of the correlation at `path` depend on; `text` only where a filter reads it.

    `identify` returns the fingerprint of what is, or will be, at a path.
    """
    inputs = {"correlation": identify(path)}
    if text is not None:
        inputs |= {f"contexts_{side}": identify(each) for side, each in zip("ab", text.contexts, strict=True)}
        inputs["corpus"] = identify(text.corpus)
        recognised = zip("ab", text.non_concept or (), strict=False)
        inputs |= {f"non_concept_{side}": identify(each) for side, each in recognised}
    return new_manifest(STAGE, inputs, choice.settings())


def _log(pairs: xr.Dataset, choice: Choice) -> None:
    for report in pairs.attrs["filters"]:
        logger.info("%s %s: %d of %d pairs dropped", report["name"], report["when"], *_dropped(report))
    logger.info("%d pairs by %s with r ≥ %g, mean r %s", pairs.n_pairs, choice.method, choice.minimum, pairs.mean_r)


def _dropped(report: dict[str, Any]) -> tuple[int, int]:
    return report["pairs_dropped"], report["pairs_before"]


def _path_of(cor: xr.Dataset | str | Path) -> str:
    if not isinstance(cor, xr.Dataset):
        return str(cor)
    if "source" not in cor.encoding:
        raise InputError("This correlation dataset does not know its path on disk; give the path of the result instead")
    return str(cor.encoding["source"])


def _check(method: str, minimum: float, max_uses: int, correlation: xr.Dataset) -> None:
    shared = takes_max_uses(method)
    if max_uses < 1 or (max_uses > 1 and not shared):
        raise InputError(
            f"max_uses is {max_uses} with the method {method!r}; it is at least 1, and belongs to the method 'unique'. "
            "To drop features that are used often, give the filter max_uses"
        )
    kept = float(correlation.attrs["keep_above"])
    if not minimum <= 1:  # also true of NaN
        raise InputError(f"min_correlation is {minimum}, but no r exceeds 1; give a value from {kept} to 1")
    if minimum < kept:
        raise InputError(
            f"min_correlation is {minimum}, but only pairs with r ≥ {kept} were kept; correlate again with "
            f"keep_above={minimum} (subspace correlate … --keep-above {minimum}), or raise min_correlation"
        )


def make_pairs(data: Candidates, choice: Choice) -> xr.Dataset:
    """Return the result of one matching, in memory."""
    fates = Fates(data.edges, *(data.correlation[f"defined_{side}"].values.astype(bool) for side in "ab"))
    chosen, reports = choose(data, choice, fates)
    chosen = chosen[np.argsort(-data.edges.r[chosen], kind="stable")]
    of_side = fates.finish(chosen)
    flags = _flag_attrs(np.concatenate(list(of_side.values())), choice.fates)
    variables = _columns(data, chosen) | {
        f"fate_{side}": xr.Variable(f"id_{side}", fate, flags) for side, fate in of_side.items()
    }
    pairs = xr.Dataset(variables)
    settings = {"method": choice.method, "min_correlation": choice.minimum, "n_candidates": len(data.edges)}
    return pairs.assign_attrs(
        {**_inherited(data.path, data.correlation), **settings, "filters": reports, **_summary(pairs, choice.fates)}
    )


def choose(data: Candidates, choice: Choice, fates: Fates) -> tuple[NDArray[np.int64], list[dict[str, Any]]]:
    """Filter, match, filter again.

    Parameters
    ----------
    data
        The candidates.
    choice
        Method and filters.
    fates
        Is told what becomes of every feature.

    Returns
    -------
    tuple
        Positions of the edges that are pairs, ascending, and the report of every filter in the order of acting.
    """
    at, reports = np.arange(len(data.edges)), []

    def apply(when: str, at: NDArray[np.int64]) -> NDArray[np.int64]:
        for each in (each for each in choice.filters if each.when == when):
            kept, report = apply_filter(each, data, at)
            fates.step(at, kept, choice.fates[each.fate.name])
            reports.append(report)
            at = kept
        return at

    at = apply("before", at)
    chosen = at[np.sort(choice.run(data.edges.take(at)))]
    fates.step(at, chosen, TAKEN)
    return apply("after", chosen), reports


def _inherited(path: str, correlation: xr.Dataset) -> dict[str, Any]:
    """Return what the pairs keep of where they come from; ``stores`` are the fingerprints of both stores."""
    manifest = read_manifest(path)
    stores = {"stores": manifest.inputs} if manifest is not None else {}
    return stores | {name: correlation.attrs[name] for name in INHERITED if name in correlation.attrs}


def _columns(data: Candidates, chosen: NDArray[np.int64]) -> dict[str, xr.Variable]:
    edges = data.edges
    ids_a, ids_b = edges.ids_a[chosen], edges.ids_b[chosen]
    columns: dict[str, NDArray[Any]] = {
        "feature_a": ids_a,
        "feature_b": ids_b,
        "r": edges.r[chosen],
        "r_heldout": _heldout(data, ids_a, ids_b),
        "rank_b": ranks(edges, "a")[chosen],
        "rank_a": ranks(edges, "b")[chosen],
        "uses_a": np.bincount(ids_a, minlength=edges.n_a)[ids_a].astype(np.int32),
        "uses_b": np.bincount(ids_b, minlength=edges.n_b)[ids_b].astype(np.int32),
    }
    measure = MEASURE_NAMES[data.correlation.attrs.get("measure", "pearson")]
    return {
        name: xr.Variable("pair", column, {"long_name": LONG_NAMES[name].format(measure=measure)})
        for name, column in columns.items()
    }


def _heldout(data: Candidates, ids_a: NDArray[np.int32], ids_b: NDArray[np.int32]) -> NDArray[np.float64]:
    if "r_heldout" not in data.correlation:
        return np.full(len(ids_a), np.nan)
    return lookup(data.path, "r_heldout", ids_a, ids_b, data.edges.n_a)


LONG_NAMES = {
    "feature_a": "feature of side A",
    "feature_b": "feature of side B",
    "r": "{measure} on the rows that chose the pair",
    "r_heldout": "{measure} on the other rows",
    "rank_b": "place of feature_b among the partners of feature_a, best 0",
    "rank_a": "place of feature_a among the partners of feature_b, best 0",
    "uses_a": "pairs that feature_a is in",
    "uses_b": "pairs that feature_b is in",
}


def _flag_attrs(met: NDArray[np.int8], fates: Mapping[str, Fate]) -> dict[str, Any]:
    """Return the attributes of a flag variable after the CF conventions: the usual fates, and others that were met."""
    listed = [
        fate for fate in sorted(fates.values(), key=lambda fate: fate.code) if fate in FATES or np.any(met == fate.code)
    ]
    return {
        "long_name": "what became of the feature",
        "flag_values": [fate.code for fate in listed],
        "flag_meanings": " ".join(fate.name for fate in listed),
        "flag_descriptions": "; ".join(f"{fate.name}: {fate.meaning}" for fate in listed),
    }


def _summary(pairs: xr.Dataset, fates: Mapping[str, Fate]) -> dict[str, Any]:
    return {
        "n_pairs": pairs.sizes["pair"],
        "mean_r": mean_or_none(pairs["r"].values),
        "mean_r_heldout": mean_or_none(pairs["r_heldout"].values),
        **{f"fates_{side}": count_fates(pairs[f"fate_{side}"].values, fates.values()) for side in "ab"},
    }
