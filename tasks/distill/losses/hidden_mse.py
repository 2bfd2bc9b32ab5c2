"""Squared distance of the hidden states, layer by layer."""

from collections.abc import Sequence
from typing import Literal

import torch

from tasks.distill.layers import mean_over_layers

OVER = "hidden_states"
NEEDS_TEACHER = True
FROM_STORE = False
OUTPUTS = ("distribution", "score")


def loss(
    student: Sequence[torch.Tensor],
    teacher: Sequence[torch.Tensor],
    *,
    layers: Literal["all", "last"] = "all",
) -> torch.Tensor:
    """MSE = 1 / D sum_d (P h_d - g_d)^2, h the student's states, g the teacher's; mean over layers.

    P is the identity where both are D wide, and a learned linear map into the teacher's D
    dimensions otherwise.

    Args:
        student: P h of each layer, [B, T, D].
        teacher: g of the layer that each of them is held against, [B, T, D].

    Returns:
        [B, T], fp32.

    Reference: Jiao et al. 2019, arXiv 1909.10351, equation 8.
    """
    return mean_over_layers(squared_distance, student, teacher, layers)


def squared_distance(student_BTD: torch.Tensor, teacher_BTD: torch.Tensor) -> torch.Tensor:
    return (student_BTD.float() - teacher_BTD.float()).square().mean(dim=-1)
