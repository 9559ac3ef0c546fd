"""Concepts × site pairs in one dataset, with p corrected over all of them, and as CSV, HTML and LaTeX.

A test is one subspace at one pair of sites by one judged metric, SVCCA or RSA. Its p is the *largest* over what a
shared meaning has to beat (an intersection–union test: Berger, Technometrics 24, 1982): shuffled pairings (who is
matched with whom matters), random pairs of the whole space (this set is more alike than others of as many pairs), and,
for concepts, random keywords (this *meaning* is, and not any few words). Only then it is corrected, over one family:
all concepts, approaches, judged metrics and pairs of sites together; clusters, which nobody named beforehand, are a
family of their own. A subspace *passes both* when both metrics do.

Where matchings with rows of the same text permuted are there (``rematch``), the *token null* is asked too: is what is
shared more than the words? A subspace that passes both is *beyond the word* if by both metrics the largest p over those
nulls *and* the token null is below the level, after the same correction over the same family. Twenty draws cannot give
a p that small, and no other is made up. Where draws are too few, and no draw is as high as the real score, the question
is *open*: the difference from the draws, with its interval, is the answer (:func:`beyond_the_word`).

Corrected p for each null on its own, over the rows of each kind and approach, are in the table too: they are no
verdict.

The SVCCA that is judged keeps 4 components a side (``svcca:k=4``). With 99 % of the variance, as in the paper, a
concept's few pairs have nearly as many components as pairs: two such spaces meet in almost all directions, every
pairing scores 1, and no p can be small. Four is the most that leaves ten pairs unsaturated (n > k_A + k_B).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from pipeline.compare.statistics import benjamini_hochberg, holm
from pipeline.settings.semantics import SemanticsSettings
from storage import Manifest, fingerprint, make_result, new_manifest, open_result
from storage.derived import write_derived

STAGE = "semantics-table"
#: Level below which a corrected p counts.
LEVEL = 0.05
#: Metrics and nulls that the verdict is made of.
JUDGED = tuple(SemanticsSettings().judged)
JUDGED_NULLS = {
    "concept": ("shuffled", "random_pairs", "random_keywords"),
    "cluster": ("shuffled", "random_pairs"),
}
#: What a verdict may be; stored as its place in this list. First and second are the judged metrics.
VERDICTS = ("too_few_pairs", "neither", "first_only", "second_only", "passes_both", "not_judged")
#: What is said of a subspace and its words; stored as its place in this list.
BEYOND = ("not_judged", "not_shown", "open", "beyond")
KEYS = ("kind", "name", "approach", "site_a", "site_b")

SitePair = tuple[str, str]
Floats = NDArray[np.float64]


def semantics_table(
    results: Mapping[SitePair, str | Path],
    out: str | Path | None = None,
    *,
    judged: Sequence[str] = JUDGED,
    overwrite: bool = False,
) -> xr.Dataset:
    """Gather the subspaces of all pairs of sites, correct their p, and judge them.

    Parameters
    ----------
    results
        The semantics results, by pair of sites.
    out
        Where the table is written; a current one is left as it is. In memory only if absent.
    overwrite
        Whether a result at `out` that came from other inputs may be replaced.
    judged
        The two metrics of the verdict. What lacks them, or a null of the verdict, is not judged.

    Returns
    -------
    xarray.Dataset
        Over ``row``, one subspace at one pair of sites each: ``kind``, ``name``, ``approach``, ``site_a``, ``site_b``,
        ``words`` text; ``n_pairs``, ``n_a``, ``n_b``, ``n_tested`` int64; ``n_effective``, ``overlap``, ``coherence``,
        ``coherence_random``, ``coherence_p`` float64; ``score(row, metric)``; ``null_mean``, ``null_std``,
        ``null_q05``, ``null_q95``, ``z``, ``p``, ``p_holm``, ``p_bh`` (row, metric, null) float64; ``p_joint``,
        ``p_joint_holm``, ``p_joint_bh`` (row, metric) float64, the largest p over the nulls of the verdict and what it
        is after correction; ``note(row, metric)``, ``no_keywords(row)`` text; ``verdict(row)`` int8, places in
        :data:`VERDICTS`. The attribute ``correction`` names the correction that the verdict uses: ``p_holm``, or
        ``p_bh`` where there are too few runs for Holm's to fall below 0.05; ``n_tests`` and ``n_tests_of_clusters`` say
        over how many tests. Where the results have them, the columns of
        :func:`pipeline.semantics.token_null.token_columns`; ``p_beyond``, ``p_beyond_holm``, ``p_beyond_bh`` (row,
        metric), as ``p_joint`` with the token null; ``beyond(row)`` int8, places in :data:`BEYOND`; and the attributes
        ``token_draws`` and ``token_draws_needed``, with how many p could be small enough.

    Raises
    ------
    MissingInputError
        If a result is missing.

    Notes
    -----
    :func:`unstacked` makes concepts × site pairs of it.
    """
    manifest = table_manifest(results, judged)
    return make_result(out, manifest, lambda: _gather(results, judged), overwrite=overwrite)


def table_manifest(
    results: Mapping[SitePair, str | Path], judged: Sequence[str], identify: Callable[[str | Path], str] = fingerprint
) -> Manifest:
    """Return what the table depends on; `identify` returns the fingerprint of what is, or will be, at a path."""
    inputs = {f"{a}--{b}": identify(path) for (a, b), path in results.items()}
    nulls = {kind: list(names) for kind, names in JUDGED_NULLS.items()}
    settings = {"level": LEVEL, "judged": list(judged), "nulls": nulls, "beyond": list(BEYOND)}
    return new_manifest(STAGE, inputs, settings)


def _gather(results: Mapping[SitePair, str | Path], judged: Sequence[str]) -> xr.Dataset:
    parts, runs, draws = [], [], []
    for (site_a, site_b), path in results.items():
        with open_result(path, "semantics") as opened:
            part = opened.drop_dims("member").load()
        runs.append(int(part.attrs["null_runs"]))
        draws += [int(part.attrs["token_draws"])] if "token_draws" in part.attrs else []
        sites = {
            key: ("subspace", np.full(part.sizes["subspace"], site, object))
            for key, site in {"site_a": site_a, "site_b": site_b}.items()
        }
        parts.append(part.drop_attrs().assign(sites))
    table = corrected(xr.concat(parts, "subspace").rename_dims(subspace="row"))
    joint = joint_p(table, judged)
    most = max(joint.attrs.values())
    correction = "p_holm" if most / (min(runs) + 1) < LEVEL else "p_bh"
    table = table.merge(joint.drop_attrs())
    verdict = judge(table, f"p_joint_{correction.removeprefix('p_')}", judged)
    table = table.assign(verdict=("row", verdict, _verdict_attrs()))
    attrs = {"correction": correction, "level": LEVEL, "null_runs": min(runs), "judged": list(judged), **joint.attrs}
    if draws:
        # of N draws, the smallest p is 1 / (N + 1); times the number of tests it is to be below the level
        needed = math.floor(joint.attrs["n_tests"] / LEVEL + 1e-9)
        table = beyond_the_word(table, correction, judged, enough=min(draws) >= needed)
        attrs |= {"token_draws": min(draws), "token_draws_needed": needed}
    return table.assign_attrs(attrs)


def joint_p(table: xr.Dataset, judged: Sequence[str] = JUDGED) -> xr.Dataset:
    """Return the largest p of each row and judged metric over the nulls of the verdict, alone and corrected over all.

    ``p_joint``, ``p_joint_holm`` and ``p_joint_bh`` (row, metric), NaN where a null is missing; ``n_tests`` counts the
    tests of concepts, ``n_tests_of_clusters`` those of clusters.
    """
    p = table["p"].transpose("row", "metric", "null").values
    all_nulls = table["null"].values.tolist()
    largest = np.full(p.shape[:2], np.nan)
    of_metric = np.isin(table["metric"].values, list(judged))
    for kind, nulls in JUDGED_NULLS.items():
        if set(nulls) <= set(all_nulls):
            of_kind = np.ix_(table["kind"].values == kind, of_metric)
            largest[of_kind] = p[of_kind][..., [all_nulls.index(null) for null in nulls]].max(axis=2)
    tests = {kind: int(np.count_nonzero(np.isfinite(largest[table["kind"].values == kind]))) for kind in JUDGED_NULLS}
    return xr.Dataset(
        {name: (("row", "metric"), values) for name, values in _in_families("p_joint", largest, table).items()},
        attrs={"n_tests": tests["concept"], "n_tests_of_clusters": tests["cluster"]},
    )


def _in_families(name: str, p: Floats, table: xr.Dataset) -> dict[str, Floats]:
    """Return p (row, metric) and what it is after correction, concepts and clusters each as one family."""
    columns = {name: p, f"{name}_holm": p.copy(), f"{name}_bh": p.copy()}
    for kind in JUDGED_NULLS:
        family = np.flatnonzero(table["kind"].values == kind)
        for method, correct in (("holm", holm), ("bh", benjamini_hochberg)):
            columns[f"{name}_{method}"][family] = correct(p[family].ravel()).reshape(p[family].shape)
    return columns


def beyond_the_word(table: xr.Dataset, correction: str, judged: Sequence[str], *, enough: bool) -> xr.Dataset:
    """Add ``p_beyond``, alone and corrected, and ``beyond``: whether a subspace beats the token null as well.

    It is judged only of subspaces with a joint p and a token null by both metrics. The family of the correction is that
    of the joint p: what has no token null counts as a test that fails.

    Parameters
    ----------
    table
        With ``p_joint``, ``token_p``, ``token_above`` and ``verdict``.
    correction
        ``p_holm`` or ``p_bh``.
    judged
        The two metrics of the verdict.
    enough
        Whether there are draws enough for a corrected p below the level.
    """
    joint = table["p_joint"].transpose("row", "metric").values
    token = table["token_p"].transpose("row", "metric").values
    counted = np.maximum(joint, np.where(np.isnan(token), 1.0, token))
    columns = {
        name: (("row", "metric"), np.where(np.isnan(token), np.nan, values))
        for name, values in _in_families("p_beyond", counted, table).items()
    }
    table = table.assign(columns)
    of_metrics = [table["metric"].values.tolist().index(metric) for metric in judged if metric in table["metric"]]
    alone, after = (columns[name][1][:, of_metrics] for name in ("p_beyond", f"p_beyond_{correction[2:]}"))
    above = table["token_above"].transpose("row", "metric").values[:, of_metrics]
    passes = table["verdict"].values == VERDICTS.index("passes_both")
    said = np.full(table.sizes["row"], BEYOND.index("not_shown"), np.int8)
    said[passes & (above == 0).all(axis=1) & (not enough)] = BEYOND.index("open")
    said[passes & (after < LEVEL).all(axis=1) & enough] = BEYOND.index("beyond")
    unknown = np.isnan(alone).any(axis=1) | (len(of_metrics) < len(judged))
    said[unknown] = BEYOND.index("not_judged")
    attrs = {
        "long_name": "whether the token null is beaten as well",
        "flag_values": list(range(len(BEYOND))),
        "flag_meanings": " ".join(BEYOND),
    }
    return table.assign(beyond=("row", said, attrs))


def corrected(table: xr.Dataset) -> xr.Dataset:
    """Add ``p_holm`` and ``p_bh``: over all rows of one kind and approach, for each metric and null on its own."""
    p = table["p"].transpose("row", "metric", "null").values
    adjusted = {"p_holm": np.full_like(p, np.nan), "p_bh": np.full_like(p, np.nan)}
    for rows in _families(table):
        for metric, null in np.ndindex(*p.shape[1:]):
            adjusted["p_holm"][rows, metric, null] = holm(p[rows, metric, null])
            adjusted["p_bh"][rows, metric, null] = benjamini_hochberg(p[rows, metric, null])
    return table.assign({name: (("row", "metric", "null"), values) for name, values in adjusted.items()})


def _families(table: xr.Dataset) -> Iterator[NDArray[np.int64]]:
    """Yield the rows that count as tests of one kind."""
    keys = list(zip(table["kind"].values, table["approach"].values, strict=True))
    for key in dict.fromkeys(keys):
        yield np.flatnonzero([key_of_row == key for key_of_row in keys])


def judge(table: xr.Dataset, correction: str, judged: Sequence[str] = JUDGED) -> NDArray[np.int8]:
    """Return each row's verdict by two metrics and the corrected joint p that decides, int8, shape (row,)."""
    not_judged = VERDICTS.index("not_judged")
    if not set(judged) <= set(table["metric"].values.tolist()):
        return np.full(table.sizes["row"], not_judged, np.int8)
    p = table[correction].sel(metric=list(judged)).transpose("row", "metric").values
    scored = np.isfinite(table["score"].sel(metric=list(judged)).transpose("row", "metric").values).all(axis=1)
    wins = p < LEVEL
    # neither 1, the first only 2, the second only 3, both 4
    verdict = 1 + wins[:, 0] + 2 * wins[:, 1]
    verdict = np.where(np.isfinite(p).all(axis=1), verdict, not_judged)
    return np.where(scored, verdict, 0).astype(np.int8)


