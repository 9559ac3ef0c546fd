"""The stage: the subspaces of all meanings at one pair of sites, each beside its nulls and its coherence."""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from distributed import Client
from numpy.typing import NDArray

from pipeline.compare.subsets import compare_subsets
from pipeline.match.within import match_within
from pipeline.semantics.coherence import Coherence, centred_unit, coherence, coherence_bytes, feature_vectors
from pipeline.semantics.discovery import cluster_pairs, distinctive_words
from pipeline.semantics.embeddings import word_vectors
from pipeline.semantics.subspaces import Mask, Subspace, cut_out, from_pairs, members, overlap
from pipeline.semantics.token_null import open_rematched, token_columns
from pipeline.settings.base import keywords
from pipeline.settings.match import heldout_note_of
from pipeline.settings.registries import NULLS
from pipeline.settings.semantics import SubspaceSettings
from pipeline.text.top_tokens import NONE, TopTokens, dominant_words, effective_pairs, top_words
from pipeline.work.pairs import feature_ids
from pipeline.work.workers import Planned, tell
from storage import Manifest, fingerprint, make_result, new_manifest, open_activations, open_result
from storage.errors import InputError

logger = logging.getLogger(__name__)

STAGE, WORDS_STAGE = "semantics", "semantics-words"
#: Follows the note on held-out r that the pairs carry.
WITHIN_NOTE = "Pairs of the approach within are matched without filters."
#: Words that describe a subspace.
SHOWN_WORDS = 6


@dataclass(frozen=True)
class Site:
    """Results of one model at one site: activation store, top contexts, and which features belong to which concept."""

    store: Path
    contexts: Path
    concepts: Path


@dataclass(frozen=True)
class Tested:
    """A subspace and those of its pairs that may test it."""

    kind: str
    subspace: Subspace
    tested: NDArray[np.bool_]
    n_a: int
    n_b: int
    #: Which features of A and of B belong to the concept, where its pairs are cut out of all matched ones.
    member: tuple[Mask, Mask] | None = None

    @property
    def key(self) -> str:
        """What tells it from all others."""
        return f"{self.subspace.approach}: {self.subspace.name}"


def embed_words(
    sites: Sequence[Site],
    corpus: str | Path,
    source: str,
    locate: Callable[[], str],
    *,
    identity: Mapping[str, Any],
    out: str | Path | None = None,
    overwrite: bool = False,
) -> xr.Dataset:
    """Look up the vectors of all words on which the features of some sites fire most.

    `source` is what the user named, and `identity` tells it from another of the same name; `locate` returns
    ``KIND:PLACE`` for :func:`pipeline.semantics.embeddings.word_vectors`, and is called if there is work to do. The
    result is ``word(word)`` text; ``vector(word, dimension)`` float32, NaN for words that the source does not know.
    """
    manifest = words_manifest(sites, corpus, source, identity)

    def make() -> xr.Dataset:
        words = sorted(top_words([site.contexts for site in sites], sites[0].store, corpus)[0].vocabulary)
        return xr.Dataset(
            {"vector": (("word", "dimension"), word_vectors(words, locate()))},
            coords={"word": np.array(words, object)},
            attrs={"source": source, **manifest.to_attrs()},
        )

    return make_result(out, manifest, make, overwrite=overwrite)


def words_manifest(
    sites: Sequence[Site],
    corpus: str | Path,
    source: str,
    identity: Mapping[str, Any],
    identify: Callable[[str | Path], str] = fingerprint,
) -> Manifest:
    """Return what the vectors of words depend on; `identify` returns the fingerprint of what is at a path."""
    inputs = {f"contexts_{i}": identify(site.contexts) for i, site in enumerate(sites)}
    return new_manifest(
        WORDS_STAGE, {"corpus": identify(corpus), **inputs}, {"source": source, "identity": dict(identity)}
    )


