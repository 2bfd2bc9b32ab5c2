"""Generalised Jensen-Shannon divergence: between forward and reverse KL, and bounded."""

from typing import Annotated

from pydantic import Field

from kernels.chunked_kd.naive import Term

OVER = "logits"
NEEDS_TEACHER = True
FROM_STORE = True
OUTPUTS = ("distribution",)


def loss(
    *,
    beta: Annotated[float, Field(gt=0, lt=1)] = 0.5,
    temperature: Annotated[float, Field(gt=0)] = 1.0,
) -> Term:
    """T^2 JSD = T^2 (beta KL(q || m) + (1 - beta) KL(p || m)), m = beta q + (1 - beta) p.

    q = softmax(v / T) is the teacher's distribution, p = softmax(z / T) the student's. Divided by
    beta it tends to the forward KL as beta goes to 0, divided by 1 - beta to the reverse KL as
    beta goes to 1: a small beta wants a large weight.

    Reference: Agarwal et al. 2023, arXiv 2306.13649, equation 1.
    """
    return Term("jsd", temperature=temperature, beta=beta)
