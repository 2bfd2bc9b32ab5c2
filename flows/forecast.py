"""How long a stage will take elsewhere, from how long it took where it was measured.

    seconds there = (seconds - span) + span there
    span          = sum over what was handed to workers of ceil(units / workers) x seconds a unit

What is not span stays as it is: the driver's own work, the start of workers, what they load. A
span's work grows with its operations, and shrinks with the device's speed; the units of a sweep
grow in number, and a single unit is never divided. A process group's ranks share their work,
so that more of them finish it sooner, in proportion. What workers tell each other is not counted.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from flows.devices import Cluster, recognize
from flows.operations import ALL_OTHERS
from tasks.run_records import Effort, Fanout


class Measured(NamedTuple):
    """A stage as it was computed once."""

    seconds: float
    effort: Effort
    operations: dict[str, float]
    """As `count_operations` returns them."""


def forecast(
    operations: dict[str, float],
    in_half: bool,
    measured: Measured | None,
    there: Cluster,
    workers: int,
) -> float | None:
    """Return a stage's seconds on a cluster; None where there is nothing to go by.

    Args:
        operations: Of the stage, by group of units; empty where it runs no model, so that no
            device makes it faster.
        in_half: Whether they are in 16 bits.
        measured: The stage or one like it; None for arithmetic alone.
        workers: Of the cluster that the stage can use.
    """
    if measured is None:
        total = sum(operations.values())
        return total / there.device.speed(in_half) / workers if operations else None
    faster = 1.0
    if operations:
        here = [recognize(name) for name in measured.effort.devices]
        slowest = min(device.speed(in_half) for device in here if device)
        faster = there.device.speed(in_half) / slowest
    fanouts = measured.effort.fanouts
    spent = sum(span(fanout, fanout.num_workers, 1.0) for fanout in fanouts)
    expected = 0.0
    for fanout in fanouts:
        more = growth(fanout.group, operations, measured.operations)
        num_workers = usable(fanout, measured.effort, there)
        expected += span(stretch(fanout, more), num_workers, more / faster)
    return max(measured.seconds - spent, 0.0) + expected


def growth(group: str, now: dict[str, float], then: dict[str, float]) -> float:
    """Return how many times the operations of a group of units there are now."""
    key = group if group in now and group in then else ALL_OTHERS
    return now[key] / then[key] if now.get(key) and then.get(key) else 1.0


def span(fanout: Fanout, num_workers: int, work: float) -> float:
    """Return seconds from the first unit's begin to the last one's end.

    Args:
        work: Times the fan-out's own.
    """
    seconds = fanout.worker_seconds * work
    if not fanout.num_units:
        return 0.0
    if fanout.in_step:
        return seconds / num_workers
    return seconds * math.ceil(fanout.num_units / num_workers) / fanout.num_units


def stretch(fanout: Fanout, more: float) -> Fanout:
    """Return a fan-out of as many units as more work will have, with the same work in all."""
    if fanout.in_step or fanout.num_units <= 1:
        return fanout
    return fanout.model_copy(update={"num_units": max(1, round(fanout.num_units * more))})


def usable(fanout: Fanout, effort: Effort, there: Cluster) -> int:
    """Return the workers that may share it there: a stage's own limit stays."""
    is_limited = fanout.num_workers < min(fanout.num_units, effort.num_workers)
    return fanout.num_workers if is_limited else there.num_workers
