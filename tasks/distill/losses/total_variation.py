"""Total variation distance between the two distributions: bounded, its gradient too."""

from typing import Annotated

from pydantic import Field

from kernels.chunked_kd.naive import Term

OVER = "logits"
NEEDS_TEACHER = True
FROM_STORE = True
OUTPUTS = ("distribution",)


def loss(*, temperature: Annotated[float, Field(gt=0)] = 1.0) -> Term:
    """T TV = T / 2 sum_k |p_k - q_k|, p = softmax(z / T), q = softmax(v / T).

    z are the student's logits, v the teacher's. T and not T^2, since the distance is linear in a
    small difference where the divergences are quadratic.

    Reference: Wen et al. 2023, arXiv 2307.15190, section 3.
    """
    return Term("total_variation", temperature=temperature)
