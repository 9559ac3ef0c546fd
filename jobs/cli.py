"""The ``subspace`` command: one function a verb, each a thin call into the pipeline."""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from jobs.cluster import connect
from jobs.cluster_verbs import down_command, job_script_command, status_command, submit_command, up_command
from jobs.concepts import concepts_command, contexts_command, label_command, labels_command, non_concept_command
from jobs.doctor import command as doctor_command
from jobs.matching import layers_command, sweep_command, token_identity_command
from jobs.planning import command as plan_command
from jobs.reproduce import command as reproduce_command
from jobs.run_status import command as run_status_command
from jobs.scores import command as scores_command
from jobs.stores import export_command, import_command, inspect_command, verify_command
from jobs.watching import recorded
from pipeline.boundary import DEBUG, Debug, guarded
from pipeline.compare.__main__ import command as compare_command
from pipeline.compare.verbs import activations_command
from pipeline.correlate.__main__ import command as correlate_command
from pipeline.correlate.verbs import bootstrap_command, convergence_command
from pipeline.harvest.__main__ import command as harvest_command
from pipeline.match.__main__ import command as match_command
from pipeline.report.__main__ import command as report_command
from pipeline.run import RunResult, Stage, check_inputs, run
from pipeline.script import (
    AllowBadSite,
    AsJson,
    Cluster,
    ClusterFile,
    Session,
    open_client,
    read_experiment,
    set_up_logging,
    show,
    wide_console,
)
from pipeline.semantics.__main__ import command as semantics_command
from pipeline.share import Share
from storage.rundir import RunDirectory

app = typer.Typer(
    name="subspace",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Find out whether two language models learn the same feature space.",
    epilog="Start with [bold]subspace demo[/bold]. Every verb has examples: [bold]subspace run --help[/bold].",
)


cluster_app = typer.Typer(
    no_args_is_help=True, help="Clusters that outlive the command that starts them: up, down, status, job-script."
)
app.add_typer(cluster_app, name="cluster", rich_help_panel="A whole experiment")


#: The parts of the list of verbs, and which verbs stand in them.
PANELS = {
    "A whole experiment": ("run", "plan", "status", "submit", "report", "scores", "reproduce", "demo", "doctor"),
    "Its stages": ("harvest", "correlate", "match", "compare", "semantics"),
    "A closer look": (
        "bootstrap", "convergence", "sweep", "token-identity", "layers", "compare-activations", "contexts",
        "concepts", "non-concept", "label", "labels",
    ),
    "Stores and results": ("inspect", "verify", "import", "export"),
}  # fmt: skip


def _register(name: str, command: Callable[..., None], *examples: str, to: typer.Typer = app) -> None:
    lines = "\n\n".join(f"  [dim]$[/dim] {example}" for example in examples)
    panel = next((title for title, verbs in PANELS.items() if name in verbs and to is app), None)
    to.command(name, epilog=f"[bold]Examples[/bold]\n\n{lines}", rich_help_panel=panel)(guarded(command))


@app.callback()
def start(
    context: typer.Context,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log the details too.")] = False,
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
    debug: Debug = False,
) -> None:
    """Set up what all verbs share."""
    if version:
        typer.echo(importlib.metadata.version("semantic-subspace-matching"))
        raise typer.Exit
    set_up_logging(level=10 if verbose else 20)
    DEBUG.set(debug)
    context.obj = Session(connect=connect)


