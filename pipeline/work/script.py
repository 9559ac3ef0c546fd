"""What the stage scripts (``python -m pipeline.STAGE``) and the ``subspace`` command have in common.

A stage's ``__main__`` module defines one typer function over paths. Run as a script it accepts the address of a
running Dask scheduler as ``--cluster``; the ``subspace`` command registers the same function and hands in, through
typer's context, a way to open named cluster profiles too.

This module is imported to show any help: what only a verb at work needs is imported there.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import json
import logging
import math
import os
import signal
import warnings
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_type_hints

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.table import Table
from rich.text import Text

from pipeline.work.boundary import end_at_once, forgiving_output, guarded, is_no_failed_task
from storage.errors import InputError

if TYPE_CHECKING:
    import xarray as xr
    from distributed import Client

    from pipeline.settings.experiment import Experiment

Result = TypeVar("Result")

Cluster = Annotated[
    str | None,
    typer.Option(
        "--cluster",
        metavar="PROFILE",
        help="Profile of cluster.yaml, name of a running cluster, or address of a scheduler. "
        "Default: threads on this machine.",
    ),
]
ClusterFile = Annotated[
    Path | None,
    typer.Option(
        "--cluster-file",
        metavar="YAML",
        help="Your own cluster.yaml; list only the keys that differ from the defaults.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the summary as one JSON object.")]
ExperimentFile = Annotated[Path, typer.Argument(help="YAML file of the experiment.", show_default=False)]
RunDir = Annotated[Path | None, typer.Option(metavar="DIR", help="Run directory; default: runs/NAME.")]
AllowBadSite = Annotated[
    bool, typer.Option("--allow-bad-site", help="Harvest even if a dictionary does not fit its site.")
]
Out = Annotated[Path, typer.Option("--out", "-o", metavar="PATH", help="Path of the result.")]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace an earlier result of this command that was made from other inputs.")
]
StoreA = Annotated[Path, typer.Argument(help="Activation store of the first model.", show_default=False)]
StoreB = Annotated[Path, typer.Argument(help="Activation store of the second model.", show_default=False)]


def read_experiment(path: Path, *, allow_bad_site: bool = False) -> Experiment:
    """Return an experiment, before a cluster is started, as the options of the command line change it."""
    from pipeline.settings.experiment import load_experiment

    experiment = load_experiment(path)
    return experiment.allowing_bad_sites() if allow_bad_site else experiment


@contextlib.contextmanager
def open_client(
    context: typer.Context, cluster: str | None, cluster_file: Path | None = None, logs: Path | None = None
) -> Iterator[Client]:
    """Yield the client that ``--cluster`` asks for; threads of this process where it is absent.

    `logs` is the folder for the logs of Slurm jobs, where the profile names none.
    """
    from distributed import Client

    from pipeline.work.workers import ensure_client

    connect = context.obj  # how the program that runs the command opens clusters; None in a script
    if connect is not None:
        with connect(cluster or "local", cluster_file, logs) as client:
            yield client
    elif cluster is None:
        with ensure_client(None) as client:
            yield client
    elif "://" in cluster:
        with Client(cluster) as client:
            yield client
    else:
        raise InputError(
            f"This script takes a scheduler's address (tcp://…) as --cluster, not {cluster!r}; "
            "the `subspace` command knows the profiles of cluster.yaml"
        )


def in_place_of(
    name: str, make: Callable[..., Any], parameters: Sequence[inspect.Parameter], *, last: bool = False
) -> Callable[[Callable[..., Result]], Callable[..., Result]]:
    """Give a command several parameters in place of the one of a name; `make` returns its value from theirs.

    Those that follow the one are given by their names. `last` lists the several behind all others in the help.
    """

    def decorate(function: Callable[..., Result]) -> Callable[..., Result]:
        @functools.wraps(function)
        def command(*args: Any, **values: Any) -> Result:
            bound = signature.bind(*args, **values)
            bound.apply_defaults()
            given = {part.name: bound.arguments.pop(part.name) for part in parameters}
            return function(**bound.arguments, **{name: make(**given)})

        hints = get_type_hints(function, include_extras=True)
        others = [part.replace(annotation=hints[part.name]) for part in inspect.signature(function).parameters.values()]
        at = [part.name for part in others].index(name)
        named = [part.replace(kind=inspect.Parameter.KEYWORD_ONLY) for part in others[at + 1 :]]
        following = [*named, *parameters] if last else [*parameters, *named]
        signature = inspect.Signature([*others[:at], *following], return_annotation=None)
        command.__signature__ = signature  # type: ignore[attr-defined]
        command.__annotations__ = {part.name: part.annotation for part in signature.parameters.values()}
        command.__annotations__["return"] = None
        return command

    return decorate


def option(name: str, annotation: Any, default: Any = None) -> inspect.Parameter:
    """Return a parameter of a command that is given by its name."""
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


@dataclass(frozen=True)
class Connect:
    """Opens, when it is called, the client that ``--cluster`` asks for; `logs` is as in :func:`open_client`."""

    context: typer.Context
    cluster: str | None
    cluster_file: Path | None

    def __call__(self, logs: Path | None = None) -> contextlib.AbstractContextManager[Client]:
        """Return the context of the client."""
        return open_client(self.context, self.cluster, self.cluster_file, logs)


#: Gives a command ``--cluster`` and ``--cluster-file`` in place of its parameter `connect`, a :class:`Connect`.
on_cluster = in_place_of(
    "connect",
    Connect,
    [
        option("context", typer.Context, inspect.Parameter.empty),
        option("cluster", Cluster),
        option("cluster_file", ClusterFile),
    ],
    last=True,
)


def show(summary: dict[str, Any], *, as_json: bool) -> None:
    """Print a summary on standard output: a line for each entry that is defined, or one JSON object."""
    if as_json:
        typer.echo(json.dumps(summary, default=str))
        return
    defined = {key: value for key, value in summary.items() if is_defined(value)}
    width = max(map(len, defined))
    for key, value in defined.items():
        typer.echo(f"{key.replace('_', ' '):<{width}}  {readable(value)}")


def readable(value: object) -> str:
    """Return a value of a summary for people; of several by name, those that are defined.

    >>> readable(0.123456), readable({"score": 0.5, "low": float("nan"), "null_mean": 0.25}), readable(12)
    ('0.1235', 'score 0.5, null mean 0.25', '12')
    """
    if isinstance(value, dict):
        defined = {name: item for name, item in value.items() if is_defined(item)}
        return ", ".join(f"{str(name).replace('_', ' ')} {readable(item)}" for name, item in defined.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def with_prefix(number: float) -> str:
    """Return a number with three digits and a metric prefix.

    >>> with_prefix(0.5), with_prefix(1234), with_prefix(3.2e9)
    ('0.5 ', '1.23 k', '3.2 G')
    """
    for limit, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= limit:
            return f"{number / limit:.3g} {prefix}"
    return f"{number:.3g} "


def is_defined(value: object) -> bool:
    """Return whether a figure is one: a mean over nothing is None or NaN."""
    return value is not None and not (isinstance(value, float) and math.isnan(value))


def wide_console(width: int = 140) -> Console:
    """Return a console on standard output; where that is a file, it is read in a window so many characters wide."""
    return Console() if Console().is_terminal else Console(width=width)


def text_table(
    columns: Sequence[str], rows: Iterable[Sequence[str | Text]], *, title: str = "", right: Container[str] = ()
) -> Table:
    """Return a table of texts, in which nothing is taken for markup; the columns named by `right` are of figures."""
    table = Table(title=title or None)
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left")
    for row in rows:
        table.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in row))
    return table


def set_up_logging(level: int = logging.INFO) -> None:
    """Send the package's log to standard error; of the libraries, only what concerns the user."""
    forgiving_output()
    console = Console(stderr=True)
    if console.is_terminal:
        handler: logging.Handler = RichHandler(
            console=console, show_path=False, show_level=False, log_time_format="%H:%M:%S"
        )
        logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler], force=True)
    else:  # a log file: whole lines, each with its date
        logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", force=True)
        # bars of libraries would fill the file with carriage returns; tqdm reads this when it is first imported
        os.environ.setdefault("TQDM_DISABLE", "1")
    for name in ("pipeline", "storage", "jobs"):
        logging.getLogger(name).setLevel(level)
    # closing a local cluster while its last results are dropped is not news; Dask sets the level of its own loggers
    # when it is imported, which is later than this
    for handler in logging.getLogger().handlers:
        handler.addFilter(lambda record: record.levelno >= logging.ERROR or not record.name.startswith("distributed"))
        handler.addFilter(is_no_failed_task)
    # the dashboard's address is logged
    warnings.filterwarnings("ignore", message="Port .* is already in use")


def run_script(command: Callable[..., None]) -> None:
    """Run one stage's command as a script."""
    set_up_logging()
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(guarded(command))
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:  # else somebody ignores it, as `nohup` does
        signal.signal(signal.SIGINT, end_at_once)
    app()


def describe(result: xr.Dataset, *names: str) -> dict[str, Any]:
    """Return the named attributes of `result` that are there."""
    return {name: result.attrs[name] for name in names if name in result.attrs}
