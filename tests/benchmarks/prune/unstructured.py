"""Baselines that set single weights to zero: the tensors stay as large, so nothing runs faster."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tasks.prune.loss import measure_loss
from tasks.prune.units.units import find_layers


def prune_magnitude(model: Any, _ids_WS: torch.Tensor, sparsity: float) -> None:
    """Zero the smallest weights of each matrix of the layers, in place."""
    for linear in linears_of(model.get_submodule(find_layers(model))):
        weight = linear.weight.data
        threshold = weight.abs().flatten().kthvalue(max(int(weight.numel() * sparsity), 1))[0]
        weight[weight.abs() <= threshold] = 0


def prune_wanda(model: Any, ids_WS: torch.Tensor, sparsity: float) -> None:
    """Zero the smallest abs(W_ij) * norm(X_j) of each output row, layer after layer, in place.

    A layer's inputs are measured with the layers before it pruned already.

    Reference: Sun et al. 2023, arXiv 2306.11695, algorithm 1.
    """
    for layer in model.get_submodule(find_layers(model)):
        linears = linears_of(layer)
        squares = {linear: torch.zeros(linear.in_features) for linear in linears}

        def add(linear: nn.Linear, inputs: tuple[Any, ...], into: Any = squares) -> None:
            into[linear] += inputs[0].flatten(0, -2).square().sum(0).cpu()

        handles = [linear.register_forward_pre_hook(add) for linear in linears]
        measure_loss(model, ids_WS)
        for handle in handles:
            handle.remove()
        for linear in linears:
            weight = linear.weight.data
            metric = weight.abs() * squares[linear].sqrt().to(weight)
            smallest = metric.argsort(dim=1, stable=True)[:, : int(weight.shape[1] * sparsity)]
            weight.scatter_(1, smallest, 0)


def linears_of(module: nn.Module) -> list[nn.Linear]:
    return [m for m in module.modules() if isinstance(m, nn.Linear)]


UNSTRUCTURED = {"magnitude": prune_magnitude, "wanda": prune_wanda}