def run_command(
    context: typer.Context,
    experiment: Annotated[Path, typer.Argument(help="The experiment's YAML file.", show_default=False)],
    run_dir: Annotated[Path | None, typer.Option(metavar="DIR", help="Run directory; runs/NAME by default.")] = None,
    until: Annotated[Stage, typer.Option(help="The last stage to run.")] = "report",
    share: Annotated[
        str | None,
        typer.Option(
            metavar="I/N", help="Only begin the stage --until (begin/N), or do its part I of N; for job arrays."
        ),
    ] = None,
    allow_bad_site: AllowBadSite = False,
    cluster: Cluster = None,
    cluster_file: ClusterFile = None,
    as_json: AsJson = False,
) -> None:
    """Run an experiment from text to report, or go on with it where it stopped."""
    config = read_experiment(experiment, allow_bad_site=allow_bad_site)
    part = Share.parse(share) if share is not None else None
    folder = RunDirectory.of(config.name, run_dir).root
    # the tasks of an array run at once: each has a record of its own
    record = folder if part is None else folder / "watch" / f"{until}-{part}"
    if cluster is not None:
        check_inputs(config)  # before workers are waited for, which in a queue takes hours
    with open_client(context, cluster, cluster_file, folder / "logs") as client, recorded(client, record):
        result = run(config, run_dir=folder, until=until, share=part, client=client)
    _show_run(result, until, as_json=as_json)


def demo_command(
    context: typer.Context,
    run_dir: Annotated[Path, typer.Option(metavar="DIR", help="Where the demo writes.")] = Path("demo-run"),
    cluster: Cluster = None,
    cluster_file: ClusterFile = None,
    as_json: AsJson = False,
) -> None:
    """Compare SmolLM2-135M with all-MiniLM-L6-v2, from weights that come as Python packages; no model hub."""
    # the demo's imports pull in torch and transformers
    prepare = importlib.import_module("jobs.demo.prepare").prepare
    experiment = prepare(run_dir / "input")
    with open_client(context, cluster, cluster_file, run_dir / "logs") as client, recorded(client, run_dir):
        result = run(experiment, run_dir=run_dir, client=client)
    _show_run(result, "report", as_json=as_json)


def _show_run(result: RunResult, until: Stage, *, as_json: bool) -> None:
    """Print where everything is and, once there are scores, a table with one line for each pair of sites."""
    summary: dict[str, object] = {"run_directory": str(result.directory.root)}
    if until == "report":
        summary["report"] = str(result.report)
    if until not in ("compare", "semantics", "report"):
        show(summary, as_json=as_json)
        return
    lines = [_site_pair(result, site_a, site_b) for site_a, site_b in result.experiment.site_pairs]
    if as_json:
        show({**summary, "site_pairs": lines}, as_json=True)
        return
    # a log file is read in a wide window
    console = wide_console()
    console.print(_table(lines))
    show(summary, as_json=False)


def _site_pair(result: RunResult, site_a: str, site_b: str) -> dict[str, object]:
    pairs, scores = result.pairs(site_a, site_b), result.scores(site_a, site_b)
    line: dict[str, object] = {"a": site_a, "b": site_b, "pairs": pairs.sizes["pair"]}
    line |= {f"mean_{name}": float(pairs[name].mean()) for name in ("r", "r_heldout")}
    for metric in scores["metric"].values:
        one = scores.sel(metric=metric).isel(null=0)
        line[str(metric)] = {key: float(one[key]) for key in ("score", "null_mean", "p")}
    return line


def _table(lines: list[dict[str, Any]]) -> Table:
    """Return the scores as a table: each beside the mean of its null, and its p."""
    metrics = [key for key, value in lines[0].items() if isinstance(value, dict)]
    table = Table(title="score (mean of its null; p)")
    for name in ("A", "B", "pairs", "mean r", "held out", *metrics):
        table.add_column(name, justify="left" if name in ("A", "B") else "right")
    for line in lines:
        scores = [line[metric] for metric in metrics]
        table.add_row(
            line["a"],
            line["b"],
            f"{line['pairs']:,}",
            f"{line['mean_r']:.3f}",
            f"{line['mean_r_heldout']:.3f}",
            *(f"{one['score']:.3f} ({one['null_mean']:.3f}; {one['p']:.3f})" for one in scores),
        )
    return table


