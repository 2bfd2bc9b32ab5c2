"""Angle between the hidden states, as DistilBERT is trained with."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch.nn import functional

from tasks.distill.layers import mean_over_layers

OVER = "hidden_states"
NEEDS_TEACHER = True
FROM_STORE = False
OUTPUTS = ("distribution", "score")


def loss(
    student: Sequence[torch.Tensor],
    teacher: Sequence[torch.Tensor],
    *,
    layers: Literal["all", "last"] = "last",
) -> torch.Tensor:
    """L = 1 - cos(P h, g), h the student's hidden states, g the teacher's; mean over layers.

    P is the identity where both are equally wide, and a learned linear map otherwise.

    Args:
        student: P h of each layer, [B, T, D].
        teacher: g of the layer that each of them is held against, [B, T, D].

    Returns:
        [B, T], fp32.

    Reference: Sanh et al. 2019, arXiv 1910.01108, section 3; their published code compares the
    last layer.
    """
    return mean_over_layers(cosine_distance, student, teacher, layers)


def cosine_distance(student_BTD: torch.Tensor, teacher_BTD: torch.Tensor) -> torch.Tensor:
    return 1 - functional.cosine_similarity(student_BTD.float(), teacher_BTD.float(), dim=-1)
