"""Importance by activations of units that are not in one sublayer: layers, dimensions, experts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from tasks.prune.criteria.block_influence import score_layers
from tasks.prune.loss import measure_loss
from tasks.prune.repair.stream import examine_anatomy, watched
from tasks.prune.units.units import NAMES, Group, find_sublayers


def score_group(model: Any, group: Group, ids_WS: torch.Tensor) -> torch.Tensor:
    """Return the importance [num_units] of a group's units.

    Of layers and sublayers, how far they turn the residual stream; of hidden dimensions, the mean
    absolute output of all norms; of experts, the share of the routing weights that they are given.

    Raises:
        ValueError: sublayers that do not add what they put out to the stream as it is.

    Reference: Men et al. 2024, arXiv 2403.03853, equation 1, for layers; Muralidharan et al. 2024,
    arXiv 2407.14679, section 2.2, for hidden dimensions.
    """
    if group.kind == "layers":
        return score_layers(model, ids_WS)
    if group.kind == "hidden":
        return _mean_of_outputs(model, group, ids_WS, lambda out: out.abs().flatten(0, -2).sum(0))
    if group.kind == "experts":
        return _mean_of_outputs(model, group, ids_WS, lambda out: _routed(out, group.num_units))
    return score_sublayers(model, group, ids_WS)


class Turns(NamedTuple):
    """Adds up how far every sublayer turns the stream."""

    totals: torch.Tensor
    """[num_sublayers] fp64."""

    def read(self, *_: Any) -> None:
        return None

    def write(
        self, position: int, x: torch.Tensor, before: torch.Tensor, output: torch.Tensor
    ) -> None:
        before = before.double()
        cosines = F.cosine_similarity(before, before + output.double(), dim=-1)
        self.totals[position] += (1 - cosines).sum().cpu()


def score_sublayers(model: Any, group: Group, ids_WS: torch.Tensor) -> torch.Tensor:
    """Return 1 - cos(stream before a sublayer, stream after it), the mean over tokens."""
    sublayers = find_sublayers(model)
    added = [sublayer.writer for sublayer in sublayers] == list(group.paths)
    if not added or examine_anatomy(model, sublayers, ids_WS[0]).stream != "sum":
        raise ValueError(
            f"no activation ranks {NAMES[group.kind]} that do not add to the residual stream as "
            f"they are, as in {model.config.model_type}; choose the criterion ablation"
        )
    turns = Turns(torch.zeros(group.num_units, dtype=torch.float64))
    with watched(model, sublayers, turns, "sum"):
        measure_loss(model, ids_WS)
    return turns.totals / ids_WS.numel()


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
