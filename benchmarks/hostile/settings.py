"""Settings in YAML: experiment, cluster and concept files with other text, or other values in places."""

from __future__ import annotations

import functools
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from benchmarks.hostile.cases import Case

EXPERIMENT: dict[str, Any] = {
    "name": "toy",
    "corpus": {"path": "texts.jsonl", "documents": 10, "max_length": 40},
    "a": {"model": "llama", "dictionary": "sae-a", "sites": ["layers.0", "layers.1"], "kind": "post"},
    "b": {"model": "bert", "dictionary": {"layers.2": "sae-b"}, "sites": ["layers.2"]},
    "store": {"dtype": "float32", "shard_rows": 256},
    "correlate": {"top_k": 4, "keep_above": 0.05, "memory": "1GB"},
    "match": {"method": "greedy", "min_correlation": 0.05, "filters": [{"name": "max_uses", "n": 3}]},
    "compare": {"metrics": ["svcca:k=4", "rsa"], "null_runs": 50, "seed": 0},
    "semantics": {"only": ["animals"], "rule": {"name": "count", "at_least": 1, "of": 4}, "embedding": "model:a"},
    "report": {"contexts": 4, "pairs": 5},
}
CLUSTER: dict[str, Any] = {
    "subspace": {
        "profiles": {
            "mine": {"kind": "slurm", "jobs": 2, "wait": 60, "driver": {"memory": "4GB", "walltime": "08:00:00"}},
            "here": {"kind": "processes", "workers": 1, "threads": 1, "memory": "1GB"},
            "other": {"like": "mine", "jobs": 3},
        }
    },
    "jobqueue": {
        "mine": {
            "cores": 2, "processes": 1, "memory": "8GB", "walltime": "01:00:00", "partition": "short",
            "job-extra-directives": ["--mail-type=FAIL"], "lifetime": "50m", "modules": ["cuda"],
        }
    },
    "distributed": {"scheduler": {"allowed-failures": 3}, "worker": {"memory": {"target": 0.6}}},
}  # fmt: skip
CONCEPTS: dict[str, Any] = {
    "animals": ["cat", "dog", "bird"],
    "numbers": {"keywords": ["one", "two"], "exact_case": ["II"], "patterns": ["[0-9]+"], "inflections": ["plural"]},
}
#: What means something to YAML.
MARKS = (b":", b"- ", b"[", b"}", b"&a ", b"*a", b"\t", b"'", b'"', b"? ", b"|\n", b"!x ")
#: Values in place of any other.
VALUES: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    2**40,
    10**30,
    1.5,
    -0.0,
    float("nan"),
    float("inf"),
    -float("inf"),
    "",
    " ",
    "lots",
    "1e400",
    "0",
    "-5GB",
    "é\u200b\u202e",
    "a\0b",
    "\x1b[31mred",
    "../../../etc/passwd",
    "/dev/zero",
    "{site}",
    "%s%n",
    "x" * 100_000,
    [],
    {},
    [[]],
    [None],
    {"a": 1},
    {1: 2},
    [1, 2, 3],
    ["x"] * 5000,
    {"": ""},
    {"$ref": "x"},
    "!!python/object:os.system",
    "2024-99-99",
    "01:00:00",
    b"\xff\xfe",
    [{"name": "no_such"}],
    {"name": ["count"]},
    "1_000",
    "0x7f",
    "~",
    "on",
)


