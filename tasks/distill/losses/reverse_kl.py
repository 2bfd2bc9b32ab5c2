"""Reverse KL divergence: the student may leave out what it cannot learn, and makes up less."""

from typing import Annotated

from pydantic import Field

from kernels.chunked_kd.naive import Term

OVER = "logits"
NEEDS_TEACHER = True
FROM_STORE = True
OUTPUTS = ("distribution",)


def loss(*, temperature: Annotated[float, Field(gt=0)] = 1.0) -> Term:
    """T^2 KL(p || q) = T^2 sum_k p_k (log p_k - log q_k), p = softmax(z / T), q = softmax(v / T).

    z are the student's logits, v the teacher's.

    Reference: Gu et al. 2023, arXiv 2306.08543, equation 1.
    """
    return Term("reverse_kl", temperature=temperature)