@keywords(SubspaceSettings)
def semantics(
    pairs: str | Path,
    cor: str | Path,
    sites: tuple[Site, Site],
    corpus: str | Path,
    settings: SubspaceSettings,
    *,
    min_correlation: float | None = None,
    words: str | Path | None = None,
    rematched: str | Path | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
    client: Client | None = None,
) -> xr.Dataset:
    """Make and test the subspaces of all concepts, and of clusters, at one pair of sites.

    Parameters
    ----------
    pairs
        Result of :func:`pipeline.match` for the whole space.
    cor
        The correlation result that it was made from.
    sites
        The sites of A and of B.
    corpus
        The text.
    settings
        Each setting of :class:`~pipeline.settings.semantics.SubspaceSettings` is a keyword; or all of them as one.
    min_correlation
        Lowest r of pairs within a concept; that of `pairs` by default.
    words
        Result of :func:`embed_words`, for coherence; there is none without it.
    rematched
        Result of :func:`pipeline.rematch` for the pairs, with its null ``token``; for the columns of the token null.
    out
        Path of the result; an up-to-date one is left unchanged. Without it, the result is only in memory.
    overwrite
        Whether a result at `out` that came from other inputs may be replaced.
    client
        Where the tasks run; threads of this process by default.

    Returns
    -------
    xarray.Dataset
        Over ``subspace``: ``kind`` (concept or cluster), ``name``, ``approach``, ``words`` text; ``n_pairs``,
        ``n_tested``, ``n_a``, ``n_b`` int64; ``overlap`` of both approaches, ``coherence``, ``coherence_random``,
        ``coherence_z``, ``coherence_p`` float64; ``no_keywords`` text, why a subspace has no null of random keywords;
        ``n_effective`` float64, how many pairs those tested would be if all of one dominant word were one; scores,
        nulls and p as in :func:`pipeline.compare.subsets.compare_subsets`. With `rematched`, the columns of
        :func:`pipeline.semantics.token_null.token_columns`. Over ``member``, the pairs themselves: ``subspace_of``,
        ``feature_a``, ``feature_b`` int32, ``r``, ``r_heldout`` float64, ``tested`` bool.

    Raises
    ------
    InputError
        If the concepts of both sides differ, a setting is wrong, or `rematched` is of other pairs or without the null
        ``token``.
    MissingInputError
        If a result is missing.
    """
    if min_correlation is None:
        min_correlation = float(open_result(pairs, "match").attrs["min_correlation"])
    inputs = Inputs(Path(pairs), Path(cor), sites, Path(corpus), words, min_correlation, rematched)
    manifest = semantics_manifest(inputs, settings)

    def make() -> xr.Dataset:
        return _make(inputs, settings, client).assign_attrs(manifest.to_attrs())

    return make_result(out, manifest, make, overwrite=overwrite)


@dataclass(frozen=True)
class Inputs:
    """Where everything is that the stage reads, and the lowest r of the pairs that it makes itself."""

    pairs: Path
    correlation: Path
    sites: tuple[Site, Site]
    corpus: Path
    words: str | Path | None
    min_correlation: float
    rematched: str | Path | None = None

    def paths(self) -> dict[str, Path]:
        """Return all of them, by the names that they have in manifests."""
        paths = {"pairs": self.pairs, "correlation": self.correlation, "corpus": self.corpus}
        for side, site in zip("ab", self.sites, strict=True):
            paths |= {f"{name}_{side}": path for name, path in asdict(site).items()}
        optional = {"words": self.words, "rematched": self.rematched}
        return paths | {name: Path(path) for name, path in optional.items() if path is not None}


def semantics_manifest(
    inputs: Inputs, settings: SubspaceSettings, identify: Callable[[str | Path], str] = fingerprint
) -> Manifest:
    """Return what subspaces depend on; `identify` returns the fingerprint of what is, or will be, at a path."""
    chosen = settings.model_dump(include=set(SubspaceSettings.model_fields))
    fingerprints = {name: identify(path) for name, path in inputs.paths().items()}
    made = {"min_correlation": inputs.min_correlation, "random_coherence_of": "pairs"}
    return new_manifest(STAGE, fingerprints, chosen | made)


