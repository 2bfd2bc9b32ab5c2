"""The student starts from random weights, in the shape of the step before."""

from pathlib import Path
from typing import Any

from tasks.models.spreading import pick_device


def initialize(folder: Path, seed: int, trust_remote_code: bool) -> Any:
    """Draw new weights for the incoming model's configuration, in fp32, as the seed has it."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(
        config, dtype=torch.float32, trust_remote_code=trust_remote_code
    )
    return model.to(pick_device())
