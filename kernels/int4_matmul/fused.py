"""Fast twin of `naive.py`: on a CPU a few rows at a time in cache, on a GPU `gpu.py`."""

import math
from typing import NamedTuple

import torch

from kernels.group_quant import fused as group_quant

WORD = 32
"""Bits of an int32."""
CACHED = 2**17
"""Weights that are decoded together: as float32 half a mebibyte."""


def matmul(
    x: torch.Tensor,
    packed: torch.Tensor,
    scale: torch.Tensor,
    bits: int,
    zero: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return x @ dequantize(packed).T, [..., out], without ever holding the whole weight."""
    rows = x.reshape(-1, x.shape[-1]).contiguous()
    if x.is_cuda:
        from kernels.int4_matmul.gpu import matmul_triton

        with torch.cuda.device(rows.device):
            y = matmul_triton(rows, packed, scale, bits, zero)
    else:
        y = matmul_cpu(rows.float(), packed, scale.float(), bits, zero).to(x.dtype)
    return y.reshape(*x.shape[:-1], len(packed))


def matmul_cpu(
    x: torch.Tensor,
    packed: torch.Tensor,
    scale: torch.Tensor,
    bits: int,
    zero: torch.Tensor | None,
) -> torch.Tensor:
    """Decode a few rows into a buffer that stays in cache and multiply, all in float32.

    Where a group is a whole number of periods (the fewest words that hold a whole number of codes:
    8 codes of 4 bits, 32 of 3), rows are decoded in the order e, period instead of period, e:

        y[t, o] = sum of x[t, c] 2^-shift * field[o, c] * scale[o, g]  -  xsum[t, g] * offset[o, g]

    where a field is a code still in its place within its word, so that one mask and one conversion
    decode it, and the offset is what the codes' 0 stands for.
    """
    num_columns, num_groups = x.shape[1], scale.shape[1]
    period = _period(bits)
    num_codes = len(period.shifts)
    if num_columns // num_groups % num_codes:
        return _matmul_blocks(x, packed, scale, bits, zero)
    num_periods = num_columns // num_codes
    in_place = [period.is_in_place(index) for index in range(num_codes)]
    shifts = [shift if here else 0 for shift, here in zip(period.shifts, in_place, strict=True)]
    masks = packed.new_tensor([2**bits - 1 << shift for shift in shifts])[:, None]
    factors = x.new_tensor([2.0**-shift for shift in shifts])
    spread = (x.view(len(x), num_periods, num_codes) * factors).transpose(1, 2).flatten(1)
    block = max(CACHED // num_columns, 1)
    fields = packed.new_empty(block, num_codes, num_periods)
    weights = x.new_empty(fields.shape)
    y = x.new_empty(len(x), len(packed))
    for first in range(0, len(packed), block):
        rows = packed[first : first + block].view(-1, num_periods, period.num_words)
        here = slice(first, first + len(rows))
        _decode(rows, period, masks, fields[: len(rows)])
        decoded = weights[: len(rows)].copy_(fields[: len(rows)])
        decoded *= scale[here].repeat_interleave(num_periods // num_groups, dim=1)[:, None]
        y[:, here] = spread @ decoded.flatten(1).T
    offset = scale * (2 ** (bits - 1) if zero is None else zero.float() + 2 ** (bits - 1))
    y -= x.view(len(x), num_groups, num_columns // num_groups).sum(2) @ offset.T
    return y


def _matmul_blocks(
    x: torch.Tensor,
    packed: torch.Tensor,
    scale: torch.Tensor,
    bits: int,
    zero: torch.Tensor | None,
) -> torch.Tensor:
    block = max(CACHED // x.shape[1], 1)
    y = x.new_empty(len(x), len(packed))
    for first in range(0, len(packed), block):
        here = slice(first, first + block)
        codes = group_quant.unpack(packed[here], bits, x.shape[1])
        steps = None if zero is None else zero[here]
        y[:, here] = x @ group_quant.dequantize(codes, scale[here], steps).T
    return y


class _Period(NamedTuple):
    """The fewest words that hold a whole number of codes, and where these stand."""

    bits: int
    num_words: int
    shifts: list[int]
    """Of each code within its word; its bits beyond the word are the next word's lowest."""
    words: list[int]
    """In which each code begins."""

    def is_in_place(self, index: int) -> bool:
        """Return whether the code lies below its word's sign bit: masked, it is code * 2^shift."""
        return self.shifts[index] + self.bits < WORD


def _period(bits: int) -> _Period:
    num_words = bits // math.gcd(bits, WORD)
    places = [divmod(index * bits, WORD) for index in range(num_words * WORD // bits)]
    return _Period(bits, num_words, [shift for _, shift in places], [word for word, _ in places])


def _decode(rows: torch.Tensor, period: _Period, masks: torch.Tensor, fields: torch.Tensor) -> None:
    """Fill fields [rows, e, periods] from words [rows, periods, words].

    Args:
        masks: Of the codes in place, int32 [e, 1].
    """
    words = [rows[:, :, index].contiguous() for index in range(period.num_words)]
    for number, values in enumerate(words):
        first = period.words.index(number)
        here = slice(first, first + period.words.count(number))
        torch.bitwise_and(values[:, None], masks[here], out=fields[:, here])
    for index, (word, shift) in enumerate(zip(period.words, period.shifts, strict=True)):
        if not period.is_in_place(index):
            bits_here = min(period.bits, WORD - shift)
            code = words[word] >> shift & 2**bits_here - 1
            if bits_here < period.bits:
                code |= (words[word + 1] & 2 ** (period.bits - bits_here) - 1) << bits_here
            fields[:, index] = code
