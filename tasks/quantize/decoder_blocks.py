"""Find a decoder's blocks and the linear weights in them, by inspection of its modules."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn


class Layout(NamedTuple):
    """Which tensors of a checkpoint are linear weights."""

    blocks: list[dict[str, tuple[int, int]]]
    """Per decoder block: tensor name -> (out, in), in the order of the modules."""
    others: list[str]
    """Names of the linear modules outside the blocks: the head, above all."""
    stacked: list[str]
    """Names of parameters that hold several matrices each, as those of fused experts do."""


def find_layout(folder: Path, trust_remote_code: bool) -> Layout:
    """Inspect a model that is built from its config alone, without memory for its weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    blocks = [linear_weights(model, block) for block in find_blocks(model)]
    inside = {name for block in blocks for name in block}
    return Layout(
        blocks=blocks,
        others=[
            name
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear) and f"{name}.weight" not in inside
        ],
        stacked=[
            f"{name}.{own}"
            for name, module in model.named_modules()
            if not isinstance(module, nn.Conv1d)
            for own, parameter in module.named_parameters(recurse=False)
            if parameter.ndim > 2
        ],
    )


def find_blocks(model: Any) -> nn.ModuleList:
    """Return the decoder's list of blocks.

    Raises:
        ValueError: it has none.
    """
    decoder = model.get_decoder()
    for child in decoder.children():
        if isinstance(child, nn.ModuleList):
            return child
    raise ValueError(f"{type(model).__name__}: expected a decoder with a list of blocks, got none")


def linear_weights(model: nn.Module, block: nn.Module) -> dict[str, tuple[int, int]]:
    """Return the weights of the block's linear modules, by their name in the model."""
    inside = set(block.modules())
    return {
        f"{name}.weight": (module.out_features, module.in_features)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module in inside
    }
