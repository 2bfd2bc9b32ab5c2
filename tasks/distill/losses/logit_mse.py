"""Squared distance of the logits themselves: what soft labels tend to as they grow hot."""

from kernels.chunked_kd.naive import Term

OVER = "logits"
NEEDS_TEACHER = True
FROM_STORE = False
OUTPUTS = ("distribution", "score")


def loss() -> Term:
    """MSE = 1 / V sum_k (z_k - v_k)^2, z the student's logits, v the teacher's.

    Reference: Kim et al. 2021, arXiv 2105.08919, equation 3.
    """
    return Term("logit_mse")
