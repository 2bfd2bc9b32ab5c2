"""A model larger than one card in a process that has several: each runs some of the blocks.

Everything but the blocks is on the first card, and so are the last blocks, which stand beside the
head; the blocks before them are on the other cards, in their order. A block moves its inputs to
its own card before anybody else sees them, so that all that watches or changes a pass from the
outside finds inputs, weights and outputs in one place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from tasks.models.blocks import list_blocks


def pick_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def place_model(model: Any) -> Any:
    """Move a model to where this process computes: the CPU, a card, or all cards that it sees."""
    number = torch.cuda.device_count()
    if number < 2:
        return model.to(pick_device())
    return spread_blocks(model, [torch.device("cuda", index) for index in range(number)])


def spread_blocks(model: Any, devices: Sequence[torch.device]) -> Any:
    """Give each device its share of the model, in place."""
    blocks = list_blocks(model)
    places = assign_blocks([count_bytes(block) for block in blocks], count_bytes(model), devices)
    inside = {module for block in blocks for module in block.modules()}
    for module in model.modules():
        if module not in inside:
            module._apply(lambda tensor: tensor.to(devices[0]), recurse=False)
    for block, device in zip(blocks, places, strict=True):
        block.to(device)
        block.register_forward_pre_hook(_move_inputs(device), with_kwargs=True)
    return model


def assign_blocks(
    block_bytes: Sequence[int], model_bytes: int, devices: Sequence[torch.device]
) -> list[torch.device]:
    """Return each block's device, so that all devices hold about the same number of bytes."""
    share = model_bytes / len(devices)
    order = [*devices[1:], devices[0]]
    places, before = [], 0.0
    for size in block_bytes:
        places.append(order[min(int((before + size / 2) / share), len(order) - 1)])
        before += size
    return places


def count_bytes(module: nn.Module) -> int:
    """Return the bytes of a module's parameters, shared ones once, and of packed weights."""
    return sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))


def _move_inputs(device: torch.device) -> Callable[..., Any]:
    from accelerate.utils import send_to_device  # type: ignore[import-untyped]

    def move(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return send_to_device(args, device), send_to_device(kwargs, device)

    return move
