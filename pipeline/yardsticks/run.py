"""What one pair of sites scores beside its floors and ceilings, from the matchings that are on disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import xarray as xr
from distributed import Client

from pipeline.settings.experiment import Experiment
from pipeline.settings.yardsticks import YardsticksSettings
from pipeline.yardsticks.base import Sites
from pipeline.yardsticks.measure import Comparison, decoder_cosine, measure
from storage import Manifest, fingerprint, make_result, new_manifest, open_activations
from storage.rundir import RunDirectory

STAGE = "yardsticks"


def yardsticks_manifest(
    config: Experiment,
    settings: YardsticksSettings,
    run: RunDirectory,
    sites: Sites,
    identify: Callable[[str | Path], str] = fingerprint,
) -> Manifest:
    """Return what the yardsticks of two sites depend on: the pairs of the run, and those of each yardstick."""
    inputs = {"pairs": identify(run.pairs(*sites))}
    for yardstick in settings.use:
        for path in yardstick.results(config, run, sites):
            inputs[f"{yardstick.name} {path.relative_to(run.root).as_posix()}"] = identify(path)
    use = [yardstick.model_dump() for yardstick in settings.use]
    metrics = [] if config.compare is None else config.compare.metrics
    return new_manifest(STAGE, inputs, {**settings.record(), "use": use, "metrics": metrics})


def measure_sites(
    config: Experiment,
    settings: YardsticksSettings,
    run: RunDirectory,
    sites: Sites,
    *,
    client: Client,
) -> xr.Dataset:
    """Measure two sites beside their yardsticks, whose matchings are there, and write the result.

    Returns
    -------
    xarray.Dataset
        That of :func:`pipeline.yardsticks.measure.measure`; and over yardstick: ``kind`` and ``title``, text, and
        ``decoder_cosine`` float64, the mean over the sides of a ceiling whose decoders are of one space
        (:func:`pipeline.yardsticks.measure.decoder_cosine`), NaN for others.
    """
    manifest = yardsticks_manifest(config, settings, run, sites)

    def make() -> xr.Dataset:
        stores = run.activations("a", sites[0]), run.activations("b", sites[1])
        comparisons = {
            item.name: Comparison(item.real(run, sites), item.matchings(config, run, sites), item.overlap(run, sites))
            for item in settings.use
        }
        comparable = all("decoder" in open_activations(path) for path in stores)
        result = measure(
            comparisons,
            (settings.named("floor"), settings.named("ceiling")),
            metrics=config.compare.metrics if config.compare is not None and comparable else [],
            groups=settings.groups,
            client=client,
        )
        cosines = [
            np.mean([decoder_cosine(matching.stores) for matching in comparisons[item.name].made])
            if item.same_space
            else np.nan
            for item in settings.use
        ]
        texts = {name: np.array([getattr(item, name) for item in settings.use], object) for name in ("kind", "title")}
        columns = {**texts, "decoder_cosine": np.array(cosines, np.float64)}
        result = result.assign({name: ("yardstick", values) for name, values in columns.items()})
        return result.assign_attrs(settings.record() | manifest.to_attrs())

    return make_result(run.yardsticks(*sites), manifest, make, overwrite=True)