def _make(inputs: Inputs, settings: SubspaceSettings, client: Client | None) -> xr.Dataset:
    with open_result(inputs.pairs, "match") as opened:
        matched = opened[["feature_a", "feature_b", "r", "r_heldout"]].load()
    subspaces = [*_concepts(inputs, matched, settings), *_clusters(inputs, matched, settings)]
    pool = feature_ids(matched, "a"), feature_ids(matched, "b")
    top = top_words([site.contexts for site in inputs.sites], inputs.sites[0].store, inputs.corpus)
    keywords, without = _keywords(subspaces, matched, top, settings)
    scores = compare_subsets(
        {
            entry.key: (entry.subspace.feature_a[entry.tested], entry.subspace.feature_b[entry.tested])
            for entry in subspaces
        },
        *(site.store for site in inputs.sites),
        pool=pool,
        keywords=keywords,
        metrics=settings.metrics,
        nulls=settings.nulls,
        null_runs=settings.null_runs,
        seed=settings.seed,
        min_pairs=settings.min_pairs,
        client=client,
    )
    table = scores.drop_vars(["subset", "n_pairs"]).rename_dims(subset="subspace").drop_attrs()
    coherences = _coherences(subspaces, pool, top, inputs.words, settings)
    table = table.assign(_described(subspaces, top, pool)).assign(_coherence_columns(coherences))
    table["no_keywords"] = "subspace", np.array([without.get(entry.key, "") for entry in subspaces], object)
    if inputs.rematched is not None:
        with open_rematched(inputs.rematched, inputs.pairs) as opened:
            rematched = opened.load()
        tested = [entry.member if len(entry.subspace) >= settings.min_pairs else None for entry in subspaces]
        stores = inputs.sites[0].store, inputs.sites[1].store
        table = table.assign(token_columns(tested, rematched, stores, settings, client))
    note = {name: f"{text} {WITHIN_NOTE}" for name, text in heldout_note_of(matched.attrs).items()}
    drawn = {} if inputs.rematched is None else {"token_draws": int(rematched.attrs["n_draws"])}
    table = table.merge(_members(subspaces))
    return table.assign_attrs(null_runs=settings.null_runs, seed=settings.seed, **drawn, **note)


def _keywords(
    subspaces: Sequence[Tested], matched: xr.Dataset, top: Sequence[TopTokens], settings: SubspaceSettings
) -> tuple[dict[str, dict[str, NDArray[np.int64]]], dict[str, str]]:
    """Return places of the pairs of other lists of words, by null of keywords and subspace, and why some have none."""
    pool, r = (matched["feature_a"].values, matched["feature_b"].values), matched["r"].values
    nulls = [null for null in map(NULLS.__getitem__, settings.nulls) if null.source == "keywords"]
    drawn: dict[str, dict[str, NDArray[np.int64]]] = {null.name: {} for null in nulls}
    without: dict[str, list[str]] = {}
    dominant = dominant_words(top, pool) if nulls else None
    for null, entry in itertools.product(nulls, subspaces):
        if entry.member is None:
            without[entry.key] = ["only pairs that are cut out by keywords can compete with other keywords"]
            continue
        if len(entry.subspace) < settings.min_pairs:
            continue
        concept = np.isin(_keys(pool), _keys((entry.subspace.feature_a, entry.subspace.feature_b)))
        rng = np.random.default_rng([settings.seed, *entry.key.encode()])
        places, why = null.function(rng, settings.null_runs, dominant=dominant, r=r, concept=concept)
        if places is None:
            without.setdefault(entry.key, []).append(why)
            logger.info("%s has no null %s: %s", entry.key, null.name, why)
        else:
            drawn[null.name][entry.key] = places
    return drawn, {key: "; ".join(reasons) for key, reasons in without.items()}


