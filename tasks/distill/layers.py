"""Which of the teacher's layers each of the student's is held against, and in what coordinates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch


def map_layers(num_student: int, num_teacher: int) -> list[int]:
    """Return the teacher's layer for each layer of the student: evenly spread, last against last.

    Layer i of S goes with layer round((i + 1) T / S) - 1 of T, both counted from 0.

    Reference: Jiao et al. 2019, arXiv 1909.10351, section 3 (n = g(m), uniform).
    """
    return [
        max(round((layer + 1) * num_teacher / num_student) - 1, 0) for layer in range(num_student)
    ]


def mean_over_layers(
    compare: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    student: Sequence[torch.Tensor],
    teacher: Sequence[torch.Tensor],
    layers: Literal["all", "last"],
) -> torch.Tensor:
    """Return the mean of what `compare` makes of each pair of layers, [B, T]."""
    first = len(student) - 1 if layers == "last" else 0
    pairs = zip(student[first:], teacher[first:], strict=True)
    return torch.stack([compare(*pair) for pair in pairs]).mean(dim=0)


def make_projection(student_width: int, teacher_width: int, seed: int) -> torch.nn.Linear | None:
    """Return a linear map from the student's hidden states to the teacher's; None where both are
    equally wide.

    One map serves all layers, since they all write to one residual stream. It starts as a random
    orthogonal map, drawn from the seed alone.

    Reference: Jiao et al. 2019, arXiv 1909.10351, equation 8 (W_h).
    """
    if student_width == teacher_width:
        return None
    generator = torch.Generator().manual_seed(seed)
    projection = torch.nn.Linear(student_width, teacher_width, bias=False)
    torch.nn.init.orthogonal_(projection.weight, generator=generator)
    return projection
