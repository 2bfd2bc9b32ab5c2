"""LLM.int8(): vector-wise int8, but for the few input columns that hold large activations."""

from dataclasses import replace
from typing import Annotated

import torch
from pydantic import Field

from kernels.group_quant import fused
from tasks.models.quantized.outlier_columns import OutlierColumnsTensor
from tasks.quantize.block import Block, Quantized, round_scale
from tasks.quantize.calibration import watch_inputs
from tasks.quantize.checkpoint_tensors import cast
from tasks.quantize.hessian import relative_error

CALIBRATED = True
ENCODINGS = ("outlier_columns",)


def quantize(block: Block, *, threshold: Annotated[float, Field(gt=0)] = 6.0) -> Quantized:
    """Quantize each weight but for the columns whose input is large on the calibration text.

    The columns are fixed here; the paper looks for them anew in every batch.

    Args:
        threshold: Absolute input value from which a column stays in the export's dtype.

    Reference: Dettmers et al. 2022, arXiv 2208.07339, section 3.2.
    """
    largest: dict[str, torch.Tensor] = {}

    def visit(name: str, x: torch.Tensor) -> None:
        peak = x.abs().amax(dim=0)
        largest[name] = torch.maximum(largest[name], peak) if name in largest else peak

    shown_as = watch_inputs(block.calibrated, list(block.weights), visit)
    done: Quantized = {}
    for name, weight in block.weights.items():
        is_outlier = largest[shown_as[name]].to(weight.device) >= threshold
        done[name] = quantize_weight(name, weight, is_outlier, block.dtype)
    return done


def quantize_weight(
    name: str, weight: torch.Tensor, is_outlier: torch.Tensor, dtype: torch.dtype
) -> OutlierColumnsTensor:
    """Quantize a weight [out, in] but for its outlier columns.

    Args:
        is_outlier: bool [in].
        dtype: Stores the steps and the outlier columns.

    Raises:
        ValueError: a kept weight or a step is too large for the dtype.
    """
    rest = weight[:, ~is_outlier]
    scale = weight.new_ones(len(weight), 1)
    if rest.shape[1] > 0:
        scale = fused.absmax_scale(rest, 8, None)
    scale = round_scale(scale, dtype)
    codes = fused.quantize(rest, scale.float(), 8) if rest.shape[1] > 0 else rest.to(torch.int8)
    kept, _ = cast(name, weight[:, is_outlier], dtype)
    columns = is_outlier.nonzero().flatten().to(torch.int32)
    done = OutlierColumnsTensor(codes.cpu(), scale.cpu(), columns.cpu(), kept.cpu())
    error = relative_error(weight.cpu(), done.dequantize())
    fraction = len(columns) / len(is_outlier)
    return replace(done, facts={"weight_error": error, "outlier_fraction": fraction})
