"""Hooks on the linear layers that write to the residual stream: where units are switched off.

A unit is off when its columns of the writer's input are zero; the model without its rows and
columns then computes the same (`slicing`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from tasks.prune.units import Kept, Sublayer, find_layers

Visit = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor | None]
"""Called with (position of the sublayer, writer's input [..., width], residual stream before the
sublayer [..., hidden], writer's output [..., hidden]); returns another output, or None."""


@contextmanager
def masked(model: Any, sublayers: list[Sublayer], kept: Kept) -> Iterator[None]:
    """Switch off, in place and for as long as the context lasts, all units that are not kept."""

    def hook(columns: torch.Tensor) -> Callable[..., tuple[torch.Tensor]]:
        return lambda _, inputs: (inputs[0] * columns.to(inputs[0]),)

    handles = [
        model.get_submodule(sublayer.writer).register_forward_pre_hook(hook(sublayer.columns(mask)))
        for sublayer, mask in zip(sublayers, kept, strict=True)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def visited(model: Any, sublayers: list[Sublayer], visit: Visit) -> Iterator[None]:
    """Call `visit` at every writer of a forward pass, with the residual stream that it adds to.

    The stream is followed from each layer's input, by adding what the writers put out: true of
    pre-norm decoders with units in every sublayer (`repair.check_stream`).
    """
    layers = model.get_submodule(find_layers(model))
    assert isinstance(layers, nn.ModuleList)
    stream: list[torch.Tensor] = [torch.empty(0)]

    def enter(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        stream[0] = inputs[0]

    def hook(position: int) -> Callable[..., torch.Tensor]:
        def write(_: nn.Module, inputs: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
            changed = visit(position, inputs[0], stream[0], output)
            output = output if changed is None else changed
            stream[0] = stream[0] + output
            return output

        return write

    handles = [layer.register_forward_pre_hook(enter) for layer in layers]
    handles += [
        model.get_submodule(sublayer.writer).register_forward_hook(hook(position))
        for position, sublayer in enumerate(sublayers)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
