"""Rows of a batch that go past some layers: sub-models without them beside others with them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from tasks.prune.units.units import find_layers


@contextmanager
def skipping(model: Any, skipped: list[set[int]], rows: list[slice]) -> Iterator[None]:
    """Let each sub-model's rows of the batch go past the layers that it does not have."""

    def restore(index: int) -> Callable[..., torch.Tensor | None]:
        past = [r for layers, r in zip(skipped, rows, strict=True) if index in layers]

        def hook(_: nn.Module, inputs: tuple[Any, ...], output: torch.Tensor) -> Any:
            for r in past:
                output[r] = inputs[0][r]
            return output

        return hook

    layers: Any = model.get_submodule(find_layers(model))
    off = sorted(set().union(*skipped))
    handles = [layers[index].register_forward_hook(restore(index)) for index in off]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
