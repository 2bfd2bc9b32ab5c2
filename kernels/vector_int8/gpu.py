"""Triton kernels: activations to 8 bits token by token, and the integer product in tiles."""

from functools import cache
from typing import Any

import torch

TILE = 128
STEP = 128
"""Columns of one step of a tile."""


def quantize_triton(
    x: torch.Tensor, outlier_columns: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return q, int8 [tokens, in] and 0 in outlier columns, and the step of each token, float32."""
    x = x.contiguous()
    quantized = torch.empty_like(x, dtype=torch.int8)
    step = x.new_empty(len(x), dtype=torch.float32)
    is_outlier = None
    if outlier_columns is not None:
        is_outlier = x.new_zeros(x.shape[1], dtype=torch.int8).index_fill_(0, outlier_columns, 1)
    triton, quantize_kernel, _ = _triton_kernels()
    quantize_kernel[(len(x),)](
        x,
        is_outlier,
        quantized,
        step,
        x.shape[1],
        HAS_OUTLIERS=is_outlier is not None,
        COLUMNS=min(triton.next_power_of_2(x.shape[1]), 4096),
    )
    return quantized, step


def multiply_triton(
    quantized: torch.Tensor, step: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor
) -> torch.Tensor:
    """Return step * scale * (quantized @ codes.T), float32 [tokens, out]."""
    (num_tokens, num_columns), num_outputs = quantized.shape, len(codes)
    y = step.new_empty(num_tokens, num_outputs)
    triton, _, multiply_kernel = _triton_kernels()
    tile_tokens = min(max(triton.next_power_of_2(num_tokens), 16), TILE)
    tile_outputs = TILE if tile_tokens == TILE else 32  # a few tokens: many small tiles instead
    multiply_kernel[(triton.cdiv(num_outputs, tile_outputs), triton.cdiv(num_tokens, tile_tokens))](
        quantized,
        step,
        codes.contiguous(),
        scale.contiguous(),
        y,
        num_tokens,
        num_outputs,
        num_columns,
        TOKENS=tile_tokens,
        OUTPUTS=tile_outputs,
        STEP=STEP,
        num_warps=8 if tile_tokens == TILE else 4,
        num_stages=4,
    )
    return y


@cache
def _triton_kernels() -> tuple[Any, Any, Any]:
    import triton
    import triton.language as tl

    # One program quantizes one token:
    #     step = max |x| / 127,  q = round(x / step)
    # (q + 1.5 * 2^23) - 1.5 * 2^23 rounds |q| < 2^22 half to even.
    @triton.jit  # type: ignore[untyped-decorator]
    def quantize_kernel(  # type: ignore[no-untyped-def]
        x_ptr,
        is_outlier_ptr,
        quantized_ptr,
        step_ptr,
        num_columns,
        HAS_OUTLIERS: tl.constexpr,
        COLUMNS: tl.constexpr,
    ):
        token = tl.program_id(0).to(tl.int64)
        largest = tl.zeros((COLUMNS,), tl.float32)
        for first in range(0, num_columns, COLUMNS):
            column = first + tl.arange(0, COLUMNS)
            used = column < num_columns
            if HAS_OUTLIERS:
                used &= tl.load(is_outlier_ptr + column, mask=used, other=1) == 0
            x = tl.load(x_ptr + token * num_columns + column, mask=used, other=0.0)
            largest = tl.maximum(largest, tl.abs(x.to(tl.float32)))
        step = tl.div_rn(tl.max(largest, axis=0), 127.0)
        step = tl.where(step >= 1.1754943508222875e-38, step, 1.0)
        tl.store(step_ptr + token, step)
        for first in range(0, num_columns, COLUMNS):
            column = first + tl.arange(0, COLUMNS)
            inside = column < num_columns
            used = inside
            if HAS_OUTLIERS:
                used &= tl.load(is_outlier_ptr + column, mask=inside, other=1) == 0
            x = tl.load(x_ptr + token * num_columns + column, mask=used, other=0.0)
            quotient = tl.div_rn(x.to(tl.float32), tl.zeros((COLUMNS,), tl.float32) + step)
            q = (quotient + 12582912.0) - 12582912.0
            tl.store(quantized_ptr + token * num_columns + column, q.to(tl.int8), mask=inside)

    # One tile: y[t, o] = step[t] * scale[o] * sum over c of q[t, c] * code[o, c], summed in int32.
    @triton.jit  # type: ignore[untyped-decorator]
    def multiply_kernel(  # type: ignore[no-untyped-def]
        quantized_ptr,
        step_ptr,
        codes_ptr,
        scale_ptr,
        y_ptr,
        num_tokens,
        num_outputs,
        num_columns,
        TOKENS: tl.constexpr,
        OUTPUTS: tl.constexpr,
        STEP: tl.constexpr,
    ):
        output = (tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)).to(tl.int64)[None, :]
        token = (tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)).to(tl.int64)[:, None]
        is_output, is_token = output < num_outputs, token < num_tokens
        total = tl.zeros((TOKENS, OUTPUTS), tl.int32)
        for first in range(0, num_columns, STEP):
            column = first + tl.arange(0, STEP)
            inside = column < num_columns
            at = quantized_ptr + token * num_columns + column[None, :]
            quantized = tl.load(at, mask=is_token & inside[None, :], other=0)
            at = codes_ptr + output * num_columns + column[:, None]
            codes = tl.load(at, mask=is_output & inside[:, None], other=0)
            total = tl.dot(quantized, codes, total, out_dtype=tl.int32)
        step = tl.load(step_ptr + token, mask=is_token, other=0.0)
        scale = tl.load(scale_ptr + output, mask=is_output, other=0.0).to(tl.float32)
        y = total.to(tl.float32) * step * scale
        tl.store(y_ptr + token * num_outputs + output, y, mask=is_token & is_output)

    return triton, quantize_kernel, multiply_kernel
