"""The verbs over what is on disk: inspect, verify, import, corpus, export."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.table import Table

from pipeline.experiment.status import expected
from pipeline.harvest.corpus import build_corpus
from pipeline.settings.harvest import ActivationKind, CorpusSettings
from pipeline.work.script import AsJson, Out, Overwrite, show, wide_console, with_prefix
from storage.exchange import LARGEST_DENSE, Format, export_activations, import_activations
from storage.inspect import inspect
from storage.registry import IMPORTERS
from storage.verify import Verification, verify

#: Entries of `inspect` that a table does not show: they are long, and in the JSON.
NOT_SHOWN = {"versions", "inputs", "settings", "fingerprint", "parts", "arrays", "attributes"}
FAULTY = 5


def inspect_command(
    path: Annotated[Path, typer.Argument(help="Store, result, unfinished work, or run directory.")],
    as_json: AsJson = False,
) -> None:
    """Show what a store, a result or a run contains: size, density, dead features, completeness, origin."""
    summary = inspect(path)
    if as_json:
        show(summary, as_json=True)
        return
    console = wide_console()
    console.print(_table_of(summary))
    if summary["kind_of_data"] == "run":
        console.print(_table_of_parts(summary["parts"]))
    elif "arrays" in summary:
        console.print(_table_of_arrays(summary["arrays"]))


def _table_of(summary: dict[str, Any]) -> Table:
    table = Table(show_header=False, title=summary["path"])
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in {**summary, **summary.get("attributes", {})}.items():
        if name not in NOT_SHOWN and value not in (None, {}, []):
            table.add_row(name.replace("_", " "), readable(name, value))
    for name, value in summary.get("settings", {}).items():
        table.add_row(f"setting {name}", readable(name, value))
    return table


def readable(name: str, value: Any) -> str:
    """Return a value for a person.

    >>> readable("bytes", 12476177), readable("l0", 31.99999), readable("chunk", [4096, 2048])
    ('12.5 MB', '32', '4,096 × 2,048')
    """
    if name == "bytes" or name.startswith("bytes_of"):
        return f"{with_prefix(value)}B"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    if name in ("chunk", "decoder", "shape"):
        return " × ".join(f"{length:,}" for length in value)
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _table_of_parts(parts: list[dict[str, Any]]) -> Table:
    table = Table("part", "what", "size", "complete", "shape", "L0", "dead", "sinks")
    for part in parts:
        path = Path(part["path"])
        numbers = [part.get(name) for name in ("l0", "dead_features", "sinks")]
        shape = f"{part['tokens']:,} × {part['features']:,}" if "tokens" in part else ""
        shown = ["" if number is None else readable("", number) for number in numbers]
        name = "/".join(path.parts[-3:] if part["kind_of_data"] in ("activations", "contexts") else path.parts[-2:])
        table.add_row(
            name, part["kind_of_data"], readable("bytes", part["bytes"]), readable("", part["complete"]), shape, *shown
        )
    return table


def _table_of_arrays(arrays: dict[str, dict[str, Any]]) -> Table:
    table = Table("array", "dimensions", "shape", "type")
    for name, array in arrays.items():
        table.add_row(name, ", ".join(array["dimensions"]), readable("shape", array["shape"]), array["dtype"])
    return table


def verify_command(
    paths: Annotated[list[Path], typer.Argument(help="Stores, results, or folders of them.", metavar="PATH…")],
    threads: Annotated[
        int | None, typer.Option(min=1, help="Shards to check in parallel; default: one per core.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Read every chunk, check its checksum and structure, and recompute hashes and statistics.

    The exit status is 5 if anything is not as it was written; each fault is reported with its file, shard and chunk.
    Inputs of the given results that were replaced are faults too; those that cannot be checked are listed.
    """
    report = verify(*paths, threads=threads, expect=expected)
    if as_json:
        show(report.as_dict(), as_json=True)
    else:
        for line in _lines(report):
            typer.echo(line)
    if not report.ok:
        raise typer.Exit(FAULTY)


