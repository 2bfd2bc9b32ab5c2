"""How far a model's score on a task is below another's, and how sure that is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from tasks.evaluate.bootstrap import (
    PROTOCOL,
    Floats,
    draw_counts,
    expand_percentiles,
    explain_refusal,
)
from tasks.evaluate.items import Items
from tasks.evaluate.metrics import average_metrics
from tasks.quality_records import Difference, GateCheck

if TYPE_CHECKING:
    from tasks.evaluate.gate import Evaluated

OF_CLASSES = {"accuracy", "f1", "f1_macro", "matthews"}


def check_drops(
    against: str, limits: dict[str, float], candidate: Evaluated, reference: Evaluated
) -> Iterator[GateCheck]:
    """Pass iff the upper end of a score's fall is at or under the limit, task by task."""
    for task, limit in limits.items():
        difference = task_drop(task, candidate, reference)
        passed = difference.upper <= limit
        yield GateCheck(
            name=f"{against}.max_score_drop.{task}",
            against=reference.model.digest,
            limit=limit,
            figure=difference.figure,
            difference=difference,
            passed=passed,
            reason=None if passed else explain_refusal(difference, limit, "of the score", "items"),
            protocol=f"{candidate.metrics.tasks[task].protocol}; {PROTOCOL.format('items')}",
        )


def check_kept(task: str, candidate: Evaluated, champion: Evaluated) -> GateCheck:
    """Refuse where a score is surely below the champion's: its fall's lower end is above 0."""
    difference = task_drop(task, candidate, champion)
    passed = difference.lower <= 0
    fallen = f"{difference.figure:.4f} below the champion's (lower end {difference.lower:.4f})"
    return GateCheck(
        name=f"champion.must_not_fall.{task}",
        against=champion.model.digest,
        limit=0.0,
        figure=difference.figure,
        difference=difference,
        passed=passed,
        reason=None if passed else f"{fallen}, it must not fall",
        protocol=f"{candidate.metrics.tasks[task].protocol}; {PROTOCOL.format('items')}",
    )


def task_drop(task: str, candidate: Evaluated, reference: Evaluated) -> Difference:
    digests = candidate.model.digest, reference.model.digest
    return paired_drop(candidate.items[task], reference.items[task], *digests)


def paired_drop(
    candidate: Items, reference: Items, candidate_digest: str, reference_digest: str
) -> Difference:
    """Estimate the reference's score less the candidate's, by a paired bootstrap over items.

    Where items are right or wrong, two are added to those that are drawn from, one that each
    model alone gets right. Without them, two models that agree on a handful of items would be
    found equal with certainty. Of an accuracy, the interval is then that of Bonett and Price.

    Reference: Bonett and Price 2012, doi 10.3102/1076998611411915, adjusted interval for paired
    proportions.

    Raises:
        ValueError: fewer than two items, or not the same ones.
    """
    if candidate.digest != reference.digest or candidate.gold != reference.gold:
        raise ValueError(
            "two models can only be compared on the same items of a task, got "
            f"{len(candidate.gold)} items of {candidate.digest[:12]} and "
            f"{len(reference.gold)} of {reference.digest[:12]}"
        )
    num_items = len(reference.gold)
    if num_items < 2:
        raise ValueError(f"an evaluation task needs at least 2 items, got {num_items}")
    # A kind of item is what is right, what the candidate said and what the reference said of it.
    triples = np.array([reference.gold, candidate.predicted, reference.predicted])
    kinds, counts = np.unique(triples, axis=1, return_counts=True)
    figure = float(drop(reference.metrics, kinds, counts.astype(np.float64)))
    if candidate_digest == reference_digest:
        return Difference(figure=figure, lower=figure, upper=figure, num_documents=num_items)
    if OF_CLASSES.issuperset(reference.metrics):
        kinds, counts = np.unique(add_discordant(triples), axis=1, return_counts=True)
    estimates = np.concatenate(
        [
            drop(reference.metrics, kinds, drawn)
            for drawn in draw_counts(
                counts.astype(np.float64), [candidate_digest, reference_digest]
            )
        ]
    )
    lower, upper = expand_percentiles(estimates, num_items)
    return Difference(figure=figure, lower=lower, upper=upper, num_documents=num_items)


def drop(metrics: list[str], kinds: Floats, weights: Floats) -> Floats:
    """Args: kinds: [3, C]: gold, the candidate's, the reference's. weights: [..., C]."""
    gold, said, said_before = kinds
    before = average_metrics(metrics, gold, said_before, weights)
    return before - average_metrics(metrics, gold, said, weights)


def add_discordant(triples: Floats) -> Floats:
    """Add two items of the last class, of which each model alone gets one right."""
    gold = triples[0]
    right, wrong = gold.max(), gold.min() if gold.max() > gold.min() else gold.max() - 1
    return np.append(triples, [[right, right], [right, wrong], [wrong, right]], axis=1)
