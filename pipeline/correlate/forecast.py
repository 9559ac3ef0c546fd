"""What a correlation will take, before any of it is computed: memory, disk, reads, products, seconds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from distributed import Client

from pipeline.correlate.cost import CHOSEN_SHARE
from pipeline.correlate.inputs import Inputs
from pipeline.correlate.measures import RULES
from pipeline.correlate.plan import Plan, Resources, StoreSize, make_plan, sparse_products
from pipeline.correlate.ranks import measured_sizes, plan_ranks
from pipeline.correlate.rates import Rates, predict_seconds
from pipeline.correlate.resources import find_resources, parse_memory
from pipeline.settings.base import keywords
from pipeline.settings.correlate import CorrelateSettings

#: Bytes of a kept pair on disk, both r.
KEPT_BYTES = 14
#: Bytes of a place in a list on disk: id, r, held-out r.
PLACE_BYTES = 18


@dataclass(frozen=True)
class CorrelateForecast:
    """What a correlation will take.

    Attributes
    ----------
    plan
        How it is cut; ``plan.projected`` is the peak memory of each worker process while it correlates.
    seconds
        From stores to result, on workers that are there.
    flops
        Of the products.
    read, disk
        Bytes read from the stores, and left on disk; with the ranks, which stay until the result is there.
    ranking
        Peak memory of each worker process while it ranks; 0 where the measure is not of ranks.
    """

    plan: Plan
    seconds: float
    flops: float
    read: float
    disk: float
    ranking: int = 0

    @property
    def memory(self) -> int:
        """Peak memory of each worker process, bytes."""
        return max(self.plan.projected, self.ranking)


@keywords(CorrelateSettings)
def forecast(
    a: str | Path, b: str | Path, settings: CorrelateSettings, *, rates: Rates, client: Client
) -> CorrelateForecast:
    """Return what correlating two stores will take.

    Parameters
    ----------
    a, b
        The stores.
    settings
        Each setting of :class:`~pipeline.settings.correlate.CorrelateSettings` is a keyword.
    rates
        Of the machine.
    client
        Whose workers are to do it.

    Raises
    ------
    BudgetError
        If it does not fit in memory.
    """
    inputs = Inputs.open(Path(a), Path(b))
    inputs.measured_by(settings.measure)  # refuses stores that have no such measure
    resources = find_resources(client, parse_memory(settings.memory), settings.device)
    return forecast_sizes(*inputs.sizes, inputs.n_rows, settings, resources, rates)


def forecast_sizes(  # noqa: PLR0917 - what it depends on
    a: StoreSize, b: StoreSize, n_rows: int, settings: CorrelateSettings, resources: Resources, rates: Rates
) -> CorrelateForecast:
    """Return the same from sizes alone, those of the values; stores that are not there yet have estimated ones.

    Raises
    ------
    BudgetError
        If it does not fit in memory.
    """
    measured = measured_sizes((a, b), settings.measure, n_rows)
    plan = make_plan(*measured, n_rows, settings, resources)
    slots, n_halves = resources.slots, settings.n_halves
    seconds = predict_seconds(plan, *measured, n_rows=n_rows, n_halves=n_halves, slots=slots, rates=rates)
    bytes_a, bytes_b = (stored_bytes(size, n_rows) for size in (a, b))
    of_a, of_b = plan.reads(resources.processes)
    ranking, ranks = 0, 0.0
    if RULES[settings.measure].ranked:  # ranks are written beside the result, and read in place of the stores
        seconds += 4 * (a.n_entries + b.n_entries) * rates.entry / slots
        ranking = max(plan_ranks(size, n_rows=n_rows, plan=plan, resources=resources).projected for size in (a, b))
        ranks = bytes_a + bytes_b
    places = (a.n_features + b.n_features) * settings.top_k * PLACE_BYTES
    return CorrelateForecast(
        plan=plan,
        seconds=seconds,
        flops=2.0 * n_products(a, b, n_rows // n_halves if plan.method == "dense" else n_rows, plan),
        read=bytes_a * of_a + bytes_b * of_b,
        disk=places + CHOSEN_SHARE * a.n_features * b.n_features * KEPT_BYTES + ranks,
        ranking=ranking,
    )


def n_products(a: StoreSize, b: StoreSize, n_rows: int, plan: Plan) -> float:
    """Return how many products a plan computes; the dense one over the rows that choose.

    >>> import numpy as np
    >>> size = StoreSize(sparse=True, value_bytes=4, entries=np.full(100, 10))
    >>> n_products(size, size, 1000, make_plan(size, size, 1000, CorrelateSettings(), Resources(10**9)))
    1000.0
    """
    if plan.method == "dense":
        return float(n_rows) * a.n_features * b.n_features
    return sparse_products(a, b, n_rows)


def stored_bytes(size: StoreSize, n_rows: int) -> float:
    """Return about how many bytes a store's activations have on disk."""
    return size.n_entries * 5.6 if size.sparse else float(n_rows) * size.n_features * 4.0
