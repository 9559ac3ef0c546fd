"""The ``subspace`` command: its options, and the verbs of :mod:`jobs.verbs.index`, each imported when it is used."""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from jobs.verbs.index import EXPERIMENT, VERBS, Verb
from pipeline.work.boundary import DEBUG, Debug, guarded
from pipeline.work.script import set_up_logging

if TYPE_CHECKING:
    from distributed import Client

DISTRIBUTION = "semantic-subspace-matching"


#: What stands for a value in the help, by its type; for a switch, nothing does.
VALUES = {"bool": "", "int": "N", "float": "X", "str": "TEXT", "Path": "PATH"}
HELP = {"help_option_names": ["-h", "--help"]}


def named_values(parameters: list[Any]) -> list[Any]:
    """Name the values of options that say nothing of theirs, and those of many arguments: `N`, not `<list[int]>`."""
    for parameter in parameters:
        named = parameter.bare_type()
        kind = named.removeprefix("list[").removesuffix("]")
        if parameter.param_type_name == "option" and parameter.metavar is None:
            parameter.metavar = VALUES.get(kind)
        elif parameter.param_type_name == "argument" and kind != named:
            parameter.display_type = functools.partial(_plural, kind.lower())
    return parameters


def _plural(kind: str, _: Any) -> str:
    """Return how the help writes that any number of values of a kind may be given."""
    return f"<{kind}>…"


class LazyCommand(TyperCommand):
    """A verb as the list of verbs shows it; whatever else is looked up comes from the command, which is then made."""

    def __init__(self, name: str, verb: Verb) -> None:
        # without TyperCommand.__init__, which would set what __getattr__ is to find
        self.name = name
        self.rich_help_panel = verb.panel
        self.hidden = self.deprecated = False
        self.verb = verb

    @functools.cached_property
    def short_help(self) -> str:  # type: ignore[override]
        """What the list of verbs says of it."""
        return self.verb.summary

    def get_params(self, ctx: Any) -> list[Any]:
        """Return what the command takes, as its help shows it."""
        return named_values(super().get_params(ctx))

    def __getattr__(self, name: str) -> Any:
        vars(self).update(vars(make_command(self.verb, vars(self)["name"])))
        return object.__getattribute__(self, name)


def make_command(verb: Verb, name: str) -> Any:
    """Import a verb and return its command."""
    module, _, function = verb.target.partition(":")
    lines = "\n\n".join(f"  [dim]$[/dim] subspace {example}" for example in verb.examples)
    alone = typer.Typer(rich_markup_mode="rich", add_completion=False, pretty_exceptions_enable=False)
    alone.command(
        name,
        short_help=verb.summary,
        epilog=f"[bold]Examples[/bold]\n\n{lines}",
        rich_help_panel=verb.panel,
        context_settings=HELP,
    )(guarded(getattr(importlib.import_module(module), function)))
    return typer.main.get_command(alone)


class VerbGroup(TyperGroup):
    """The verbs of one group: of ``subspace``, or those whose name starts with the group's."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        verbs = [(verb.name.split(), verb) for verb in VERBS]
        prefix = [] if self.name == app.info.name else [self.name]
        self.commands = {name[-1]: LazyCommand(name[-1], verb) for name, verb in verbs if name[:-1] == prefix} | dict(
            self.commands
        )

    def get_params(self, ctx: Any) -> list[Any]:
        """Return what the group takes, as its help shows it."""
        return named_values(super().get_params(ctx))


app = typer.Typer(
    name="subspace",
    cls=VerbGroup,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings=HELP,
    help="Measure whether two language models learn the same feature space.",
    epilog="Start with [bold]subspace demo[/bold]. Every verb has examples: [bold]subspace run --help[/bold].",
)
app.add_typer(
    typer.Typer(
        name="cluster",
        cls=VerbGroup,
        no_args_is_help=True,
        context_settings=HELP,
        help="Manage persistent clusters: up, down, status, job-script.",
    ),
    rich_help_panel=EXPERIMENT,
)


def connect(
    profile: str, cluster_file: Path | None = None, logs: Path | None = None
) -> contextlib.AbstractContextManager[Client]:
    """Open a cluster: :func:`jobs.cluster.client.connect`, imported when a verb first needs one."""
    from jobs.cluster.client import connect as connect_now

    return connect_now(profile, cluster_file, logs)


def print_version(*, wanted: bool) -> None:
    """Print the version and stop, before anything asks for a verb."""
    if wanted:
        typer.echo(importlib.metadata.version(DISTRIBUTION))
        raise typer.Exit


@app.callback()
def start(
    context: typer.Context,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log more detail.")] = False,
    _version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Set up what all verbs share."""
    set_up_logging(level=10 if verbose else 20)
    DEBUG.set(debug)
    context.obj = connect


def main() -> None:
    """Run the command line."""
    app()


if __name__ == "__main__":
    main()
