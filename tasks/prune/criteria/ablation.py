"""One unit off at a time: by how much the loss rises without it; forward passes only."""

from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import nn
from torch.nn import functional as F

from tasks.prune.loss import measure_loss
from tasks.prune.unit_statistics import Calibrated
from tasks.prune.units.masking import masked
from tasks.prune.units.units import Sublayer, Units, find_layers


def score(
    calibrated: Calibrated,
    *,
    num_windows: Annotated[int, Field(gt=0)] = 4,
    units_per_pass: Annotated[int, Field(gt=0)] = 16,
) -> list[torch.Tensor]:
    """Return the loss without each unit less the loss with it [num_units], per group.

    In nats/token; negative where the model is better off without. The layers below the unit are
    computed once for all `units_per_pass` variants of a window, so a unit costs about half a
    forward pass per window.

    Args:
        num_windows: Calibration windows used, the first ones.
        units_per_pass: Variants side by side in a batch; memory grows with it.

    Reference: Michel et al. 2019, arXiv 1905.10650, section 3.2, there of attention heads.
    """
    model, ids = calibrated.model, calibrated.ids_WS[:num_windows]
    scores = []
    for group in calibrated.groups:
        if isinstance(group, Sublayer):
            losses = [ablate(model, group, ids_S, units_per_pass) for ids_S in ids]
            scores.append(torch.stack(losses).mean(0))
        else:
            scores.append(ablate_plainly(model, group, ids))
    return scores


def ablate_plainly(model: Any, group: Units, ids_WS: torch.Tensor) -> torch.Tensor:
    """Return the loss without each unit less the dense model's, a whole pass for each of them."""
    dense = measure_loss(model, ids_WS)
    losses = []
    for unit in range(group.num_units):
        with masked(model, [group], [np.arange(group.num_units) != unit]):
            losses.append(measure_loss(model, ids_WS))
    return torch.tensor(losses, dtype=torch.float64) - dense


def ablate(
    model: Any, sublayer: Sublayer, ids_S: torch.Tensor, units_per_pass: int
) -> torch.Tensor:
    """Return the loss of one window without each unit less the dense model's, fp64 [num_units]."""
    units = torch.eye(sublayer.num_units, dtype=torch.bool)
    variants = [~part for part in torch.split(units, units_per_pass)]
    intact = torch.ones(1, sublayer.num_units, dtype=torch.bool)
    losses = [variant_losses(model, sublayer, ids_S, masks_VU) for masks_VU in [intact, *variants]]
    return torch.cat(losses[1:]) - losses[0]


def variant_losses(
    model: Any, sublayer: Sublayer, ids_S: torch.Tensor, masks_VU: torch.Tensor
) -> torch.Tensor:
    """Return the mean loss of one window [num_variants] under variants of one sublayer's mask."""
    columns_VC = masks_VU.repeat_interleave(sublayer.unit_width, dim=1)
    layer = model.get_submodule(f"{find_layers(model)}.{sublayer.layer}")

    def multiply(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        """Let the batch of one become as many rows as there are variants."""
        return (inputs[0].expand(len(masks_VU), -1, -1), *inputs[1:])

    def switch_off(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[torch.Tensor]:
        return (inputs[0] * columns_VC[:, None].to(inputs[0]),)

    handles = [
        layer.register_forward_pre_hook(multiply),
        model.get_submodule(sublayer.writer).register_forward_pre_hook(switch_off),
    ]
    try:
        with torch.inference_mode():
            ids = ids_S.to(model.device)
            logits_VSV = model(input_ids=ids[None], use_cache=False).logits[:, :-1]
            targets = ids[1:].expand(len(masks_VU), -1)
            losses_VS = F.cross_entropy(logits_VSV.mT.float(), targets, reduction="none")
    finally:
        for handle in handles:
            handle.remove()
    return losses_VS.double().mean(1).cpu()
