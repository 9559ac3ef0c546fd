"""Concepts × site pairs in one dataset, with p corrected over all of them, and as CSV, HTML and LaTeX.

A test is one subspace at one pair of sites by one judged metric, SVCCA or RSA. Its p is the *largest* over what a
shared meaning has to beat (an intersection–union test: Berger, Technometrics 24, 1982): shuffled pairings (who is
matched with whom matters), random pairs of the whole space (this set is more alike than others of as many pairs), and,
for concepts, random keywords (this *meaning* is, and not any few words). Only then it is corrected, over one family:
all concepts, approaches, judged metrics and pairs of sites together; clusters, which nobody named beforehand, are a
family of their own. A subspace *passes both* when both metrics do.

Corrected p for each null on its own, over the rows of each kind and approach, are in the table too: they are no
verdict.

The SVCCA that is judged keeps 4 components a side (``svcca:k=4``). With 99 % of the variance, as in the paper, a
concept's few pairs have nearly as many components as pairs: two such spaces meet in almost all directions, every
pairing scores 1, and no p can be small. Four is the most that leaves ten pairs unsaturated (n > k_A + k_B).
"""

from __future__ import annotations

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
KEYS = ("kind", "name", "approach", "site_a", "site_b")

SitePair = tuple[str, str]


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
        over how many tests.

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
    return new_manifest(STAGE, inputs, {"level": LEVEL, "judged": list(judged), "nulls": nulls})


def _gather(results: Mapping[SitePair, str | Path], judged: Sequence[str]) -> xr.Dataset:
    parts, runs = [], []
    for (site_a, site_b), path in results.items():
        with open_result(path, "semantics") as opened:
            part = opened.drop_dims("member").load()
        runs.append(int(part.attrs["null_runs"]))
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
    return table.assign(verdict=("row", verdict, _verdict_attrs())).assign_attrs(
        correction=correction, level=LEVEL, null_runs=min(runs), judged=list(judged), **joint.attrs
    )


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
    adjusted = {"p_joint_holm": largest.copy(), "p_joint_bh": largest.copy()}
    tests = {}
    for kind in JUDGED_NULLS:
        family = np.flatnonzero(table["kind"].values == kind)
        p_of_family = largest[family]
        tests[kind] = int(np.count_nonzero(np.isfinite(p_of_family)))
        for name, correct in (("p_joint_holm", holm), ("p_joint_bh", benjamini_hochberg)):
            adjusted[name][family] = correct(p_of_family.ravel()).reshape(p_of_family.shape)
    columns = {"p_joint": largest, **adjusted}
    return xr.Dataset(
        {name: (("row", "metric"), values) for name, values in columns.items()},
        attrs={"n_tests": tests["concept"], "n_tests_of_clusters": tests["cluster"]},
    )


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
    long["verdict"] = [VERDICTS[value] for value in long["verdict"]]
    first = [*KEYS, "n_pairs", "n_tested", "metric", "null", "score"]
    return long[[*first, *(name for name in long.columns if name not in [*first, "row"])]]


def study_frame(table: xr.Dataset, metrics: Sequence[str] | None = None) -> pd.DataFrame:
    """Return the table in the columns of the study, one line for each subspace; by default with the judged metrics.

    Sites, concept, approach, pairs, and for each metric its score, the mean of each null and the p against it, and the
    corrected p against all nulls of the verdict; then coherence, that of random sets and its p, the overlap of the
    approaches, and the verdict.
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
    labels = {
        "Coherence": "coherence",
        "random coherence": "coherence_random",
        "coherence p": "coherence_p",
        "Overlap": "overlap",
    }
    columns |= {label: table[key].values for label, key in labels.items()}
    columns["Verdict"] = verdict_texts(table)
    return pd.DataFrame(columns)


def verdict_texts(table: xr.Dataset) -> list[str]:
    """Return each row's verdict in words."""
    first, second = (str(metric).partition(":")[0].upper() for metric in table.attrs["judged"])
    texts = ("too few pairs", "neither", f"{first} only", f"{second} only", "passes both", "not judged")
    return [texts[value] for value in table["verdict"].values]


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
