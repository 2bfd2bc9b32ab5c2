"""Cut units out of the weights: whatever the kind, slices of parameters, and whole layers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from tasks.prune.shapes.embedding_scale import fold_scale
from tasks.prune.shapes.stock_class import make_model
from tasks.prune.units.layers import own_module
from tasks.prune.units.units import Group, Kept, Slice, Units, find_layers


def slice_weights(
    model: Any,
    groups: Sequence[Units],
    kept: Kept,
    changed: Mapping[str, torch.Tensor] = MappingProxyType({}),
) -> dict[str, torch.Tensor]:
    """Return the state dict of the model without the units that are not kept.

    What no unit owns is shared with the model, not copied. The layers that stay are numbered anew.

    Args:
        changed: Tensors to take in place of the model's own, by name.

    Raises:
        ValueError: a weight is shared between what is cut and what is not, or a sublayer that is
            off is no module of its own.
    """
    check_sharing(model, [g for g, mask in zip(groups, kept, strict=True) if not mask.all()])
    state: dict[str, torch.Tensor] = {**model.state_dict(), **changed}
    for group, mask in zip(groups, kept, strict=True):
        if mask.all():
            continue
        if isinstance(group, Group) and group.kind == "sublayers":
            state = _drop(state, model, [group.paths[unit] for unit in np.flatnonzero(~mask)])
        if isinstance(group, Group) and group.kind == "layers":
            state = _renumber(state, group.paths, mask)
        units = torch.from_numpy(np.flatnonzero(mask))
        # From the end, so that what stands before is still in its place.
        for part in sorted(group.slices, key=lambda part: -part.start):
            if part.name in state:
                state[part.name] = _select(state[part.name], units, group.num_units, part)
        if isinstance(group, Group) and group.kind == "hidden":
            state = fold_scale(model, group, len(units), state)
    return state


def _select(tensor: torch.Tensor, units: torch.Tensor, num_units: int, part: Slice) -> torch.Tensor:
    """Keep the given units along one dimension, and all that is not the group's."""
    end = part.start + num_units * part.width
    owned = part.start + (units[:, None] * part.width + torch.arange(part.width)).flatten()
    after = torch.arange(end, tensor.shape[part.dim])
    entries = torch.cat([torch.arange(part.start), owned, after])
    return tensor.index_select(part.dim, entries.to(tensor.device)).contiguous()


def _drop(
    state: dict[str, torch.Tensor], model: Any, writers: Sequence[str]
) -> dict[str, torch.Tensor]:
    """Drop all that the modules hold whose last layer each writer is."""
    modules = tuple(f"{own_module(writer, find_layers(model))}." for writer in writers)
    return {name: tensor for name, tensor in state.items() if not name.startswith(modules)}


def _renumber(
    state: dict[str, torch.Tensor], paths: tuple[str, ...], mask: np.ndarray[Any, Any]
) -> dict[str, torch.Tensor]:
    """Drop the layers that are not kept and close the ranks."""
    parent = paths[0].rpartition(".")[0]
    numbers = {int(old): new for new, old in enumerate(np.flatnonzero(mask))}
    renamed = {}
    for name, tensor in state.items():
        if not name.startswith(f"{parent}."):
            renamed[name] = tensor
            continue
        number, _, rest = name.removeprefix(f"{parent}.").partition(".")
        if int(number) in numbers:
            renamed[f"{parent}.{numbers[int(number)]}.{rest}"] = tensor
    return renamed


def check_sharing(model: Any, groups: Sequence[Units]) -> None:
    """Make sure that no weight is cut in one place and used as it was in another.

    Raises:
        ValueError: there is such a weight.
    """
    owners: dict[str, set[tuple[Any, ...]]] = defaultdict(set)
    for position, group in enumerate(groups):
        for part in group.slices:
            owners[part.name].add((position, part.dim, part.width, part.start))
    names: dict[int, list[str]] = defaultdict(list)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names[id(parameter)].append(name)
    for shared in names.values():
        if any(owners[name] != owners[shared[0]] for name in shared):
            raise ValueError(
                f"{model.config.model_type} shares one weight between {' and '.join(shared)}, "
                "and the cut would change only one of them; save the model with copies first"
            )


def build_sliced(config: Any, state: dict[str, torch.Tensor], trust_remote_code: bool) -> Any:
    """Make the smaller model of a config (`stock_config.stock_config`) around sliced weights.

    It is where the weights are; on the CPU where they are in several places, as those of a model
    are that is larger than one card.
    """
    first = next(iter(state.values()))
    places = {tensor.device for tensor in state.values()}
    with torch.device(first.device if len(places) == 1 else "cpu"):
        model = make_model(config, trust_remote_code)
    for parameter in model.parameters():  # not the buffers: rotary angles want their fp32
        parameter.data = parameter.data.to(first.dtype)
    model.load_state_dict(state, strict=True)
    return model.eval()
