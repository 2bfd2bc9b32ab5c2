"""Sublayers that are cut as a whole: where that can be done, and how it is told."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tasks.prune.shapes.prunable import list_prunable
from tasks.prune.shapes.stock_config import cannot_cut
from tasks.prune.units.layers import own_module
from tasks.prune.units.units import Kept, Sublayer, Units, find_layers, list_sublayers

KINDS = ("kv_groups", "ffn")
"""What an attention and a feed-forward sublayer have units of, in the order of the pass."""


def check_absent(
    model: Any, groups: Sequence[Units], options: dict[str, Any], trust_remote_code: bool
) -> None:
    """Make sure that a model's sublayers can be cut as the options say.

    Raises:
        ValueError: they cannot.
    """
    sublayers = list_sublayers(groups)
    (whole,) = (group for group in groups if group.kind == "sublayers")
    reason = ""
    if len(sublayers) != whole.num_units:
        reason = "experts stand in the place of feed-forward sublayers"
    elif options["shape"] == "per_layer":
        try:
            find_names(model, groups)
        except ValueError as error:
            reason = str(error)
    biased = any(model.get_submodule(s.writer).bias is not None for s in sublayers)
    if not reason and biased and options["repair"]:
        reason = "their outputs have a bias, which the repair would keep; say repair: false"
    if reason:
        prunable = list_prunable(model, trust_remote_code)
        raise ValueError(cannot_cut(model.config.model_type, ["sublayers"], prunable, reason))


def find_names(model: Any, groups: Sequence[Units]) -> dict[str, str]:
    """Return what the layers call their sublayers, by the kind of their units.

    Raises:
        ValueError: a sublayer is no module of its own, or is not called the same in all layers.
    """
    path = find_layers(model)
    names = {
        (s.kind, own_module(s.writer, path).rpartition(".")[2]) for s in list_sublayers(groups)
    }
    if len(names) != len(dict(names)):
        raise ValueError("its layers differ")
    return dict(names)


def list_absent(model: Any, groups: Sequence[Units], kept: Kept) -> dict[str, list[int]]:
    """Return the numbers of the layers that lack a sublayer, by the sublayer's name."""
    pairs = zip(groups, kept, strict=True)
    off = [group for group, mask in pairs if isinstance(group, Sublayer) and not mask.any()]
    names = find_names(model, off)
    return {name: [s.layer for s in off if s.kind == kind] for kind, name in names.items()}


def describe_absent(kinds: Sequence[str], kept: Kept) -> str:
    """Say which sublayers have gone.

    Args:
        kinds: Of the groups.
    """
    said = []
    for kind, name in zip(KINDS, ("attention", "FFN"), strict=True):
        masks = [mask for of, mask in zip(kinds, kept, strict=True) if of == kind]
        layers = [str(layer) for layer, mask in enumerate(masks) if not np.any(mask)]
        if layers:
            said.append(f"{name} of layer {', '.join(layers)}")
    return "; ".join(said)
