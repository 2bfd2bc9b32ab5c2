"""Forward KL divergence from the teacher's softened distribution: soft labels."""

from typing import Annotated

from pydantic import Field

from kernels.chunked_kd.naive import Term

OVER = "logits"
NEEDS_TEACHER = True
FROM_STORE = True
OUTPUTS = ("distribution",)


def loss(*, temperature: Annotated[float, Field(gt=0)] = 2.0) -> Term:
    """T^2 KL(q || p) = T^2 sum_k q_k (log q_k - log p_k), q = softmax(v / T), p = softmax(z / T).

    z are the student's logits, v the teacher's. The gradient with respect to z_k is T (p_k - q_k):
    the factor T^2 keeps its size comparable with a cross-entropy's at every temperature.

    Reference: Hinton et al. 2015, arXiv 1503.02531, section 2 and equation 4.
    """
    return Term("forward_kl", temperature=temperature)
