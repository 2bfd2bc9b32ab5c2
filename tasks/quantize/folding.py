"""Which operation's channels enter a linear layer, so that a scale moves from one to the other.

A linear layer's columns times s compute the same when the channels that enter it are divided by s:
in the gain of the norm before it, or in the rows of a linear layer from which to it every channel
keeps to itself. Which one that is in a family is tried, not told by names: divide the candidate,
multiply the columns, and see whether the block still computes what it did.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import nn

from tasks.quantize.calibration import Prefix, run_block

LARGEST_CHANGE = 1e-4
"""Relative change of what the block adds to the stream that rounding in float32 may explain."""


class Source(NamedTuple):
    """The operation before."""

    module: str
    offset: float
    """What is added to the weight before it multiplies: 1 in the norms of Gemma, 0 elsewhere."""


@torch.no_grad()
def find_source(prefix: Prefix, names: Sequence[str]) -> Source | None:
    """Return the operation before weights of the next block that share an input.

    None where there is none, or where the first window does not reach the weights.
    """
    model, block = prefix.model, prefix.blocks[prefix.next_block]
    weights = {name: model.get_parameter(name).detach().clone() for name in names}
    width = next(iter(weights.values())).shape[1]
    scale = torch.linspace(0.5, 2.0, width, device=model.device)
    before = _added(prefix)
    limit = LARGEST_CHANGE * before.norm()
    multiplied = {name: weight * scale for name, weight in weights.items()}
    _put(model, multiplied)
    matters = (_added(prefix) - before).norm() > limit
    _put(model, weights)
    if not matters:
        return None
    for name, module in candidates(model, block, width):
        if f"{name}.weight" in weights:
            continue
        for offset in (0.0,) if isinstance(module, nn.Linear) else (0.0, 1.0):
            source = Source(name, offset)
            kept = {own: p.detach().clone() for own, p in module.named_parameters(name, False)}
            _put(model, multiplied | divide_outputs(source, kept, scale))
            change = _added(prefix) - before
            _put(model, weights | kept)
            if change.norm() <= limit:
                return source
    return None


def candidates(model: nn.Module, block: nn.Module, width: int) -> list[tuple[str, nn.Module]]:
    """Return the block's norms and linear layers with as many output channels, by name."""
    inside = set(block.modules())
    return [
        (name, module)
        for name, module in model.named_modules()
        if module in inside
        and isinstance(weight := getattr(module, "weight", None), nn.Parameter)
        and (weight.ndim == 1 or isinstance(module, nn.Linear))
        and len(weight) == width
    ]


def divide_outputs(
    source: Source, parameters: Mapping[str, torch.Tensor], scale: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Return the operation's weight and bias, by name, with its output channels divided.

    Args:
        parameters: Its own, and any others, by name.
        scale: [channels].
    """
    divided = {}
    for own, offset in (("weight", source.offset), ("bias", 0.0)):
        name = f"{source.module}.{own}"
        if name in parameters:
            value = parameters[name]
            divisor = scale.view(-1, *[1] * (value.ndim - 1))
            divided[name] = (value + offset) / divisor - offset
    return divided


def _added(prefix: Prefix) -> torch.Tensor:
    stream = prefix.streams[0]
    return run_block(prefix, stream) - stream


def _put(model: nn.Module, values: Mapping[str, torch.Tensor]) -> None:
    for name, value in values.items():
        model.get_parameter(name).copy_(value)
