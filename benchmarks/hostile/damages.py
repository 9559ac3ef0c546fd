"""Damage to the files of a run, and the verbs that read them."""

from __future__ import annotations

import functools
import json
import os
import random
import shutil
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse
import xarray as xr

from benchmarks.hostile.cases import Case, run_all, warm_up
from benchmarks.hostile.imports import damage_file

A, B = "run/activations/a/x.zarr", "run/activations/b/y.zarr"
CONTEXTS_A, CONTEXTS_B = "run/contexts/a/x.zarr", "run/contexts/b/y.zarr"
CORRELATION, PAIRS, SCORES = (f"run/{stage}/x--y.zarr" for stage in ("correlation", "pairs", "scores"))
CORPUS, ROWS, CONCEPTS, SEMANTICS = "run/corpus.zarr", "run/rows.zarr", "run/concepts", "run/semantics/x--y.zarr"
EXPERIMENT = "run/experiment.json"
#: How many documents, rows of each, and features of each side the run has.
N_DOCUMENTS, N_WORDS, N_A, N_B = 30, 20, 48, 40
WORDS = (
    "cat",
    "dog",
    "bird",
    "fish",
    "March",
    "May",
    "April",
    "June",
    "stone",
    "river",
    "seven",
    "nine",
    "red",
    "green",
)

#: Verbs, and what of the run they read.
VERBS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "inspect": (("inspect", "run", "--json"), ("run",)),
    "verify": (("verify", "run", "--json"), ("run",)),
    "status": (("status", "run", "--json"), ("run",)),
    "correlate": (("correlate", A, B, "--top-k", "4", "--out", "out/c.zarr", "--json"), (A, B)),
    "match": (("match", CORRELATION, "--out", "out/p.zarr", "--json"), (CORRELATION,)),
    "match --all": (("match", CORRELATION, "--all", "--json"), (CORRELATION,)),
    "match --filter": (
        ("match", CORRELATION, "--out", "out/p.zarr", "--filter", "shared_token", "--contexts", CONTEXTS_A, CONTEXTS_B,
         "--stores", A, B, "--corpus", CORPUS, "--json"),
        (CORRELATION, CONTEXTS_A, CONTEXTS_B, CORPUS),
    ),
    "sweep": (("sweep", CORRELATION, "--out", "out/s.zarr", "--json"), (CORRELATION,)),
    "compare": (
        ("compare", PAIRS, A, B, "--metric", "rsa", "--null-runs", "20", "--out", "out/s.zarr", "--json"),
        (PAIRS, A, B),
    ),
    "compare-activations": (
        ("compare-activations", A, B, "--metric", "cka", "--out", "out/s.zarr", "--null-runs", "10", "--json"), (A, B),
    ),
    "token-identity": (("token-identity", PAIRS, A, B, "--out", "out/i.zarr", "--json"), (PAIRS, A, B)),
    "intervals": (("intervals", PAIRS, A, B, "--out", "out/i.zarr", "--json"), (PAIRS, A, B)),
    "rematch": (
        ("rematch", PAIRS, CORRELATION, A, B, "--corpus", CORPUS, "--draws", "2", "--out", "out/r.zarr", "--json"),
        (PAIRS, CORRELATION, A, B, CORPUS),
    ),
    "convergence": (("convergence", PAIRS, A, B, "--out", "out/i.zarr", "--json"), (PAIRS, A, B)),
    "contexts": (
        ("contexts", A, *(word for i in range(0, N_A, 3) for word in ("--feature", str(i))), "--json"),
        (A, CONTEXTS_A, CORPUS),
    ),
    "contexts --out": (("contexts", A, "--top-n", "5", "--out", "out/c.zarr", "--json"), (A,)),
    "concepts": (
        ("concepts", A, "--contexts", CONTEXTS_A, "--corpus", CORPUS, "--concepts", "mine.yaml", "--out", "out/c.zarr",
         "--json"),
        (A, CONTEXTS_A, CORPUS),
    ),
    "non-concept": (
        ("non-concept", A, "--contexts", CONTEXTS_A, "--corpus", CORPUS, "--out", "out/n.zarr", "--json"),
        (A, CONTEXTS_A, CORPUS),
    ),
    "export": (("export", A, "--format", "npz", "--out", "out/a.npz", "--json"), (A,)),
    "export b": (("export", B, "--format", "npy", "--out", "out/b.npy", "--json"), (B,)),
    "report": (("report", "run", "--json"), ("run",)),
    "scores": (("scores", "run", "--json"), (SCORES, EXPERIMENT)),
    "layers": (("layers", "run", "--json"), (PAIRS, EXPERIMENT)),
    "semantics": (
        ("semantics", "run", "--concepts", "mine.yaml", "--null-runs", "10", "--json"),
        (A, B, CONTEXTS_A, CONTEXTS_B, CORPUS, PAIRS, CORRELATION, CONCEPTS, SEMANTICS, EXPERIMENT),
    ),
}  # fmt: skip
#: Kinds of damage of a file, and of the metadata of a group or an array.
KINDS = ("cut", "bit", "lost", "folder", "other", "empty", "garbage", "noise", "zeros")
METADATA_KINDS = (
    "empty",
    "garbage",
    "lost",
    "cut",
    "bit",
    "folder",
    "shape",
    "chunk",
    "type",
    "fill",
    "codecs",
    "attributes",
    "list",
    "deep",
    "number",
    "no attributes",
    "wide",
)
OTHER_KINDS = ("extra file", "extra array", "swapped arrays", "lost array", "no top", "link to nothing", "named pipe")


