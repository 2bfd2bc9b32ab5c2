"""How much is measured: all of it, or just enough to see that the benchmark runs."""

from __future__ import annotations

from typing import NamedTuple


class Scale(NamedTuple):
    name: str
    num_windows: int
    """Calibration windows."""
    heldout_windows: int | None
    """None: all that the text fills."""
    seeds: tuple[int, ...]
    """Each begins at another third of the calibration text."""
    training_tokens: int
    """Of quantization-aware training."""


FULL = Scale("full", 280, None, (0, 1, 2), 500_000)
SMOKE = Scale("smoke", 24, 4, (0,), 10_000)
