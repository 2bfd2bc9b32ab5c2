"""How much is measured: all of it, or just enough to see that the benchmark runs."""

from __future__ import annotations

from typing import NamedTuple


class Scale(NamedTuple):
    name: str
    max_rows: int | None
    """Rows of a text; None: all."""
    num_planted: int
    """Rows planted of each kind."""


FULL = Scale("full", None, 200)
SMOKE = Scale("smoke", 200, 10)
