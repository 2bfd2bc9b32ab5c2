"""First-order Taylor expansion of the loss. Needs gradients: a baseline for those who have them."""

from typing import Literal

import torch
from torch.nn import functional as F

from tasks.models.streaming import is_streamed
from tasks.prune.unit_statistics import Calibrated, owned_parameters, sum_by_unit


def score(
    calibrated: Calibrated, *, level: Literal["element", "vector"] = "element"
) -> list[torch.Tensor]:
    """Return how much the loss would change without each unit [num_units], per group.

    Needs gradients: one forward and backward pass per window, and memory for the activations of
    a window and for a gradient beside every weight that a unit owns.

    Args:
        level: `element` sums abs(weight * gradient) over a unit's weights, what LLM-Pruner does
            unless told otherwise; `vector` is abs of the sum.

    Raises:
        ValueError: the model is streamed, so that there is nothing to take a gradient by.

    Reference: Ma et al. 2023, arXiv 2305.11627, equations 3 and 5, without the second order.
    """
    model = calibrated.model
    if any(is_streamed(weight) for weight in model.parameters()):
        raise ValueError(
            "taylor needs gradients by weights that stay in place, got cluster.offload: layers; "
            "say none, or choose a criterion that needs forward passes only"
        )
    owned = [owned_parameters(model, group) for group in calibrated.groups]
    names = sorted({name for part in owned for name in part})
    weights = [model.get_parameter(name) for name in names]
    needed = [weight.requires_grad for weight in weights]
    try:
        for weight in weights:
            weight.requires_grad_(True)
        gradients = sum_gradients(model, weights, calibrated.ids_WS)
    finally:
        for weight, flag in zip(weights, needed, strict=True):
            weight.requires_grad_(flag)
    pairs = dict(zip(names, zip(weights, gradients, strict=True), strict=True))

    def salience(name: str) -> torch.Tensor:
        weight, gradient = pairs[name]
        values: torch.Tensor = weight.detach() * gradient / len(calibrated.ids_WS)
        return values.abs() if level == "element" else values

    return [
        sum_by_unit(group, part, salience).abs()
        for group, part in zip(calibrated.groups, owned, strict=True)
    ]


def sum_gradients(
    model: torch.nn.Module, weights: list[torch.Tensor], ids_WS: torch.Tensor
) -> list[torch.Tensor]:
    """Return the gradients of each window's mean loss, summed over windows, per weight."""
    totals: list[torch.Tensor] = []
    for ids_S in ids_WS.to(weights[0].device):
        with torch.enable_grad():
            logits_SV = model(input_ids=ids_S[None], use_cache=False).logits[0, :-1]
            loss = F.cross_entropy(logits_SV.float(), ids_S[1:])
            gradients = torch.autograd.grad(loss, weights)
        if not totals:
            totals = list(gradients)
            continue
        for total, gradient in zip(totals, gradients, strict=True):
            total += gradient
    return totals
