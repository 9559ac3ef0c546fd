"""Everything that a run knows of one feature: what it fires on, whom it was matched with, whom it might have been.

Only what is asked for is read: of a correlation a few rows of its lists, of the store the chunks that hold contexts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from pipeline.text.feature_contexts import FeatureContexts, read_contexts, read_labels
from pipeline.text.spans import iter_documents, read_spans
from storage import Corpus, open_activations, open_corpus, open_result
from storage.errors import InputError, MissingInputError
from storage.provenance import RunInputs
from storage.rundir import RunDirectory, Side

#: Distinct tokens that tell what another feature fires on.
N_TOKENS = 3
NONE = -1
#: What token-identity says of a pair, by the half to quote.
EXCESS = ("excess", "excess_low", "excess_high", "excess_p")
#: Columns that tables always have.
PARTNERS = ("site", "fate", "meaning", "partner", "label", "tokens", "r", "r_heldout", "rank", "rank_back", "best_r_q")
CANDIDATES = ("site", "rank", "candidate", "label", "tokens", "r", "r_heldout", "matched_with", "matched_r")
CONCEPTS = ("concept", "member", "hits", "share", "pmi")
SUBSPACES = ("site", "approach", "kind", "name", "partner", "tested")


@dataclass(frozen=True)
class Feature:
    """One feature of a run, with what every stage found out about it. Undefined numbers are NaN.

    Attributes
    ----------
    side, site, feature
        Which it is.
    model, dictionary, label
        Where it comes from, and what it is called; empty where nothing says so.
    fires
        What it fires on; None without contexts or text.
    partners
        A row for each of its pairs at each site of the other side, or for the lack of one: ``site``, ``fate`` and its
        ``meaning``; ``partner``, its ``label`` and its top ``tokens``; ``r``, ``r_heldout`` and ``r_check``, as far as
        the matching has them; ``rank``, the partner's place among the candidates of this feature, and ``rank_back``,
        the other way round, best 0; of this feature at that site ``best_r_q``, the corrected p of its best r (side A,
        where rows were permuted); ``excess``, its interval and p, what of r is beyond the token (where
        ``subspace token-identity`` was kept in the run).
    candidates
        A row for each feature in its lists of highest r: ``site``, ``rank``, ``candidate``, ``label``, ``tokens``,
        ``r``, ``r_heldout``, ``matched_with`` (a feature of this site that the candidate was matched with, −1 if none)
        and ``matched_r``.
    concepts
        A row for each concept whose words it fires on, members first: ``concept``, ``member``, ``hits`` among its top
        contexts, ``share``, ``pmi``.
    subspaces
        A row for each subspace that one of its pairs is in: ``site``, ``approach``, ``kind``, ``name``, ``partner``,
        ``tested``.
    non_concept
        Why it stands for no concept, where that was looked for.
    missing
        What the run has not made yet, or made from other results than are there now.
    """

    side: Side
    site: str
    feature: int
    model: str
    dictionary: str
    label: str
    fires: FeatureContexts | None
    partners: pd.DataFrame = field(compare=False)
    candidates: pd.DataFrame = field(compare=False)
    concepts: pd.DataFrame = field(compare=False)
    subspaces: pd.DataFrame = field(compare=False)
    non_concept: str = ""
    missing: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain values, for JSON; undefined numbers are None."""
        tables = ("partners", "candidates", "concepts", "subspaces")
        plain = {name: value for name, value in vars(self).items() if name not in (*tables, "fires")}
        for name in tables:
            table: pd.DataFrame = getattr(self, name)
            plain[name] = table.astype(object).where(table.notna(), None).to_dict("records")
        return plain | {"fires": None if self.fires is None else asdict(self.fires)}


