"""The gate: may this export take the place of what people run now?

Every comparison is paired, document by document, and passes on the upper end of an interval and
never on a mean alone: what the held-out text cannot show is not published.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from infra.storage import localize
from tasks.errors import QualityGateError
from tasks.evaluate.bootstrap import (
    PROTOCOL,
    Floats,
    draw_resamples,
    expand_percentiles,
    explain_refusal,
)
from tasks.evaluate.items import Items, read_items
from tasks.evaluate.score_drop import check_drops, check_kept
from tasks.gate_options import ChampionGate, Gate
from tasks.quality_records import Difference, GateCheck, GateReport, Metrics
from tasks.records import ModelRef

if TYPE_CHECKING:
    from infra.storage import Store

BYTES_PER_TEACHER_PARAMETER = 4

BYTES_PROTOCOL = "sum of the files' bytes / (4 bytes x the teacher's parameters, tied ones once)"


@dataclass(frozen=True)
class Evaluated:
    """A model and what it scored on each held-out document."""

    model: ModelRef
    metrics: Metrics
    nats: Floats
    """Summed nats of each document, [num_documents]."""
    tokens: Floats
    """Scored tokens of each document, [num_documents]."""
    items: dict[str, Items] = field(default_factory=dict)
    """What it said on each evaluation task, by the task's name."""


def read_evaluated(store: Store, model: ModelRef, metrics: Metrics) -> Evaluated:
    """Read the evidence behind a model's metrics.

    Raises:
        QualityGateError: a document's loss is not a finite number.
    """
    documents = json.loads(localize(store, metrics.documents_uri).read_bytes())
    nats = np.array(documents["nats"], dtype=np.float64)
    tokens = np.array(documents["tokens"], dtype=np.float64)
    if not np.isfinite(nats).all():
        raise QualityGateError(
            f"model {model.digest[:12]}: the held-out loss is not a finite number on "
            f"{np.count_nonzero(~np.isfinite(nats))} of {nats.size} documents"
        )
    items = {name: read_items(store, score) for name, score in metrics.tasks.items()}
    return Evaluated(model, metrics, nats, tokens, items)


def check_gate(
    gate: Gate, candidate: Evaluated, teacher: Evaluated, champion: Evaluated | None
) -> GateReport:
    """Hold a candidate against every limit of the recipe.

    Args:
        champion: What the channel serves now, evaluated on the same documents; None where it
            serves nothing yet.

    Raises:
        ValueError: the two models were not scored on the same tokens of the same documents.
    """
    checks: list[GateCheck] = []
    notes: list[str] = []
    limit = gate.teacher.max_nats_increase
    if limit is not None:
        checks.append(check_nats("teacher.max_nats_increase", limit, candidate, teacher))
    limit = gate.teacher.max_bytes_ratio
    if limit is not None:
        checks.append(check_bytes(limit, candidate.model, teacher.model))
    checks += check_drops("teacher", gate.teacher.max_score_drop, candidate, teacher)
    if champion is not None:
        checks += check_champion(gate.champion, candidate, champion)
    elif skipped := gate.champion.model_dump(exclude_defaults=True):
        names = ", ".join(f"champion.{name}" for name in skipped)
        verb = "was" if len(skipped) == 1 else "were"
        notes.append(f"No champion on the channel yet: {names} {verb} skipped.")
    if not checks:
        notes.append("The recipe sets no limit that applies: nothing was held against one.")
    return GateReport(passed=all(c.passed for c in checks), checks=checks, notes=notes)


def check_champion(
    gate: ChampionGate, candidate: Evaluated, champion: Evaluated
) -> Iterator[GateCheck]:
    if gate.max_nats_increase is not None:
        name = "champion.max_nats_increase"
        yield check_nats(name, gate.max_nats_increase, candidate, champion)
    yield from check_drops("champion", gate.max_score_drop, candidate, champion)
    for task in gate.must_not_fall:
        yield check_kept(task, candidate, champion)


def check_bytes(limit: float, candidate: ModelRef, teacher: ModelRef) -> GateCheck:
    ratio = candidate.num_bytes / (BYTES_PER_TEACHER_PARAMETER * teacher.num_parameters)
    passed = ratio <= limit
    return GateCheck(
        name="teacher.max_bytes_ratio",
        against=teacher.digest,
        limit=limit,
        figure=ratio,
        passed=passed,
        reason=None if passed else f"{ratio:.3f} of the teacher's bytes, the limit is {limit:g}",
        protocol=BYTES_PROTOCOL,
    )


def check_nats(name: str, limit: float, candidate: Evaluated, reference: Evaluated) -> GateCheck:
    """Pass iff the upper end of the increase in nats/token is at or under the limit."""
    difference = paired_difference(candidate, reference)
    passed = difference.upper <= limit
    return GateCheck(
        name=name,
        against=reference.model.digest,
        limit=limit,
        figure=difference.figure,
        difference=difference,
        passed=passed,
        reason=None if passed else explain_refusal(difference, limit),
        protocol=f"{candidate.metrics.protocol}; {PROTOCOL.format('documents')}",
    )


def paired_difference(candidate: Evaluated, reference: Evaluated) -> Difference:
    """Estimate nats/token of the candidate less those of the reference, by a paired bootstrap.

    The estimate is a ratio, sum of differences over sum of tokens, and documents are resampled
    whole, since tokens within one depend on each other. Those without a scored token are left out:
    they say nothing, and would make the interval look surer. The same two models give the same
    interval always.

    Raises:
        ValueError: fewer than two documents with scored tokens, or not the same ones.
    """
    tokens = reference.tokens
    if not np.array_equal(candidate.tokens, tokens):
        raise ValueError(
            "two models can only be compared on the same tokens of the same documents, got "
            f"{candidate.tokens.size} documents with {candidate.tokens.sum():.0f} tokens and "
            f"{tokens.size} with {tokens.sum():.0f}; a teacher with another tokenizer or text "
            "needs a recipe name or a channel of its own"
        )
    scored = tokens > 0
    tokens, differences = tokens[scored], (candidate.nats - reference.nats)[scored]
    num_documents = tokens.size
    if num_documents < 2:
        raise ValueError(
            "evaluation.text must hold at least 2 documents with something to score, got "
            f"{num_documents}"
        )
    estimates = np.concatenate(
        [
            differences[drawn].sum(axis=1) / tokens[drawn].sum(axis=1)
            for drawn in draw_resamples(
                num_documents, [candidate.model.digest, reference.model.digest]
            )
        ]
    )
    lower, upper = expand_percentiles(estimates, num_documents)
    return Difference(
        figure=float(differences.sum() / tokens.sum()),
        lower=lower,
        upper=upper,
        num_documents=num_documents,
    )
