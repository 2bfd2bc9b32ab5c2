"""Fast twin of `naive.py`: exact integer products by `torch._int_mm`, in Triton on a GPU."""

from functools import cache

import torch

TINY = torch.finfo(torch.float32).tiny
EXACT_COLUMNS = 1024
"""Columns whose products of int8 codes add up exactly in float32: 1024 * 128 * 127 < 2^24."""


def linear(
    x: torch.Tensor,
    codes: torch.Tensor,
    scale: torch.Tensor,
    outlier_columns: torch.Tensor | None = None,
    outlier_weight: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return y [..., out]: the integer product rescaled, plus the outlier columns' part."""
    rows = x.reshape(-1, x.shape[-1])
    if x.is_cuda:
        from kernels.vector_int8.gpu import multiply_triton, quantize_triton

        with torch.cuda.device(rows.device):
            quantized, step = quantize_triton(rows, outlier_columns)
            y = multiply_triton(quantized, step, codes, scale)
    else:
        quantized, step = quantize_tokens(rows, outlier_columns)
        y = multiply_exactly(quantized, codes).float() * step[:, None] * scale.float()
    if outlier_columns is not None and outlier_weight is not None:
        y.addmm_(rows[:, outlier_columns].float(), outlier_weight.float().T)
    return y.to(x.dtype).reshape(*x.shape[:-1], len(codes))


def quantize_tokens(
    x: torch.Tensor, outlier_columns: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return q, int8 [tokens, in] and 0 in outlier columns, and the step of each token, float32."""
    rest = x.float()
    if outlier_columns is not None:
        rest = rest.index_fill(1, outlier_columns, 0)
    step = rest.abs().amax(dim=1) / 127
    step = torch.where(step >= TINY, step, 1.0)
    return torch.round(rest / step[:, None]).to(torch.int8), step


def multiply_exactly(quantized: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """Return quantized @ codes.T as int32 [tokens, out], each sum exact.

    `torch._int_mm` returns what lay in memory where a dimension of length 1 has an odd stride.
    """
    num_columns = codes.shape[1]
    plain = num_columns > 1 and quantized.stride() == codes.stride() == (num_columns, 1)
    if plain and int_mm_is_exact():
        return torch._int_mm(quantized, codes.T)
    total = quantized.new_zeros(len(quantized), len(codes), dtype=torch.int32)
    for first in range(0, num_columns, EXACT_COLUMNS):
        here = slice(first, first + EXACT_COLUMNS)
        total += (quantized[:, here].float() @ codes[:, here].float().T).to(torch.int32)
    return total


@cache
def int_mm_is_exact() -> bool:
    """Try whether this CPU's int8 product is exact; without VNNI its 16-bit sums may saturate."""
    largest = torch.full((16, 64), 127, dtype=torch.int8)
    smallest = torch.full((16, 64), -128, dtype=torch.int8)
    products = (torch._int_mm(largest, other.T) for other in (largest, smallest))
    return all(
        bool((product == 64 * 127 * factor).all())
        for product, factor in zip(products, (127, -128), strict=True)
    )