def feature(run_dir: str | Path, site: str, number: int, *, contexts: int = 5, candidates: int = 5) -> Feature:
    """Return what a run knows of one feature.

    Parameters
    ----------
    run_dir
        The run directory; stages that have not run are named in ``missing``.
    site
        The site; ``a:NAME`` or ``b:NAME`` where both sides have one of the name.
    number
        The feature's id.
    contexts
        Top contexts that are looked up.
    candidates
        Features of the highest r that are listed for each site of the other side; at most the ``top_k`` of the
        correlation.

    Returns
    -------
    Feature

    Raises
    ------
    MissingInputError
        If there is no run, or it has no activations at the site yet.
    InputError
        If there is no such site or feature; the message says which there are.

    Examples
    --------
    >>> card = feature("runs/demo", "layers.10", 17)  # doctest: +SKIP
    >>> card.partners[["site", "partner", "r", "r_heldout"]]  # doctest: +SKIP
    """
    run = RunDirectory(Path(run_dir))
    side, name = _locate(run, site)
    path = run.activations(side, name)
    if not path.exists():
        raise MissingInputError(f"{run.root} has no activations of {name} yet; `subspace run` makes them")
    store = open_activations(path)
    if not 0 <= number < store.sizes["feature"]:
        raise InputError(f"{name} has the features 0 to {store.sizes['feature'] - 1}, not {number}")
    return _Reader(run, side, name, store).read(number, contexts, candidates)


def _locate(run: RunDirectory, site: str) -> tuple[Side, str]:
    """Return the side and the name of a site, which may be given with its side."""
    known = run.sites()
    fitting = [(side, name) for side, name in known if site in (name, f"{side}:{name}")]
    if len(fitting) == 1:
        return fitting[0]
    listed = ", ".join(f"{side}:{name}" for side, name in known)
    what = "is a site of both sides: name one of" if fitting else "is not a site of this run, which has"
    raise InputError(f"{site!r} {what} {listed}")


