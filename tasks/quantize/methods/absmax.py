"""Round to nearest, with the largest weight of each row or group at the end of the range."""

from typing import Annotated, Literal

import torch
from pydantic import Field

from kernels.group_quant import fused
from tasks.models.quantized.integer import IntegerTensor
from tasks.quantize.block import Block, Quantized, round_scale
from tasks.quantize.hessian import relative_error

CALIBRATED = False
ENCODINGS = ("integer",)


def quantize(
    block: Block,
    *,
    bits: Literal[8, 4, 3, 2] = 8,
    group_size: Annotated[int, Field(gt=0)] | None = None,
    symmetric: bool = True,
) -> Quantized:
    """Quantize each weight from its values alone.

    Args:
        bits: Bits per code.
        group_size: Columns that share a step; None for one step per row.
        symmetric: Codes about 0; otherwise a zero point per group, so that the range from the
            smallest weight to the largest is used in full.
    """
    return block.each(lambda weight: round_weight(weight, block.dtype, bits, group_size, symmetric))


def round_weight(
    weight: torch.Tensor,
    scale_dtype: torch.dtype,
    bits: int = 8,
    group_size: int | None = None,
    symmetric: bool = True,
) -> IntegerTensor:
    """Round a weight [out, in] to nearest."""
    zero = None
    if symmetric:
        scale = round_scale(fused.absmax_scale(weight, bits, group_size), scale_dtype)
    else:
        scale = round_scale(fused.range_scale(weight, bits, group_size), scale_dtype)
        zero = fused.zero_point(weight, scale.float(), bits)
    codes = fused.quantize(weight, scale.float(), bits, zero)
    error = relative_error(weight, fused.dequantize(codes, scale.float(), zero))
    return IntegerTensor(
        codes.cpu(),
        scale.cpu(),
        bits,
        group_size,
        {"weight_error": error},
        None if zero is None else zero.cpu(),
    )
