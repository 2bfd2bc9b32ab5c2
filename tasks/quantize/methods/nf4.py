"""NF4: sixteen levels that a normal variable falls between about equally often.

    code[i] = nearest level to weight[i] / scale[b],  scale[b] = max abs(weight) in block b

The scales themselves take 32 bits, or 8 in double quantization: less their mean, with one step per
256 of them. Codes are chosen for the scale that a reader sees.
"""

from dataclasses import replace
from statistics import NormalDist
from typing import Annotated

import torch
from pydantic import Field
from torch.nn import functional as F

from tasks.models.quantized.codebook import BlockScales, CodebookTensor
from tasks.quantize.block import Block, Quantized
from tasks.quantize.hessian import relative_error

CALIBRATED = False
ENCODINGS = ("codebook",)

STEP_BLOCKS = 256
"""Scales that share a step in double quantization."""


def quantize(
    block: Block,
    *,
    block_size: Annotated[int, Field(gt=0)] = 64,
    double_quantization: bool = True,
) -> Quantized:
    """Quantize each weight from its values alone.

    Args:
        block_size: Weights, counted row after row, that share a scale.
        double_quantization: Store the scales in 8 bits.

    Reference: Dettmers et al. 2023, arXiv 2305.14314, section 3 and appendix E.
    """
    return block.each(lambda weight: quantize_weight(weight, block_size, double_quantization))


def normal_levels() -> torch.Tensor:
    """Return the levels, ascending, float32 [16]; -1, 0 and 1 are among them.

    Quantiles of the normal distribution, 8 above 0 and 7 below it, each half divided by its end.
    The outermost is the mean of 1 - 1/32 and 1 - 1/30.
    """
    end = 1 - (1 / 32 + 1 / 30) / 2
    quantile = NormalDist().inv_cdf
    above = [quantile(0.5 + (end - 0.5) * i / 8) for i in range(9)]
    below = [-quantile(0.5 + (end - 0.5) * i / 7) for i in range(7, 0, -1)]
    return torch.tensor([level / above[-1] for level in below + above])


def quantize_weight(
    weight: torch.Tensor, block_size: int = 64, double_quantization: bool = True
) -> CodebookTensor:
    """Quantize a weight [out, in]."""
    flat = weight.flatten()
    blocks = F.pad(flat.abs(), (0, -len(flat) % block_size)).view(-1, block_size)
    largest = blocks.amax(dim=1).cpu()
    scales = BlockScales(largest, block_size)
    if double_quantization:
        scales = quantize_scales(largest, block_size)
    over = scales.over(len(flat)).to(weight.device)
    table = normal_levels()
    middles = ((table[1:] + table[:-1]) / 2).to(weight.device)
    codes = torch.bucketize(flat / torch.where(over > 0, over, 1), middles).to(torch.uint8)
    done = CodebookTensor(codes.view(weight.shape).cpu(), table, 4, scales=scales)
    error = relative_error(weight.cpu(), done.dequantize())
    return replace(done, facts={"weight_error": error})


def quantize_scales(largest: torch.Tensor, block_size: int) -> BlockScales:
    """Quantize scales, float32 [blocks], to int8 about their mean."""
    offset = largest.mean()[None]
    centered = F.pad(largest - offset, (0, -len(largest) % STEP_BLOCKS)).view(-1, STEP_BLOCKS)
    steps = centered.abs().amax(1) / 127
    steps = torch.where(steps > 0, steps, 1)
    codes = torch.round(centered / steps[:, None]).clamp(-127, 127).to(torch.int8)
    return BlockScales(codes.flatten()[: len(largest)], block_size, steps, offset, STEP_BLOCKS)
