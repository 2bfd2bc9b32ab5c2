"""What a night's stages cost: the time of the workers, its price, and energy."""

from __future__ import annotations

from tasks.recipe import Recipe
from tasks.run_records import Cost, Effort, StageResult

HOUR_S = 3600
JOULES_PER_KWH = 3.6e6
WATTS_PER_THREAD = 12.0
"""Reference: Lannelongue et al. 2021, arXiv 2007.07610: a core where the processor is unknown."""
WATTS_PER_GPU = 700.0
"""The board's limit of an H100 (SXM), by NVIDIA's data sheet."""


def cost_of(recipe: Recipe, seconds: float, effort: Effort) -> Cost:
    """Price a stage.

    Args:
        seconds: That it took.
    """
    worker_hours = seconds * effort.num_workers / HOUR_S
    joules, protocol = effort.joules, f"measured at work: {', '.join(effort.meters)}"
    if joules is None:
        watts, source = worker_watts(recipe)
        at_work = sum(fanout.worker_seconds for fanout in effort.fanouts)
        joules = watts * (at_work if effort.fanouts else seconds)
        protocol = f"estimated: {watts:g} W for a worker at work, {source}"
    price = recipe.cost.worker_hour
    return Cost(
        worker_hours=round(worker_hours, 6),
        price=None if price is None else round(worker_hours * price, 6),
        currency=recipe.cost.currency,
        energy_kwh=round(joules / JOULES_PER_KWH, 9),
        energy_protocol=protocol,
    )


def worker_watts(recipe: Recipe) -> tuple[float, str]:
    """Return what a worker is taken to draw where nothing measures it, and who says so."""
    if recipe.cost.watts_per_worker is not None:
        return recipe.cost.watts_per_worker, "the recipe's"
    cluster = recipe.cluster
    watts = WATTS_PER_THREAD * cluster.threads_per_worker + WATTS_PER_GPU * cluster.gpus_per_worker
    return watts, f"assumed ({WATTS_PER_THREAD:g} W a thread, {WATTS_PER_GPU:g} W a GPU)"


def cost_of_night(recipe: Recipe, stages: list[StageResult]) -> Cost:
    """Sum up the stages that were computed this night."""
    costs = [stage.cost for stage in stages if stage.outcome == "computed" and stage.cost]
    price = recipe.cost.worker_hour
    return Cost(
        worker_hours=round(sum(cost.worker_hours for cost in costs), 6),
        price=None if price is None else round(sum(cost.price or 0 for cost in costs), 6),
        currency=recipe.cost.currency,
        energy_kwh=round(sum(cost.energy_kwh for cost in costs), 9),
        energy_protocol="; ".join(sorted({c.energy_protocol for c in costs}))
        or "nothing was computed",
    )
