"""What a model said of each item of an evaluation task, for the gate to pair."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from infra.storage import localize
from tasks.evaluate.metrics import METRICS
from tasks.quality_records import TaskScore

if TYPE_CHECKING:
    from infra.storage import Store


class Items(NamedTuple):
    """The evidence behind a task's score."""

    metrics: list[str]
    """Names of `METRICS`."""
    digest: str
    """Of the items, so that two models are compared on the same ones."""
    gold: list[float]
    predicted: list[float]


def read_items(store: Store, score: TaskScore) -> Items:
    return Items(**json.loads(localize(store, score.items_uri).read_bytes()))


def score_items(items: Items) -> dict[str, float]:
    """Return each metric of the items."""
    gold, predicted = np.array(items.gold), np.array(items.predicted)
    return {
        name: float(METRICS[name](gold, predicted, np.ones(gold.size))) for name in items.metrics
    }
