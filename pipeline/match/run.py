"""The stage: from a correlation result on disk to matched pairs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from pipeline.match.check import check_other_text, r_on_other_text
from pipeline.match.edges import check_minimum, lookup, ranks, read_edges
from pipeline.match.fates import FATES, TAKEN, Fate, Fates, count_fates
from pipeline.match.filters import Candidates, TextInputs, apply_filter, check_needs, heldout_note, mean_or_none
from pipeline.settings.base import keywords
from pipeline.settings.correlate import MEASURE_NAMES
from pipeline.settings.match import HELDOUT_NOTE, MatchSettings
from pipeline.settings.registries import METHODS
from pipeline.work.outputs import NO_OUTPUTS, Outputs
from pipeline.work.workers import ClientSource
from storage import Manifest, check_same_kind, fingerprint, make_result, new_manifest, open_result, read_manifest
from storage.errors import InputError
from storage.lazy import source_of

logger = logging.getLogger(__name__)

STAGE = "match"

#: Attributes of the correlation result that its pairs keep.
INHERITED = (
    *(f"{name}_{side}" for name in ("model", "site", "dictionary", "kind") for side in "ab"),
    "row_hash",
    "select",
    "split_seed",
    "measure",
    "keep_above",
    "n_rows_select",
    "n_rows_heldout",
)


@keywords(MatchSettings)
def match(
    cor: xr.Dataset | str | Path,
    settings: MatchSettings,
    *,
    out: str | Path | None = None,
    beside: Outputs = NO_OUTPUTS,
    contexts: tuple[str | Path, str | Path] | None = None,
    stores: tuple[str | Path, str | Path] | None = None,
    corpus: str | Path | None = None,
    non_concept: tuple[str | Path, str | Path] | None = None,
    check_on: tuple[str | Path, str | Path] | None = None,
    memory: str | int = "auto",
    overwrite: bool = False,
    client: ClientSource = None,
) -> xr.Dataset:
    """Match features by their stored correlations.

    Exact without the correlation matrix: a pair below the minimum r may not be matched, so the kept pairs are the
    whole problem.

    Parameters
    ----------
    cor
        The correlation result, or its path.
    settings
        Each setting of :class:`~pipeline.settings.match.MatchSettings` is a keyword; or all of them as one.
    out
        Path of the result; an up-to-date one is left unchanged. Without it, the result is only in memory.
    beside
        Files written from the result: if one may not be replaced, the result is not made.
    overwrite
        Whether a result at `out` that came from other inputs may be replaced.
    contexts, stores, corpus
        The contexts and stores of A and B, and the text; for filters that look at tokens.
    non_concept
        What ``non_concept_features`` found for A and B; for the filter ``{"name": "non_concept", "by": "data"}``.
    check_on
        Stores of A and of B with the same features on other text, on which r of the pairs is measured too. It chooses
        nothing.
    memory, client
        For `check_on`: the budget, and where to run; threads of this process by default.

    Returns
    -------
    xarray.Dataset
        Over ``pair``, from the highest r down and then by ids: ``feature_a``, ``feature_b`` int32; ``r`` float64 on
        the rows that chose; ``r_heldout`` float64 on the others, NaN if there are none; ``rank_b`` int32, the place
        of the B feature in the A feature's list of all candidates, before any filter, best 0; ``rank_a`` the other
        way round; ``uses_a`` and ``uses_b`` int32, how many pairs the feature is in. ``fate_a(id_a)`` and
        ``fate_b(id_b)`` int8 say of every feature, dead ones included, why it is or is not in a pair. The attribute
        ``filters`` says what each filter dropped. With `check_on`, what
        :func:`pipeline.match.check.r_on_other_text` adds.

    Raises
    ------
    InputError
        If a setting is wrong, the minimum is below what was kept, `cor` is a dataset without a path,
        a filter needs something that is not given, or the stores of `check_on` are not of the same features, or not of
        other text.
    BudgetError
        If the sums of `check_on` do not fit in memory.
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
    >>> pairs = match(correlation, method="greedy", min_correlation=0.2)
    >>> dict(zip(pairs.feature_a.values.tolist(), pairs.feature_b.values.tolist()))
    {0: 1, 1: 3, 2: 0, 3: 2}
    """
    path = source_of(cor)
    correlation = open_result(path, "correlate")
    text = check_inputs(path, correlation, [settings], TextInputs.of(contexts, stores, corpus, non_concept))
    check_same_kind(correlation.attrs.get("kind_a"), correlation.attrs.get("kind_b"))
    other = None if check_on is None else (Path(check_on[0]), Path(check_on[1]))
    if other is not None:
        check_other_text(correlation, other)
    manifest = match_manifest(path, settings, text, check_on=other)

    def make() -> xr.Dataset:
        data = Candidates(str(path), correlation, read_edges(path, correlation, settings.min_correlation), text)
        pairs = make_pairs(data, settings)
        if other is not None:
            pairs = r_on_other_text(pairs, other, memory=memory, client=client)
        _log(pairs, settings)
        return pairs.assign_attrs(manifest.to_attrs())

    return make_result(out, manifest, beside.checked_before(make), overwrite=overwrite)


def check_inputs(
    path: str | Path, correlation: xr.Dataset, settings: Sequence[MatchSettings], text: TextInputs | None
) -> TextInputs | None:
    """Return the text inputs if a filter reads them: what is not read is no input.

    Raises
    ------
    InputError
        If the text inputs are not of the stores that were correlated, or settings ask for what is not there.
    """
    if text is not None:
        _check_text(text, path)
    for each in settings:
        each.checked()
        check_minimum(correlation, each.min_correlation)
        check_needs(each.filters, text, heldout="r_heldout" in correlation)
    return text if any(each.needs_contexts for each in settings) else None


def _check_text(text: TextInputs, path: str | Path) -> None:
    manifest = read_manifest(path)
    correlated = {} if manifest is None else manifest.inputs
    check_stores(text.stores, correlated)
    _check_contexts(text.contexts, correlated)
    if text.non_concept is not None:
        _check_contexts(text.non_concept, correlated, "non-concept features")


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
    path: str | Path,
    settings: MatchSettings,
    text: TextInputs | None,
    identify: Callable[[str | Path], str] = fingerprint,
    *,
    check_on: tuple[Path, Path] | None = None,
) -> Manifest:
    """Return what the pairs of the correlation at `path` depend on; `text` only where a filter reads it.

    `check_on` are the stores of other text, if there are any. `identify` returns the fingerprint of what is, or will
    be, at a path.
    """
    inputs = {"correlation": identify(path)}
    if text is not None:
        inputs |= {f"contexts_{side}": identify(each) for side, each in zip("ab", text.contexts, strict=True)}
        inputs["corpus"] = identify(text.corpus)
        recognised = zip("ab", text.non_concept or (), strict=False)
        inputs |= {f"non_concept_{side}": identify(each) for side, each in recognised}
    inputs |= {f"check_{side}": identify(each) for side, each in zip("ab", check_on or (), strict=False)}
    return new_manifest(STAGE, inputs, settings.record())


def _log(pairs: xr.Dataset, settings: MatchSettings) -> None:
    for report in pairs.attrs["filters"]:
        logger.info(
            "%s %s: %d of %d pairs dropped",
            *(report[name] for name in ("name", "when", "pairs_dropped", "pairs_before")),
        )
    minimum = settings.min_correlation
    mean = f", mean r {pairs.mean_r:.4g}" if pairs.n_pairs else ""
    logger.info("%d pairs by %s with r ≥ %g%s", pairs.n_pairs, settings.method, minimum, mean)
    _log_heldout(pairs["r_heldout"].values, minimum)
    if HELDOUT_NOTE in pairs.attrs:
        logger.info("%s", pairs.attrs[HELDOUT_NOTE])
    if pairs.attrs.get("mean_r_check") is not None:
        logger.info("Mean r on %d rows of other text: %.4g", pairs.n_rows_check, pairs.mean_r_check)


def _log_heldout(r_heldout: NDArray[np.float64], minimum: float) -> None:
    """Log how many pairs reach the minimum r on the held-out half; warn where most are luck."""
    known = r_heldout[~np.isnan(r_heldout)]
    if not known.size:
        return
    reached = int((known >= minimum).sum())
    logger.info("%d of %d pairs reach it on the held-out half, too", reached, known.size)
    if 2 * reached < known.size:
        logger.warning(
            "Most pairs are luck: take more text, or leave out features that fire seldom (`correlate`: min_firing)"
        )


def make_pairs(data: Candidates, settings: MatchSettings) -> xr.Dataset:
    """Return the result of one matching, in memory."""
    defined_a, defined_b = (data.correlation[f"defined_{side}"].values.astype(bool) for side in "ab")
    fates = Fates(data.edges, defined_a, defined_b, (each.fate for each in settings.filters))
    chosen, reports = choose(data, settings, fates)
    chosen = chosen[np.argsort(-data.edges.r[chosen], kind="stable")]
    of_side = fates.finish(chosen)
    flags = _flag_attrs(np.concatenate(list(of_side.values())), fates.known)
    variables = _columns(data, chosen) | {
        f"fate_{side}": xr.Variable(f"id_{side}", fate, flags) for side, fate in of_side.items()
    }
    pairs = xr.Dataset(variables)
    note = heldout_note(settings.filters)
    if note:
        pairs["r_heldout"].attrs["comment"] = note[HELDOUT_NOTE]
    attrs = {
        "method": settings.method,
        "min_correlation": settings.min_correlation,
        "n_candidates": len(data.edges),
        "filters": reports,
        **note,
    }
    return pairs.assign_attrs(_inherited(data.path, data.correlation) | attrs | _summary(pairs, fates.known))


def choose(data: Candidates, settings: MatchSettings, fates: Fates) -> tuple[NDArray[np.int64], list[dict[str, Any]]]:
    """Filter, match, filter again; `fates` takes in what becomes of every feature.

    Returns the positions of the edges that are pairs, ascending, and the report of every filter in the order of acting.
    """
    at, reports = np.arange(len(data.edges)), []

    def apply(when: str, at: NDArray[np.int64]) -> NDArray[np.int64]:
        for each in (each for each in settings.filters if each.when == when):
            kept, report = apply_filter(each, data, at)
            fates.step(at, kept, each.fate)
            reports.append(report)
            at = kept
        return at

    at = apply("before", at)
    chosen = at[np.sort(METHODS[settings.method](data.edges.take(at), **settings.options))]
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
        "rank_b": ranks(edges, "a", chosen),
        "rank_a": ranks(edges, "b", chosen),
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
    "r": "{measure} on the rows used for selection",
    "r_heldout": "{measure} on the held-out rows",
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
