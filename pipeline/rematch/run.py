"""Match again with rows of B permuted: what of a matching a shared vocabulary gives, and what chance.

::

    pairs, correlation ─▶ their settings ─┐
    stores, corpus ─▶ units of a null ────┼─▶ real: the rows that are used ──▶ correlate ─▶ match ─▶ compare ─┐
                                          └─▶ draws: a permuted copy of B ──▶ correlate ─▶ match ─▶ compare ─┴─▶ OUT

Every value is on disk once it is made: work that was stopped goes on with the next one.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr
from distributed import Client
from numpy.typing import NDArray

from pipeline.compare.engine import allowed_memory, score_pairs
from pipeline.compare.rows import DecoderRows
from pipeline.compare.statistics import Range, expected_range, p_of_overlapping
from pipeline.correlate.job import load_arrays, save_arrays
from pipeline.correlate.rows import FEWEST_ROWS, read_halves, splitmix64
from pipeline.correlate.run import correlate
from pipeline.match.edges import read_edges
from pipeline.match.filters import Candidates, TextInputs, check_needs
from pipeline.match.run import check_stores, make_pairs
from pipeline.rematch.nulls import RowNull, Rows, Units, check_units
from pipeline.rematch.permuted import documents_of_features, write_permuted
from pipeline.rematch.summary import feature_tests, share_beyond, strata_of
from pipeline.settings.base import keywords
from pipeline.settings.compare import CompareSettings
from pipeline.settings.correlate import CorrelateSettings
from pipeline.settings.match import MatchSettings
from pipeline.settings.registries import FILTERS, ROW_NULLS
from pipeline.settings.rematch import SHUFFLES, RematchSettings
from pipeline.text.spans import check_corpus
from pipeline.work.workers import ClientSource, ensure_client
from storage import (
    InputError,
    Manifest,
    add_variables,
    claim,
    fingerprint,
    new_manifest,
    open_activations,
    open_corpus,
    open_result,
    read_manifest,
)
from storage.errors import FormatError
from storage.files import remove_folder

logger = logging.getLogger(__name__)

STAGE = "rematch"
#: Where finished draws are kept until the result is complete.
DRAWS = "draws"
#: What is counted and averaged of every matching; the scores follow.
COUNTS = ("pairs", "r", "r_heldout")
#: The null that says how many pairs, and which r, chance gives.
CHANCE = "document"
NO_CHANCE = Range(0.0, 0.0, 0.0)
#: What is kept of the pairs of every matching: the name, the variable of the pairs, and its type.
MATCHED = (
    *(("a", "feature_a", "int32"), ("b", "feature_b", "int32")),
    *(("r", "r", "float32"), ("r_heldout", "r_heldout", "float32")),
)
#: What is not said of r against chance.
UNSAID = ("null_low", "null_high", "difference_low", "difference_high", "p", "beyond", "beyond_low", "beyond_high")
SUMMARY = (
    *("null_mean", "null_low", "null_high"),
    *("difference", "difference_low", "difference_high", "p"),
    *("beyond", "beyond_low", "beyond_high"),
)


@keywords(RematchSettings)
def rematch(
    pairs: str | Path,
    cor: str | Path,
    a: str | Path,
    b: str | Path,
    settings: RematchSettings,
    *,
    out: str | Path,
    corpus: str | Path | None = None,
    contexts: tuple[str | Path, str | Path] | None = None,
    non_concept: tuple[str | Path, str | Path] | None = None,
    overwrite: bool = False,
    client: ClientSource = None,
) -> xr.Dataset:
    """Match anew with rows of B permuted, to see how much of a matching is more than a shared vocabulary.

    Two models that agree on nothing but which token this is have features that fire together. So B's rows change
    places with rows of the same text: the vocabulary stays shared, and all context is destroyed. Each draw is
    correlated, matched and scored by the settings of the real pairs. Rows that cannot change places, those alone with
    their text, are left out of the real values too. A second null, whole documents of B in each other's place, shows
    what chance gives.

    The first number to read is ``beyond`` of the null ``token``: the share of what is above chance that the shared
    vocabulary does not give.

    Memory is that of the correlation; for the permuted copy of B, two shards and at most half of the budget; and 24
    bytes for each pair of each draw. On disk, beside `out` and until it is done, stand one copy
    of B's activations and one correlation.

    Parameters
    ----------
    pairs
        The result of :func:`pipeline.match`. Its method, minimum r and filters are those of the new matchings. Filters
        that look at contexts judge features by their real ones, so that the same features take part.
    cor
        The correlation that they were chosen from. Its measure, halves and least firing are those of the new ones.
    a, b
        The stores that were correlated. Without decoder rows there are no scores.
    settings
        Each setting of :class:`~pipeline.settings.rematch.RematchSettings` is a keyword; or all of them as one.
    out
        Where the result is written; a current one is left as it is. Workers on other hosts must see it.
    corpus
        The text, for the null ``token`` and for filters that look at tokens.
    contexts, non_concept
        As in :func:`pipeline.match`, where its filters read them.
    overwrite
        Whether a result at `out` that came from other inputs may be replaced.
    client
        Where to run; threads of this process by default.

    Returns
    -------
    xarray.Dataset
        ``value(null, quantity)`` and ``null_value(null, quantity, draw)``, float64: of the real rows that a null uses,
        and of each draw, the number of pairs, their mean r and held-out r, and of each metric the score *less the mean
        of shuffled pairings* of the same pairs, since scores of different numbers of pairs have different chance
        levels. ``score(null, metric)`` and ``null_score(null, metric, draw)``: the scores themselves. Over (null,
        quantity): ``null_mean``; ``null_low`` and ``null_high``, between which the value is expected if the null holds
        (95 %, :func:`pipeline.compare.statistics.expected_range`); ``difference`` (value - null_mean) with its
        interval, ``difference_low`` and ``difference_high``; ``p``, never below 1 / (draws + 1)
        (:func:`pipeline.compare.statistics.p_of_overlapping`); and ``beyond``, ``beyond_low``, ``beyond_high``: (value
        - null_mean) / (value - chance), by :func:`pipeline.rematch.summary.share_beyond`. Chance is the mean of the
        null ``document`` for pairs, if that was drawn, and 0 for r and for scores, which are above shuffled pairings
        already. ``n_rows``, ``n_left_out``, ``n_groups`` and ``overlap(null)``: rows that are used, rows that count but
        cannot change places, groups, and the share of partners that two draws have in common. ``best_r``, ``best_r_p``
        and ``best_r_q(feature_a)``: each A feature's highest r, its p against the null ``document``, pooled over
        features that fire about as often and in as many documents, and the p after Benjamini and Hochberg. Over
        ``size``, shares of the text, each within the next, as far as documents are known: ``fraction``, ``size_rows``,
        and the numbers of pairs of the real rows and of the first null, ``size_pairs`` and ``size_null_pairs``. Over
        ``matched``, the pairs themselves that each null leaves, by which parts of them can be scored
        (:func:`drawn_pairs`): ``matched_null``, its number, ``matched_in``, the draw, -1 for the real rows,
        ``matched_a`` and ``matched_b``, all int32, and ``matched_r`` and ``matched_r_heldout``, float32. Undefined
        values are NaN, and so are intervals, p and shares of r against the null ``document``.

    Raises
    ------
    InputError
        If the pairs, the correlation and the stores do not belong together, a null has no rows to move or lacks the
        text, or a filter lacks what it reads.
    MissingInputError
        If a path leads nowhere.
    BudgetError
        If the memory or the disk does not suffice.

    Examples
    --------
    >>> import tempfile, storage
    >>> from pipeline.correlate.run import correlate
    >>> from pipeline.match.run import match
    >>> folder = Path(tempfile.mkdtemp())
    >>> rng = np.random.default_rng(0)
    >>> x = rng.exponential(size=(400, 6)) * (rng.random((400, 6)) < 0.3)
    >>> place = np.arange(400) % 20
    >>> rows = {"document": np.arange(400) // 20, "char_start": place, "char_end": place + 1}
    >>> for name in "ab":
    ...     storage.write_activations(folder / f"{name}.zarr", x, tokens=rows)
    >>> a, b, cor, pairs = (folder / f"{name}.zarr" for name in ("a", "b", "cor", "pairs"))
    >>> _ = match(correlate(a, b, out=cor), out=pairs, min_correlation=0.1)
    >>> result = rematch(pairs, cor, a, b, nulls=["document"], draws=5, metrics=[], out=folder / "rematched.zarr")
    >>> result.value.sel(null="document", quantity="r").item(), bool(result.p.sel(quantity="pairs") < 0.2)
    (1.0, True)
    """
    work = _Work.of(Path(pairs), Path(cor), (Path(a), Path(b)), settings)
    text = work.check_text(TextInputs.of(contexts, (a, b), corpus, non_concept), corpus)
    manifest = rematch_manifest(work.pairs, work.cor, settings, text=text, corpus=corpus)
    with claim(out, manifest, overwrite=overwrite) as target:
        if target.is_current():
            logger.info("%s is up to date", out)
            return open_result(target.path, STAGE)
        draws = _Draws(work, corpus, text)
        partial = target.begin()
        # a group of its own, else Zarr warns of a folder that it does not know
        zarr.open_group(str(partial / DRAWS), mode="a", zarr_format=3)
        with target.building() as scratch, ensure_client(client) as active:
            scratch.mkdir()
            for matching in draws.matchings():
                if not (file := partial / DRAWS / matching.file).is_file():
                    save_arrays(draws.make(matching, scratch.absolute(), active), file)
            remove_folder(scratch)
        add_variables(draws.result(partial / DRAWS), partial)
        target.finish()
    return open_result(target.path, STAGE)


def rematch_manifest(
    pairs: Path,
    cor: Path,
    settings: RematchSettings,
    *,
    text: TextInputs | None,
    corpus: str | Path | None,
    identify: Callable[[str | Path], str] = fingerprint,
) -> Manifest:
    """Return what a result depends on; `text` only where a filter of the pairs reads it.

    `identify` returns the fingerprint of what is, or will be, at a path.
    """
    inputs = {"pairs": identify(pairs), "correlation": identify(cor)}
    if corpus is not None and (text is not None or _needs_text(settings)):
        inputs["corpus"] = identify(corpus)
    return new_manifest(
        STAGE, inputs, settings.record() | {"pairs_kept_of": "all nulls, with r", "ranges_count": "overlap"}
    )


def _needs_text(settings: RematchSettings) -> bool:
    return any(ROW_NULLS[name].needs_text for name in settings.nulls)


def draws_done(partial: Path) -> str:
    """Say how many matchings of unfinished work are on disk."""
    done = len(list((partial / DRAWS).glob("*.npz")))
    return f"{done} matchings are done" if done else ""


@dataclass(frozen=True)
class _Work:
    """What is matched again, and the settings that the real pairs were made with."""

    pairs: Path
    cor: Path
    stores: tuple[Path, Path]
    settings: RematchSettings
    correlating: CorrelateSettings
    matching: MatchSettings
    metrics: list[str]

    @classmethod
    def of(cls, pairs: Path, cor: Path, stores: tuple[Path, Path], settings: RematchSettings) -> _Work:
        """Return the work, after checking that all that is given belongs together."""
        chosen, correlation = open_result(pairs, "match"), open_result(cor, "correlate")
        made, correlated = read_manifest(pairs), read_manifest(cor)
        if made is None or correlated is None or made.inputs.get("correlation") != fingerprint(cor):
            raise InputError(f"{pairs} were not chosen from the correlation {cor}; give the one that they were")
        check_stores(stores, correlated.inputs)
        if "halves" in correlated.settings:
            raise InputError(f"{cor} was made with halves that were given, which are not kept: correlate without them")
        matching = _matching(pairs, chosen, made)
        names = ("select", "split_seed", "measure", "min_firing", "kernel")
        correlating = CorrelateSettings(
            **{name: correlated.settings[name] for name in names if name in correlated.settings},
            # neither changes which pairs there are
            top_k=1,
            keep_above=max(matching.min_correlation, float(correlation.attrs["keep_above"])),
            memory=settings.memory,
        )
        return cls(pairs, cor, stores, settings, correlating, matching, _scored(stores, settings.metrics))

    def check_text(self, text: TextInputs | None, corpus: str | Path | None) -> TextInputs | None:
        """Return the text inputs if a filter reads them; raise if something that is read is not given."""
        check_needs(self.matching.filters, text, heldout=self.correlating.n_halves > 1)
        if corpus is not None:
            check_corpus(open_activations(self.stores[0]), open_corpus(corpus))
        return text if self.matching.needs_contexts else None


def _matching(pairs: Path, chosen: xr.Dataset, made: Manifest) -> MatchSettings:
    """Return the settings that pairs were matched by."""
    filters = [
        FILTERS[report["name"]].model_validate(
            {name: report[name] for name in FILTERS[report["name"]].model_fields if name in report}
        )
        for report in _in_given_order(chosen.attrs["filters"], made.settings["filters"])
    ]
    options = {name: made.settings[name] for name in ("method", "min_correlation", "max_uses") if name in made.settings}
    settings = MatchSettings(**options, filters=filters)
    if settings.record() != made.settings:
        raise InputError(f"A list of tokens that {pairs} were filtered by has changed since: match again")
    return settings


def _in_given_order(reports: list[dict[str, Any]], recorded: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the reports of filters, which are in the order of acting, in the order in which filters were given."""
    left = list(reports)
    for each in recorded:
        match = next(one for one in left if (one["name"], one["when"]) == (each["name"], each["when"]))
        left.remove(match)
        yield match


def _scored(stores: tuple[Path, Path], metrics: list[str]) -> list[str]:
    without = [str(path) for path in stores if "decoder" not in open_activations(path)]
    if metrics and without:
        logger.warning("There are no scores: %s has no decoder rows", " and ".join(without))
    return [] if without else metrics


@dataclass(frozen=True)
class _Matching:
    """A matching that is to be made: of the rows that a null uses, real or as a draw has them.

    Of a share of the text, `share`, it is counted; of all of it, scored too.
    """

    null: RowNull
    units: Units
    draw: int | None
    share: float | None = None

    @property
    def file(self) -> str:
        """Name of the file that it is kept in until all are made."""
        of = self.null.name if self.share is None else f"share-{self.share:g}"
        return f"{of}-real.npz" if self.draw is None else f"{of}-{self.draw:05d}.npz"


class _Draws:
    """All matchings of one result: the real one of each null, on the rows that the null uses, and its draws."""

    def __init__(self, work: _Work, corpus: str | Path | None, text: TextInputs | None) -> None:
        self.work, self.text = work, text
        self.half = read_halves(*work.stores, work.correlating.select, seed=work.correlating.split_seed)
        rows = Rows(
            self.half,
            open_activations(work.stores[0]),
            None if corpus is None else open_corpus(corpus),
            work.settings.previous,
        )
        self.nulls: list[RowNull] = [ROW_NULLS[name] for name in work.settings.nulls]
        self.units = {null.name: self._checked(null.name, null.function(rows)) for null in self.nulls}
        #: Units of the first null in each share of the text that has rows enough to be matched.
        self.shares = {
            share: units
            for share in sorted(set(work.settings.fractions) if "document" in rows.store.variables else ())
            if (units := self._of_share(rows, share)) is not None
        }

    def _of_share(self, rows: Rows, share: float) -> Units | None:
        units = self.nulls[0].function(share_of_texts(rows, share))
        if min(self._rows_left(units)) >= FEWEST_ROWS:
            return units
        logger.warning("%g of the text has too few rows for the null %s, and is not matched", share, self.nulls[0].name)
        return None

    def _rows_left(self, units: Units) -> list[int]:
        """Return how many rows of each half a null uses."""
        return [
            int(np.count_nonzero(units.used & (self.half == half))) for half in range(self.work.correlating.n_halves)
        ]

    def _checked(self, name: str, units: Units) -> Units:
        check_units(name, units, self.half)
        for half, left in enumerate(self._rows_left(units)):
            if left < FEWEST_ROWS:
                raise InputError(
                    f"The null {name} can move {left} of {np.count_nonzero(self.half == half)} rows of a half, and "
                    f"correlation needs at least {FEWEST_ROWS}: harvest more text, or leave this null out"
                )
        return units

    def halves(self, units: Units) -> NDArray[np.int8]:
        """Return the half of each row that a null uses; the others count in neither."""
        return np.where(units.used, self.half, -1).astype(np.int8)

    def of_null(self, null: RowNull) -> list[_Matching]:
        """Return the matchings of all text for one null, the real one first."""
        return [_Matching(null, self.units[null.name], draw) for draw in (None, *range(self.work.settings.draws))]

    def of_share(self, share: float) -> list[_Matching]:
        """Return the matchings of a share of the text: the real one, and one draw of the first null."""
        return [_Matching(self.nulls[0], self.shares[share], draw, share) for draw in (None, 0)]

    def matchings(self) -> Iterator[_Matching]:
        """Yield all of them, in the order in which they are made."""
        for null in self.nulls:
            yield from self.of_null(null)
        for share in self.shares:
            yield from self.of_share(share)

    def make(self, matching: _Matching, scratch: Path, client: Client) -> dict[str, NDArray[Any]]:
        """Return all that is kept of a matching; nothing else is left behind."""
        a, b = self.work.stores
        permuted, draw = scratch / "b.zarr", matching.draw
        if draw is not None:
            order = matching.null.order(matching.units, self.work.settings.seed, draw)
            write_permuted(b, order, permuted, memory=allowed_memory(self.work.settings.memory) // 2)
        cor = correlate(
            a,
            b if draw is None else permuted,
            self.work.correlating,
            out=scratch / "correlation.zarr",
            halves=self.halves(matching.units),
            client=client,
        )
        made = self._measured(cor, client, matching)
        where = "" if matching.share is None else f" in {matching.share:g} of the text"
        what = "real" if draw is None else f"draw {draw + 1}"
        figures = (made[name] for name in COUNTS)
        logger.info("%s%s, %s: %d pairs, mean r %.4g, held out %.4g", matching.null.name, where, what, *figures)
        remove_folder(scratch / "correlation.zarr")
        remove_folder(permuted)
        return made

    def _measured(self, cor: xr.Dataset, client: Client, matching: _Matching) -> dict[str, NDArray[Any]]:
        """Return the figures of a matching; of one of the whole text its scores, best r and, if wanted, pairs too."""
        path, settings = Path(cor.encoding["source"]), self.work.matching
        data = Candidates(str(path), cor, read_edges(path, cor, settings.min_correlation), self.text)
        pairs = make_pairs(data, settings)
        means = (pairs.attrs[name] for name in ("n_pairs", "mean_r", "mean_r_heldout"))
        made = {
            name: np.asarray(np.nan if mean is None else mean, np.float64)
            for name, mean in zip(COUNTS, means, strict=True)
        }
        if matching.share is not None:
            return made
        # in the order of their ids, so that the same pairs are shuffled alike, whatever their r
        ordered = pairs.isel(pair=np.lexsort((pairs["feature_b"].values, pairs["feature_a"].values)))
        more = {"best_r": cor["r_b"].values[:, 0], "n_active": cor["n_active_a"].values}
        more |= {f"matched_{name}": ordered[variable].values.astype(dtype) for name, variable, dtype in MATCHED}
        return {name: np.asarray(value) for name, value in {**made, **self._scores(ordered, client), **more}.items()}

    def _scores(self, pairs: xr.Dataset, client: Client) -> dict[str, NDArray[np.float64]]:
        """Return the score of each metric, its mean over shuffled pairings, and how far one more may lie from that.

        Each (metric,), NaN where it is undefined.
        """
        work = self.work
        none = dict.fromkeys(("score", "chance", "chance_reach"), np.full(len(work.metrics), np.nan))
        if not work.metrics:
            return none
        sides = [
            DecoderRows(str(path), pairs[f"feature_{side}"].values, open_activations(path).sizes["d_model"])
            for path, side in zip(work.stores, "ab", strict=True)
        ]
        settings = CompareSettings(
            metrics=work.metrics, null_runs=SHUFFLES, seed=work.settings.seed, memory=work.settings.memory
        )
        try:
            scores = score_pairs((sides[0], sides[1]), {}, settings, client)
        except InputError as error:
            logger.warning("The scores of this draw are undefined: %s", error)
            return none
        shuffled = np.array([expected_range(runs) for runs in scores["null_score"].values[0]])
        mean, high = shuffled[:, 0], shuffled[:, 2]
        return {"score": scores["score"].values, "chance": mean, "chance_reach": high - mean}

    def result(self, folder: Path) -> xr.Dataset:
        """Return the result, from the matchings on disk."""
        loaded = {null.name: _loaded(folder, self.of_null(null)) for null in self.nulls}
        metrics, quantities = self.work.metrics, [*COUNTS, *self.work.metrics]
        values = np.array([[_quantities(each) for each in made] for made in loaded.values()])
        reach = {null: made[0]["chance_reach"] for null, made in loaded.items()}
        scores = np.array([[each["score"] for each in made] for made in loaded.values()])
        used = [self.units[null].used for null in loaded]
        overlap = {null: self.units[null].overlap for null in loaded}
        counted = int(np.count_nonzero(self.half >= 0))
        n_rows = np.array([np.count_nonzero(each) for each in used])
        variables: dict[str, Any] = {
            "value": (("null", "quantity"), values[:, 0]),
            "null_value": (("null", "quantity", "draw"), values[:, 1:].swapaxes(1, 2)),
            "score": (("null", "metric"), scores[:, 0]),
            "null_score": (("null", "metric", "draw"), scores[:, 1:].swapaxes(1, 2)),
            **summarise(dict(zip(loaded, values, strict=True)), reach, overlap),
            "n_rows": ("null", n_rows),
            "n_left_out": ("null", counted - n_rows),
            "n_groups": ("null", np.array([self.units[null].n_groups for null in loaded])),
            "overlap": ("null", np.array([*overlap.values()])),
            **self._growth(folder, values[0, :, 0]),
        }
        if CHANCE in loaded:
            variables |= self._of_features(loaded[CHANCE])
        variables |= _pairs_of(loaded)
        names = {"null": list(loaded), "quantity": quantities, "metric": metrics}
        coords = {name: np.array(listed, object) for name, listed in names.items() if listed}
        if not metrics:
            variables = {name: value for name, value in variables.items() if "metric" not in value[0]}
        attrs = {"n_draws": self.work.settings.draws, "n_shuffles": SHUFFLES, "n_counted": counted}
        return xr.Dataset(variables, coords, attrs | self._described())

    def _growth(self, folder: Path, whole: NDArray[np.float64]) -> dict[str, Any]:
        """Return how many pairs there are of each share of the text, as variables; `whole` are those of all of it."""
        made = [_loaded(folder, self.of_share(share)) for share in self.shares]
        counts = [*([float(each["pairs"]) for each in both] for both in made), [whole[0], whole[1:].mean()]]
        rows = [np.count_nonzero(units.used) for units in (*self.shares.values(), self.units[self.nulls[0].name])]
        pairs, null_pairs = np.array(counts).T
        return {
            "fraction": ("size", np.array([*self.shares, 1.0])),
            "size_rows": ("size", np.array(rows)),
            "size_pairs": ("size", pairs),
            "size_null_pairs": ("size", null_pairs),
        }

    def _described(self) -> dict[str, Any]:
        attrs = open_result(self.work.pairs, "match").attrs
        return {name: attrs[name] for name in ("site_a", "site_b", "model_a", "model_b", "measure") if name in attrs}

    def _of_features(self, loaded: list[dict[str, NDArray[Any]]]) -> dict[str, Any]:
        """Return the best r of each A feature, with its tests against chance, as variables."""
        real, draws = loaded[0], np.array([each["best_r"] for each in loaded[1:]])
        choosing = self.halves(self.units[CHANCE]) == 0
        strata = strata_of(real["n_active"], documents_of_features(self.work.stores[0], choosing))
        tests = feature_tests(real["best_r"], draws, strata)
        variables = {"best_r": real["best_r"]} | {f"best_r_{name}": values for name, values in tests.items()}
        return {name: ("feature_a", values) for name, values in variables.items()}


def _loaded(folder: Path, matchings: list[_Matching]) -> list[dict[str, NDArray[Any]]]:
    return [load_arrays(folder / matching.file) for matching in matchings]


def _pairs_of(loaded: Mapping[str, list[dict[str, NDArray[Any]]]]) -> dict[str, Any]:
    """Return the pairs of all matchings of all nulls, the real one of each first, as variables."""
    made = [each for of_null in loaded.values() for each in of_null]
    counts = [len(each["matched_a"]) for each in made]
    places = [(null, draw) for null, of_null in enumerate(loaded.values()) for draw in range(-1, len(of_null) - 1)]
    of_null, of_draw = np.repeat(np.array(places, np.int32), counts, axis=0).T
    columns = {"null": of_null, "in": of_draw}
    columns |= {name: np.concatenate([each[f"matched_{name}"] for each in made]) for name, _, _ in MATCHED}
    return {f"matched_{name}": ("matched", values) for name, values in columns.items()}


def drawn_pairs(rematched: xr.Dataset, null: str) -> Iterator[dict[str, NDArray[Any]]]:
    """Yield the pairs of the real rows that a null uses, and then of each of its draws.

    Each has ``a``, ``b``, int32, and ``r``, ``r_heldout``, float32, (pair,) each, in the order of the features.
    FormatError if the result is of an earlier release, which kept those of one null alone.
    """
    if "matched_null" not in rematched:
        path = rematched.encoding.get("source", "the result of rematch")
        raise FormatError(f"{path} is of an earlier release; make it again with: subspace run EXPERIMENT.yaml")
    number = rematched["null"].values.tolist().index(null)
    columns = {name: rematched[f"matched_{name}"].values for name in ("null", "in", *(name for name, _, _ in MATCHED))}
    of_null, of_draw = columns.pop("null"), columns.pop("in")
    for draw in range(-1, rematched.attrs["n_draws"]):
        here = np.flatnonzero((of_null == number) & (of_draw == draw))
        yield {name: values[here] for name, values in columns.items()}


def share_of_texts(rows: Rows, fraction: float) -> Rows:
    """Return the rows with only a share of the documents, or groups of them, of either half counted.

    They are chosen by a hash of their number, so that smaller shares are parts of larger ones.
    """
    half, texts = np.full_like(rows.half, -1), rows.texts
    for number in np.unique(rows.half[rows.half >= 0]):
        of_half = np.unique(texts[rows.half == number])
        in_order = of_half[np.argsort(splitmix64(of_half), kind="stable")]
        chosen = np.isin(texts, in_order[: int(np.ceil(fraction * len(in_order)))])
        half[chosen & (rows.half == number)] = number
    return dataclasses.replace(rows, half=half)


def _quantities(made: Mapping[str, NDArray[Any]]) -> list[float]:
    return [*(float(made[name]) for name in COUNTS), *(made["score"] - made["chance"]).tolist()]


def summarise(
    values: Mapping[str, NDArray[np.float64]],
    reach: Mapping[str, NDArray[np.float64]],
    overlap: Mapping[str, float],
) -> dict[str, tuple[tuple[str, str], NDArray[np.float64]]]:
    """Return, over (null, quantity), what the real values mean beside the draws.

    Parameters
    ----------
    values
        By null, (1 + draw, quantity), the real ones first; quantities are :data:`COUNTS` and then the scores.
    reach
        By null, (metric,): how far above 0 a real score may lie by chance.
    overlap
        By null, the share of partners that two draws have in common.

    Returns
    -------
    dict
        Variables of a dataset, by the names of :data:`SUMMARY`.

    Examples
    --------
    >>> real, null, chance = [100.0, 0.5, 0.5], [[90.0, 0.4, 0.3], [92, 0.4, 0.3]], [[4.0, 0.3, 0.0], [6, 0.3, 0.0]]
    >>> draws = {"token": np.array([real, *null]), "document": np.array([real, *chance])}
    >>> found = summarise(draws, dict.fromkeys(draws, np.array([])), dict.fromkeys(draws, 0.0))
    >>> found["beyond"][1][0].round(3).tolist(), found["p"][1][0].round(2).tolist()
    ([0.095, 0.2, 0.4], [0.33, 0.33, 0.33])
    """
    shape = len(values), len(next(iter(values.values()))[0])
    summary = {name: np.full(shape, np.nan) for name in SUMMARY}
    for i, (null, of_null) in enumerate(values.items()):
        # r of the few pairs that chance makes is no chance level of r: they were selected for it
        chances = [_chance(values, overlap), NO_CHANCE, NO_CHANCE]
        chances += [Range(0.0, -above, above) for above in reach[null].tolist()]
        for j, chance in enumerate(chances):
            for name, value in zip(SUMMARY, _summary(of_null[:, j], chance, overlap[null]), strict=True):
                summary[name][i, j] = value
        if null == CHANCE:
            # means of different pairs in every draw, of which there are few: neither interval nor p would hold
            for name in UNSAID:
                summary[name][i, 1 : len(COUNTS)] = np.nan
    return {name: (("null", "quantity"), array) for name, array in summary.items()}


def _summary(values: NDArray[np.float64], chance: Range, overlap: float) -> tuple[float, ...]:
    real, draws = float(values[0]), values[1:]
    null = expected_range(draws, overlap)
    difference = (real - null.mean, real - null.high, real - null.low)
    p = p_of_overlapping(real, draws[~np.isnan(draws)], overlap)
    return (*null, *difference, p, *share_beyond(real, null, chance))


def _chance(values: Mapping[str, NDArray[np.float64]], overlap: Mapping[str, float]) -> Range:
    """Return how many pairs there are by chance: as the null of documents has it, else 0."""
    drawn = expected_range(values[CHANCE][1:, 0], overlap[CHANCE]) if CHANCE in values else NO_CHANCE
    return drawn if np.isfinite(drawn.high) else NO_CHANCE
