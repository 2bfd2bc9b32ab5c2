"""What families call the linear layers of attention and feed-forward sublayers."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

ATTENTION_NAMES = (
    (("q_proj", "k_proj", "v_proj"), "o_proj"),
    (("q_proj", "k_proj", "v_proj"), "out_proj"),
    (("q_proj", "k_proj", "v_proj"), "dense"),
    (("q_lin", "k_lin", "v_lin"), "out_lin"),
    (("self.query", "self.key", "self.value"), "output.dense"),
    (("query_key_value",), "dense"),
    (("c_attn",), "c_proj"),
)
"""Query, key and value (or one reader for all three), and the writer."""

FFN_NAMES = (
    (("gate_proj", "up_proj"), "down_proj"),
    (("fc1",), "fc2"),
    (("dense_h_to_4h",), "dense_4h_to_h"),
    (("intermediate.dense",), "output.dense"),
    (("lin1",), "lin2"),
    (("c_fc",), "c_proj"),
)
"""The readers and the writer."""


class Linears(NamedTuple):
    """The readers and the writer of one sublayer: paths inside the layer, and modules."""

    readers: tuple[str, ...]
    writer: str
    modules: tuple[Any, ...]
    """Of the readers, then of the writer."""


def find_linears(layer: Any, names: tuple[tuple[tuple[str, ...], str], ...]) -> Linears | None:
    """Return the first place in a layer where linear layers have one of these sets of names."""
    for place, module in layer.named_modules():
        for readers, writer in names:
            modules = tuple(find_linear(module, name) for name in (*readers, writer))
            if all(modules):
                paths = [f"{place}.{name}".lstrip(".") for name in (*readers, writer)]
                return Linears(tuple(paths[:-1]), paths[-1], modules)
    return None


def find_linear(module: Any, path: str) -> Any:
    try:
        found = module.get_submodule(path)
    except AttributeError:
        return None
    return found if isinstance(found, nn.Linear | Conv1D) else None


def matrix(linear: Any) -> torch.Tensor:
    """Return the weight as [outputs, inputs]; a Conv1D stores it the other way round."""
    weight: torch.Tensor = linear.weight
    return weight.T if isinstance(linear, Conv1D) else weight