def make_run(folder: Path) -> None:
    """Write a small run directory with results of all stages, by the stages themselves."""
    from pipeline import compare, contexts, correlate, match  # noqa: PLC0415
    from pipeline.work.workers import local_client  # noqa: PLC0415
    from storage import new_manifest, write_activations, write_corpus, write_result  # noqa: PLC0415
    from storage.rundir import RunDirectory  # noqa: PLC0415

    run, rng = RunDirectory(folder / "run"), np.random.default_rng(0)
    side = {"model": "toy", "dictionary": "toy"}
    sections = {"compare": {"metrics": ["rsa"], "null_runs": 20}, "correlate": {"top_k": 4}, "report": {"contexts": 5}}
    semantics = {"embedding": None, "null_runs": 10, "min_pairs": 3, "rule": {"name": "count", "at_least": 1, "of": 5}}
    sides = {"a": {**side, "sites": ["x"]}, "b": {**side, "sites": ["y"]}}
    run.write_experiment({"name": "toy", "corpus": {"path": "t.txt"}, **sides, **sections, "semantics": semantics})
    words = rng.choice(WORDS, (N_DOCUMENTS, N_WORDS))
    write_corpus(run.corpus, [" ".join(document) for document in words])
    ends = np.cumsum(np.char.str_len(words) + 1, axis=1) - 1
    tokens = {
        "document": np.repeat(np.arange(N_DOCUMENTS, dtype=np.int32), N_WORDS),
        "position": np.tile(np.arange(N_WORDS, dtype=np.int32), N_DOCUMENTS),
        "char_start": (ends - np.char.str_len(words)).ravel(),
        "char_end": ends.ravel(),
        "token_id": np.searchsorted(np.sort(WORDS), words.ravel()).astype(np.int32),
    }
    rows = {name: ("token", values) for name, values in tokens.items()}
    write_result(xr.Dataset(rows), run.rows, new_manifest("rows", {}, {}))
    hidden = rng.random((words.size, 20)) + (tokens["token_id"][:, None] == np.arange(20))
    for name, site, width, layout in (("a", "x", N_A, "csr"), ("b", "y", N_B, "dense")):
        x = np.maximum(hidden @ rng.standard_normal((20, width)) - (1.0 if layout == "csr" else -1.0), 0).astype("f4")
        data: Any = scipy.sparse.csr_array(x) if layout == "csr" else x
        attrs = {"model": "toy", "site": site, "dictionary": "toy", "kind": "post"}
        decoder = rng.standard_normal((width, 12)).astype("f4")
        store = run.activations(name, site)  # type: ignore[arg-type]
        write_activations(
            store, data, tokens=tokens, decoder=decoder, attrs=attrs, shard_rows=200, chunk=(100, 16), layout=layout  # type: ignore[arg-type]
        )  # fmt: skip
    with local_client(threads_per_worker=1) as client, redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        for name, site in (("a", "x"), ("b", "y")):
            contexts(run.activations(name, site), run.contexts(name, site), 5, client=client)  # type: ignore[arg-type]
        a, b = run.activations("a", "x"), run.activations("b", "y")
        correlate(a, b, out=run.correlation("x", "y"), top_k=4, client=client, memory="2GB")
        match(run.correlation("x", "y"), out=run.pairs("x", "y"))
        compare(run.pairs("x", "y"), a, b, metrics=["rsa"], null_runs=20, out=run.scores("x", "y"), client=client)


