"""The verbs about what features fire on: contexts, concepts, non-concept, labels, label."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
import xarray as xr
from rich.console import Console
from rich.table import Table

from jobs.verbs.shading import shaded
from pipeline.harvest.contexts import contexts
from pipeline.semantics.concepts import chosen_concepts
from pipeline.semantics.labelling import estimate, label_features, prompts, request_headers
from pipeline.semantics.labels import import_labels
from pipeline.semantics.membership import concept_features
from pipeline.semantics.non_concept import non_concept_features
from pipeline.settings.harvest import ContextsSettings
from pipeline.settings.semantics import ConceptsSettings, LabelSettings, NonConceptSettings
from pipeline.text.feature_contexts import read_contexts, read_labels
from pipeline.work.options import options
from pipeline.work.script import (
    AsJson,
    Connect,
    Out,
    Overwrite,
    in_place_of,
    on_cluster,
    option,
    show,
    wide_console,
)
from storage import open_result
from storage.errors import InputError, MissingInputError
from storage.rundir import RunDirectory

Store = Annotated[Path, typer.Argument(help="Activation store.", show_default=False)]
Contexts = Annotated[
    Path | None, typer.Option("--contexts", help="Contexts of the store; default: those of its run directory.")
]
CorpusPath = Annotated[Path | None, typer.Option(help="The text; default: that of the run directory.")]
Features = Annotated[list[int] | None, typer.Option("--feature", help="Feature id; repeatable.")]


def _paths(store: Path, contexts_path: Path | None, corpus: Path | None) -> tuple[Path, Path, Path]:
    """Return contexts, store and corpus; by default those of the store's run directory, which must be there."""
    run, side, site = RunDirectory.around(store)
    if None in (contexts_path, corpus) and store.parent.parent.name != "activations":
        raise InputError(
            f"{store} is in no run directory: give --contexts PATH (`subspace contexts {store} --out PATH` makes it) "
            "and the text, --corpus PATH"
        )
    contexts_path, corpus = contexts_path or run.contexts(side, site), corpus or run.corpus
    if contexts_path == run.contexts(side, site) and not contexts_path.exists():
        raise MissingInputError(
            f"There are no contexts at {contexts_path}; make them with `subspace contexts STORE --out PATH`"
        )
    if corpus == run.corpus and not corpus.exists():
        raise MissingInputError(f"There is no corpus at {corpus}; give the path of the text with --corpus PATH")
    return contexts_path, store, corpus


#: Gives a command a store, its contexts and its text in place of its parameter `paths`.
with_text = in_place_of(
    "paths",
    _paths,
    [
        inspect.Parameter("store", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=Store),
        option("corpus", CorpusPath),
        option("contexts_path", Contexts),
    ],
)


@options(ContextsSettings, changes=True)
@on_cluster
def contexts_command(
    connect: Connect,
    store: Store,
    feature: Features = None,
    corpus: CorpusPath = None,
    contexts_path: Contexts = None,
    labels: Annotated[
        Path | None, typer.Option(help="Labels to show next to the ids; default: those of the run.")
    ] = None,
    top_n: Annotated[int, typer.Option(min=1, help="Top rows per feature.")] = 8,
    *,
    settings: dict[str, Any],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="PATH", help="Make the contexts of the store and write them here."),
    ] = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Show the text on which features fire, each token shaded by its activation; or make the contexts of a store."""
    if labels is not None and not labels.exists():
        raise MissingInputError(f"There are no labels at {labels}; `subspace labels` and `subspace label` make them")
    if out is not None:
        made = contexts(store, out, top_n, **settings, overwrite=overwrite, client=connect)
        if not feature:
            show({"result": str(out), **{name: made.sizes[name] for name in ("feature", "rank")}}, as_json=as_json)
            return
    elif settings:
        raise InputError(f"Contexts with {', '.join(settings)} must be made first: give their path with --out PATH")
    if not feature:
        raise InputError("Give the features to show (--feature 17), or a path for the contexts of all (--out PATH)")
    views = list(read_contexts(*_paths(store, out or contexts_path, corpus), feature, top_n=top_n))
    run, side, site = RunDirectory.around(store)
    names = read_labels(labels or run.labels(side, site))
    if as_json:
        show({"features": [view.as_dict() | {"label": names.get(view.feature)} for view in views]}, as_json=True)
        return
    console = wide_console()
    for view in views:
        console.print(shaded(view, names.get(view.feature)))


@options(ConceptsSettings)
@on_cluster
@with_text
def concepts_command(
    connect: Connect,
    paths: tuple[Path, Path, Path],
    out: Out,
    settings: ConceptsSettings,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Find the features that fire on the words of each concept."""
    concepts = chosen_concepts(settings)
    result = concept_features(*paths, concepts, settings.rule, out=out, overwrite=overwrite, client=connect)
    lines = list(_concept_lines(result))
    if as_json:
        show({"result": str(out), "rule": result.attrs["rule"], "concepts": lines}, as_json=True)
        return
    table = Table("concept", "rows", "features", "clearest", title=f"rule {settings.rule.name}")
    for line in lines:
        clearest = ", ".join(map(str, line["features"][:8]))
        table.add_row(line["concept"], f"{line['rows']:,}", f"{line['members']:,}", clearest)
    wide_console().print(table)


