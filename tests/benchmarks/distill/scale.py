"""How much is measured: all of it, or just enough to see that the benchmark runs."""

from __future__ import annotations

from typing import NamedTuple


class Scale(NamedTuple):
    name: str
    loss_tokens: int
    loss_vocab: int
    loss_width: int
    """Of both hidden states."""
    loss_repeats: int


FULL = Scale(
    name="full",
    loss_tokens=2048,
    loss_vocab=2**17,
    loss_width=1024,
    loss_repeats=3,
)

SMOKE = Scale(
    name="smoke",
    loss_tokens=256,
    loss_vocab=2**13,
    loss_width=64,
    loss_repeats=1,
)
