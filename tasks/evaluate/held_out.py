"""What a model made of the held-out text, whatever its head: the gate's evidence."""

from __future__ import annotations

from typing import Any, NamedTuple


class HeldOut(NamedTuple):
    nats: list[float]
    """Summed over each document; of a classifier a document is a row."""
    tokens: list[int]
    """Scored in each document; 1 of a row, 0 where nothing in it could be scored."""
    protocol: str
    probe: dict[str, Any]
    """What the load gate asks a fresh process about."""
    prefill: dict[str, Any]
    """As `measure_prefill` returns it."""
