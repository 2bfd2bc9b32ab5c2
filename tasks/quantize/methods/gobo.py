"""GOBO: the few weights that no Gaussian explains stay as they are, the rest share 2^b values.

A Gaussian is fitted to all weights of a matrix; those whose log-density lies below a threshold are
outliers. The rest is sorted into 2^b bins of equal population, and then

    each weight goes to the nearest centroid; each centroid becomes its weights' mean

as long as the sum of abs(weight - centroid) falls.
"""

import math
from dataclasses import replace
from typing import Annotated, Literal

import torch
from pydantic import Field

from tasks.models.quantized.codebook import CodebookTensor, Outliers
from tasks.quantize.block import Block, Quantized
from tasks.quantize.hessian import relative_error

CALIBRATED = False
ENCODINGS = ("codebook",)


def quantize(
    block: Block,
    *,
    bits: Literal[2, 3, 4, 5, 6] = 3,
    log_density: Annotated[float, Field(lt=0)] = -4.0,
) -> Quantized:
    """Quantize each weight from its values alone.

    Args:
        bits: Bits per code.
        log_density: Natural logarithm of the fitted density below which a weight is an outlier.

    Reference: Zadeh et al. 2020, arXiv 2005.03842, section 3.
    """
    return block.each(lambda weight: quantize_weight(weight, bits, log_density))


def quantize_weight(
    weight: torch.Tensor, bits: int = 3, log_density: float = -4.0
) -> CodebookTensor:
    """Quantize a weight [out, in].

    Where a whole row is 0, so is the centroid nearest to 0, and the row stays what it is.
    """
    is_outlier = find_outliers(weight, log_density)
    rest = weight[~is_outlier].sort().values.double().cpu()
    table = fit_centroids(rest, 2**bits)
    if not weight.any(dim=1).all():
        table[table.abs().argmin()] = 0
    table = table.float()
    middles = ((table[1:] + table[:-1]) / 2).to(weight.device)
    codes = torch.bucketize(weight, middles).to(torch.uint8)
    codes[is_outlier] = 0
    outliers = Outliers(
        is_outlier.flatten().nonzero().flatten().to("cpu", torch.int32), weight[is_outlier].cpu()
    )
    done = CodebookTensor(codes.cpu(), table, bits, outliers=outliers)
    error = relative_error(weight.cpu(), done.dequantize())
    fraction = len(outliers.values) / weight.numel()
    return replace(done, facts={"weight_error": error, "outlier_fraction": fraction})


def find_outliers(weight: torch.Tensor, log_density: float) -> torch.Tensor:
    """Return which weights have a log-density below the threshold, bool [out, in]."""
    deviation, mean = torch.std_mean(weight.double(), correction=0)
    if deviation == 0:
        return torch.zeros_like(weight, dtype=torch.bool)
    normalizer = math.log(float(deviation) * math.sqrt(2 * math.pi))
    return ((weight - mean) / deviation).square() / 2 + normalizer > -log_density


def fit_centroids(values: torch.Tensor, num_levels: int) -> torch.Tensor:
    """Return the centroids, ascending, float64 [at most num_levels].

    Bins of sorted values are ranges, so a step costs a few binary searches and differences of
    running sums.

    Args:
        values: Ascending, float64 [n].
    """
    if len(values) == 0:
        return torch.zeros(1, dtype=torch.float64)
    sums = torch.cat([values.new_zeros(1), values.cumsum(0)])
    num_levels = min(num_levels, len(values))
    edges = torch.linspace(0, len(values), num_levels + 1).long()
    tried = (sums[edges[1:]] - sums[edges[:-1]]) / (edges[1:] - edges[:-1])
    best, least = tried, math.inf
    while True:
        cuts = torch.searchsorted(values, (tried[1:] + tried[:-1]) / 2, right=True)
        edges = torch.cat([cuts.new_zeros(1), cuts, cuts.new_tensor([len(values)])])
        low, high = edges[:-1], edges[1:]
        middle = torch.searchsorted(values, tried).clamp(low, high)
        distance = float(
            (sums[low] + sums[high] - 2 * sums[middle] + tried * (2 * middle - low - high)).sum()
        )
        if distance >= least:
            return best
        best, least = tried, distance
        counts = high - low
        means = (sums[high] - sums[low]) / counts.clamp(min=1)
        tried = torch.where(counts > 0, means, tried)
