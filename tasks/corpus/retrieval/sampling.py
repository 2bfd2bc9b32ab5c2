"""A few rows of many, without holding the many."""

from __future__ import annotations

from collections.abc import Iterable
from random import Random
from typing import Any

from tasks.corpus.retrieval.quotas import share_equally


def sample_rows(
    rows: Iterable[dict[str, Any]], num_rows: int, seed: str, by_output: bool
) -> list[dict[str, Any]]:
    """Draw rows at random, and return them in their order.

    Args:
        by_output: Draw equally many of each output, as far as they suffice; `num_rows` rows of
            each are held meanwhile.

    Reference: Vitter 1985, "Random sampling with a reservoir", algorithm R.
    """
    held: dict[str, list[tuple[int, dict[str, Any]]]] = {}
    met: dict[str, int] = {}
    draws: dict[str, Random] = {}
    for position, row in enumerate(rows):
        group = (row["output"] or "") if by_output else ""
        if group not in held:
            held[group], met[group], draws[group] = [], 0, Random(f"{seed} {group}")
        met[group] += 1
        if len(held[group]) < num_rows:
            held[group].append((position, row))
        elif (place := draws[group].randrange(met[group])) < num_rows:
            held[group][place] = (position, row)
    shares = share_equally({group: len(kept) for group, kept in held.items()}, num_rows)
    drawn = [pair for group in held for pair in draws[group].sample(held[group], shares[group])]
    return [row for _, row in sorted(drawn, key=lambda pair: pair[0])]