def _lines(report: Verification) -> Iterator[str]:
    yield from (f"unfinished, not checked  {path}" for path in report.unfinished)
    yield from (f"not made yet             {path}" for path in report.missing)
    yield from (f"input  {entry}" for entry in report.inputs)
    yield from (f"FAULT  {fault}" for fault in report.faults)
    verdict = "no faults" if report.ok else f"{len(report.faults)} faults"
    yield f"{len(report.checked)} stores and results, {sum(report.checked.values()):,} chunks: {verdict}"


def import_command(
    source: Annotated[Path, typer.Argument(help=f"File or folder written by another program: {', '.join(IMPORTERS)}.")],
    out: Out,
    key: Annotated[str | None, typer.Option(help="Array, layer or hook to import, if the source has several.")] = None,
    decoder: Annotated[
        Path | None, typer.Option(help="Decoder rows, (feature, d_model): .npy or .safetensors.")
    ] = None,
    tokens: Annotated[
        Path | None,
        typer.Option(
            help="Table of the rows: document, and token (its text) or char_start and char_end; "
            "optionally group …: .csv, .parquet, .npz; or .jsonl, one list of tokens per line."
        ),
    ] = None,
    documents: Annotated[
        Path | None, typer.Option(help="Document of each row, if no more is known: .npy, or such a table.")
    ] = None,
    kind: Annotated[ActivationKind | None, typer.Option(help="post, pre_topk, or raw units.")] = None,
    model: Annotated[str | None, typer.Option(help="Model that the activations come from.")] = None,
    site: Annotated[str | None, typer.Option(help="Site name, such as layers.3.")] = None,
    dictionary: Annotated[str | None, typer.Option(help="Name of the dictionary.")] = None,
    dtype: Annotated[
        Literal["float16", "float32", "float64"] | None,
        typer.Option(help="dtype of the store; default: that of the source."),
    ] = None,
    mask: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="For arrays of shape (sequence, position, feature), which positions are tokens: .npy "
            "with an attention mask or the length of each sequence; or all.",
        ),
    ] = None,
    drop_token: Annotated[
        list[int] | None, typer.Option(help="Leave out rows with this token id (BOS, padding); repeatable.")
    ] = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Import activations written by other programs into an activation store, slab by slab."""
    given = {"kind": kind, "model": model, "site": site, "dictionary": dictionary}
    written = import_activations(
        source,
        out,
        key=key,
        decoder=decoder,
        tokens=tokens,
        documents=documents,
        attrs={name: value for name, value in given.items() if value is not None},
        dtype=dtype,
        drop_tokens=drop_token or (),
        mask=mask,
        overwrite=overwrite,
    )
    show(written, as_json=as_json)


def corpus_command(
    source: Annotated[
        Path,
        typer.Argument(help="Text: .txt, .jsonl, .parquet or a folder; or a table of tokens, as for import --tokens."),
    ],
    out: Out,
    column: Annotated[str, typer.Option(help="Column or JSON key of the text.")] = "text",
    group: Annotated[str | None, typer.Option(help="Column or JSON key of the group that documents belong to.")] = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Import a text as a corpus that other verbs read (--corpus), with documents numbered as in the source.

    No document is left out, so the rows of imported activations find theirs by number.
    """
    settings = CorpusSettings.make(path=str(source), column=column, group=group)
    corpus = build_corpus(settings, out, keep_empty=True, overwrite=overwrite)
    show({"corpus": str(out), "documents": len(corpus), "hash": corpus.hash}, as_json=as_json)


def export_command(
    store: Annotated[Path, typer.Argument(help="Activation store.", show_default=False)],
    out: Out,
    format_: Annotated[Format, typer.Option("--format", help="anndata (.h5ad, .zarr), npz (SciPy), npy (dense).")],
    largest_dense: Annotated[
        int, typer.Option(metavar="BYTES", help="Refuse to write a dense array larger than this.")
    ] = LARGEST_DENSE,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Replace an earlier export of another store; a .npy is never replaced."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Export an activation store for other programs; a sparse store stays sparse."""
    show(export_activations(store, out, format_, largest_dense=largest_dense, overwrite=overwrite), as_json=as_json)
