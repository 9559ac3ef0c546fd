"""``python -m pipeline.harvest EXPERIMENT.yaml``: text to activation stores, for both models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import pipeline
from pipeline.work.script import (
    AllowBadSite,
    AsJson,
    Connect,
    on_cluster,
    read_experiment,
    run_script,
    show,
)


@on_cluster
def command(
    connect: Connect,
    experiment: Annotated[Path, typer.Argument(help="YAML file of the experiment.", show_default=False)],
    run_dir: Annotated[Path | None, typer.Option(metavar="DIR", help="Run directory; default: runs/NAME.")] = None,
    allow_bad_site: AllowBadSite = False,
    as_json: AsJson = False,
) -> None:
    """Read the text with both models and write one activation store per site."""
    config = read_experiment(experiment, allow_bad_site=allow_bad_site)
    result = pipeline.run(config, run_dir=run_dir, until="harvest", client=connect)
    directory, models = result.directory, result.experiment
    stores = {f"a {site}": str(directory.activations("a", site)) for site in models.a.sites}
    stores |= {f"b {site}": str(directory.activations("b", site)) for site in models.b.sites}
    show(stores, as_json=as_json)


if __name__ == "__main__":
    run_script(command)