def _places(value: Any, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the place of every value in a structure."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inner:
        yield (*before, key)
        yield from _places(item, (*before, key))


def _changed(base: Any, place: tuple[Any, ...], value: Any) -> Any:
    if not place:
        return value
    copy = dict(base) if isinstance(base, dict) else list(base)
    copy[place[0]] = _changed(copy[place[0]], place[1:], value)
    return copy


def _text_mutations(base: str, rng: random.Random) -> Iterator[tuple[str, bytes]]:
    """Yield texts that are no settings, each with what it is."""
    laughs = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12))
    merged = "x0: &x0 {k: v}\n" + "".join(
        f"x{i}: &x{i} {{<<: [*x{i - 1}, *x{i - 1}], k{i}: *x{i - 1}}}\n" for i in range(1, 40)
    )
    raw = base.encode()
    fixed: dict[str, bytes] = {
        "empty": b"",
        "spaces": b"  \n\n",
        "null": b"~",
        "number": b"7",
        "list": b"- a\n- b",
        "text": b"hello world",
        "laughs": (laughs + base).encode(),
        "merges": (merged + base).encode(),
        "laughs alone": laughs.encode(),
        "cycle": b"name: &n [*n]\n",
        "cycle in a section": b"corpus: &c {path: *c}\n" + raw,
        "brackets": b"[" * 100_000,
        "braces": b"{a: " * 50_000,
        "dashes": b"- " * 100_000,
        "nested": b"name: " + b"[" * 3000 + b"]" * 3000,
        "indented": "\n".join(" " * i + "a:" for i in range(2000)).encode(),
        "utf-16": base.encode("utf-16"),
        "latin-1": (base + "\n# caf\xe9").encode("latin-1"),
        "bom": b"\xef\xbb\xbf" + raw,
        "nul": raw + b"\0",
        "bell": raw + b"\nx: \x07",
        "del": raw + b"\nx: \x7f",
        "escape": raw + b"\n\x1b[2J: 1",
        "tabs": raw.replace(b"  ", b"\t"),
        "cr": raw.replace(b"\n", b"\r"),
        "two documents": raw + b"\n---\n" + raw,
        "tag": b"!!python/object/apply:os.system [id]",
        "tag inside": raw + b"\nx: !!python/name:os.system",
        "own tag": raw + b"\nx: !mine 3",
        "binary": raw + b"\nx: !!binary abc",
        "bool tag": raw + b"\nx: !!bool 7",
        "int tag": raw + b"\nx: !!int ''",
        "float tag": raw + b"\nx: !!float abc",
        "time": raw + b"\nx: 2024-99-99",
        "timestamp tag": raw + b"\nx: !!timestamp no",
        "digits": raw + b"\nx: " + b"9" * 6000,
        "sixty": raw + b"\nx: 190:20:30:15:59:12",
        "huge": raw + b"\n#" + b"x" * 5_000_000,
        "long key": b"k" * 100_000 + b": 1\n" + raw,
        "long text": raw + b"\nx: '" + b"y" * 200_000 + b"'",
        "pairs tag": raw + b"\nx: !!omap 3",
        "set": raw + b"\nx: !!set {a, b}",
        "list key": b"? [a, b]\n: 1\n" + raw,
        "map key": b"? {a: b}\n: 1\n" + raw,
        "null key": b"~: 1\n" + raw,
        "twice": raw + raw,
        "anchor only": b"&a",
        "alias of nothing": b"x: *nothing",
        "directive": b"%YAML 9.9\n---\n" + raw,
        "surrogate": raw + b"\nx: \xed\xa0\x80",
        "surrogate escape": raw + b'\nx: "\\ud800"',
        "merge of a number": raw + b"\n<<: 5",
        "merge of a list": raw + b"\n<<: [1, 2]",
        "random": rng.randbytes(3000),
        "many keys": b"".join(b"k%d: 1\n" % i for i in range(20_000)),
        "percent": b"%",
        "backtick": b"`",
        "at": b"@x: 1",
    }
    yield from fixed.items()
    for i in range(60):
        data = bytearray(raw)
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(data))
            kind = rng.randrange(4)
            if kind == 0:
                data[at] = rng.randrange(256)
            elif kind == 1:
                del data[at : at + rng.randint(1, 20)]
            elif kind == 2:
                data[at:at] = rng.choice(
                    [b":", b"- ", b"[", b"}", b"&a ", b"*a", b"\t", b"'", b'"', b"? ", b"|\n", b"!x "]
                )
            else:
                data = data[: max(1, at)]
        yield f"bytes {i}", bytes(data)


#: Which commands read which settings.
READERS_OF_SETTINGS: dict[str, tuple[Any, tuple[tuple[str, ...], ...]]] = {
    "experiment": (
        EXPERIMENT,
        (
            ("status", "x.yaml"),
            ("run", "x.yaml", "--until", "harvest", "--run-dir", "out"),
            ("submit", "x.yaml", "--cluster", "slurm-cpu", "--dry-run", "--run-dir", "out"),
            ("plan", "x.yaml"),
        ),
    ),
    "cluster": (
        CLUSTER,
        (
            ("cluster", "job-script", "mine", "--cluster-file", "x.yaml"),
            ("submit", "e.yaml", "--cluster", "mine", "--cluster-file", "x.yaml", "--dry-run", "--run-dir", "out"),
            ("cluster", "job-script", "other", "--cluster-file", "x.yaml", "--json"),
        ),
    ),
    "concepts": (
        CONCEPTS,
        (("semantics", "run", "--concepts", "x.yaml"),),
    ),
}


def setting_cases(seed: int, count: int) -> list[Case]:
    """Return cases of settings: every mutation of the text, and random places with random values."""
    rng = random.Random(seed)  # noqa: S311 - no secret
    cases = []
    for kind, (base, commands) in READERS_OF_SETTINGS.items():
        texts = list(_text_mutations(yaml.safe_dump(base), rng))
        places = list(_places(base))
        pairs = [(place, value) for place in places for value in VALUES]
        # a share of the values, so that the file of experiments, which has most of them, gets most of the cases
        n = max(0, round(count * len(places) / 80) - len(texts))
        for place, value in rng.sample(pairs, min(n, len(pairs))):
            name = ".".join(map(str, place))
            texts.append((f"{name} = {repr(value)[:40]}", yaml.safe_dump(_changed(base, place, value)).encode()))
        for i, (name, data) in enumerate(texts):
            command = commands[i % len(commands)]
            prepare = functools.partial(_write_settings, data)
            cases.append(Case("settings", f"{kind}: {name}", command, prepare))
    return cases


def _write_settings(data: bytes, folder: Path) -> None:
    (folder / "x.yaml").write_bytes(data)
    (folder / "e.yaml").write_text(yaml.safe_dump(EXPERIMENT), encoding="utf-8")
    (folder / "run").mkdir()
    experiment = {**EXPERIMENT, "match": {"min_correlation": 0.05}}
    (folder / "run" / "experiment.json").write_text(json.dumps(experiment), encoding="utf-8")
