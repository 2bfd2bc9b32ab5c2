"""Whole layers and whole sublayers: the residual stream goes past them as it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tasks.prune.units.experts import find_experts
from tasks.prune.units.units import Group, Kept, find_layers, find_sublayers


def find_layer_group(model: Any) -> Group:
    path = find_layers(model)
    number = model.config.num_hidden_layers
    return Group("layers", number, (), tuple(f"{path}.{index}" for index in range(number)))


def find_sublayer_group(model: Any) -> Group:
    """Return all sublayers as units, attention before feed-forward, from the first layer on.

    Raises:
        ValueError: some layer has not exactly these two.
    """
    writers = [(s.layer, s.kind != "kv_groups", s.writer) for s in find_sublayers(model)]
    for group in find_experts(model):
        assert group.layer is not None
        writers.append((group.layer, True, group.paths[0].rpartition(".")[0]))
    places = [(layer, ffn) for layer, ffn, _ in sorted(writers)]
    if places != [(i, f) for i in range(model.config.num_hidden_layers) for f in (False, True)]:
        raise ValueError("found no attention and feed-forward sublayer in each of its layers")
    return Group("sublayers", len(writers), (), tuple(writer for *_, writer in sorted(writers)))


def silence(kinds: Sequence[str], kept: Kept) -> Kept:
    """Switch off all units of the sublayers that are off, so that who knows only of units does.

    Args:
        kinds: Of the groups, as `groups.find_units` returns them.
    """
    if "sublayers" not in kinds:
        return kept
    stays = iter(kept[kinds.index("sublayers")])
    return [
        mask & next(stays) if kind in ("kv_groups", "ffn") else mask
        for kind, mask in zip(kinds, kept, strict=True)
    ]


def own_module(writer: str, layers: str) -> str:
    """Return the path of the module that is a sublayer and nothing else, given its writer's.

    Args:
        layers: Path of the list of layers.

    Raises:
        ValueError: there is none.
    """
    module = writer.rpartition(".")[0]
    if module.count(".") != layers.count(".") + 2:
        raise ValueError(f"no module of its own holds what leads to {writer}")
    return module


def mask_layers(model: Any, group: Group, kept: NDArray[np.bool_]) -> list[Callable[[], object]]:
    """Skip the layers that are not kept: they cost no time."""

    def pass_through(hidden_states: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        return hidden_states

    skipped = [model.get_submodule(group.paths[index]) for index in np.flatnonzero(~kept)]
    for layer in skipped:
        layer.forward = pass_through
    return [partial(delattr, layer, "forward") for layer in skipped]


def mask_sublayers(model: Any, group: Group, kept: NDArray[np.bool_]) -> list[Callable[[], object]]:
    """Let the sublayers that are not kept add nothing to the residual stream."""
    silent = [model.get_submodule(group.paths[index]) for index in np.flatnonzero(~kept)]
    return [
        module.register_forward_hook(lambda _, __, output: torch.zeros_like(output)).remove
        for module in silent
    ]
