"""What is kept of a teacher's distribution over the next token, and the bits that hold it.

Kept are the most probable tokens: as many as hold MASS of the probability, at most MAX_ENTRIES,
and none below MIN_PROBABILITY; or, where k is given, always k. Of each there is its id and how far
its log-probability lies below the largest, in steps. The mass of all other tokens is stored, so
what is kept sums to 1 less that, which gives back the log-probabilities themselves.

Ids ascend. The gap to the one before, less 1, is an exponential-Golomb code, whose order follows
from the mean gap: no parameter is stored. docs/teacher_logits.md has the layout, and what it costs.

Shapes: N positions, vocabulary V, K the most entries of a position, M entries of all positions.

Reference: Teuhola 1978, Information Processing Letters 7(6), the exponential-Golomb code.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from tasks.distill.teacher_logits.bits import (
    pack_fields,
    pack_unary,
    unpack_fields,
    unpack_unary,
)

VERSION: Literal[1] = 1
MASS = 0.995
MAX_ENTRIES = 64
MIN_PROBABILITY = 1 / 384
"""Where many tokens are a little probable, bytes go to those of which one learns most."""
TAIL_STEPS = 65536


class Encoding(NamedTuple):
    """How much is kept. It stands in the header of every shard."""

    vocab_size: int
    """V: the first so many logits count."""
    max_entries: int
    """K"""
    mass: float
    min_probability: float
    delta_bits: int
    delta_step: float
    """Nats; deltas beyond the last step are brought to it."""


def choose_encoding(vocab_size: int, k: int | None) -> Encoding:
    """Return the encoding with k entries at every position; None: as many as the mass asks for.

    Five bits reach from the largest probability that there is to MIN_PROBABILITY; with k entries
    there is no such bound, so six bits reach over 10.5 nats.
    """
    if k is None:
        step = -math.log(MIN_PROBABILITY) / 31
        return Encoding(vocab_size, min(MAX_ENTRIES, vocab_size), MASS, MIN_PROBABILITY, 5, step)
    return Encoding(vocab_size, min(k, vocab_size), 1.0, 0.0, 6, 1 / 6)


class Entries(NamedTuple):
    """What is kept of N positions, as integers; the entries of all are joined end to end."""

    counts: NDArray[np.uint8]
    """[N]; 0 where the position is not learned."""
    tails: NDArray[np.uint16]
    """[N]: mass of all other tokens, times TAIL_STEPS."""
    ids: NDArray[np.int64]
    """[M], ascending within a position."""
    deltas: NDArray[np.int64]
    """[M]: largest log-probability less the entry's, in steps."""


def select_entries(logits_NV: torch.Tensor, learned_N: torch.Tensor, encoding: Encoding) -> Entries:
    """Round what is kept of the teacher's logits to whole steps; ids of equal logits are torch's
    choice."""
    log_q_NV = torch.log_softmax(logits_NV[:, : encoding.vocab_size].float(), dim=1)
    values_NK, ids_NK = log_q_NV.topk(encoding.max_entries)
    probs_NK = values_NK.exp()
    before_NK = probs_NK.cumsum(1) - probs_NK
    kept_NK = (before_NK < encoding.mass) & (probs_NK >= encoding.min_probability)
    kept_NK[:, 0] = True
    kept_NK &= learned_N[:, None].bool()
    steps_NK = ((values_NK[:, :1] - values_NK) / encoding.delta_step).round()
    tails_N = (1 - (probs_NK * kept_NK).sum(1)) * TAIL_STEPS

    order_NK = ids_NK.masked_fill(~kept_NK, encoding.vocab_size).argsort(dim=1)
    kept = kept_NK.gather(1, order_NK).cpu().numpy()
    return Entries(
        counts=kept.sum(1).astype(np.uint8),
        # Never 0: a student that spends any mass elsewhere would be infinitely wrong.
        tails=tails_N.round().clamp(1, TAIL_STEPS - 1).cpu().numpy().astype(np.uint16),
        ids=ids_NK.gather(1, order_NK).cpu().numpy()[kept],
        deltas=steps_NK.clamp(max=2**encoding.delta_bits - 1)
        .gather(1, order_NK)
        .cpu()
        .numpy()[kept]
        .astype(np.int64),
    )


class Packed(NamedTuple):
    """The entries of a block as streams of bytes; counts and tails stay beside them."""

    classes: NDArray[np.uint8]
    """Of each entry's gap, the unary part of its code."""
    fields: NDArray[np.uint8]
    """Of each entry, the binary part of its gap's code, then its delta."""


def pack(entries: Entries, encoding: Encoding) -> Packed:
    """Code g = id - id before - 1 of order o: x = g + 2^o has o + class + 1 bits, of which the
    first is not stored."""
    orders_M, starts_M = _layout(entries.counts, encoding)
    before_M = np.roll(entries.ids, 1)
    before_M[starts_M] = -1
    x_M = entries.ids - before_M - 1 + (1 << orders_M)
    low_bits_M = np.frexp(x_M)[1].astype(np.int64) - 1
    low_M = x_M - (1 << low_bits_M)
    return Packed(
        classes=pack_unary(low_bits_M - orders_M),
        fields=pack_fields(low_M | entries.deltas << low_bits_M, low_bits_M + encoding.delta_bits),
    )


def unpack(
    packed: Packed, counts: NDArray[np.uint8], tails: NDArray[np.uint16], encoding: Encoding
) -> Entries:
    """Return the entries that were packed."""
    orders_M, starts_M = _layout(counts, encoding)
    low_bits_M = orders_M + unpack_unary(packed.classes)
    fields_M = unpack_fields(packed.fields, low_bits_M + encoding.delta_bits)
    low_M = fields_M & (1 << low_bits_M) - 1
    steps_M = low_M + (1 << low_bits_M) - (1 << orders_M) + 1
    sums_M = np.cumsum(steps_M)
    first_M = np.repeat((sums_M - steps_M)[starts_M], counts[counts > 0])
    return Entries(counts, tails, sums_M - first_M - 1, fields_M >> low_bits_M)


def _layout(
    counts_N: NDArray[np.uint8], encoding: Encoding
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return each entry's order [M], and where the entries of each position begin that has some.

    Near the mean gap 2^o wins on gaps that lie close together as on those far apart: a quarter of
    the mean gap, rounded down to a power of 2.
    """
    counts = counts_N[counts_N > 0].astype(np.int64)
    mean_gaps = encoding.vocab_size // counts
    orders = np.maximum(np.frexp(mean_gaps)[1].astype(np.int64) - 3, 0)
    return np.repeat(orders, counts), np.cumsum(counts) - counts
