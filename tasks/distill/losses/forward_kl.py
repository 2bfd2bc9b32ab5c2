"""Forward KL divergence from the teacher's softened distribution: soft labels."""

from typing import Annotated

import torch
from pydantic import Field
from torch.nn import functional

NEEDS_TEACHER = True


def loss(
    student_logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    labels: torch.Tensor,
    *,
    temperature: Annotated[float, Field(gt=0)] = 2.0,
) -> torch.Tensor:
    """T^2 KL(q || p) = T^2 sum_k q_k (log q_k - log p_k), q = softmax(v / T), p = softmax(z / T).

    Its gradient with respect to z_k is T (p_k - q_k): the factor T^2 keeps its size comparable
    with a cross-entropy's at every temperature.

    Args:
        student_logits: z, [num_tokens, vocab].
        teacher_logits: v, [num_tokens, vocab].

    Returns:
        [num_tokens], fp32 or wider, in nats at temperature 1.

    Reference: Hinton et al. 2015, arXiv 1503.02531, section 2 and equation 4.
    """
    wide = torch.promote_types(student_logits.dtype, torch.float32)
    log_p = functional.log_softmax(student_logits.to(wide) / temperature, dim=-1)
    log_q = functional.log_softmax(teacher_logits.to(wide) / temperature, dim=-1)
    divergence = functional.kl_div(log_p, log_q, reduction="none", log_target=True).sum(dim=-1)
    return temperature**2 * divergence
