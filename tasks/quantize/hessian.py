"""The layer's objective: tr((W - V) H (W - V)^T), with H = sum of x x^T over calibration inputs."""

import torch

from tasks.errors import CheckpointError

MAX_DAMPINGS = 8
"""Dampings tried, each ten times the one before."""
PANEL_COLUMNS = 256
"""Columns of the factorisation that LAPACK takes at once; the rest of it is matrix products."""


def relative_error(
    weight: torch.Tensor, approximation: torch.Tensor, hessian: torch.Tensor | None = None
) -> float:
    """Return ||(W - V) X||^2 / ||W X||^2; without a Hessian X is the identity.

    Args:
        weight: W, [out, in].
        approximation: V, [out, in].
        hessian: X X^T, [in, in].
    """
    before, difference = weight.double(), weight.double() - approximation.double()
    if hessian is None:
        lost, whole = difference.square().sum(), before.square().sum()
    else:
        lost = ((difference @ hessian) * difference).sum()
        whole = ((before @ hessian) * before).sum()
    return float(lost / whole) if whole > 0 else 0.0


def output_energy(weight: torch.Tensor, hessian: torch.Tensor) -> torch.Tensor:
    """Return each output's ||w X||^2, in the weight's dtype [out]; half of the symmetric H is read.

    Args:
        weight: W^T, [in, out].
        hessian: [in, in], in the weight's dtype.
    """
    energy = weight.new_zeros(weight.shape[1])
    for start in range(0, len(weight), 2 * PANEL_COLUMNS):
        stop = start + 2 * PANEL_COLUMNS
        panel = weight[start:stop]
        product = hessian[start:stop, start:stop] @ panel
        product.addmm_(hessian[start:stop, :start], weight[:start], alpha=2)
        energy += product.mul_(panel).sum(0)
    return energy


def damped_factor(hessian: torch.Tensor, damping: float) -> tuple[torch.Tensor, float]:
    """Return the lower triangular L with L L^T = H + d I, and the damping that was needed.

    d = damping * mean diagonal, and damping grows tenfold until the factorisation succeeds.

    Args:
        hessian: [in, in].

    Raises:
        CheckpointError: no damping helps; the activations are not finite.
    """
    mean = float(hessian.diagonal().mean()) or 1.0
    for _ in range(MAX_DAMPINGS):
        factor = hessian.clone()
        factor.diagonal().add_(damping * mean)
        if factorize(factor):
            return factor, damping
        damping *= 10
    raise CheckpointError(
        "a layer's calibration activations have no usable second moments",
        "the model computes infinities or NaN on the calibration text",
    )


def factorize(matrix: torch.Tensor) -> bool:
    """Put the lower Cholesky factor in the matrix's place, unless it is not positive definite.

    LAPACK's own factorisation reaches a fifth of the matrix product's rate at 2048 columns, this
    one two thirds.
    """
    for start in range(0, len(matrix), PANEL_COLUMNS):
        stop = start + PANEL_COLUMNS
        panel = matrix[start:, start:stop]
        panel.addmm_(matrix[start:, :start], matrix[start:stop, :start].T, alpha=-1)
        lower, failed = torch.linalg.cholesky_ex(matrix[start:stop, start:stop])
        if failed:
            return False
        matrix[start:stop, start:stop] = lower
        below = matrix[stop:, start:stop]
        below.copy_(torch.linalg.solve_triangular(lower.T, below, upper=True, left=False))
    matrix.tril_()
    return True