def _verdict_attrs() -> dict[str, Any]:
    return {
        "long_name": "what both metrics say after correction, against all nulls of the verdict",
        "flag_values": list(range(len(VERDICTS))),
        "flag_meanings": " ".join(VERDICTS),
    }


def unstacked(table: xr.Dataset, kind: str = "concept") -> xr.Dataset:
    """Return the rows of one kind as concepts × site pairs.

    Parameters
    ----------
    table
        From :func:`semantics_table`.
    kind
        ``concept`` or ``cluster``.

    Returns
    -------
    xarray.Dataset
        Dims (name, approach, site_a, site_b) in place of ``row``, in their order of appearance; NaN, or an empty
        text, where there is no such row.
    """
    rows = table.isel(row=np.flatnonzero(table["kind"].values == kind)).drop_vars("kind")
    keys = KEYS[1:]
    order = {key: list(dict.fromkeys(rows[key].values.tolist())) for key in keys}
    return rows.set_index(row=list(keys)).unstack("row").reindex(order)  # unstack sorts


def frame(table: xr.Dataset) -> pd.DataFrame:
    """Return the table of :func:`semantics_table` with one line for each subspace, metric and null, for CSV."""
    long = table.drop_attrs().to_dataframe(dim_order=["row", "metric", "null"]).reset_index()
    for name, texts in (("verdict", VERDICTS), ("beyond", BEYOND)):
        if name in long:
            long[name] = [texts[value] for value in long[name]]
    first = [*KEYS, "n_pairs", "n_tested", "metric", "null", "score"]
    return long[[*first, *(name for name in long.columns if name not in [*first, "row"])]]


