"""The stage: score the matched pairs' decoder rows, and the same rows paired at random."""

from __future__ import annotations

import hashlib
import logging
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import xarray as xr
from dask.utils import format_bytes, parse_bytes
from distributed import Client, Future
from distributed.system import MEMORY_LIMIT
from numpy.typing import NDArray

from pipeline.compare import cca, rsa
from pipeline.compare.nulls import Score, Shuffles, null_scores, score_once
from pipeline.compare.rows import MIN_PAIRS, DecoderRows, paired_rows
from pipeline.statistics import effect_size, p_value
from pipeline.workers import ensure_client
from storage import fingerprint, make_result, new_manifest, open_activations, open_result
from storage.errors import BudgetError, InputError

logger = logging.getLogger(__name__)

STAGE = "compare"
QUANTILES = {"null_q05": 0.05, "null_q95": 0.95}


@dataclass(frozen=True)
class Family:
    """Metrics that share one preparation of the rows.

    Attributes
    ----------
    prepare
        Makes from both sides' rows what every pairing reuses.
    scores
        The metrics, by name.
    warn
        Says, from what was prepared, why a metric's score means little; an empty string where it does not.
    memory
        Bytes that all this takes at most, for n pairs of d_a and d_b dimensions.
    """

    prepare: Callable[[NDArray[np.float64], NDArray[np.float64]], Any]
    scores: Mapping[str, Score]
    warn: Mapping[str, Callable[[Any], str]]
    memory: Callable[[int, int, int], int]


FAMILIES = (
    Family(
        cca.single_subspaces,
        {"svcca": cca.mean_canonical_correlation, "svcca_pc1": cca.first_component_correlation},
        {"svcca": cca.saturation},
        cca.memory_needed,
    ),
    Family(rsa.ranked_similarities, {"rsa": rsa.rank_correlation}, {}, rsa.memory_needed),
)
METRICS = tuple(name for family in FAMILIES for name in family.scores)


@dataclass
class Outcome:
    """One metric's score, its null, and what to know about them."""

    score: float
    null: NDArray[np.float64]
    note: str


def compare(
    pairs: xr.Dataset | str | Path,
    a: xr.Dataset | str | Path,
    b: xr.Dataset | str | Path,
    *,
    metrics: Sequence[str] = ("svcca", "rsa", "svcca_pc1"),
    null_runs: int = 1000,
    seed: int = 0,
    out: str | Path | None = None,
    client: Client | None = None,
    memory: str | int = "auto",
) -> xr.Dataset:
    """Score how alike the decoder rows of matched features are, each score beside its null.

    The null pairs the same rows at random: what it scores is due to the numbers of rows and dimensions, and to the
    shape of either side, but not to who was matched with whom. Decompositions and ranks are computed once and reused
    by every shuffled run. Results do not depend on the number of workers.

    Parameters
    ----------
    pairs
        Matched pairs, or the path of a result of :func:`pipeline.match`.
    a, b
        Activation stores with decoder rows, or their paths.
    metrics
        ``svcca``: mean canonical correlation of the components that hold 99 % of the variance; ``rsa``: Spearman's
        correlation of cosine similarities; ``svcca_pc1``: correlation on the first component, published as SVCCA.
    null_runs
        Number of shuffled pairings.
    seed
        Seed of the shuffles.
    out
        Where the result is written; a current one is left as it is. In memory only if absent.
    client
        Where the tasks run; threads of this process by default.
    memory
        What one worker may use, as ``"4GB"`` or bytes; half of what is free if ``"auto"``.

    Returns
    -------
    xarray.Dataset
        ``score(metric)``, ``null(metric, run)``, ``null_mean``, ``null_std``, ``null_q05``, ``null_q95``, ``z``, and
        ``p``, all float64; ``n_pairs`` int64; ``note(metric)``, text. With fewer than 3 pairs, or where a metric is
        undefined on these rows, scores are NaN and the note says why.

    Raises
    ------
    InputError
        If a metric is unknown, a store has no decoder rows or not the features of the pairs, or a metric fails on
        shuffled pairings.
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
    >>> scores.score.values.round(2).tolist(), scores.p.values.tolist()
    ([1.0, 0.89], [0.01, 0.01])
    """
    _check_settings(metrics, null_runs, seed)
    matched = pairs if isinstance(pairs, xr.Dataset) else open_result(pairs, "match")
    rows = _decoder_rows(matched, a, "a"), _decoder_rows(matched, b, "b")
    inputs = _inputs(rows)
    _check_stores(matched, inputs)
    settings = {"metrics": list(metrics), "null_runs": null_runs, "seed": seed, "svcca_variance": cca.VARIANCE}
    manifest = new_manifest(STAGE, inputs, settings)
    shuffles = Shuffles(len(rows[0].features), null_runs, seed)

    def make() -> xr.Dataset:
        return _dataset(_outcomes(rows, metrics, shuffles, memory, client), shuffles).assign_attrs(manifest.to_attrs())

    return make_result(out, manifest, make)


