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
    recovered_tokens: int
    """That a pruned student learns from."""
    throughput_steps: int
    throughput_layers: int
    """Of a random teacher."""
    recovered_windows: int
    """Of calibration text, for pruning."""


FULL = Scale(
    name="full",
    loss_tokens=2048,
    loss_vocab=2**17,
    loss_width=1024,
    loss_repeats=3,
    recovered_tokens=1_000_000,
    throughput_steps=20,
    throughput_layers=24,
    recovered_windows=280,
)

SMOKE = Scale(
    name="smoke",
    loss_tokens=256,
    loss_vocab=2**13,
    loss_width=64,
    loss_repeats=1,
    recovered_tokens=8_192,
    throughput_steps=2,
    throughput_layers=2,
    recovered_windows=8,
)
