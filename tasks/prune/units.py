"""Units: the coupled groups of weights that live or die together, found by inspecting modules.

A sublayer (attention or feed-forward) has *readers*, linear layers that read the residual
stream, and one *writer*, the linear layer that adds to it. A unit owns some rows of each reader
and the columns of the writer that they feed: a KV group with its query heads, or an FFN neuron.
With a single KV group (multi-query attention) the units are the query heads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

KINDS = ("kv_groups", "ffn")
NAMES = {"kv_groups": "KV groups", "ffn": "FFN"}
"""What a kind is called in messages."""

FFN_NAMES = (
    (("gate_proj", "up_proj"), "down_proj"),
    (("fc1",), "fc2"),
    (("dense_h_to_4h",), "dense_4h_to_h"),
)
"""Names that families give to the readers and the writer of a feed-forward sublayer."""

Kept = list[NDArray[np.bool_]]
"""A sub-model: per sublayer, in the order of `find_sublayers`, which units stay, [num_units]."""


@dataclass(frozen=True)
class Sublayer:
    """The units of one attention or feed-forward sublayer."""

    layer: int
    kind: str
    """One of KINDS."""
    num_units: int
    readers: tuple[tuple[str, int], ...]
    """(module path, output rows per unit)"""
    writer: str
    """Module path."""
    unit_width: int
    """Input columns of the writer per unit."""
    fixed: tuple[str, ...] = ()
    """Module paths of the sublayer's matrices that no unit owns."""

    def columns(self, kept: NDArray[np.bool_]) -> torch.Tensor:
        """Return the writer's input columns that belong to the kept units, bool [width]."""
        return torch.from_numpy(kept).repeat_interleave(self.unit_width)


def find_sublayers(model: Any) -> list[Sublayer]:
    """Return the sublayers with units, attention before feed-forward, from the first layer on.

    A kind of unit is left out where some layer does not have it, or has another number of it.
    Works on a model without storage (meta device).
    """
    path = find_layers(model)
    layers = model.get_submodule(path)
    assert isinstance(layers, nn.ModuleList)
    found: list[Sublayer] = []
    for index, layer in enumerate(layers):
        prefix = f"{path}.{index}"
        head_dim = head_size(model.config)
        found += _attention_units(layer, prefix, index, head_dim) + _ffn_units(layer, prefix, index)
    uniform = {
        kind
        for kind in KINDS
        if [s.layer for s in found if s.kind == kind] == list(range(len(layers)))
        and len({s.num_units for s in found if s.kind == kind}) == 1
    }
    return [sublayer for sublayer in found if sublayer.kind in uniform]


def find_layers(model: Any) -> str:
    """Return the module path of the list of decoder layers.

    Raises:
        ValueError: the model has none.
    """
    config: Any = model.config
    for path, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == config.num_hidden_layers:
            return str(path)
    raise ValueError(
        f"{config.model_type} cannot be pruned: expected a list of {config.num_hidden_layers} "
        "decoder layers, found none; choose a decoder such as llama, mistral, qwen2 or qwen3"
    )


def head_size(config: Any) -> int:
    head_dim = getattr(config, "head_dim", None)
    return int(head_dim or config.hidden_size // config.num_attention_heads)


def _attention_units(layer: Any, prefix: str, index: int, head_dim: int) -> list[Sublayer]:
    for name, module in layer.named_modules():
        linears: list[Any] = [getattr(module, f"{part}_proj", None) for part in "qkvo"]
        if not all(isinstance(linear, nn.Linear) for linear in linears):
            continue
        query, key, value, writer = (f"{prefix}.{name}.{part}_proj" for part in "qkvo")
        num_heads = linears[0].out_features // head_dim
        num_groups = linears[1].out_features // head_dim
        if num_groups == 1:
            owned, fixed = ((query, head_dim),), (key, value)
            return [Sublayer(index, "kv_groups", num_heads, owned, writer, head_dim, fixed)]
        width = num_heads // num_groups * head_dim
        readers = ((query, width), (key, head_dim), (value, head_dim))
        return [Sublayer(index, "kv_groups", num_groups, readers, writer, width)]
    return []


def _ffn_units(layer: Any, prefix: str, index: int) -> list[Sublayer]:
    for name, module in layer.named_modules():
        path = f"{prefix}.{name}".rstrip(".")
        for reader_names, writer_name in FFN_NAMES:
            linears: list[Any] = [getattr(module, n, None) for n in (*reader_names, writer_name)]
            if all(isinstance(linear, nn.Linear) for linear in linears):
                readers = tuple((f"{path}.{reader}", 1) for reader in reader_names)
                width = linears[-1].in_features
                return [Sublayer(index, "ffn", width, readers, f"{path}.{writer_name}", 1)]
    return []
