"""AWQ: scale up the columns whose input is large, so that rounding hurts them less, then round.

    W x = (W diag(s)) (x / s),  s = rms(x)^alpha / sqrt(max * min of it over the channels)

The division by s goes into the operation before: the gain of a norm, or the rows of v_proj (for
o_proj) and up_proj (for down_proj). Alpha is searched per input by the error of the outputs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Literal

import torch
from pydantic import Field

from kernels.group_quant import fused
from tasks.models.quantized.integer import IntegerTensor
from tasks.models.quantized.plain import PlainTensor
from tasks.quantize.block import Block, Quantized, round_scale
from tasks.quantize.calibration import collect_hessians, shared_inputs
from tasks.quantize.clipping import search_clipping
from tasks.quantize.decoder_blocks import linear_weights
from tasks.quantize.folding import Source, divide_outputs, find_source
from tasks.quantize.hessian import relative_error
from tasks.quantize.methods.gptq import quantize_together

CALIBRATED = True
ENCODINGS = ("integer", "plain")

ALPHAS = [step / 20 for step in range(21)]
SMALLEST_RMS = 1e-4
"""Of a channel, as a fraction of the largest; a channel that is always 0 has no scale."""


def quantize(
    block: Block,
    *,
    bits: Literal[8, 4, 3, 2] = 4,
    group_size: Annotated[int, Field(gt=0)] | None = 128,
    symmetric: bool = True,
    clip_search: bool = True,
    rounding: Literal["nearest", "gptq"] = "nearest",
) -> Quantized:
    """Quantize scaled weights, and return the norm gains that take the scales back.

    Weights whose input comes from no operation that can take a scale, as o_proj's does where
    several query heads share a value head, are rounded as they are; their fact `unscaled` is 1.

    Args:
        bits: Bits per code.
        group_size: Columns that share a step; None for one step per row.
        symmetric: Codes about 0; otherwise a zero point per group.
        clip_search: Shrink each group's step where that lowers its weighted squared error.
        rounding: How the scaled weights are rounded: each to the nearest code, or by GPTQ.

    Reference: Lin et al. 2023, arXiv 2306.00978, equations 4 and 5; the root mean square of the
        inputs, which the Hessian holds, stands for their mean magnitude.
    """
    prefix = block.calibrated
    every = list(linear_weights(prefix.model, prefix.blocks[prefix.next_block]))
    sharing = [names for names in shared_inputs(prefix, every) if set(names) & set(block.weights)]
    hessians = collect_hessians(prefix, list(block.weights))
    done, current = Quantized(), dict(block.weights)
    scales: dict[str, torch.Tensor] = {}
    for names in sharing:
        source = find_source(prefix, names)
        if source is None or not can_scale(source, names, every, block.weights):
            continue
        own = [current[name] for name in names]
        scale = search_scale(own, hessians[names[0]], bits, group_size, symmetric)
        parameters = {
            name: current.get(name, parameter.detach())
            for name, parameter in prefix.model.get_submodule(source.module).named_parameters(
                source.module
            )
        }
        current |= {name: weight * scale for name, weight in zip(names, own, strict=True)}
        for name, value in divide_outputs(source, parameters, scale).items():
            if name in current:
                current[name] = value
            else:
                done[name] = PlainTensor(value.cpu())
        scales |= dict.fromkeys(names, scale)
    for names in sharing:
        part = {name: current[name] for name in names if name in current}
        first = next(iter(part))
        hessian, facts = hessians[first], {"unscaled": 1.0}
        if first in scales:
            hessian = hessian / scales[first].outer(scales[first])
            facts = {"unscaled": 0.0}
        if rounding == "gptq":
            rounded = quantize_together(
                part, hessian, block.dtype, bits, group_size, symmetric, clip_search=clip_search
            )
        else:
            rounded = {
                name: round_weight(
                    weight, hessian, block.dtype, bits, group_size, symmetric, clip_search
                )
                for name, weight in part.items()
            }
        for name, tensor in rounded.items():
            done[name] = replace(tensor, facts=tensor.facts | facts)
    return done


def can_scale(
    source: Source, names: Sequence[str], every: Sequence[str], weights: Mapping[str, torch.Tensor]
) -> bool:
    """Say whether all that a scale changes is among the weights that are quantized now."""
    before = f"{source.module}.weight"
    return all(name in weights for name in names) and (before not in every or before in weights)


def search_scale(
    weights: Sequence[torch.Tensor],
    hessian: torch.Tensor,
    bits: int,
    group_size: int | None,
    symmetric: bool,
) -> torch.Tensor:
    """Return the columns' scale, float32 [in], with which rounding the weights loses least.

    Args:
        weights: Each [out, in].
        hessian: Sum of x x^T of the input that they share, [in, in].
    """
    weight, hessian = torch.cat(list(weights)), hessian.float()
    rms = hessian.diagonal().sqrt()
    rms = rms.clamp(min=SMALLEST_RMS * float(rms.max())) if rms.any() else torch.ones_like(rms)
    best, least = torch.ones_like(rms), torch.inf
    for alpha in ALPHAS:
        scale = rms**alpha
        scale /= (scale.max() * scale.min()).sqrt()
        steps, zero = find_steps(weight * scale, bits, group_size, symmetric)
        codes = fused.quantize(weight * scale, steps, bits, zero)
        error = weight - fused.dequantize(codes, steps, zero) / scale
        loss = float(((error @ hessian) * error).sum())
        if loss < least:
            best, least = scale, loss
    return best


def find_steps(
    weight: torch.Tensor, bits: int, group_size: int | None, symmetric: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return steps that clip nothing, and zero points where the codes are not symmetric."""
    if symmetric:
        return fused.absmax_scale(weight, bits, group_size), None
    scale = fused.range_scale(weight, bits, group_size)
    return scale, fused.zero_point(weight, scale, bits)


def round_weight(
    weight: torch.Tensor,
    hessian: torch.Tensor,
    scale_dtype: torch.dtype,
    bits: int,
    group_size: int | None,
    symmetric: bool,
    clip_search: bool,
) -> IntegerTensor:
    """Round a weight [out, in] to nearest, with steps that suit its inputs."""
    scale, zero = find_steps(weight, bits, group_size, symmetric)
    if clip_search:
        importance = hessian.diagonal().float()
        scale = search_clipping(weight, scale, importance, bits, zero)
    scale = round_scale(scale, scale_dtype)
    codes = fused.quantize(weight, scale.float(), bits, zero)
    error = relative_error(weight, fused.dequantize(codes, scale.float(), zero), hessian)
    return IntegerTensor(
        codes.cpu(),
        scale.cpu(),
        bits,
        group_size,
        {"output_error": error},
        None if zero is None else zero.cpu(),
    )