def _link(good: Path, folder: Path) -> None:
    """Put the run's files there without copying them: what is damaged is written again."""
    shutil.copytree(good / "run", folder / "run", copy_function=lambda source, target: Path(target).hardlink_to(source))
    (folder / "mine.yaml").write_text("animals: [cat, dog, bird]\nmonths: [March, May, April]\n", encoding="utf-8")


def _prepare(good: Path, file: str, kind: str, draw: int, folder: Path) -> None:
    _link(good, folder)
    damage(folder / file, kind, random.Random(draw))  # noqa: S311 - no secret


def damage(path: Path, kind: str, rng: random.Random) -> None:
    """Damage a file of a group, or the group."""
    if kind in OTHER_KINDS:
        _damage_group(path, kind, rng)
    elif path.name == "zarr.json" and kind not in KINDS:
        _edit(path, kind, rng)
    else:
        top = next((folder for folder in path.parents if folder.suffix == ".zarr"), path.parent)
        metadata = path.name == "zarr.json"
        alike = [
            file
            for file in top.rglob("*")
            if file.is_file() and file != path and (file.name == "zarr.json") == metadata
        ]
        content = path.read_bytes()
        damage_file(path, kind, rng, [file for file in alike if file.read_bytes() != content] or [top / "zarr.json"])


def _edit(path: Path, kind: str, rng: random.Random) -> None:
    """Edit metadata as a program with a bug would: still JSON, but not what was written."""
    content: Any = json.loads(path.read_bytes())
    shape = content.get("shape") or [1]
    if kind == "deep":
        path.unlink()
        path.write_text("[" * 100_000, encoding="utf-8")
        return
    if kind in ("list", "number"):
        content = [content] if kind == "list" else 7
    elif kind == "no attributes":
        content = {name: value for name, value in content.items() if name not in ("attributes", "shape")}
    elif kind == "wide":
        content["attributes"] = {str(i): i for i in range(3000)}
    elif kind == "attributes":
        attributes = content.setdefault("attributes", {})
        for name in list(attributes)[:: rng.randint(1, 3)]:
            attributes[name] = rng.choice([None, 7, "x", [], {}, -1])
        attributes.setdefault("x", 1)
    else:
        name, values = _edits(shape)[kind]
        content[name] = rng.choice([value for value in values if value != content.get(name)])
    path.unlink()
    path.write_text(json.dumps(content), encoding="utf-8")


