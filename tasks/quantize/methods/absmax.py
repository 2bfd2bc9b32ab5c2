"""Round to nearest, with the largest weight of each row or group at the end of the range."""

from typing import Annotated, Literal

import torch
from pydantic import Field

from kernels.group_quant import fused
from tasks.quantize.hessian import relative_error
from tasks.quantize.quantized_tensor import QuantizedTensor, round_scale

NEEDS_HESSIAN = False


def quantize(
    weight: torch.Tensor,
    hessian: torch.Tensor | None,
    scale_dtype: torch.dtype,
    *,
    bits: Literal[8, 4, 3, 2] = 8,
    group_size: Annotated[int, Field(gt=0)] | None = None,
) -> QuantizedTensor:
    """Quantize a weight [out, in] from its values alone.

    Args:
        bits: Bits per code.
        group_size: Columns that share a step; None for one step per row.
    """
    scale = round_scale(fused.absmax_scale(weight, bits, group_size), scale_dtype)
    codes = fused.quantize(weight, scale.float(), bits)
    error = relative_error(weight, fused.dequantize(codes, scale.float()))
    return QuantizedTensor(codes, scale, bits, group_size, {"weight_error": error})
