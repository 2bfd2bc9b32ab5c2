"""Divergence of the attention maps: where the student looks, row by row."""

from collections.abc import Sequence
from typing import Literal

import torch

from tasks.distill.layers import mean_over_layers

OVER = "attentions"
NEEDS_TEACHER = True
FROM_STORE = False
OUTPUTS = ("distribution", "score")


def loss(
    student: Sequence[torch.Tensor],
    teacher: Sequence[torch.Tensor],
    *,
    layers: Literal["all", "last"] = "last",
) -> torch.Tensor:
    """KL = sum_k a_k (log a_k - log b_k), a the teacher's row of attention, b the student's.

    Mean over the heads, and over layers. Where the two models have different numbers of heads,
    the mean map of all heads is compared instead.

    Args:
        student: b of each layer, [B, H, T, T]; a row, the last dimension, sums to one.
        teacher: a of the layer that each of them is held against, [B, H', T, T].

    Returns:
        [B, T], fp32: one divergence for each token that looks.

    Reference: Wang et al. 2020, arXiv 2002.10957, equation 4.
    """
    return mean_over_layers(row_divergence, student, teacher, layers)


def row_divergence(student_BHTT: torch.Tensor, teacher_BHTT: torch.Tensor) -> torch.Tensor:
    b, a = student_BHTT.float(), teacher_BHTT.float()
    if b.shape[1] != a.shape[1]:
        b, a = b.mean(dim=1, keepdim=True), a.mean(dim=1, keepdim=True)
    tiny = torch.finfo(torch.float32).tiny
    rows_BHT = (torch.xlogy(a, a) - a * b.clamp_min(tiny).log()).sum(dim=-1)
    return rows_BHT.mean(dim=1)
