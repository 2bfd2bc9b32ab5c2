"""Fast twin of `naive.py`: vectorised torch on any device, one Triton pass on a GPU.

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


def quantize_packed(
    weight: torch.Tensor, bits: int, group_size: int | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return packed codes int32 [out, ceil(in * bits / 32)] and scale float32 [out, groups]."""
    size = group_size or weight.shape[1]
    if weight.is_cuda and (size % WORD == 0 or size == weight.shape[1]):
        return quantize_packed_triton(weight, bits, size)
    scale = absmax_scale(weight, bits, group_size)
    return pack(quantize(weight, scale, bits), bits), scale


def quantize_packed_triton(
    weight: torch.Tensor, bits: int, group_size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantize and pack in one pass; each program reads one group once.

    A group must fill whole words: a multiple of 32 columns, or the whole row.
    """
    num_rows, num_columns = weight.shape
    num_groups = num_columns // group_size
    group_words = math.ceil(group_size * bits / WORD)
    packed = weight.new_empty(num_rows, num_groups * group_words, dtype=torch.int32)
    scale = weight.new_empty(num_rows, num_groups)
    triton, kernel = _triton_kernel()
    kernel[(num_rows * num_groups,)](
        weight.contiguous(),
        packed,
        scale,
        group_size,
        group_words,
        BITS=bits,
        CHUNKS=triton.next_power_of_2(math.ceil(group_size / WORD)),
    )
    return packed, scale


@cache
def _triton_kernel() -> tuple[Any, Any]:
    import triton
    import triton.language as tl

    # One program holds one group as [CHUNKS, 32] weights w, and makes BITS words of each 32:
    #     scale = max |w| / Q,  u = round(w / scale) + Q + 1
    #     word k = sum over e of u[e] * 2^(e BITS - 32 k), its bits 0 to 31
    # (x + 1.5 * 2^23) - 1.5 * 2^23 rounds |x| < 2^22 half to even.
    @triton.jit  # type: ignore[untyped-decorator]
    def kernel(  # type: ignore[no-untyped-def]
        weight_ptr,
        packed_ptr,
        scale_ptr,
        group_size,
        group_words,
        BITS: tl.constexpr,
        CHUNKS: tl.constexpr,
    ):
        group = tl.program_id(0).to(tl.int64)
        LIMIT: tl.constexpr = 2 ** (BITS - 1) - 1
        element = tl.arange(0, 32)[None, :]
        column = tl.arange(0, CHUNKS)[:, None] * 32 + element
        inside = column < group_size
        weight = tl.load(weight_ptr + group * group_size + column, mask=inside, other=0.0)
        scale = tl.div_rn(tl.max(tl.max(tl.abs(weight), axis=1), axis=0), LIMIT * 1.0)
        scale = tl.where(scale >= 1.1754943508222875e-38, scale, 1.0)
        tl.store(scale_ptr + group, scale)
        code = (tl.div_rn(weight, tl.zeros_like(weight) + scale) + 12582912.0) - 12582912.0
        unsigned = tl.where(inside, code.to(tl.int64) + (LIMIT + 1), 0)
        for index in tl.static_range(BITS):
            shift = element * BITS - 32 * index
            moved = (unsigned << tl.maximum(shift, 0)) >> tl.maximum(-shift, 0)
            here = (shift > -BITS) & (shift < 32)
            word = tl.sum(tl.where(here, moved & 0xFFFFFFFF, 0), axis=1)
            position = tl.arange(0, CHUNKS) * BITS + index
            stored = position < group_words
            tl.store(packed_ptr + group * group_words + position, word.to(tl.int32), mask=stored)

    return triton, kernel
