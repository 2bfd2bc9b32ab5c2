"""Units: the coupled groups of weights that live or die together, found by inspecting modules.

A sublayer (attention or feed-forward) has *readers*, linear layers that read the residual
stream, and one *writer*, the linear layer that adds to it. A unit owns some rows of each reader
and the columns of the writer that they feed: a KV group with its query heads, or an FFN neuron.
With a single KV group (multi-query attention) the units are the query heads.

All other kinds of unit (experts, hidden dimensions, layers, whole sublayers) are plain groups:
what a unit owns is said by slices of parameters, whatever the kind (`groups.find_units`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers.pytorch_utils import Conv1D

from tasks.prune.units.families import ATTENTION_NAMES, FFN_NAMES, Linears, find_linears, matrix

KINDS = ("kv_groups", "ffn", "experts", "hidden", "layers", "sublayers")
NAMES = {
    "kv_groups": "KV groups",
    "ffn": "FFN",
    "experts": "experts",
    "hidden": "hidden dimensions",
    "layers": "layers",
    "sublayers": "sublayers",
}
"""What a kind is called in messages."""

Kept = list[NDArray[np.bool_]]
"""A sub-model: per group, in the order in which they were found, which units stay, [num_units]."""


class Slice(NamedTuple):
    """Where a group's units lie along one dimension of one parameter."""

    name: str
    """The parameter's, in the model's state dict."""
    dim: int
    width: int = 1
    """Entries per unit; they stand together, unit after unit."""
    start: int = 0
    """The first unit's first entry."""


@dataclass(frozen=True)
class Sublayer:
    """The units of one attention or feed-forward sublayer."""

    layer: int
    kind: str
    """`kv_groups` or `ffn`."""
    num_units: int
    readers: tuple[tuple[str, int], ...]
    """(module path, output rows per unit)"""
    writer: str
    """Module path."""
    unit_width: int
    """Input columns of the writer per unit."""
    slices: tuple[Slice, ...]
    """The last one is the writer's weight."""
    fixed: tuple[str, ...] = ()
    """Module paths of the sublayer's matrices that no unit owns."""
    least: ClassVar[int] = 1

    def columns(self, kept: NDArray[np.bool_]) -> torch.Tensor:
        """Return the writer's input columns that belong to the kept units, bool [width]."""
        return torch.from_numpy(kept).repeat_interleave(self.unit_width)


@dataclass(frozen=True)
class Group:
    """Units of one choice that is made at one place, or once for the whole network."""

    kind: str
    num_units: int
    slices: tuple[Slice, ...]
    """What the units own; nothing where they are modules (`layers`, `sublayers`)."""
    paths: tuple[str, ...]
    """The modules that a mask acts on: norms, a router, or one module per unit."""
    layer: int | None = None
    """None: one choice for the whole network."""
    least: int = 1
    """The fewest units that can stay."""


Units = Sublayer | Group


def find_sublayers(model: Any) -> list[Sublayer]:
    """Return the sublayers with units, attention before feed-forward, from the first layer on.

    A kind of unit is left out where some layer does not have it, or has another number of it.
    Works on a model without storage (meta device).
    """
    path = find_layers(model)
    layers = model.get_submodule(path)
    head_dim = head_size(model.config)
    found: list[Sublayer] = []
    for index, layer in enumerate(layers):
        prefix = f"{path}.{index}"
        found += _attention_units(layer, prefix, index, head_dim) + _ffn_units(layer, prefix, index)
    uniform = {
        kind
        for kind in KINDS
        if [s.layer for s in found if s.kind == kind] == list(range(len(layers)))
        and len({s.num_units for s in found if s.kind == kind}) == 1
    }
    return [sublayer for sublayer in found if sublayer.kind in uniform]


def find_layers(model: Any) -> str:
    """Return the module path of the list of transformer layers.

    Raises:
        ValueError: the model has none.
    """
    config: Any = model.config
    for path, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == config.num_hidden_layers:
            return str(path)
    raise ValueError(
        f"{config.model_type} cannot be pruned: expected a list of {config.num_hidden_layers} "
        "transformer layers, found none; choose a model such as llama, mistral, qwen3 or bert"
    )


