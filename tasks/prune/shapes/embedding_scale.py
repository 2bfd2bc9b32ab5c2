"""Embeddings that the code multiplies by the square root of the hidden size (the gemma family).

The smaller model's code multiplies by less, so its embeddings are stored larger. Where the head
shares them, the final norm is stored smaller by as much; the logits are then the same.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from tasks.prune.units.units import Group, find_layers


def follows_hidden_size(module: Any, config: Any) -> bool:
    return bool(getattr(module, "scalar_embed_scale", None) == math.sqrt(config.hidden_size))


def fold_scale(
    model: Any, hidden: Group, num_kept: int, state: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Return the sliced weights with the factor in them that the smaller model lacks."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if not follows_hidden_size(embedding, model.config):
        return state
    now, then = (torch.tensor(math.sqrt(size)) for size in (model.config.hidden_size, num_kept))
    ratio = float(now) / float(then)
    folded = {}
    tied = head is not None and head.weight is embedding.weight
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if parameter is embedding.weight:
            folded[name] = state[name] * ratio
    if tied:
        layers = find_layers(model)
        path = [path for path in hidden.paths if not path.startswith(f"{layers}.")][-1]
        norm, weight = model.get_submodule(path), state[f"{path}.weight"]
        # A norm multiplies by its weight, or by one more than that: ask it what it makes of ones.
        ones = torch.ones_like(norm.weight)
        offset = (norm(ones) - norm.weight).detach().round()[: len(weight)]
        folded[f"{path}.weight"] = (weight + offset) / ratio - offset
    return state | folded