class _Reader:
    """Reads of one site's features what is there."""

    def __init__(self, run: RunDirectory, side: Side, site: str, store: xr.Dataset) -> None:
        self.run, self.side, self.site, self.store = run, side, site, store
        self.other: Side = "b" if side == "a" else "a"
        self.sites = [name for of_side, name in run.sites() if of_side == self.other]
        self.inputs = RunInputs(run, [self._pair(other) for other in self.sites])
        self.missing: list[str] = []

    def read(self, number: int, contexts: int, n_candidates: int) -> Feature:
        attrs = self.store.attrs
        partners = [row for site in self.sites for row in self._partners(site, number)]
        candidates = [row for site in self.sites for row in self._candidates(site, number, n_candidates)]
        described = _Described(self.run, self.other, self.inputs)
        described.add(partners, "partner")
        described.add(candidates, "candidate")
        return Feature(
            side=self.side,
            site=self.site,
            feature=number,
            model=str(attrs.get("model", "")),
            dictionary=str(attrs.get("dictionary", "")),
            label=read_labels(self.run.labels(self.side, self.site)).get(number, ""),
            fires=self._fires(number, contexts),
            partners=_table(partners, PARTNERS),
            candidates=_table(candidates, CANDIDATES),
            concepts=self._concepts(number),
            subspaces=_table([row for site in self.sites for row in self._subspaces(site, number)], SUBSPACES),
            non_concept=self._non_concept(number),
            missing=tuple(dict.fromkeys(self.missing)),
        )

    def _pair(self, site: str) -> tuple[str, str]:
        return (self.site, site) if self.side == "a" else (site, self.site)

    def _open(self, path: Path, stage: str) -> xr.Dataset | None:
        """Open a result that a run makes; None, and noted, if it is not there, or was made from other results."""
        if self.inputs.belongs(path):
            return open_result(path, stage)
        self.missing.append(path.relative_to(self.run.root).as_posix())
        return None

    def _fires(self, number: int, contexts: int) -> FeatureContexts | None:
        path = self.run.contexts(self.side, self.site)
        if absent := [needed for needed in (path, self.run.corpus) if not self.inputs.belongs(needed)]:
            self.missing += [needed.relative_to(self.run.root).as_posix() for needed in absent]
            return None
        return next(
            read_contexts(path, self.run.activations(self.side, self.site), self.run.corpus, [number], top_n=contexts)
        )

    def _partners(self, site: str, number: int) -> Iterator[dict[str, Any]]:
        pairs = self._open(self.run.pairs(*self._pair(site)), "match")
        if pairs is None:
            return
        fates = pairs[f"fate_{self.side}"]
        fate = _flag(fates, int(fates[number]))
        q = self._best_r_q(site, number)
        places = np.flatnonzero(pairs[f"feature_{self.side}"].values == number)
        excess = self._excess(site, pairs, places)
        for i, place in enumerate(places.tolist()):
            pair = pairs.isel(pair=place)
            known = {name: float(pair[name]) for name in ("r", "r_heldout", "r_check") if name in pair}
            ranks = {"rank": int(pair[f"rank_{self.other}"]), "rank_back": int(pair[f"rank_{self.side}"])}
            partner = int(pair[f"feature_{self.other}"])
            yield {"site": site, **fate, "partner": partner, **known, **ranks, "best_r_q": q, **excess[i]}
        if not len(places):
            yield {"site": site, **fate, "partner": NONE, "rank": NONE, "rank_back": NONE, "best_r_q": q}

    def _best_r_q(self, site: str, number: int) -> float:
        path = self.run.rematched(*self._pair(site))
        if self.side == "b" or not self.inputs.belongs(path):
            return float("nan")
        rematched = open_result(path, "rematch")
        return float(rematched["best_r_q"][number]) if "best_r_q" in rematched else float("nan")

    def _excess(self, site: str, pairs: xr.Dataset, places: NDArray[np.int64]) -> list[dict[str, float]]:
        """Return what is beyond the token in each of some pairs, if it was looked at for these pairs."""
        path = self.run.identity(*self._pair(site))
        if not path.exists():
            return [{} for _ in places]
        identity = open_result(path, "token_identity")
        of_these = all(np.array_equal(identity[name], pairs[name]) for name in ("feature_a", "feature_b"))
        suffix = "_heldout" if "excess_heldout" in identity else ""
        return [
            {name: float(identity[name + suffix][place]) for name in EXCESS} if of_these else {} for place in places
        ]

    def _candidates(self, site: str, number: int, n_candidates: int) -> Iterator[dict[str, Any]]:
        correlation = self._open(self.run.correlation(*self._pair(site)), "correlate")
        if correlation is None:
            return
        here = {f"feature_{self.side}": number, "rank": slice(n_candidates)}
        ids, r = (correlation[f"{name}_{self.other}"].isel(here).values for name in ("best", "r"))
        heldout = f"r_heldout_{self.other}"
        again = correlation[heldout].isel(here).values if heldout in correlation else np.full(len(r), np.nan)
        defined = np.isfinite(r)
        matched = self._matches(site, ids[defined])
        rows = zip(ids[defined].tolist(), r[defined].tolist(), again[defined].tolist(), matched, strict=True)
        for rank, (candidate, r_here, r_again, (with_, with_r)) in enumerate(rows):
            known = {"site": site, "rank": rank, "candidate": candidate, "r": r_here, "r_heldout": r_again}
            yield {**known, "matched_with": with_, "matched_r": with_r}

    def _matches(self, site: str, candidates: NDArray[np.integer]) -> list[tuple[int, float]]:
        """Return for each of some features of the other side the best match that it has at this site, and its r."""
        path = self.run.pairs(*self._pair(site))
        if not self.inputs.belongs(path):
            return [(NONE, float("nan"))] * len(candidates)
        pairs = open_result(path, "match")
        theirs, ours, r = (pairs[name].values for name in (f"feature_{self.other}", f"feature_{self.side}", "r"))
        # pairs come from the highest r down
        places = [np.flatnonzero(theirs == candidate)[:1] for candidate in candidates]
        return [(int(ours[place[0]]), float(r[place[0]])) if len(place) else (NONE, float("nan")) for place in places]

    def _concepts(self, number: int) -> pd.DataFrame:
        path = self.run.concepts(self.side, self.site)
        if not self.inputs.belongs(path):
            return _table([], CONCEPTS)
        row = open_result(path, "concepts")[list(CONCEPTS[1:])].isel(feature=number)
        table = row.to_dataframe().reset_index()[list(CONCEPTS)]
        fitting = table[table["member"] | (table["hits"] > 0)]
        return fitting.sort_values(["member", "pmi"], ascending=False, kind="stable").reset_index(drop=True)

    def _subspaces(self, site: str, number: int) -> Iterator[dict[str, Any]]:
        path = self.run.semantics(*self._pair(site))
        if not self.inputs.belongs(path):
            return
        semantics = open_result(path, "semantics")
        places = np.flatnonzero(semantics[f"feature_{self.side}"].values == number)
        of = semantics["subspace_of"].values[places]
        columns = semantics[["approach", "kind", "name"]].isel(subspace=of)
        partners, tested = (semantics[name].values[places] for name in (f"feature_{self.other}", "tested"))
        names = zip(*(columns[name].values.tolist() for name in ("approach", "kind", "name")), strict=True)
        for (approach, kind, name), partner, used in zip(names, partners.tolist(), tested.tolist(), strict=True):
            known = {"site": site, "approach": approach, "kind": kind, "name": name}
            yield {**known, "partner": partner, "tested": used}

    def _non_concept(self, number: int) -> str:
        path = self.run.non_concept(self.side, self.site)
        if not self.inputs.belongs(path):
            return ""
        result = open_result(path, "non_concept")
        reason = int(result["reason"][number])
        return "" if reason < 0 else str(result["kind"].values[reason])


