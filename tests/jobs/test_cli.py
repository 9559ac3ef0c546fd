"""What holds for every verb: it says what it does, has examples that it would accept, and speaks JSON."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command
from typer.testing import CliRunner

import jobs
from jobs.cli import app
from jobs.verbs.index import EXAMPLES, Verb
from jobs.verbs.index import VERBS as TABLE


def verbs(group: Any, before: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from verbs(command, (*before, name))
        else:
            yield (*before, name), command


VERBS = dict(verbs(get_command(app)))


def examples(command: Any) -> list[str]:
    """Return the examples in a verb's help, without what the shell would do with its output."""
    return [line.split(" > ")[0] for line in re.findall(r"\$\[/dim\] subspace (.*)", command.epilog or "")]


@pytest.mark.parametrize("name", VERBS, ids=" ".join)
def test_a_verb_has_help_examples_and_json(name: tuple[str, ...]) -> None:
    command = VERBS[name]
    assert (command.help or "").strip()
    assert any(line.startswith(" ".join(name)) for line in examples(command))
    assert any("--json" in option.opts for option in command.params)
    for option in command.params:
        assert option.help or option.param_type_name == "argument", option.name


@pytest.mark.parametrize("verb", ["diff", "verify", "sweep"])
def test_no_help_shows_a_type_of_python(verb: str) -> None:
    shown = CliRunner().invoke(app, [verb, "-h"], env={"COLUMNS": "80"}).stdout
    assert "list[" not in shown
    assert "<path>" in shown
    assert max(map(len, shown.splitlines())) <= 80


@pytest.mark.parametrize("name", VERBS, ids=" ".join)
def test_every_example_would_be_accepted(name: tuple[str, ...]) -> None:
    for line in examples(VERBS[name]):
        words = shlex.split(line)
        verb = next(verb for verb in VERBS if tuple(words[: len(verb)]) == verb)
        VERBS[verb].make_context(" ".join(verb), words[len(verb) :])


def test_every_profile_in_an_example_exists() -> None:
    """In the help, in files of experiments and in the documentation; so does a cluster that an example starts."""
    root = Path(jobs.__file__).parent.parent
    real = {*yaml.safe_load((root / "cluster.yaml").read_text())["subspace"]["profiles"]}
    texts = [path.read_text() for path in (*root.glob("jobs/experiments/*.yaml"), *root.glob("docs/*.md"))]
    commands = re.findall(r"subspace .*|^[a-z-]+ .*", "\n".join([*texts, EXAMPLES]), flags=re.MULTILINE)
    real |= {name for command in commands for name in re.findall(r"cluster up (\w+)", command)}
    named = [name for command in commands for name in re.findall(r"--(?:cluster|profile) ([a-z][\w-]*)", command)]
    assert len(named) > 15
    assert {*named} - real == set()


@pytest.mark.parametrize("verb", TABLE, ids=lambda verb: verb.name)
def test_the_list_of_verbs_says_what_the_help_of_the_verb_says(verb: Verb) -> None:
    command = VERBS[tuple(verb.name.split())]
    assert " ".join(command.help.split("\n\n")[0].split()) == verb.summary
    assert command.rich_help_panel == verb.panel


def test_the_script_of_a_job_as_json() -> None:
    done = CliRunner().invoke(app, ["cluster", "job-script", "slurm-cpu", "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["script"].startswith("#!")


@pytest.mark.parametrize("verb", [[], ["compare"], ["contexts"], ["cluster"], ["cluster", "up"]], ids=" ".join)
def test_help_names_values_and_no_types_of_options(verb: list[str]) -> None:
    shown = CliRunner().invoke(app, [*verb, "-h"], env={"COLUMNS": "200"}).stdout
    assert "--help" in shown
    assert not re.search(r"--.*<(bool|int|float|str|path|list)", shown)


def test_completion_is_offered() -> None:
    assert "--install-completion" in CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200"}).stdout
