"""FP8 (E4M3): each row's largest weight at the largest finite value, 448."""

import torch

from tasks.models.quantized.float8 import Float8Tensor
from tasks.quantize.block import Block, Quantized, round_scale
from tasks.quantize.hessian import relative_error

CALIBRATED = False
ENCODINGS = ("float8",)

LARGEST = torch.finfo(torch.float8_e4m3fn).max


def quantize(block: Block) -> Quantized:
    """Quantize each weight from its values alone.

    Reference: Micikevicius et al. 2022, arXiv 2209.05433, section 3.
    """
    return block.each(lambda weight: quantize_weight(weight, block.dtype))


def quantize_weight(weight: torch.Tensor, scale_dtype: torch.dtype) -> Float8Tensor:
    """Quantize a weight [out, in] with one scale per row."""
    scale = round_scale(weight.abs().amax(dim=1, keepdim=True) / LARGEST, scale_dtype)
    # A rounded scale may lie below the exact one, and what exceeds 448 would turn into NaN.
    values = (weight / scale.float()).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn)
    error = relative_error(weight, values.float() * scale.float())
    return Float8Tensor(values.cpu(), scale.cpu(), {"weight_error": error})