def _keys(pairs: Sequence[NDArray[np.integer]]) -> NDArray[np.int64]:
    """Return a number for each pair."""
    return np.asarray(pairs[0], np.int64) << 32 | np.asarray(pairs[1], np.int64)


def _concepts(inputs: Inputs, matched: xr.Dataset, settings: SubspaceSettings) -> Iterator[Tested]:
    """Yield the subspaces of every concept, by either approach."""
    with open_result(inputs.sites[0].concepts) as a, open_result(inputs.sites[1].concepts) as b:
        of_a, of_b = members(a), members(b)
    if list(of_a) != list(of_b):
        raise InputError(f"{inputs.sites[0].concepts} and {inputs.sites[1].concepts} are of different concepts")
    sets = {name: (np.flatnonzero(of_a[name]), np.flatnonzero(of_b[name])) for name in of_a}
    within = {}
    if "within" in settings.approaches:
        within = match_within(inputs.correlation, sets, settings.within, inputs.min_correlation)
    for name in of_a:
        for approach in settings.approaches:
            subspace = (
                cut_out(matched, name, of_a[name], of_b[name], settings.sides)
                if approach == "global"
                else from_pairs(name, approach, within[name])
            )
            member = (of_a[name], of_b[name]) if approach == "global" else None
            sizes = len(sets[name][0]), len(sets[name][1])
            yield Tested("concept", subspace, np.ones(len(subspace), bool), *sizes, member)


def _clusters(inputs: Inputs, matched: xr.Dataset, settings: SubspaceSettings) -> Iterator[Tested]:
    """Yield the clusters of the global pairs, by size."""
    if not settings.clusters:
        return
    rows = [
        _decoder_rows(site.store, matched[f"feature_{side}"].values)
        for side, site in zip("ab", inputs.sites, strict=True)
    ]
    clusters = cluster_pairs(rows[0], rows[1], settings.clusters, settings.geometry, settings.seed)
    for number in range(settings.clusters):
        members = np.flatnonzero(clusters.label == number)
        subspace = from_pairs(f"cluster {number + 1}", "cluster", matched.isel(pair=members))
        sizes = len(np.unique(subspace.feature_a)), len(np.unique(subspace.feature_b))
        yield Tested("cluster", subspace, clusters.testable[members], *sizes)


def _decoder_rows(store: Path, features: NDArray[np.int32]) -> NDArray[np.floating]:
    with open_activations(store) as opened:
        ids, places = np.unique(features, return_inverse=True)
        rows: NDArray[np.floating] = opened["decoder"].isel(feature=ids).values[places]
    return rows


def _described(
    subspaces: Sequence[Tested], top: Sequence[TopTokens], pool: tuple[NDArray[np.int32], NDArray[np.int32]]
) -> dict[str, Any]:
    """Return what the subspaces are called, how many pairs they have, and what words set them apart."""
    by_key = {(entry.subspace.name, entry.subspace.approach): entry.subspace for entry in subspaces}
    words = _words(subspaces, top, pool)
    text = {
        "kind": [entry.kind for entry in subspaces],
        "name": [entry.subspace.name for entry in subspaces],
        "approach": [entry.subspace.approach for entry in subspaces],
        "words": [json.dumps(words_of, ensure_ascii=False) for words_of in words],
    }
    counts = {
        "n_pairs": [len(entry.subspace) for entry in subspaces],
        "n_tested": [int(entry.tested.sum()) for entry in subspaces],
        "n_a": [entry.n_a for entry in subspaces],
        "n_b": [entry.n_b for entry in subspaces],
    }
    tested = ((entry.subspace.feature_a[entry.tested], entry.subspace.feature_b[entry.tested]) for entry in subspaces)
    effective = [effective_pairs(dominant_words(top, pairs).word) for pairs in tested]
    return {
        "n_effective": ("subspace", np.array(effective, np.float64)),
        **{name: ("subspace", np.array(values, object)) for name, values in text.items()},
        **{name: ("subspace", np.array(values, np.int64)) for name, values in counts.items()},
        "overlap": ("subspace", np.array([_overlap(entry, by_key) for entry in subspaces])),
    }


