"""Squared distance from the corpus's own scores: the hard labels of a regression, no teacher."""

import torch

from kernels.chunked_kd.naive import Term

OVER = "logits"
NEEDS_TEACHER = False
FROM_STORE = False
OUTPUTS = ("score",)


def loss() -> Term:
    """MSE = (z - y)^2, z the student's only logit, y the score; 0 where there is no score."""
    return Term("function", function=squared_error)


def squared_error(
    student_logits: torch.Tensor, teacher_logits: torch.Tensor | None, labels: torch.Tensor
) -> torch.Tensor:
    """Return [n] of student logits [n, 1] and labels [n], NaN where there is none."""
    scores = labels.to(student_logits.dtype)
    return (student_logits[:, 0] - scores.where(~scores.isnan(), student_logits[:, 0])).square()
