"""How fast the command and the packages start, and what they leave unloaded until it is needed."""

from __future__ import annotations

import os
import pkgutil
import resource
import subprocess
import sys
from types import ModuleType

import pytest

import pipeline
import storage
from jobs.verbs.index import VERBS

#: What takes long to import. Each is needed by some verb, none by the help of the command or by an import.
HEAVY = {
    "anndata", "bokeh", "cryptography", "dask", "dask_jobqueue", "datasets", "distributed", "gensim", "inflect",
    "jinja2", "llvmlite", "matplotlib", "numba", "numcodecs", "numpy", "pandas", "psutil", "pydantic", "sae_lens",
    "scipy", "sentence_transformers", "sklearn", "torch", "transformers", "xarray", "zarr",
}  # fmt: skip

#: What the installed script does.
SUBSPACE = "import sys; sys.argv[0] = 'subspace'; from jobs.cli import main; main()"
COMPLETION = {"_SUBSPACE_COMPLETE": "complete_bash", "COMP_WORDS": "subspace c", "COMP_CWORD": "1"}
IMPORT = ("import pipeline, storage",)


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)


def cpu_seconds(*arguments: str, **environment: str) -> float:
    """Return what a process took of the processor, which depends less than its duration on what else runs."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = python(*arguments, **environment)
    assert done.returncode == 0, done.stderr
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.parametrize(
    ("code", "environment", "limit"),
    [
        ((SUBSPACE, "--help"), {}, 5),
        ((SUBSPACE, "--version"), {}, 5),
        ((SUBSPACE,), COMPLETION, 5),
        (IMPORT, {}, 4),
    ],
    ids=["help", "version", "completion", "import"],
)
def test_it_starts_in_a_few_times_what_numpy_takes(
    code: tuple[str, ...], environment: dict[str, str], limit: float
) -> None:
    """The fastest of several runs of either, side by side: on a loaded machine both are slower."""
    ours, numpy = [], []
    for _ in range(10):
        numpy.append(cpu_seconds("-c", "import numpy"))
        ours.append(cpu_seconds("-c", *code, **environment))
        if len(ours) >= 3 and min(ours) < limit * min(numpy):
            break
    assert min(ours) < limit * min(numpy)


REPORT = "import atexit, sys; atexit.register(lambda: print(*sys.modules, file=sys.stderr)); "


def imported(code: str, *options: str, **environment: str) -> set[str]:
    """Return the modules that Python has imported at the end of `code`."""
    return set(python("-c", REPORT + code, *options, **environment).stderr.split())


@pytest.mark.parametrize(
    ("code", "environment"),
    [
        ((SUBSPACE, "--help"), {}),
        ((SUBSPACE, "--version"), {}),
        ((SUBSPACE, "cluster", "--help"), {}),
        ((SUBSPACE, "no-such-verb"), {}),
        ((SUBSPACE,), COMPLETION),
        (IMPORT, {}),
    ],
    ids=["help", "version", "cluster help", "unknown verb", "completion", "import"],
)
def test_nothing_heavy_is_imported(code: tuple[str, ...], environment: dict[str, str]) -> None:
    loaded = imported(*code, **environment)
    assert "storage" in loaded
    # typer itself imports pydantic where it converts the options of `subspace`, such as --verbose
    by_typer = set() if code[-1] in ("--version", *IMPORT) or code[1:] == ("--help",) else {"pydantic"}
    assert HEAVY & loaded <= by_typer


# not `compare` and `match`, whose help lists what is registered
@pytest.mark.parametrize("stage", ["harvest", "correlate", "report", "semantics"])
def test_the_help_of_a_stage_script_imports_nothing_heavy(stage: str) -> None:
    loaded = imported(
        "import runpy; runpy.run_module(sys.argv.pop(1), run_name='__main__')", f"pipeline.{stage}", "--help"
    )
    assert "pipeline.work.script" in loaded
    # choices and defaults in the help are those of the experiment's settings, which are pydantic's models
    assert HEAVY & loaded <= {"pydantic"}


def test_completion_offers_the_verbs() -> None:
    offered = python("-c", SUBSPACE, **COMPLETION).stdout.split()
    assert {"compare", "concepts", "cluster"} <= set(offered)
    options = {"COMP_WORDS": "subspace run --unt", "COMP_CWORD": "2"}
    assert python("-c", SUBSPACE, **COMPLETION | options).stdout.split() == ["--until"]


def test_the_version_is_printed() -> None:
    from importlib.metadata import version

    done = python("-c", SUBSPACE, "--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, version("semantic-subspace-matching") + "\n", "")


def test_the_help_lists_every_verb_with_its_summary() -> None:
    shown = (
        python("-c", SUBSPACE, "--help", COLUMNS="250").stdout
        + python("-c", SUBSPACE, "cluster", "--help", COLUMNS="250").stdout
    )
    lines = [line.strip("│ \n").split(maxsplit=1) for line in shown.splitlines()]
    for verb in VERBS:
        assert [verb.name.split()[-1], verb.summary] in lines, verb.name


def test_functions_of_the_package_hide_the_modules_of_the_same_name() -> None:
    """Importing a submodule sets an attribute of its package: it must not take the place of the stage."""
    stages = ["compare", "correlate", "match", "report", "run"]
    code = (
        "import pipeline.compare.run, pipeline.correlate.run, pipeline.match.run, pipeline.report.run;"
        "import pipeline.experiment.run;"
        f"print(*[callable(getattr(pipeline, name)) for name in {stages}])"
    )
    assert set(python("-c", code).stdout.split()) == {"True"}


@pytest.mark.parametrize("package", [pipeline, storage], ids=lambda package: package.__name__)
def test_a_package_offers_its_modules_and_functions(package: ModuleType) -> None:
    modules = {module.name for module in pkgutil.iter_modules(package.__path__)}
    assert modules <= set(package.__all__)
    assert set(package.__all__) <= set(dir(package))
    for name in package.__all__:
        assert getattr(package, name).__name__.split(".")[-1] == name
    with pytest.raises(AttributeError, match="no_such_name"):
        package.no_such_name  # noqa: B018
