"""Which step loses least: the largest weight at the end of the range, or some weights clipped."""

import torch

SHRINKS = [1 - step / 20 for step in range(14)]
"""Fractions of the given step that are tried."""
CHUNK_WEIGHTS = 2**16
"""Weights searched at a time, so that what is computed of them stays in the core's cache."""


def search_clipping(
    weight: torch.Tensor,
    scale: torch.Tensor,
    importance: torch.Tensor,
    bits: int,
    zero: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return per group the step, of the given one times SHRINKS, with the least weighted error.

    The error of rounding to nearest: sum over columns of importance * (w - v)^2.

    Args:
        weight: float32 [out, in].
        scale: [out, groups].
        importance: [in].
        zero: int8 [out, groups], the same for all steps tried.
    """
    chunks = max(weight.numel() // CHUNK_WEIGHTS, 1)
    size = -(-len(weight) // chunks)
    zeros = [None] * chunks if zero is None else torch.split(zero, size)
    return torch.cat(
        [
            _search_rows(rows, steps, importance, bits, codes)
            for rows, steps, codes in zip(
                torch.split(weight, size), torch.split(scale, size), zeros, strict=False
            )
        ]
    )


def _search_rows(
    weight: torch.Tensor,
    scale: torch.Tensor,
    importance: torch.Tensor,
    bits: int,
    zero: torch.Tensor | None,
) -> torch.Tensor:
    groups = weight.reshape(*scale.shape, -1)
    weights = importance.reshape(scale.shape[1], -1)
    limit = 2 ** (bits - 1) - 1
    lowest, highest = -limit - 1, limit
    if zero is not None:
        shift = zero[:, :, None].float()
        lowest, highest = lowest - shift, highest - shift
    wanted, codes = torch.empty_like(groups), torch.empty_like(groups)
    best, least = scale, torch.full_like(scale, torch.inf)
    for shrink in SHRINKS:
        tried = scale * shrink
        torch.mul(groups, tried.reciprocal()[:, :, None], out=wanted)
        torch.round(wanted, out=codes).clamp_(lowest, highest)
        codes.sub_(wanted).square_().mul_(weights)
        error = codes.sum(2).mul_(tried.square())
        best = torch.where(error < least, tried, best)
        least = torch.minimum(error, least)
    return best
