"""Imports run one way: jobs → pipeline → storage; experiment → stages → work, text → settings; stages stand alone."""

from __future__ import annotations

import ast
import graphlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.verbs.index import VERBS

ROOT = Path(__file__).parent.parent
PACKAGES = ("storage", "pipeline", "jobs")
ALLOWED = {"storage": {"storage"}, "pipeline": {"storage", "pipeline"}, "jobs": {"storage", "pipeline", "jobs"}}
STAGES = {"harvest", "correlate", "match", "compare", "semantics", "report"}
#: The rooms of `pipeline`, each above those that it may import from.
FLOORS = {
    "settings": 1,
    "work": 2,
    "text": 2,
    **dict.fromkeys(STAGES, 3),
    "rematch": 4,
    "yardsticks": 5,
    "experiment": 6,
}
MODULES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


#: A later stage may call these functions of an earlier one, each from the module that is named.
PUBLIC = {
    ("match", "pipeline.correlate.documents"),  # what estimates over documents are made of
    ("match", "pipeline.correlate.influence"),
    ("match", "pipeline.correlate.intervals"),
    ("match", "pipeline.correlate.rows"),
    ("semantics", "pipeline.match.within"),
    ("semantics", "pipeline.compare.subsets"),
    ("semantics", "pipeline.compare.statistics"),
    ("report", "pipeline.compare.score_grid"),
    ("semantics", "pipeline.harvest.models"),  # where a model's embeddings are
}


def imported(path: Path, *, members: bool = False) -> Iterator[str]:
    """Yield the absolute names of the modules that a file imports; with `members`, of what it imports from them too.

    What only types need is left out then.
    """
    tree = ast.parse(path.read_text())
    blocks = [node for node in ast.walk(tree) if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    for_types = {id(node) for block in blocks if members for node in ast.walk(block)}
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names if members)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_one_way(path: Path) -> None:
    package, *inner = path.relative_to(ROOT).parts
    for name in imported(path):
        top, *rest = name.split(".")
        if top not in PACKAGES:
            continue
        assert top in ALLOWED[package], f"{path.relative_to(ROOT)} imports {name}"
        if top == package == "pipeline" and rest and inner[0] in FLOORS and inner[-1] != "__main__.py":
            assert FLOORS[inner[0]] >= FLOORS.get(rest[0], 0), f"{path.relative_to(ROOT)} imports {name}"
        other_stage = top == "pipeline" and package == "pipeline" and rest and rest[0] in STAGES
        if other_stage and inner[0] in STAGES and inner[-1] != "__main__.py":
            allowed = rest[0] == inner[0] or (inner[0], name) in PUBLIC
            assert allowed, f"stage {inner[0]} reaches into stage {rest[0]}: {name}"


def test_no_modules_import_each_other() -> None:
    """Not inside of functions either; imports for types alone do not count."""
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in MODULES}
    graph = {name: {*imported(path, members=True)} & {*names} for name, path in names.items()}
    graphlib.TopologicalSorter(graph).prepare()
    assert "storage.errors" in graph["storage.files"]


def test_the_map_names_what_is_there() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:pipeline|storage|jobs|tests|docs)/[\w/.]+)`", page))
    assert len(named) > 10
    stages = [path.replace("STAGE", stage) for path in named for stage in STAGES if "STAGE" in path]
    assert [
        path for path in [*stages, *(named - {path for path in named if "STAGE" in path})] if not (ROOT / path).exists()
    ] == []
    rooms = {path.name for path in (ROOT / "pipeline").iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert rooms == set(re.findall(r"^  (\w+)/", page.split("pipeline/  ")[1].split("storage/  ")[0], re.MULTILINE))


def test_the_rule_looks_at_something() -> None:
    assert len(MODULES) > 30
    assert any(name.startswith("storage.") for path in MODULES for name in imported(path))
    assert any(
        path.relative_to(ROOT / "pipeline").parts[0] in ("work", "text") for path in MODULES if "pipeline" in path.parts
    )


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_chunk_by_keyword(path: Path) -> None:
    """``Dataset.chunk(token=…)`` is taken for another argument of that method and leaves `token` unchunked."""
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    chunks = [node for node in calls if isinstance(node.func, ast.Attribute) and node.func.attr == "chunk"]
    assert not [node.lineno for node in chunks if any(k.arg in ("token", "feature") for k in node.keywords)]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_pickle(path: Path) -> None:
    assert not {"pickle", "dill", "cloudpickle", "joblib", "shelve"} & set(imported(path))
    assert "allow_pickle=True" not in path.read_text()


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_functions_are_not_cached_by_numba_itself(path: Path) -> None:
    """See :mod:`storage.jit`."""
    assert path.name == "jit.py" or not re.search(r"\bn?jit\(|cache=True", path.read_text())


def test_no_verb_imports_what_only_few_need() -> None:
    """Every verb and every worker would wait for it: torch alone takes two seconds."""
    heavy = ["torch", "transformers", "sae_lens", "matplotlib", "bokeh", "sklearn"]
    modules = ", ".join(sorted({verb.target.partition(":")[0] for verb in VERBS}))
    code = f"import sys, {modules}; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
