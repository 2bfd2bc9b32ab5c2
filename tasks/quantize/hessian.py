"""The layer's objective: tr((W - V) H (W - V)^T), with H = sum of x x^T over calibration inputs."""

import torch

from tasks.errors import CheckpointError

MAX_DAMPINGS = 8
"""Dampings tried, each ten times the one before."""


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


def inverse_factor(hessian: torch.Tensor, damping: float) -> tuple[torch.Tensor, float]:
    """Return the upper triangular U with U^T U = (H + d I)^-1, and the damping that was needed.

    d = damping * mean diagonal, and damping grows tenfold until the factorisation succeeds. With H
    written from its last row up as H = M M^T, M upper triangular, U = M^-1: one Cholesky
    factorisation and one triangular solve, where inverting H first takes three steps.

    Args:
        hessian: float64 [in, in].

    Raises:
        CheckpointError: no damping helps; the activations are not finite.
    """
    identity = torch.eye(len(hessian), dtype=hessian.dtype, device=hessian.device)
    mean = float(hessian.diagonal().mean()) or 1.0
    for _ in range(MAX_DAMPINGS):
        flipped = (hessian + damping * mean * identity).flip(0, 1)
        lower, failed = torch.linalg.cholesky_ex(flipped)
        if not failed:
            return torch.linalg.solve_triangular(lower.flip(0, 1), identity, upper=True), damping
        damping *= 10
    raise CheckpointError(
        "a layer's calibration activations have no usable second moments",
        "the model computes infinities or NaN on the calibration text",
    )