def _overlap(entry: Tested, by_key: Mapping[tuple[str, str], Subspace]) -> float:
    pair = [by_key.get((entry.subspace.name, approach)) for approach in ("global", "within")]
    return float("nan") if pair[0] is None or pair[1] is None else overlap(pair[0], pair[1])


def _words(
    subspaces: Sequence[Tested], top: Sequence[TopTokens], pool: tuple[NDArray[np.int32], NDArray[np.int32]]
) -> list[list[str]]:
    """Return, for each subspace, the words that set its features apart from those of all matched pairs."""
    everything = _count_words(top, pool)
    words = []
    for entry in subspaces:
        inside = _count_words(top, (entry.subspace.feature_a, entry.subspace.feature_b))
        counts = np.stack([inside, np.maximum(everything - inside, 0)])
        words.append([word for word, _ in distinctive_words(counts, top[0].vocabulary, SHOWN_WORDS)[0]])
    return words


def _count_words(top: Sequence[TopTokens], features: Sequence[NDArray[np.int32]]) -> NDArray[np.int64]:
    """Count the top words of some features of both sides, each feature once."""
    words = np.concatenate([side.ids[np.unique(ids)].ravel() for side, ids in zip(top, features, strict=True)])
    return np.bincount(words[words != NONE], minlength=len(top[0].vocabulary))


def _coherences(
    subspaces: Sequence[Tested],
    pool: Sequence[NDArray[np.int32]],
    top: Sequence[TopTokens],
    words: str | Path | None,
    settings: SubspaceSettings,
) -> list[Coherence]:
    if words is None:
        nothing = Coherence(float("nan"), np.full(1, np.nan))
        return [nothing for _ in subspaces]
    with open_result(words, WORDS_STAGE) as opened:
        n_words, dimension = opened["vector"].shape
        n_features = sum(len(side.ids) for side in top)
        tell(Planned("Coherence of subspaces", coherence_bytes(n_words, dimension, n_features)))
        place = {str(word): i for i, word in enumerate(opened["word"].values)}
        unit = centred_unit(opened["vector"].values)
    vectors = [
        feature_vectors([[place[word] for word in side.texts(i)] for i in range(len(side.ids))], unit) for side in top
    ]
    return [
        coherence(
            vectors, (entry.subspace.feature_a, entry.subspace.feature_b), settings.null_runs, settings.seed, pool
        )
        for entry in subspaces
    ]


def _coherence_columns(coherences: Sequence[Coherence]) -> dict[str, Any]:
    columns = {"": "score", "_random": "random_mean", "_z": "z", "_p": "p"}
    return {
        f"coherence{suffix}": ("subspace", np.array([getattr(measured, name) for measured in coherences], np.float64))
        for suffix, name in columns.items()
    }


def _members(subspaces: Sequence[Tested]) -> xr.Dataset:
    """Return the pairs of all subspaces, one after the other."""

    def joined(parts: Sequence[NDArray[Any]], dtype: Any) -> NDArray[Any]:
        return np.concatenate([np.zeros(0, dtype), *parts]).astype(dtype)

    columns = {
        "subspace_of": joined([np.full(len(entry.subspace), i) for i, entry in enumerate(subspaces)], np.int32),
        **{
            name: joined([getattr(entry.subspace, name) for entry in subspaces], dtype)
            for name, dtype in {"feature_a": np.int32, "feature_b": np.int32, "r": float, "r_heldout": float}.items()
        },
        "tested": joined([entry.tested for entry in subspaces], bool),
    }
    return xr.Dataset({name: ("member", values) for name, values in columns.items()})
