"""Experts of a mixture: the same number in every layer, other ones in each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tasks.prune.units.shrinking import shrink
from tasks.prune.units.units import Group, Slice, find_layers


def find_experts(model: Any) -> list[Group]:
    """Return each layer's experts; nothing where some layer has none.

    Expected are fused experts (3-D weights) under `experts` and, beside them, the router under
    `gate`, which puts out (logits, scores, indices of the chosen experts).
    """
    path = find_layers(model)
    found = []
    for index, layer in enumerate(model.get_submodule(path)):
        for name, module in layer.named_modules():
            router: Any = getattr(module, "gate", None)
            experts: Any = getattr(module, "experts", None)
            if not isinstance(getattr(router, "top_k", None), int) or hasattr(router, "n_group"):
                continue  # grouped routing takes experts by groups of one size
            place = f"{path}.{index}.{name}"
            num_experts = len(router.weight)
            owned = {"gate": router, "experts": experts}
            slices = tuple(
                Slice(f"{place}.{part}.{weight}", 0)
                for part, owner in owned.items()
                for weight, tensor in owner.state_dict().items()
                if len(tensor) == num_experts
            )
            least, paths = router.top_k, (f"{place}.gate",)
            found.append(Group("experts", num_experts, slices, paths, index, least))
    return found if [g.layer for g in found] == list(range(model.config.num_hidden_layers)) else []


def mask_experts(model: Any, group: Group, kept: NDArray[np.bool_]) -> list[Callable[[], object]]:
    """Let the router choose among the kept experts only, as with a logit of -inf for the others."""
    router = model.get_submodule(group.paths[0])
    small = shrink(router, kept, num_experts=int(kept.sum()))

    def route(_: nn.Module, inputs: tuple[torch.Tensor, ...], output: Any) -> Any:
        logits, scores, chosen = small.forward(*inputs)
        numbers = torch.from_numpy(np.flatnonzero(kept)).to(chosen.device)
        everywhere = torch.full_like(output[0], -torch.inf)
        everywhere[..., numbers] = logits
        return everywhere, scores, numbers[chosen]

    return [router.register_forward_hook(route).remove]