def _concept_lines(result: xr.Dataset) -> Iterator[dict[str, Any]]:
    for i, name in enumerate(result["concept"].values.tolist()):
        concept = result.isel(concept=i)
        members = np.flatnonzero(concept["member"].values)
        best = members[np.argsort(-concept["pmi"].values[members], kind="stable")]
        yield {
            "concept": name,
            "rows": int(concept["rows"]),
            "members": int(concept["members"]),
            "features": best.tolist(),
        }


@options(NonConceptSettings)
@on_cluster
@with_text
def non_concept_command(
    connect: Connect,
    paths: tuple[Path, Path, Path],
    out: Out,
    settings: NonConceptSettings,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """List features without semantic content: punctuation, whitespace, beginnings, fixed positions, always on."""
    result = non_concept_features(*paths, settings, out=out, overwrite=overwrite, client=connect)
    reason = result["reason"].values
    features = {
        kind: np.flatnonzero(reason == i).tolist()
        for i, kind in enumerate(result["kind"].values.tolist())
        if kind in settings.kinds
    }
    if as_json:
        lines = [{"kind": kind, "features": ids, "counts": True} for kind, ids in features.items()]
        show({"result": str(out), "kinds": lines}, as_json=True)
        return
    table = Table("kind", "features", "such as")
    for kind, ids in features.items():
        table.add_row(kind, f"{len(ids):,}", ", ".join(map(str, ids[:12])))
    wide_console().print(table)


def labels_command(
    source: Annotated[Path, typer.Argument(help="CSV, JSON, JSONL, or a folder of Neuronpedia batches.")],
    out: Out,
    store: Annotated[Path | None, typer.Option(help="Store of the labelled features, used to check the ids.")] = None,
    of: Annotated[
        str | None,
        typer.Option(metavar="MODEL/SOURCE", help="Which model and source to import, if the file has several."),
    ] = None,
    method: Annotated[
        str | None, typer.Option(help="Labelling method to import, if a feature has several labels.")
    ] = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Import feature labels made elsewhere."""
    result = import_labels(source, out, store=store, source=of, method=method, overwrite=overwrite)
    show({"result": str(out), "labels": result.sizes["feature"], "of": result.attrs["source"]}, as_json=as_json)


@options(LabelSettings)
@with_text
def label_command(
    paths: tuple[Path, Path, Path],
    out: Out,
    settings: LabelSettings,
    feature: Features = None,
    pairs: Annotated[Path | None, typer.Option(help="Label the features matched in this result.")] = None,
    side: Annotated[str, typer.Option(help="a or b: side of the store in the pairs.")] = "a",
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Send without asking for confirmation.")] = False,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Label features with a language model at an endpoint; prints the cost and asks before sending anything."""
    request_headers(settings)  # what is wrong with the address is said before contexts are read
    asked = prompts(paths, _wanted(feature, pairs, side), settings)
    cost = estimate(asked)
    Console(stderr=True).print(
        f"{cost.features:,} features in {cost.requests:,} requests to {settings.url}: about {cost.tokens_in:,} tokens "
        f"in, {cost.tokens_out:,} out. The text around their top activations is sent to it."
    )
    if not yes:
        typer.confirm("Send?", abort=True, err=True)
    result = label_features(asked, settings, out, store=paths[1], overwrite=overwrite)
    show({"result": str(out), "labels": result.sizes["feature"], **asdict(cost)}, as_json=as_json)


def _wanted(features: list[int] | None, pairs: Path | None, side: str) -> list[int]:
    if side not in ("a", "b"):
        raise InputError(f"A side is a or b, not {side!r}")
    if pairs is not None:
        matched = open_result(pairs, "match")[f"feature_{side}"].values
        return sorted({*(features or ()), *matched.tolist()})
    if not features:
        raise InputError("Give the features to label: --feature 17, or --pairs PAIRS.zarr for all matched features")
    return features
