"""GPTQ: round column after column, and let the columns not yet rounded make up for the error.

    after the columns Q are rounded to V_Q, the others are  W_R + (W_Q - V_Q) H_QR H_RR^-1

which is the best they can do for tr((W - V) H (W - V)^T). With U^T U = H^-1, U upper triangular,
rounding column j adds  -(w_j - v_j) / U_jj * U_j,k  to each later column k.
"""

from typing import Annotated, Literal

import torch
from pydantic import Field

from kernels.group_quant import fused
from tasks.models.quantized.integer import IntegerTensor
from tasks.quantize.block import Block, Quantized, round_scale
from tasks.quantize.calibration import collect_hessians
from tasks.quantize.hessian import inverse_factor, relative_error

CALIBRATED = True
ENCODINGS = ("integer",)

BLOCK_COLUMNS = 128
"""Columns whose updates reach the rest of the matrix together."""
SHRINKS = [1 - step / 40 for step in range(21)]
"""Fractions of the absmax step that the clipping search tries."""


def quantize(
    block: Block,
    *,
    bits: Literal[8, 4, 3, 2] = 4,
    group_size: Annotated[int, Field(gt=0)] | None = 128,
    act_order: bool = True,
    clip_search: bool = True,
    damping: Annotated[float, Field(gt=0)] = 0.01,
) -> Quantized:
    """Quantize each weight so that the layer's outputs on the calibration text stay close.

    Args:
        bits: Bits per code.
        group_size: Columns that share a step; None for one step per row.
        act_order: Round the columns with the largest mean square input first.
        clip_search: Shrink each group's step where that lowers its weighted squared error.
        damping: Added to the Hessian's diagonal, as a fraction of its mean.

    Reference: Frantar et al. 2022, arXiv 2210.17323, algorithm 1; static groups and activation
        order as in the authors' code.
    """
    hessians = collect_hessians(block.calibrated, list(block.weights))
    return {
        name: quantize_weight(
            weight, hessians[name], block.dtype, bits, group_size, act_order, clip_search, damping
        )
        for name, weight in block.weights.items()
    }


def quantize_weight(
    weight: torch.Tensor,
    hessian: torch.Tensor,
    scale_dtype: torch.dtype,
    bits: int = 4,
    group_size: int | None = 128,
    act_order: bool = True,
    clip_search: bool = True,
    damping: float = 0.01,
) -> IntegerTensor:
    """Quantize a weight [out, in]; the arguments that are not given here are `quantize`'s.

    Steps are fixed from the incoming weight, so columns keep their place on disk whatever the order
    in which they are rounded. A column whose input was always 0 is rounded to nearest.

    Args:
        hessian: Sum of x x^T over the calibration tokens, float64 [in, in].
    """
    importance = hessian.diagonal()
    weight = weight.to(hessian)
    scale = fused.absmax_scale(weight.float(), bits, group_size)
    if clip_search:
        scale = search_clipping(weight.float(), scale, importance.float(), bits)
    scale = round_scale(scale, scale_dtype)

    order = torch.arange(len(importance), device=weight.device)
    if act_order:
        order = importance.argsort(descending=True, stable=True)
    steps = scale.to(hessian).repeat_interleave(weight.shape[1] // scale.shape[1], dim=1)[:, order]
    upper, used = inverse_factor(hessian[order][:, order], damping)
    rounded = round_columns(weight[:, order].clone(), steps, upper, bits)
    codes = rounded[:, order.argsort()].to(torch.int8)

    error = relative_error(weight, fused.dequantize(codes, scale.float()), hessian)
    facts = {"output_error": error, "damping": used}
    return IntegerTensor(codes.cpu(), scale.cpu(), bits, group_size, facts)


def round_columns(
    weight: torch.Tensor, steps: torch.Tensor, upper: torch.Tensor, bits: int
) -> torch.Tensor:
    """Return the codes [out, in], and leave in `weight` each column as it was when it was rounded.

    Args:
        weight: [out, in], changed in place.
        steps: Each weight's step, [out, in].
        upper: U, [in, in].
    """
    limit = 2 ** (bits - 1) - 1
    codes = torch.empty_like(weight)
    for start in range(0, weight.shape[1], BLOCK_COLUMNS):
        stop = min(start + BLOCK_COLUMNS, weight.shape[1])
        errors = weight.new_empty(len(weight), stop - start)
        for j in range(start, stop):
            codes[:, j] = torch.round(weight[:, j] / steps[:, j]).clamp(-limit - 1, limit)
            error = (weight[:, j] - codes[:, j] * steps[:, j]) / upper[j, j]
            weight[:, j + 1 : stop] -= error[:, None] * upper[j, j + 1 : stop]
            errors[:, j - start] = error
        weight[:, stop:] -= errors @ upper[start:stop, stop:]
    return codes


def search_clipping(
    weight: torch.Tensor, scale: torch.Tensor, importance: torch.Tensor, bits: int
) -> torch.Tensor:
    """Return per group the step, of the given one times SHRINKS, with the least weighted error.

    The error of rounding to nearest: sum over columns of importance * (w - v)^2.
    """
    best, least = scale, torch.full_like(scale, torch.inf)
    for shrink in SHRINKS:
        tried = scale * shrink
        values = fused.dequantize(fused.quantize(weight, tried, bits), tried)
        error = (importance * (weight - values).square()).view(*scale.shape, -1).sum(2)
        best = torch.where(error < least, tried, best)
        least = torch.minimum(error, least)
    return best
