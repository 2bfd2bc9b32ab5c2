"""What an initialiser may look at, and what it gives."""

from pathlib import Path
from typing import Any, NamedTuple

import torch


class InitializerContext(NamedTuple):
    folder: Path
    """The incoming model: that of the step before, or the one that the step's `student` names."""
    ids_BT: torch.Tensor
    """The corpus, int32 [num_blocks, block_tokens], for those that need activations."""
    seed: int
    trust_remote_code: bool


class Student(NamedTuple):
    model: Any
    """In fp32, on the device that this process computes on."""
    facts: dict[str, str | int | float]
    """What was done, for the stage's record."""