def _check_settings(metrics: Sequence[str], null_runs: int, seed: int) -> None:
    unknown = [name for name in metrics if name not in METRICS]
    if unknown or not metrics or len(set(metrics)) < len(metrics):
        raise InputError(f"metrics are some of {', '.join(METRICS)}, each once; not {list(metrics)}")
    if null_runs < 1:
        raise InputError(f"null_runs is {null_runs}: a score means nothing without at least one shuffled run")
    if seed < 0:
        raise InputError(f"seed is {seed}: give 0 or a positive whole number")


def _decoder_rows(pairs: xr.Dataset, store: xr.Dataset | str | Path, side: str) -> DecoderRows:
    """Return where to read one side's rows, after checking that they are there; nothing is read yet."""
    path = _path_of(store)
    with open_activations(path) as opened:
        if "decoder" not in opened:
            raise InputError(
                f"{path} has no decoder rows, which the metrics compare; write the store with decoder=…, or harvest it "
                "with a dictionary"
            )
        d_model, n_features = opened.sizes["d_model"], opened.sizes["feature"]
    features = pairs[f"feature_{side}"].values.astype(np.int32)
    matched_from = pairs.sizes.get(f"id_{side}", n_features)
    if matched_from != n_features or features.max(initial=-1) >= n_features:
        n_needed = max(matched_from, int(features.max(initial=-1)) + 1)
        raise InputError(
            f"{path} has {n_features} features, but side {side.upper()} of the pairs has {n_needed}: give the stores "
            "that were correlated, A first"
        )
    return DecoderRows(path, features, d_model)


def _path_of(store: xr.Dataset | str | Path) -> str:
    if not isinstance(store, xr.Dataset):
        return str(store)
    if "source" not in store.encoding:
        raise InputError("This activation dataset does not know its path on disk; give the path of the store instead")
    return str(store.encoding["source"])


def _inputs(rows: tuple[DecoderRows, DecoderRows]) -> dict[str, str]:
    """Return fingerprints of what the scores depend on: both stores, and which features are paired, in which order."""
    ids = hashlib.sha256(b"".join(side.features.astype("<i4").tobytes() for side in rows)).hexdigest()
    return {"pairs": ids, "a": fingerprint(rows[0].path), "b": fingerprint(rows[1].path)}


def _check_stores(pairs: xr.Dataset, inputs: Mapping[str, str]) -> None:
    """Refuse swapped stores; others than those correlated may be meant (the same dictionaries on new text)."""
    correlated = pairs.attrs.get("stores") or inputs
    given = [inputs[side] for side in "ab"]
    expected = [correlated.get(side) for side in "ab"]
    if given == expected[::-1] != expected:
        raise InputError(
            "the stores are in the wrong order: side A of the pairs comes from the one given as b; swap them"
        )
    if given != expected:
        logger.warning("The pairs were matched on other stores than those given; only their decoder rows are used")


def _outcomes(
    rows: tuple[DecoderRows, DecoderRows],
    metrics: Sequence[str],
    shuffles: Shuffles,
    memory: str | int,
    client: Client | None,
) -> dict[str, Outcome]:
    n = shuffles.n
    if n < MIN_PAIRS:
        logger.warning("%d pairs are too few to compare; the scores are undefined", n)
        note = f"undefined: {n} pairs, at least {MIN_PAIRS} are needed"
        return {name: Outcome(np.nan, np.full(shuffles.runs, np.nan), note) for name in metrics}
    families = [family for family in FAMILIES if set(metrics) & set(family.scores)]
    _check_memory(families, rows, memory)
    with ensure_client(client) as used:
        # all are submitted before the first is waited for: what one family computes in one thread, others overlap
        states = [
            used.submit(_prepare, *rows, family.prepare, pure=False, key=_key("prepare", family)) for family in families
        ]
        found = [
            _family_outcomes(used, family, state, metrics, shuffles)
            for family, state in zip(families, states, strict=True)
        ]
    merged = {name: outcome for outcomes in found for name, outcome in outcomes.items()}
    return {name: merged[name] for name in metrics}


