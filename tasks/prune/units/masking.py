"""Where units are switched off.

A KV group or FFN neuron is off when its columns of the writer's input are zero; the other kinds
say in their own files what off means. The model without the units computes the same (`slicing`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tasks.prune.units.experts import mask_experts
from tasks.prune.units.hidden import mask_hidden
from tasks.prune.units.layers import mask_layers, mask_sublayers
from tasks.prune.units.units import Kept, Sublayer, Units


@contextmanager
def masked(model: Any, groups: Sequence[Units], kept: Kept) -> Iterator[None]:
    """Switch off, in place and for as long as the context lasts, all units that are not kept."""
    with ExitStack() as stack:
        for group, mask in zip(groups, kept, strict=True):
            if not mask.all():
                for undo in MASKS[group.kind](model, group, mask):
                    stack.callback(undo)
        yield


def mask_writer(
    model: Any, sublayer: Sublayer, kept: NDArray[np.bool_]
) -> list[Callable[[], object]]:
    columns = sublayer.columns(kept)
    writer = model.get_submodule(sublayer.writer)
    return [
        writer.register_forward_pre_hook(
            lambda _, inputs: (inputs[0] * columns.to(inputs[0]),)
        ).remove
    ]


@contextmanager
def masked_side_by_side(
    model: Any, sublayers: list[Sublayer], submodels: list[Kept], num_windows: int
) -> Iterator[None]:
    """Give each sub-model `num_windows` rows of the batch, one sub-model after the other."""

    def hook(position: int) -> Callable[..., tuple[torch.Tensor]]:
        masks = [sublayers[position].columns(kept[position]) for kept in submodels]
        columns_N1C = torch.stack(masks).repeat_interleave(num_windows, dim=0)[:, None]

        def silence(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor]:
            x = inputs[0]
            rows = x.view(len(columns_N1C), -1, x.shape[-1])  # opt has all tokens in one row
            return ((rows * columns_N1C.to(x)).view_as(x),)

        return silence

    writers = [model.get_submodule(sublayer.writer) for sublayer in sublayers]
    handles = [w.register_forward_pre_hook(hook(position)) for position, w in enumerate(writers)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


MASKS: dict[str, Callable[[Any, Any, NDArray[np.bool_]], list[Callable[[], object]]]] = {
    "kv_groups": mask_writer,
    "ffn": mask_writer,
    "experts": mask_experts,
    "hidden": mask_hidden,
    "layers": mask_layers,
    "sublayers": mask_sublayers,
}
"""By kind: switch off a group's units that are not kept; returns what undoes it."""
