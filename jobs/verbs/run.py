"""The verbs ``subspace run`` and ``subspace demo``."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from jobs.watch.recorder import recorded
from pipeline.experiment.run import RunResult, check_inputs, run
from pipeline.experiment.stages import STAGES
from pipeline.settings.match import heldout_note_of
from pipeline.work.script import (
    AllowBadSite,
    AsJson,
    Connect,
    ExperimentFile,
    RunDir,
    on_cluster,
    read_experiment,
    show,
    text_table,
    wide_console,
)
from pipeline.work.share import Share
from pipeline.yardsticks.__main__ import show_yardsticks
from storage.rundir import RunDirectory


@on_cluster
def run_command(
    connect: Connect,
    experiment: ExperimentFile,
    run_dir: RunDir = None,
    until: Annotated[str, typer.Option(metavar="STAGE", help=f"Last stage to run: {', '.join(STAGES)}.")] = "report",
    share: Annotated[
        str | None,
        typer.Option(
            metavar="I/N", help="For job arrays: only prepare the stage --until (begin/N), or process part I of N."
        ),
    ] = None,
    allow_bad_site: AllowBadSite = False,
    as_json: AsJson = False,
) -> None:
    """Run an experiment from text to report, or resume it."""
    config = read_experiment(experiment, allow_bad_site=allow_bad_site)
    until = STAGES[until].name  # a wrong one is refused before workers are waited for
    part = Share.parse(share) if share is not None else None
    directory = RunDirectory.of(config.name, run_dir)
    # whatever would be refused is refused before anything is written and before workers are waited for, which in a
    # queue takes hours
    if part is None or part.begins:
        directory.check_free(config.name)
        check_inputs(config)
    else:
        directory.check(config.name)
    folder = directory.root
    # the tasks of an array run at once: each has a record of its own
    record = folder if part is None else folder / "watch" / f"{until}-{part}"
    alone = directory.claim() if part is None or part.begins else contextlib.nullcontext()
    with connect(folder / "logs") as client, alone, recorded(client, record, config.name):
        result = run(config, run_dir=folder, until=until, share=part, client=client)
    _show_run(result, until, as_json=as_json)


@on_cluster
def demo_command(
    connect: Connect,
    run_dir: Annotated[Path, typer.Option(metavar="DIR", help="Directory that the demo writes to.")] = Path("demo-run"),
    yardsticks: Annotated[
        bool,
        typer.Option("--yardsticks", help="Add floors and ceilings; trains their dictionaries once, half an hour."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Compare SmolLM2-135M with all-MiniLM-L6-v2, with weights from Python packages; needs no model hub."""
    from jobs.demo.prepare import prepare  # noqa: PLC0415 - torch and transformers

    RunDirectory(run_dir).check_free("demo")
    given = None
    if yardsticks:
        from jobs.demo.yardsticks import demo_yardsticks  # noqa: PLC0415 - as above

        given = demo_yardsticks()
    config = read_experiment(prepare(run_dir / "input", given))
    with connect(run_dir / "logs") as client, recorded(client, run_dir, config.name):
        result = run(config, run_dir=run_dir, client=client)
    _show_run(result, "report", as_json=as_json)
    if yardsticks and not as_json:
        show_yardsticks(result.experiment, result.directory, as_json=False)


def _show_run(result: RunResult, until: str, *, as_json: bool) -> None:
    """Print where everything is and, once there are scores, a table with one line for each pair of sites."""
    summary: dict[str, object] = {"run_directory": str(result.directory.root)}
    if until == "report":
        summary["report"] = str(result.report)
    if until not in ("compare", "semantics", "yardsticks", "report"):
        show(summary, as_json=as_json)
        return
    lines = [_site_pair(result, site_a, site_b) for site_a, site_b in result.experiment.site_pairs]
    if as_json:
        show({**summary, "site_pairs": lines}, as_json=True)
        return
    wide_console().print(_table(lines))
    show({**summary, **heldout_note_of(lines[0])}, as_json=False)


def _site_pair(result: RunResult, site_a: str, site_b: str) -> dict[str, object]:
    pairs = result.pairs(site_a, site_b)
    line: dict[str, object] = {"a": site_a, "b": site_b, "pairs": pairs.sizes["pair"]}
    line |= {f"mean_{name}": float(pairs[name].mean()) for name in ("r", "r_heldout")}
    line |= heldout_note_of(pairs.attrs)
    if result.experiment.compare is None:
        return line
    scores = result.scores(site_a, site_b)
    for metric in scores["metric"].values:
        entry = scores.sel(metric=metric).isel(null=0)
        line[str(metric)] = {key: float(entry[key]) for key in ("score", "null_mean", "p")}
    return line


def _score_cell(entry: dict[str, float]) -> str:
    return f"{entry['score']:z.3f} ({entry['null_mean']:z.3f}; {entry['p']:.3f})"


def _table(lines: list[dict[str, Any]]) -> Table:
    """Return the scores as a table: each beside the mean of its null, and its p."""
    metrics = [key for key, value in lines[0].items() if isinstance(value, dict)]
    columns = ("A", "B", "pairs", "mean r", "held out", *metrics)
    rows = [
        (
            line["a"],
            line["b"],
            f"{line['pairs']:,}",
            f"{line['mean_r']:z.3f}",
            f"{line['mean_r_heldout']:z.3f}",
            *(_score_cell(line[metric]) for metric in metrics),
        )
        for line in lines
    ]
    title = "score (mean of its null; p)" if metrics else "matched pairs"
    return text_table(columns, rows, title=title, right=columns[2:])