def _table(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> pd.DataFrame:
    """Return rows as a table that has some columns even if none of the rows does, and those that a row has beside."""
    others = [name for name in dict.fromkeys(name for row in rows for name in row) if name not in columns]
    return pd.DataFrame.from_records(list(rows), columns=[*columns, *others])


def _flag(fates: xr.DataArray, value: int) -> dict[str, str]:
    """Return the name and the meaning of a value of a flag variable."""
    place = [int(flag) for flag in fates.attrs["flag_values"]].index(value)
    descriptions = str(fates.attrs.get("flag_descriptions", "")).split("; ")
    name = str(fates.attrs["flag_meanings"]).split()[place]
    meaning = next((text.partition(": ")[2] for text in descriptions if text.startswith(f"{name}: ")), "")
    return {"fate": name, "meaning": meaning}


class _Described:
    """Adds to rows of a table what features of one side are called, and what they fire on."""

    def __init__(self, run: RunDirectory, side: Side, inputs: RunInputs) -> None:
        self.run, self.side, self.inputs = run, side, inputs
        self.corpus = open_corpus(run.corpus) if run.corpus.exists() else None

    def add(self, rows: Sequence[dict[str, Any]], name: str) -> None:
        for site in dict.fromkeys(row["site"] for row in rows):
            here = [row for row in rows if row["site"] == site]
            labels = read_labels(self.run.labels(self.side, site))
            tokens = self._tokens(site, sorted({row[name] for row in here if row[name] != NONE}))
            for row in here:
                row |= {"label": labels.get(row[name], ""), "tokens": tokens.get(row[name], "")}

    def _tokens(self, site: str, features: list[int]) -> dict[int, str]:
        """Return the distinct tokens of the top contexts of some features, best first."""
        path, store = self.run.contexts(self.side, site), self.run.activations(self.side, site)
        if not features or self.corpus is None or not self.inputs.belongs(path):
            return {}
        rows = open_result(path, "contexts")["row"].isel(feature=features).values
        texts = _texts(self.corpus, open_activations(store), np.unique(rows[rows >= 0]))
        return {
            number: ", ".join(list(dict.fromkeys(texts[row] for row in listed if row >= 0))[:N_TOKENS])
            for number, listed in zip(features, rows.tolist(), strict=True)
        }


def _texts(corpus: Corpus, store: xr.Dataset, rows: NDArray[np.int64]) -> dict[int, str]:
    """Return the text of some rows, without white space around it."""
    spans = read_spans(store, rows)
    return {int(rows[place]): text[start:end].strip() for place, text, start, end in iter_documents(corpus, spans)}
