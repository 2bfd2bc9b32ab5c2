"""The paired bootstrap: how sure is a difference between two models, seen on the same items?"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, stdtrit

from tasks.digests import digest_of
from tasks.quality_records import Difference

NUM_RESAMPLES = 10_000
CONFIDENCE = 0.95
"""Of each one-sided interval."""
CHUNK_NUMBERS = 2**22
"""Drawn at once."""

PROTOCOL = f"paired bootstrap over {{}}, {NUM_RESAMPLES:,} resamples, one-sided {CONFIDENCE:.0%}"

Floats = NDArray[np.float64]


def draw_resamples(num_items: int, digests: list[str]) -> Iterator[NDArray[np.int64]]:
    """Yield item numbers in chunks [rows, num_items], NUM_RESAMPLES rows in all.

    Args:
        digests: Of the two models; the same two give the same resamples always.
    """
    rng = seeded_by(digests)
    for rows in chunks(num_items):
        yield rng.integers(0, num_items, size=(rows, num_items))


def draw_counts(counts: Floats, digests: list[str]) -> Iterator[Floats]:
    """Yield how often each kind of item is drawn, in chunks [rows, num_kinds]; else the same.

    Args:
        counts: Of each kind among the items, [num_kinds].
    """
    rng, num_items = seeded_by(digests), round(counts.sum())
    for rows in chunks(counts.size):
        yield rng.multinomial(num_items, counts / counts.sum(), size=rows).astype(np.float64)


def seeded_by(digests: list[str]) -> np.random.Generator:
    return np.random.default_rng(int(digest_of(digests)[:16], 16))


def chunks(width: int) -> Iterator[int]:
    """Yield numbers of rows of that width, of CHUNK_NUMBERS at the most, NUM_RESAMPLES in all."""
    chunk = max(1, CHUNK_NUMBERS // width)
    for start in range(0, NUM_RESAMPLES, chunk):
        yield min(chunk, NUM_RESAMPLES - start)


def expand_percentiles(estimates: Floats, num_items: int) -> tuple[float, float]:
    """Return the ends of the two one-sided intervals of resampled estimates.

    Percentiles are widened as for Student's t, because a bootstrap of n items has a standard error
    too small by sqrt((n - 1) / n).

    Reference: Hesterberg 2014, arXiv 1411.5279, expanded percentile interval.
    """
    quantile = stdtrit(num_items - 1, CONFIDENCE)
    tail = ndtr(-quantile * math.sqrt(num_items / (num_items - 1)))
    lower, upper = np.quantile(estimates, [tail, 1 - tail])
    return float(lower), float(upper)


def explain_refusal(
    difference: Difference, limit: float, unit: str = "nats/token", items: str = "documents"
) -> str:
    """Say whether a candidate over the limit is worse, or whether the text is too short to tell.

    The upper end alone decides; the width (upper end less figure) only chooses the reason. It
    falls with the square root of the number of documents, which gives the number at which this
    same figure would pass, or, where it is over the limit, the interval would be as narrow.
    """
    increase = f"{difference.figure:+.4f} {unit} (upper end {difference.upper:+.4f})"
    width = difference.upper - difference.figure
    room = limit - difference.figure if difference.figure < limit else limit
    if difference.lower > limit or width <= limit or room == 0:
        return f"{increase}, the limit is {limit:g}"
    needed = math.ceil(difference.num_documents * (width / room) ** 2)
    return (
        f"too few items: about {needed:,} needed; {difference.num_documents:,} {items} "
        f"give {increase}, the limit is {limit:g}"
    )