_register(
    "run",
    run_command,
    "subspace run experiment.yaml",
    "subspace run experiment.yaml --run-dir results --cluster slurm-cpu",
    "subspace run experiment.yaml --until match",
)
_register(
    "plan",
    plan_command,
    "subspace plan experiment.yaml",
    "subspace plan experiment.yaml --calibrate --json",
    "subspace plan experiment.yaml --cluster slurm-cpu",
)
_register(
    "status",
    run_status_command,
    "subspace status runs/pythia-70m-vs-160m",
    "subspace status experiment.yaml --json",
)
_register("doctor", doctor_command, "subspace doctor", "subspace doctor --cluster-file my-cluster.yaml --json")
_register("demo", demo_command, "subspace demo", "subspace demo --run-dir somewhere --json")
_register(
    "harvest",
    harvest_command,
    "subspace harvest experiment.yaml",
    "subspace harvest experiment.yaml --allow-bad-site",
)
_register(
    "correlate",
    correlate_command,
    "subspace correlate A.zarr B.zarr --out C.zarr",
    "subspace correlate A.zarr B.zarr --top-k 16 --keep-above 0.2 --select all --memory 4GB --out C.zarr",
    "subspace correlate A.zarr B.zarr --measure jaccard --out which-fire-together.zarr",
)
_register(
    "bootstrap",
    bootstrap_command,
    "subspace bootstrap pairs.zarr A.zarr B.zarr --out intervals.zarr",
    "subspace bootstrap pairs.zarr A.zarr B.zarr --runs 2000 --level 0.9 --out intervals.zarr --json",
)
_register(
    "convergence",
    convergence_command,
    "subspace convergence pairs.zarr A.zarr B.zarr --out convergence.zarr",
    "subspace convergence C.zarr A.zarr B.zarr --threshold 0.3 --plot convergence.png --out convergence.zarr",
)
_register(
    "match",
    match_command,
    "subspace match C.zarr --out pairs.zarr --method greedy --min-correlation 0.2 --csv pairs.csv",
    "subspace match C.zarr --all",
    "subspace match C.zarr --out pairs.zarr --filter max_uses:n=100 --filter min_heldout_r:after:value=0.2",
    "subspace match C.zarr --out pairs.zarr --filter non_concept --contexts CA.zarr CB.zarr --stores A.zarr B.zarr "
    "--corpus corpus.zarr --hubs 10",
)
_register(
    "sweep",
    sweep_command,
    "subspace sweep C.zarr --out sweep.zarr --csv sweep.csv --plot sweep.svg",
    "subspace sweep C.zarr --out sweep.zarr --max-uses 1,5,100 --stores A.zarr B.zarr --metric svcca --metric rsa",
)
_register(
    "token-identity", token_identity_command, "subspace token-identity pairs.zarr A.zarr B.zarr --out identity.zarr"
)
_register("layers", layers_command, "subspace layers runs/pythia-70m-vs-160m --csv layers.csv")
_register(
    "contexts",
    contexts_command,
    "subspace contexts runs/demo/activations/a/layers.10.zarr --feature 17 --feature 256",
    "subspace contexts A.zarr --feature 17 --corpus corpus.zarr --contexts CA.zarr --labels labels.zarr --json",
    "subspace contexts A.zarr --top-n 20 --distinct-documents --out CA.zarr",
)
_register(
    "concepts",
    concepts_command,
    "subspace concepts runs/demo/activations/a/layers.10.zarr --out concepts.zarr",
    "subspace concepts A.zarr --contexts CA.zarr --corpus corpus.zarr --rule pmi:at_least=3 --out concepts.zarr",
    "subspace concepts A.zarr --contexts CA.zarr --corpus corpus.zarr --concepts default --concepts mine.yaml "
    "--out concepts.zarr",
)
_register(
    "non-concept",
    non_concept_command,
    "subspace non-concept runs/demo/activations/a/layers.10.zarr --out non-concept.zarr",
    "subspace non-concept A.zarr --contexts CA.zarr --corpus corpus.zarr --kind punctuation --limit punctuation=0.8 "
    "--out non-concept.zarr",
)
_register(
    "labels",
    labels_command,
    "subspace labels labels.csv --store A.zarr --out labels.zarr",
    "subspace labels explanations/ --method gpt-4o-mini --out labels.zarr",
)
_register(
    "label",
    label_command,
    "subspace label A.zarr --endpoint http://localhost:8000/v1 --model NAME --feature 17 --out labels.zarr",
    "subspace label A.zarr --endpoint https://HOST/v1 --model NAME --pairs pairs.zarr --yes --out labels.zarr",
)
_register(
    "compare",
    compare_command,
    "subspace compare pairs.zarr A.zarr B.zarr --metric svcca --out scores.zarr",
    "subspace compare pairs.zarr A.zarr B.zarr --metric svcca:k=20 --metric rsa --intervals 500 --out scores.zarr",
    "subspace compare concept.zarr A.zarr B.zarr --null random_pairs --pool pairs.zarr --out scores.zarr",
)
_register(
    "compare-activations",
    activations_command,
    "subspace compare-activations A.zarr B.zarr --metric svcca --metric cka --out scores.zarr",
    "subspace compare-activations A.zarr B.zarr --pairs pairs.zarr --intervals 500 --out scores.zarr --json",
)
_register(
    "scores",
    scores_command,
    "subspace scores runs/pythia-70m-vs-160m",
    "subspace scores runs/pythia-70m-vs-160m --latex > scores.tex",
    "subspace scores runs/pythia-70m-vs-160m --csv",
)
_register(
    "reproduce",
    reproduce_command,
    "subspace reproduce --list",
    "subspace reproduce pythia --cluster slurm-cuda --run-dir runs/pythia",
    "subspace reproduce pythia --show > mine.yaml",
    "subspace reproduce pythia --experiment mine.yaml --run-dir runs/mine",
    "subspace reproduce pythia --table --run-dir runs/pythia --json",
)
_register(
    "inspect",
    inspect_command,
    "subspace inspect A.zarr",
    "subspace inspect runs/pythia-70m-vs-160m --json",
)
_register(
    "verify",
    verify_command,
    "subspace verify A.zarr C.zarr",
    "subspace verify runs/pythia-70m-vs-160m --threads 8 --json",
)
_register(
    "import",
    import_command,
    "subspace import activations.npz --decoder W_dec.npy --tokens rows.csv --kind post --out A.zarr",
    "subspace import cached_activations/ --drop-token 0 --out A.zarr",
    "subspace import cells.h5ad --key counts --out A.zarr",
)
_register(
    "export",
    export_command,
    "subspace export A.zarr --format anndata --out A.h5ad",
    "subspace export A.zarr --format npz --out A.npz --json",
)
_register(
    "semantics",
    semantics_command,
    "subspace semantics runs/pythia-70m-vs-160m",
    "subspace semantics runs/pythia-70m-vs-160m --concepts default --concepts mine.yaml --approach global --json",
    "subspace semantics runs/pythia-70m-vs-160m --clusters 20 --embedding gensim:vectors.txt",
)
_register(
    "up", up_command,
    "subspace cluster up night --profile slurm-cpu",
    "subspace run experiment.yaml --cluster night",
    to=cluster_app,
)  # fmt: skip
_register("down", down_command, "subspace cluster down night", to=cluster_app)
_register("status", status_command, "subspace cluster status", "subspace cluster status night --json", to=cluster_app)
_register(
    "job-script",
    job_script_command,
    "subspace cluster job-script slurm-gpu",
    "subspace cluster job-script slurm-cpu --cluster-file mine.yaml > worker.sbatch",
    to=cluster_app,
)
_register(
    "submit",
    submit_command,
    "subspace submit experiment.yaml --cluster slurm-cpu",
    "subspace submit experiment.yaml --array 16",
    "subspace submit experiment.yaml --cluster slurm-gpu --cluster-file mine.yaml --dry-run",
)
_register("report", report_command, "subspace report runs/pythia-70m-vs-160m")


def main() -> None:
    """Run the command line."""
    app()


if __name__ == "__main__":
    main()
