"""The student starts from the weights of the step before: pruned, or distilled already."""

from pathlib import Path
from typing import Any

from tasks.models.checkpoint import load_model


def initialize(folder: Path, seed: int, trust_remote_code: bool) -> Any:
    """Load the incoming model, in fp32."""
    return load_model(folder, trust_remote_code=trust_remote_code, spread=False)
