"""Fast twin of `naive.py`: vectorised torch on any device; on a GPU codes take one Triton pass.

Triton is imported when the first CUDA tensor arrives, so that a CPU needs none.
"""

import math
from functools import cache
from typing import Any

import torch
from torch.nn import functional as F

TINY = torch.finfo(torch.float32).tiny
WORD = 32
"""Bits of an int32; 32 codes fill exactly `bits` words."""
ELEMENTS = 1024
"""Weights of one program on a GPU."""


def absmax_scale(weight: torch.Tensor, bits: int, group_size: int | None) -> torch.Tensor:
    """Return the step of each group, float32 [out, groups]."""
    groups = weight.reshape(len(weight), -1, group_size or weight.shape[1])
    scale = groups.abs().amax(dim=2) / (2 ** (bits - 1) - 1)
    return torch.where(scale >= TINY, scale, 1.0)


def range_scale(weight: torch.Tensor, bits: int, group_size: int | None) -> torch.Tensor:
    """Return the step of each group with a zero point, float32 [out, groups]."""
    groups = weight.reshape(len(weight), -1, group_size or weight.shape[1])
    low, high = groups.amin(dim=2).clamp(max=0), groups.amax(dim=2).clamp(min=0)
    scale = (high - low) / (2**bits - 1)
    return torch.where(scale >= TINY, scale, 1.0)


def zero_point(weight: torch.Tensor, scale: torch.Tensor, bits: int) -> torch.Tensor:
    """Return the code that stands for 0, int8 [out, groups]."""
    limit = 2 ** (bits - 1) - 1
    low = weight.reshape(*scale.shape, -1).amin(dim=2).clamp(max=0)
    zero: torch.Tensor = -limit - 1 - torch.round(low / scale)
    return zero.clamp_(-limit - 1, limit).to(torch.int8)


def quantize(
    weight: torch.Tensor, scale: torch.Tensor, bits: int, zero: torch.Tensor | None = None
) -> torch.Tensor:
    """Return the nearest codes, int8 [out, in], of float32 weights under given steps."""
    if weight.is_cuda and weight.dtype == scale.dtype == torch.float32:
        with torch.cuda.device(weight.device):
            return quantize_triton(weight, scale, bits, zero)
    limit = 2 ** (bits - 1) - 1
    groups = weight.reshape(*scale.shape, -1)
    codes = torch.round(groups / scale[:, :, None])
    if zero is not None:
        codes += zero[:, :, None]
    return codes.clamp_(-limit - 1, limit).to(torch.int8).flatten(1)


def dequantize(
    codes: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None = None
) -> torch.Tensor:
    """Return the weights that codes stand for, in the scale's dtype [out, in]."""
    groups = codes.reshape(*scale.shape, -1).to(scale.dtype)
    if zero is not None:
        groups = groups - zero[:, :, None]
    return (groups * scale[:, :, None]).flatten(1)


def pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Return int32 words [out, ceil(in * bits / 32)] in the layout of compressed-tensors."""
    num_rows, num_columns = codes.shape
    zero = 2 ** (bits - 1)
    chunks: torch.Tensor = F.pad(codes, (0, -num_columns % WORD), value=-zero).view(-1, WORD)
    values = chunks.t().contiguous().to(torch.int32) + zero  # [32, chunks]: contiguous slices
    words: torch.Tensor = values.new_zeros(bits, len(chunks))
    for index in range(WORD):
        word, offset = divmod(index * bits, WORD)
        words[word] |= values[index] << offset
        if offset + bits > WORD:
            words[word + 1] |= values[index] >> (WORD - offset)
    num_words = math.ceil(num_columns * bits / WORD)
    return words.t().reshape(num_rows, -1)[:, :num_words].contiguous()


def unpack(packed: torch.Tensor, bits: int, num_columns: int) -> torch.Tensor:
    """Return the int8 codes [out, num_columns] that `pack` was given."""
    num_rows = len(packed)
    chunks: torch.Tensor = F.pad(packed, (0, -packed.shape[1] % bits)).view(-1, bits)
    words = chunks.t().contiguous()
    values = words.new_empty(WORD, words.shape[1])
    for index in range(WORD):
        word, offset = divmod(index * bits, WORD)
        here = min(bits, WORD - offset)  # >> keeps the sign, so what lies above is masked away
        values[index] = words[word] >> offset & 2**here - 1
        if here < bits:
            values[index] |= (words[word + 1] & 2 ** (bits - here) - 1) << here
    codes: torch.Tensor = (values - 2 ** (bits - 1)).to(torch.int8).t().reshape(num_rows, -1)
    return codes[:, :num_columns].contiguous()


def quantize_triton(
    weight: torch.Tensor, scale: torch.Tensor, bits: int, zero: torch.Tensor | None
) -> torch.Tensor:
    """Quantize in one pass over a float32 weight."""
    weight, scale = weight.contiguous(), scale.contiguous()
    codes = torch.empty_like(weight, dtype=torch.int8)
    triton, kernel = _triton_kernel()
    kernel[(triton.cdiv(weight.numel(), ELEMENTS),)](
        weight,
        scale,
        None if zero is None else zero.contiguous(),
        codes,
        weight.numel(),
        weight.shape[1] // scale.shape[1],
        BITS=bits,
        HAS_ZERO=zero is not None,
        ELEMENTS=ELEMENTS,
    )
    return codes


@cache
def _triton_kernel() -> tuple[Any, Any]:
    import triton
    import triton.language as tl

    # Groups follow one another in memory, so element i belongs to group i // group_size:
    #     code = clamp(round(w / scale) + zero, -Q - 1, Q)
    # (q + 1.5 * 2^23) - 1.5 * 2^23 rounds |q| < 2^22 half to even; larger ones end at the limits.
    @triton.jit  # type: ignore[untyped-decorator]
    def kernel(  # type: ignore[no-untyped-def]
        weight_ptr,
        scale_ptr,
        zero_ptr,
        codes_ptr,
        num_elements,
        group_size,
        BITS: tl.constexpr,
        HAS_ZERO: tl.constexpr,
        ELEMENTS: tl.constexpr,
    ):
        LIMIT: tl.constexpr = 2.0 ** (BITS - 1) - 1.0
        element = tl.program_id(0).to(tl.int64) * ELEMENTS + tl.arange(0, ELEMENTS)
        inside = element < num_elements
        group = element // group_size
        weight = tl.load(weight_ptr + element, mask=inside, other=0.0)
        scale = tl.load(scale_ptr + group, mask=inside, other=1.0)
        code = (tl.div_rn(weight, scale) + 12582912.0) - 12582912.0
        if HAS_ZERO:
            code += tl.load(zero_ptr + group, mask=inside, other=0).to(tl.float32)
        code = tl.minimum(tl.maximum(code, -LIMIT - 1.0), LIMIT)
        tl.store(codes_ptr + element, code.to(tl.int8), mask=inside)

    return triton, kernel
