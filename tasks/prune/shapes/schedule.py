"""The shapes on the way to the final one, a round each."""

from __future__ import annotations

from collections.abc import Callable, Mapping

NumKept = dict[str, int]
"""Units kept, by kind."""


def schedule_rounds(
    num_units: NumKept,
    num_kept: NumKept,
    choices: Mapping[str, tuple[int, ...]],
    rounds: int,
    accepts: Callable[[NumKept], bool],
) -> list[NumKept]:
    """Return what is kept after each round; the last shape is `num_kept`.

    Every round removes about the same fraction of what it finds: between the incoming model and
    the final shape each kind is interpolated geometrically, to the nearest of its choices that is
    accepted beside the other kinds. A round that would change nothing is left out.

    Args:
        choices: Aligned numbers of units by kind, ascending.
        accepts: Whether stock code has such a shape.
    """
    schedule, before = [], dict(num_units)
    for number in range(1, rounds):
        way, kept = number / rounds, dict(before)
        for kind, final in num_kept.items():
            wanted = num_units[kind] ** (1 - way) * final**way
            between = [n for n in choices[kind] if final <= n < before[kind]]
            nearest = sorted([*between, before[kind]], key=lambda n: (abs(n - wanted), n))
            kept[kind] = next(n for n in nearest if n == before[kind] or accepts(kept | {kind: n}))
        if kept not in (before, num_kept):
            schedule.append(kept)
            before = kept
    return [*schedule, dict(num_kept)]
