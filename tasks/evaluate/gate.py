"""The gate: may this export take the place of what people run now?

Every comparison is paired, document by document, and passes on the upper end of an interval and
never on a mean alone: what the held-out text cannot show is not published.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, stdtrit

from infra.storage import localize
from tasks.digests import digest_of
from tasks.errors import QualityGateError
from tasks.gate_options import Gate
from tasks.records import Difference, GateCheck, GateReport, Metrics, ModelRef

if TYPE_CHECKING:
    from infra.storage import Store

NUM_RESAMPLES = 10_000
CONFIDENCE = 0.95
"""Of each one-sided interval."""
CHUNK_INDICES = 2**22
"""Document numbers drawn at once."""
BYTES_PER_TEACHER_PARAMETER = 4

BOOTSTRAP_PROTOCOL = (
    f"paired bootstrap over documents, {NUM_RESAMPLES:,} resamples, one-sided {CONFIDENCE:.0%}"
)
BYTES_PROTOCOL = "sum of the files' bytes / (4 bytes x the teacher's parameters, tied ones once)"


@dataclass(frozen=True)
class Evaluated:
    """A model and what it scored on each held-out document."""

    model: ModelRef
    metrics: Metrics
    nats: NDArray[np.float64]
    """Summed nats of each document, [num_documents]."""
    tokens: NDArray[np.float64]
    """Scored tokens of each document, [num_documents]."""


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
    return Evaluated(model, metrics, nats, tokens)


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
    limit = gate.champion.max_nats_increase
    if limit is not None and champion is not None:
        checks.append(check_nats("champion.max_nats_increase", limit, candidate, champion))
    if limit is not None and champion is None:
        notes.append("No champion on the channel yet: champion.max_nats_increase was skipped.")
    if not checks:
        notes.append("The recipe sets no limit that applies: nothing was held against one.")
    return GateReport(passed=all(c.passed for c in checks), checks=checks, notes=notes)


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
        protocol=f"{candidate.metrics.protocol}; {BOOTSTRAP_PROTOCOL}",
    )


def explain_refusal(difference: Difference, limit: float) -> str:
    """Say whether a candidate over the limit is worse, or whether the text is too short to tell.

    The upper end alone decides; the width (upper end less figure) only chooses the reason. It
    falls with the square root of the number of documents, which gives the number at which this
    same figure would pass, or, where it is over the limit, the interval would be as narrow.
    """
    increase = f"{difference.figure:+.4f} nats/token (upper end {difference.upper:+.4f})"
    width = difference.upper - difference.figure
    room = limit - difference.figure if difference.figure < limit else limit
    if difference.lower > limit or width <= limit or room == 0:
        return f"{increase}, the limit is {limit:g}"
    needed = math.ceil(difference.num_documents * (width / room) ** 2)
    return (
        f"too few items: about {needed:,} needed; {difference.num_documents:,} documents "
        f"give {increase}, the limit is {limit:g}"
    )


def paired_difference(candidate: Evaluated, reference: Evaluated) -> Difference:
    """Estimate nats/token of the candidate less those of the reference, by a paired bootstrap.

    The estimate is a ratio, sum of differences over sum of tokens, and documents are resampled
    whole, since tokens within one depend on each other. Percentiles are widened as for Student's
    t, because a bootstrap of n documents has a standard error too small by sqrt((n - 1) / n).
    The same two models give the same interval always.

    Reference: Hesterberg 2014, arXiv 1411.5279, expanded percentile interval.

    Raises:
        ValueError: fewer than two documents, or not the same ones.
    """
    tokens = reference.tokens
    if not np.array_equal(candidate.tokens, tokens):
        raise ValueError(
            "two models can only be compared on the same tokens of the same documents, got "
            f"{candidate.tokens.size} documents with {candidate.tokens.sum():.0f} tokens and "
            f"{tokens.size} with {tokens.sum():.0f}; a teacher with another tokenizer or text "
            "needs a recipe name or a channel of its own"
        )
    num_documents = tokens.size
    if num_documents < 2:
        raise ValueError(f"evaluation.text must hold at least 2 documents, got {num_documents}")
    differences = candidate.nats - reference.nats
    digests = [candidate.model.digest, reference.model.digest]
    rng = np.random.default_rng(int(digest_of(digests)[:16], 16))
    chunk = max(1, CHUNK_INDICES // num_documents)
    estimates = np.empty(NUM_RESAMPLES)
    for start in range(0, NUM_RESAMPLES, chunk):
        rows = min(chunk, NUM_RESAMPLES - start)
        drawn = rng.integers(0, num_documents, size=(rows, num_documents))
        sums = differences[drawn].sum(axis=1)
        estimates[start : start + rows] = sums / tokens[drawn].sum(axis=1)
    quantile = stdtrit(num_documents - 1, CONFIDENCE)
    tail = ndtr(-quantile * math.sqrt(num_documents / (num_documents - 1)))
    lower, upper = np.quantile(estimates, [tail, 1 - tail])
    return Difference(
        figure=float(differences.sum() / tokens.sum()),
        lower=float(lower),
        upper=float(upper),
        num_documents=num_documents,
    )