def _key(step: str, family: Family) -> str:
    return f"compare-{step}-{'-'.join(family.scores)}-{uuid.uuid4().hex}"


def _check_memory(families: Sequence[Family], rows: tuple[DecoderRows, DecoderRows], memory: str | int) -> None:
    n, d_a, d_b = len(rows[0].features), rows[0].d_model, rows[1].d_model
    allowed = min(psutil.virtual_memory().available, MEMORY_LIMIT) // 2 if memory == "auto" else parse_bytes(memory)
    needed = {"/".join(family.scores): family.memory(n, d_a, d_b) for family in families}
    total = sum(needed.values())
    if "rsa" in needed and n > rsa.MAX_PAIRS:
        raise BudgetError(
            f"{n} pairs are too many for exact RSA, which takes {rsa.MAX_PAIRS} at most; match fewer pairs "
            "(a higher min_correlation), or leave rsa out"
        )
    if total > allowed:
        parts = ", ".join(f"{name} {format_bytes(size)}" for name, size in needed.items())
        raise BudgetError(
            f"{n} pairs need {format_bytes(total)} ({parts}), allowed are {format_bytes(allowed)}; match fewer pairs "
            "(a higher min_correlation), leave a metric out, or allow more memory"
        )


def _prepare(a: DecoderRows, b: DecoderRows, prepare: Callable[[NDArray[np.float64], NDArray[np.float64]], Any]) -> Any:
    return prepare(*paired_rows(a.read(), b.read()))


def _family_outcomes(
    client: Client, family: Family, state: Future, metrics: Sequence[str], shuffles: Shuffles
) -> dict[str, Outcome]:
    """Score the real pairing, then, for the metrics that are defined on these rows, the shuffled ones."""
    wanted = {name: score for name, score in family.scores.items() if name in metrics}
    warnings = {name: family.warn[name] for name in wanted if name in family.warn}
    scores, notes = client.submit(
        _observe, state, list(wanted.values()), warnings, shuffles.n, pure=False, key=_key("score", family)
    ).result()
    outcomes = {
        name: Outcome(score, np.full(shuffles.runs, np.nan), notes.get(name, ""))
        for name, score in zip(wanted, scores, strict=True)
    }
    defined = {name: score for name, score in wanted.items() if np.isfinite(outcomes[name].score)}
    for name in wanted.keys() - defined.keys():
        outcomes[name].note = "undefined: the rows of a side do not vary, or one is zero"
        logger.warning("%s is %s", name, outcomes[name].note)
    if defined:
        label = f"{' and '.join(defined)} of shuffled pairs"
        null = null_scores(client, defined, state, shuffles, label)
        for name, values in zip(defined, null, strict=True):
            outcomes[name].null = values
    return outcomes


def _observe(
    state: Any, scores: Sequence[Score], warnings: Mapping[str, Callable[[Any], str]], n: int
) -> tuple[list[float], dict[str, str]]:
    return score_once(state, scores, np.arange(n)), {name: warn(state) for name, warn in warnings.items()}


def _dataset(outcomes: Mapping[str, Outcome], shuffles: Shuffles) -> xr.Dataset:
    null = np.array([outcome.null for outcome in outcomes.values()])
    each = [(outcome.score, outcome.null) for outcome in outcomes.values()]
    columns: dict[str, Any] = {
        "score": [score for score, _ in each],
        "null_mean": null.mean(axis=1),
        "null_std": null.std(axis=1),
        **{name: np.quantile(null, level, axis=1) for name, level in QUANTILES.items()},
        "z": [effect_size(*one) for one in each],
        "p": [p_value(*one) for one in each],
    }
    variables = {name: ("metric", np.asarray(values, np.float64)) for name, values in columns.items()}
    notes = np.array([outcome.note for outcome in outcomes.values()], object)
    return xr.Dataset(
        {
            **variables,
            "null": (("metric", "run"), null),
            "note": ("metric", notes),
            "n_pairs": ((), np.int64(shuffles.n)),
        },
        coords={"metric": np.array(list(outcomes), object)},
        attrs={
            "n_pairs": shuffles.n,
            "null_runs": shuffles.runs,
            "seed": shuffles.seed,
            "null": "shuffled pairing",
            "svcca_variance": cca.VARIANCE,
        },
    )