def head_size(config: Any) -> int:
    head_dim = getattr(config, "head_dim", None)
    return int(head_dim or config.hidden_size // config.num_attention_heads)


def list_sublayers(groups: Sequence[Units]) -> list[Sublayer]:
    return [group for group in groups if isinstance(group, Sublayer)]


def parameters_per_unit(model: Any, group: Units) -> int:
    """Count the weights that go with one unit; shared ones once, of sublayers the mean."""
    if group.kind == "layers" and isinstance(group, Group):
        return sum(weight.numel() for weight in model.get_submodule(group.paths[0]).parameters())
    if group.kind == "sublayers":
        sublayers = find_sublayers(model)
        return sum(s.num_units * parameters_per_unit(model, s) for s in sublayers) // len(sublayers)
    owned = {(model.get_parameter(part.name), part.start): part for part in group.slices}
    sizes = [w.numel() // w.shape[part.dim] * part.width for (w, _), part in owned.items()]
    return int(sum(sizes))


def weights_by_unit(model: Any, sublayer: Sublayer) -> tuple[torch.Tensor, torch.Tensor]:
    """Sort a sublayer's matrices by unit; the readers' are copied.

    Returns:
        What the units read, [num_units, rows of all readers, hidden], and what they write,
        [num_units, unit_width, hidden].
    """

    def sort(part: Slice) -> torch.Tensor:
        rows: torch.Tensor = model.get_parameter(part.name).detach().movedim(part.dim, 0)
        rows = rows[part.start : part.start + sublayer.num_units * part.width]
        return rows.reshape(sublayer.num_units, part.width, -1)

    *readers, writer = (
        part for part in sublayer.slices if model.get_parameter(part.name).ndim == 2
    )
    return torch.cat([sort(part) for part in readers], dim=1), sort(writer)


def _attention_units(layer: Any, prefix: str, index: int, head_dim: int) -> list[Sublayer]:
    linears = find_linears(layer, ATTENTION_NAMES)
    if linears is None:
        return []
    widths = [matrix(module).shape[0] for module in linears.modules[:-1]]
    num_heads = matrix(linears.modules[-1]).shape[1] // head_dim
    readers: list[tuple[int, ...]]
    if len(widths) == 1:
        if widths[0] != 3 * num_heads * head_dim:
            return []  # query heads share keys and values in a way that is not known here
        num_units, unit_width = num_heads, head_dim
        if isinstance(linears.modules[0], Conv1D):  # all queries, all keys, all values
            readers = [(head_dim, *(third * widths[0] // 3 for third in range(3)))]
        else:  # head by head
            readers = [(3 * head_dim, 0)]
    elif (num_units := widths[1] // head_dim) > 1:
        unit_width = num_heads // num_units * head_dim
        readers = [(unit_width, 0), (head_dim, 0), (head_dim, 0)]
    else:
        num_units, unit_width = num_heads, head_dim
        readers = [(head_dim, 0)]
    return [_sublayer(linears, prefix, index, "kv_groups", num_units, unit_width, readers)]


def _ffn_units(layer: Any, prefix: str, index: int) -> list[Sublayer]:
    linears = find_linears(layer, FFN_NAMES)
    if linears is None:
        return []
    readers = [(1, 0) for _ in linears.readers]
    num_units = matrix(linears.modules[-1]).shape[1]
    return [_sublayer(linears, prefix, index, "ffn", num_units, 1, readers)]


def _sublayer(
    linears: Linears,
    prefix: str,
    index: int,
    kind: str,
    num_units: int,
    unit_width: int,
    readers: Sequence[tuple[int, ...]],
) -> Sublayer:
    """Put a sublayer together.

    Args:
        readers: (rows per unit, and where such rows begin) for the first readers; no unit owns
            rows of the others.
    """
    paths = [f"{prefix}.{path}" for path in linears.readers]
    writer = f"{prefix}.{linears.writer}"
    slices = []
    for path, module, (rows, *starts) in zip(paths, linears.modules, readers, strict=False):
        dim = int(isinstance(module, Conv1D))
        slices += [Slice(f"{path}.weight", dim, rows, start) for start in starts]
        if module.bias is not None:
            slices += [Slice(f"{path}.bias", 0, rows, start) for start in starts]
    columns = int(not isinstance(linears.modules[-1], Conv1D))
    slices.append(Slice(f"{writer}.weight", columns, unit_width))
    return Sublayer(
        layer=index,
        kind=kind,
        num_units=num_units,
        readers=tuple(
            (path, rows * len(starts))
            for path, (rows, *starts) in zip(paths, readers, strict=False)
        ),
        writer=writer,
        unit_width=unit_width,
        slices=tuple(slices),
        fixed=tuple(paths[len(readers) :]),
    )