def _edits(shape: list[int]) -> dict[str, tuple[str, list[Any]]]:
    """Return, by kind, which key of an array's metadata gets which values."""
    ends = [[*shape[:-1], shape[-1] + 8], [max(1, shape[0] // 2), *shape[1:]], [2**40] * len(shape), [-1], []]
    big = [{"name": "bytes", "configuration": {"endian": "big"}}]
    chunks = [{"name": "regular", "configuration": {"chunk_shape": [n] * len(shape)}} for n in (1, 7, 2**40, 0)]
    return {
        "shape": ("shape", ends),
        "chunk": ("chunk_grid", chunks),
        "type": ("data_type", ["float64", "int32", "uint8", "nosuch", 7, None]),
        "fill": ("fill_value", [1, 1e300, "NaN", "x", None]),
        "codecs": ("codecs", [[], [{"name": "nosuch"}], 5, big]),
    }


def _damage_group(path: Path, kind: str, rng: random.Random) -> None:
    top = next((folder for folder in path.parents if folder.suffix == ".zarr"), path.parent)
    arrays = sorted(file.parent for file in top.glob("*/zarr.json")) or [top]
    first, second = rng.choice(arrays), rng.choice(arrays)
    match kind:
        case "extra file":
            (first / "c").mkdir(exist_ok=True)
            (first / "stray.partial").write_bytes(b"x")
        case "extra array":
            shutil.copytree(first, top / "unknown")
        case "lost array":
            shutil.rmtree(first)
        case "no top":
            (top / "zarr.json").unlink(missing_ok=True)
        case "link to nothing":
            path.unlink()
            path.symlink_to("nothing")
        case "named pipe":
            path.unlink()
            os.mkfifo(path)
        case _:
            first.rename(top / "swap")
            if second != first:
                second.rename(first)
                (top / "swap").rename(second)


#: Damage that may change nothing of what is read.
HARMLESS = ("extra file", "extra array", "wide")


def damage_cases(seed: int, count: int, good: Path, verbs_each: int = 2) -> list[Case]:
    """Return cases: each damage by `verify`, and by some of the verbs that read what is damaged, in turn."""
    rng = random.Random(seed)  # noqa: S311 - no secret
    files = sorted(str(file.relative_to(good)) for file in (good / "run").rglob("*") if file.is_file())
    turn = dict.fromkeys(VERBS, 0)
    cases = []
    for i in range(count):
        file = rng.choice(files)
        kinds: tuple[str, ...] = METADATA_KINDS if file.endswith("zarr.json") else KINDS
        if file.endswith(".zarr/zarr.json"):  # a group has no shape, and what it has not is not read
            kinds = tuple(kind for kind in kinds if kind not in _edits([1]))
        kind = rng.choice(OTHER_KINDS if i % 6 == 5 and file != EXPERIMENT else kinds)
        prepare = functools.partial(_prepare, good, file, kind, draw := rng.randrange(2**32))
        reading = sorted((name for name in VERBS if name != "verify" and _reads(name, file)), key=turn.__getitem__)
        for name in ("verify", *reading[:verbs_each]):
            turn[name] += 1
            case = Case("damages", f"{name}: {kind} of {file} ({draw})", VERBS[name][0], prepare)
            # without its experiment, a run is a folder of stores, which is as good
            harmless = kind in HARMLESS or (kind == "lost" and file == EXPERIMENT)
            cases.append(replace(case, refuse=name == "verify" and not harmless))
    return cases


def _reads(verb: str, file: str) -> bool:
    return any(file == part or file.startswith(f"{part}/") for part in VERBS[verb][1])


def with_expected(cases: list[Case], good: Path, folder: Path, processes: int) -> tuple[list[Case], list[str]]:
    """Return the cases with what their verbs make of undamaged files, and the verbs that do not give the same twice."""
    verbs = dict.fromkeys(case.arguments for case in cases)
    undamaged = [Case("damages", "undamaged", arguments, functools.partial(_link, good)) for arguments in verbs]
    warm_up(undamaged, folder)
    digests: dict[tuple[str, ...], set[str]] = {}
    for case, outcome in run_all([*undamaged, *undamaged], folder / "undamaged", processes):
        if outcome.status:
            raise RuntimeError(f"{case.arguments} fails over undamaged files: {outcome.errors}")
        digests.setdefault(case.arguments, set()).add(outcome.digest)
    expected = {verb: next(iter(same)) if len(same) == 1 else None for verb, same in digests.items()}
    varying = [" ".join(verb) for verb, digest in expected.items() if digest is None]
    found = [
        case if case.arguments[0] == "verify" else replace(case, expect=expected[case.arguments]) for case in cases
    ]
    return found, varying


def unchanged(good: Path) -> Iterator[tuple[str, int, int]]:
    """Yield what tells later whether a case has changed the files that all cases share."""
    for file in sorted((good / "run").rglob("*")):
        if file.is_file():
            yield str(file), file.stat().st_size, file.stat().st_mtime_ns
