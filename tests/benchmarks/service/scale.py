"""How much is measured: all of it, or just enough to see that the benchmark runs."""

from __future__ import annotations

from typing import NamedTuple


class Scale(NamedTuple):
    name: str
    rounds: int
    """Each has everything that is compared once, one after the other."""
    artifact_mb: int
    """Decimal."""
    num_artifacts: int


FULL = Scale("full", 3, 1000, 1000)
SMOKE = Scale("smoke", 1, 40, 30)
