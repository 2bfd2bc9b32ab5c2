"""Importance by activations of units that are not in one sublayer: layers, dimensions, experts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from tasks.prune.criteria.block_influence import score_layers
from tasks.prune.loss import measure_loss
from tasks.prune.units.units import NAMES, Group


def score_group(model: Any, group: Group, ids_WS: torch.Tensor) -> torch.Tensor:
    """Return the importance [num_units] of a group's units.

    Of layers, how far they turn the residual stream; of hidden dimensions, the mean absolute
    output of all norms; of experts, the share of the routing weights that they are given.

    Raises:
        ValueError: sublayers, which no activation ranks.

    Reference: Men et al. 2024, arXiv 2403.03853, equation 1, for layers; Muralidharan et al. 2024,
    arXiv 2407.14679, section 2.2, for hidden dimensions.
    """
    if group.kind == "layers":
        return score_layers(model, ids_WS)
    if group.kind == "hidden":
        return _mean_of_outputs(model, group, ids_WS, lambda out: out.abs().flatten(0, -2).sum(0))
    if group.kind == "experts":
        return _mean_of_outputs(model, group, ids_WS, lambda out: _routed(out, group.num_units))
    raise ValueError(f"activations do not rank {NAMES[group.kind]}; choose ablation")


def _mean_of_outputs(
    model: Any, group: Group, ids_WS: torch.Tensor, measure: Callable[[Any], torch.Tensor]
) -> torch.Tensor:
    total = torch.zeros(group.num_units, dtype=torch.float64)

    def add(_: nn.Module, __: Any, output: Any) -> None:
        total.add_(measure(output).double().cpu())

    handles = [model.get_submodule(path).register_forward_hook(add) for path in group.paths]
    try:
        measure_loss(model, ids_WS)
    finally:
        for handle in handles:
            handle.remove()
    return total / ids_WS.numel()


def _routed(output: Any, num_experts: int) -> torch.Tensor:
    _, weights, chosen = output
    share = torch.zeros(num_experts, dtype=weights.dtype, device=weights.device)
    return share.index_add_(0, chosen.flatten(), weights.flatten())
