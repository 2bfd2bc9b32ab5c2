"""Find a model's blocks and the linear weights in them, by inspection of its modules."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from tasks.errors import CheckpointError
from tasks.models.blocks import list_blocks
from tasks.models.model_kind import auto_class, head_kind
from tasks.quantize.checkpoint_tensors import stored_names


class Layout(NamedTuple):
    """Which tensors of a checkpoint are linear weights."""

    blocks: list[dict[str, tuple[int, int]]]
    """Per block: tensor name -> (out, in), in the order of the modules."""
    others: list[str]
    """Names of the linear modules outside the blocks: the head, above all."""
    stacked: list[str]
    """Names of parameters that hold several matrices each, as those of fused experts do."""


def find_layout(folder: Path, trust_remote_code: bool) -> Layout:
    """Inspect a model that is built from its config alone, without memory for its weights."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    with torch.device("meta"):
        model = auto_class(config).from_config(config, trust_remote_code=trust_remote_code)
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


def check_layout(source: Path, layout: Layout, method: str, group_size: int | None) -> None:
    """Hold the blocks' weights against the checkpoint and the group size.

    Raises:
        ValueError: group_size does not divide an input width, or experts would stay as they are.
        CheckpointError: the checkpoint does not store a weight under its module's name.
    """
    check_shapes(layout, method, group_size)
    stored = stored_names(source)
    for name in (name for block in layout.blocks for name in block):
        if name not in stored:
            raise CheckpointError(
                f"{source} stores no {name}", "expected a checkpoint that is not quantized yet"
            )


def check_shapes(layout: Layout, method: str, group_size: int | None) -> None:
    """Hold the blocks' shapes against a method and the group size.

    Raises:
        ValueError: group_size does not divide an input width, or experts would stay as they are.
    """
    if layout.stacked and method != "none":
        raise ValueError(
            f"method {method}: expected weights in linear modules, got stacked experts "
            f"({layout.stacked[0]}); use method none"
        )
    for name, (_, width) in ((n, shape) for block in layout.blocks for n, shape in block.items()):
        if group_size is not None and width % group_size:
            divisors = [size for size in (128, 64, 32, 16, 8, 4) if width % size == 0]
            raise ValueError(
                f"group_size must divide every input width: {name} has {width} columns, got "
                f"group_size {group_size}; for this one {divisors} would do, and group_size: null "
                "(one step per row) always does"
            )


def find_blocks(model: Any) -> nn.ModuleList:
    """Return a decoder's list of blocks, or an encoder's.

    Raises:
        ValueError: it has none.
    """
    if head_kind(type(model).__name__) != "causal_lm":
        return nn.ModuleList(list_blocks(model))
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
