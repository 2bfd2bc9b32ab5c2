"""What earlier nights of a recipe tell of how long its stages take, and on what."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeGuard

from flows.devices import CPU, DEVICES, Cluster, recognize
from flows.forecast import Measured
from tasks.publish.run_history import read_runs
from tasks.recipe import Recipe
from tasks.run_records import Effort, RunRecord

if TYPE_CHECKING:
    from infra.storage import Store

NUM_RUNS = 20
"""Nights that are looked at."""
ASSUMED_GPU = "A100"
"""Where the recipe asks for GPUs, and nothing was measured on one."""


def recent_runs(store: Store, recipe_name: str) -> list[RunRecord]:
    """Return the last nights of a recipe, the newest first; none where there was none."""
    try:
        return read_runs(store, recipe_name, NUM_RUNS)
    except ValueError:
        return []


def last_measured(history: Sequence[RunRecord], title: str, name: str) -> Measured | None:
    """Return what a stage took by the newest night that can tell."""
    for run in history:
        for stage in run.stages:
            if (stage.title, stage.stage) == (title, name) and is_telling(stage.effort):
                return Measured(stage.seconds, stage.effort, stage.operations_by_group)
    return None


def is_telling(effort: Effort | None) -> TypeGuard[Effort]:
    """Whether all of the stage was computed at once, and on devices that are known."""
    if effort is None or any(fanout.num_stored for fanout in effort.fanouts):
        return False
    return all(recognize(name) for name in effort.devices)


def own_cluster(recipe: Recipe, history: Sequence[RunRecord]) -> Cluster:
    """Return the recipe's cluster, of the GPUs that it was last seen to have."""
    device = CPU
    if recipe.cluster.gpus_per_worker:
        efforts = [stage.effort for run in history for stage in run.stages if stage.effort]
        seen = [recognize(name) for effort in efforts for name in effort.devices]
        assumed = next(device for device in DEVICES if device.name == ASSUMED_GPU)
        device = next((gpu for gpu in seen if gpu and gpu is not CPU), assumed)
    return Cluster(recipe.cluster.workers, device)