def study_frame(table: xr.Dataset, metrics: Sequence[str] | None = None) -> pd.DataFrame:
    """Return the table in the columns of the study, one line for each subspace; by default with the judged metrics.

    Sites, concept, approach, pairs, and for each metric its score, the mean of each null and the p against it, and the
    corrected p against all nulls of the verdict; where there is a token null, how far the score lies above its draws,
    with the interval, and how many draws are as high; then coherence, that of random sets and its p, the overlap of the
    approaches, and the verdicts.
    """
    correction = str(table.attrs["correction"])
    shown = [metric for metric in metrics or table.attrs["judged"] if metric in table["metric"].values]
    labels = {"A": "site_a", "B": "site_b", "Concept": "name", "Approach": "approach", "Pairs": "n_pairs"}
    columns: dict[str, Any] = {label: table[key].values for label, key in labels.items()}
    for metric in shown:
        name, scores = metric.upper(), table.sel(metric=metric)
        columns[name] = scores["score"].values
        for null in table["null"].values.tolist():
            label = NULL_LABELS.get(null, null)
            columns[f"{name} {label}"] = scores["null_mean"].sel(null=null).values
            columns[f"{name} p {label}"] = scores["p"].sel(null=null).values
        columns[f"{name} p"] = scores[f"p_joint_{correction.removeprefix('p_')}"].values
        if "beyond" in table:
            of_token = {"beyond the word": "difference", "low": "difference_low", "high": "difference_high"}
            columns |= {f"{name} {label}": scores[f"token_{key}"].values for label, key in of_token.items()}
            columns[f"{name} draws above"] = scores["token_above"].values
    labels = {
        "Coherence": "coherence",
        "random coherence": "coherence_random",
        "coherence p": "coherence_p",
        "Overlap": "overlap",
    }
    columns |= {label: table[key].values for label, key in labels.items()}
    columns["Verdict"] = verdict_texts(table)
    if "beyond" in table:
        columns["Beyond the word"] = [BEYOND_TEXTS[BEYOND[place]] for place in table["beyond"].values]
    return pd.DataFrame(columns)


