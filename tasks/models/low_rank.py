"""A linear layer as the product of two thin ones, by an activation-weighted SVD.

    W S = U diag(sigma) V^T,  S S^T = X X^T
    W ~ wide thin,  wide = U_r diag(sigma_r)^(1/2),  thin = diag(sigma_r)^(1/2) V_r^T S^-1

Shapes: W [out, in], X [in, tokens], wide [out, r], thin [r, in]. No other product of rank r is
nearer to W X, and what it misses is the tail: ||(W - wide thin) X||^2 = sum of sigma_i^2, i > r.

Reference: Wang et al. 2024, SVD-LLM, arXiv 2403.07378, section 3.1 and theorem 3.2.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import torch

from tasks.models.quantized.plain import PlainTensor
from tasks.quantize.calibration import advance, collect_hessians, enter_model
from tasks.quantize.decoder_blocks import linear_weights
from tasks.quantize.hessian import damped_factor

DAMPING = 1e-8
"""Of the mean diagonal; it grows where X X^T is singular, as it is with fewer tokens than inputs.
The tail is then that of the damped matrix, and what is missed is at most as much."""


class Factors(NamedTuple):
    wide: torch.Tensor
    """[out, r]"""
    thin: torch.Tensor
    """[r, in]"""
    missed: float
    """||(W - wide thin) X||^2 / ||W X||^2, as the tail of sigma^2 says."""


def pick_rank(shape: tuple[int, int], sparsity: float) -> int:
    """Return the largest r with r (out + in) <= (1 - sparsity) out in, and at least 1.

    Raises:
        ValueError: two factors of that rank are not smaller than the weight itself.
    """
    rows, columns = shape
    rank = max(1, math.floor((1 - sparsity) * rows * columns / (rows + columns)))
    if rank * (rows + columns) >= rows * columns:
        raise ValueError(
            f"low_rank: expected a weight that two factors are smaller than, got {rows} x "
            f"{columns} and rank {rank}; choose a higher sparsity, or another initializer"
        )
    return rank


def factor_weight(weight: torch.Tensor, hessian: torch.Tensor, rank: int) -> Factors:
    """Split a weight.

    Args:
        weight: [out, in].
        hessian: X X^T, float64 [in, in].

    Raises:
        CheckpointError: the activations are not finite.
    """
    root, _ = damped_factor(hessian, DAMPING)
    u, sigma, v_T = torch.linalg.svd(weight.double() @ root, full_matrices=False)
    half = sigma[:rank].sqrt()
    wide = u[:, :rank] * half
    thin = torch.linalg.solve_triangular(root, half[:, None] * v_T[:rank], upper=False, left=False)
    energy = sigma.square()
    whole = float(energy.sum())
    missed = float(energy[rank:].sum()) / whole if whole else 0.0
    return Factors(wide.to(weight.dtype), thin.to(weight.dtype), missed)


@torch.no_grad()
def factor_blocks(
    folder: Path, ids: torch.Tensor, sparsity: float, trust_remote_code: bool
) -> dict[str, Factors]:
    """Split the linear weights of all blocks of a decoder, one block after the other.

    Each block sees the inputs that it gets from the blocks before it as they are split.

    Args:
        ids: Calibration tokens, [num_windows, window].
        sparsity: Fraction of each weight's parameters that its factors do without.

    Raises:
        ValueError: the blocks have no linear layers, or too small ones.
        CheckpointError: the model does not load, or its activations are not finite.
    """
    prefix = enter_model(Path, str(folder), ids, trust_remote_code)
    found: dict[str, Factors] = {}
    for block in prefix.blocks:
        shapes = linear_weights(prefix.model, block)
        if not shapes:
            raise ValueError(
                f"low_rank: expected linear layers in the blocks of {type(prefix.model).__name__}, "
                "got none; choose incoming, every_nth_layer or first_layers"
            )
        hessians = collect_hessians(prefix, list(shapes))
        own = {
            name: factor_weight(
                prefix.model.get_parameter(name), hessians[name], pick_rank(shape, sparsity)
            )
            for name, shape in shapes.items()
        }
        advance(prefix, {name: PlainTensor(f.wide @ f.thin) for name, f in own.items()})
        found |= own
    return found