def verdict_texts(table: xr.Dataset) -> list[str]:
    """Return each row's verdict in words."""
    first, second = (str(metric).partition(":")[0].upper() for metric in table.attrs["judged"])
    texts = ("too few pairs", "neither", f"{first} only", f"{second} only", "passes both", "not judged")
    return [texts[value] for value in table["verdict"].values]


#: What is said of a subspace and its words, in tables.
BEYOND_TEXTS = {"not_judged": "not judged", "not_shown": "not shown", "open": "open: too few draws", "beyond": "yes"}
#: What nulls are called in tables.
NULL_LABELS = {
    "shuffled": "shuffled",
    "random_features": "random",
    "random_pairs": "random pairs",
    "random_keywords": "random keywords",
}


def table_paths(result: Path) -> tuple[Path, Path, Path]:
    """Return where the tables are that belong to the result at `result`, as CSV, HTML and LaTeX."""
    return result.with_suffix(".csv"), result.with_suffix(".html"), result.with_suffix(".tex")


def write_tables(table: xr.Dataset, result: Path) -> tuple[Path, ...]:
    """Write the table at `result` as CSV (every figure), HTML and LaTeX (the columns of the study), texts escaped.

    Each file is there completely or as it was before.
    """
    study = study_frame(table)
    texts = (
        frame(table).to_csv(index=False),
        study.to_html(index=False, escape=True, float_format="{:.3f}".format, na_rep="–", border=0),
        _latex(study),
    )
    paths = table_paths(result)
    for path, text in zip(paths, texts, strict=True):
        write_derived(path, text)
    return paths


def _latex(study: pd.DataFrame) -> str:
    """Return the table with booktabs' rules."""
    text = study.to_latex(index=False, escape=True, float_format="{:.3f}".format, na_rep="--")
    return f"% needs \\usepackage{{booktabs}}\n{text}"
