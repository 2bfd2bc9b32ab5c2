"""Triton kernels: weights stay packed up to the registers of the program that multiplies them.

One token is a sum of products, bound by reading the packed words; more tokens go through the tensor
cores, split along `in` while there are few tiles. Nothing is added atomically, so that a result is
the same twice.
"""

from functools import cache
from typing import Any

import torch

WORD = 32
ROWS_PER_PROGRAM = 8
"""Outputs of one program for one token."""
TILE_OUTPUTS = 64
LONGEST_STEP = {2: 128, 4: 32}
"""Columns of one step of the tiled kernel at most, by the bytes of x's dtype: float32 is multiplied
as three products, whose parts must fit the shared memory. A group of fewer than 32 columns gets its
scale weight by weight."""


def matmul_triton(
    x: torch.Tensor,
    packed: torch.Tensor,
    scale: torch.Tensor,
    bits: int,
    zero: torch.Tensor | None,
    num_splits: int | None = None,
) -> torch.Tensor:
    """Return y [tokens, out].

    Args:
        x: Contiguous [tokens, in].
        num_splits: Parts into which `in` is cut for more than one token; None: as many as fill
            the GPU.
    """
    packed, scale = packed.contiguous(), scale.contiguous()
    zero = None if zero is None else zero.contiguous()
    if len(x) == 1:
        return _multiply_token(x, packed, scale, bits, zero)
    return _multiply_tiles(x, packed, scale, bits, zero, num_splits)


def _multiply_token(
    x: torch.Tensor, packed: torch.Tensor, scale: torch.Tensor, bits: int, zero: torch.Tensor | None
) -> torch.Tensor:
    num_columns, num_groups = x.shape[1], scale.shape[1]
    group_size = num_columns // num_groups
    y = x.new_empty(1, len(packed))
    triton, token_kernel, _ = _triton_kernels()
    token_kernel[(triton.cdiv(len(packed), ROWS_PER_PROGRAM),)](
        x,
        packed,
        scale,
        zero,
        y,
        len(packed),
        num_columns,
        packed.shape[1],
        num_groups,
        group_size,
        BITS=bits,
        HAS_ZERO=zero is not None,
        WHOLE_CHUNKS=num_groups == 1 or group_size % WORD == 0,
        ROWS=ROWS_PER_PROGRAM,
        CHUNKS=min(128, triton.next_power_of_2(triton.cdiv(num_columns, WORD))),
        enable_fp_fusion=True,
    )
    return y


def _multiply_tiles(
    x: torch.Tensor,
    packed: torch.Tensor,
    scale: torch.Tensor,
    bits: int,
    zero: torch.Tensor | None,
    num_splits: int | None,
) -> torch.Tensor:
    (num_tokens, num_columns), num_outputs, num_groups = x.shape, len(packed), scale.shape[1]
    group_size = num_columns // num_groups
    longest = LONGEST_STEP[x.itemsize]
    step = longest if num_groups == 1 else min(group_size & -group_size, longest)
    whole_steps = step >= WORD
    step = step if whole_steps else longest
    triton, _, tile_kernel = _triton_kernels()
    tile_tokens = min(max(triton.next_power_of_2(num_tokens), 16), 64)
    tiles = triton.cdiv(num_outputs, TILE_OUTPUTS), triton.cdiv(num_tokens, tile_tokens)
    num_steps = triton.cdiv(num_columns, step)
    if num_splits is None:
        wanted = 2 * torch.cuda.get_device_properties(x.device).multi_processor_count
        num_splits = min(max(wanted // max(tiles[0] * tiles[1], 1), 1), max(num_steps // 4, 1))
    dtype = x.dtype if num_splits == 1 else torch.float32
    y = x.new_empty(num_splits, num_tokens, num_outputs, dtype=dtype)
    tile_kernel[(*tiles, num_splits)](
        x,
        packed,
        scale,
        zero,
        y,
        num_tokens,
        num_outputs,
        num_columns,
        packed.shape[1],
        num_groups,
        group_size,
        triton.cdiv(num_steps, num_splits),
        BITS=bits,
        HAS_ZERO=zero is not None,
        WHOLE_STEPS=whole_steps,
        OUTPUTS=TILE_OUTPUTS,
        TOKENS=tile_tokens,
        STEP=step,
        num_stages=4,
        enable_fp_fusion=True,
    )
    return y[0] if num_splits == 1 else y.sum(0).to(x.dtype)


@cache
def _triton_kernels() -> tuple[Any, Any, Any]:
    import triton
    import triton.language as tl

    # For one token. 32 codes of a row fill BITS words and belong to one thread, which takes code e
    # of all its rows at once; where the code stands in the words is then known beforehand:
    #     y[o] = sum over c of x[c] * (field[o, c] - 2^(BITS-1) - zero[o, g]) * scale[o, g]
    # field | 0x4B000000, read as a float32, is 2^23 + field.
    @triton.jit  # type: ignore[untyped-decorator]
    def token_kernel(  # type: ignore[no-untyped-def]
        x_ptr,
        packed_ptr,
        scale_ptr,
        zero_ptr,
        y_ptr,
        num_outputs,
        num_columns,
        num_words,
        num_groups,
        group_size,
        BITS: tl.constexpr,
        HAS_ZERO: tl.constexpr,
        WHOLE_CHUNKS: tl.constexpr,
        ROWS: tl.constexpr,
        CHUNKS: tl.constexpr,
    ):
        MASK: tl.constexpr = 2**BITS - 1
        MIDDLE: tl.constexpr = 8388608.0 + 2 ** (BITS - 1)
        row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
        is_row = row < num_outputs
        total = tl.zeros((ROWS, CHUNKS), tl.float32)
        for first in range(0, tl.cdiv(num_columns, 32), CHUNKS):
            chunk = first + tl.arange(0, CHUNKS)
            column = chunk[:, None] * 32 + tl.arange(0, 32)[None, :]
            x = tl.load(x_ptr + column, mask=column < num_columns, other=0.0).to(tl.float32)
            values = (x,)
            for level in tl.static_range(5):  # by the column's bits, lowest first
                even, odd = (), ()
                for part in tl.static_range(2**level):
                    pairs = tl.reshape(values[part], (CHUNKS, 16 >> level, 2))
                    low, high = tl.split(pairs)
                    even += (low,)  # type: ignore[assignment]
                    odd += (high,)  # type: ignore[assignment]
                values = even + odd  # type: ignore[assignment]
            chunk = chunk[None, :]
            part = tl.zeros((ROWS, CHUNKS), tl.float32)
            if WHOLE_CHUNKS:
                at = row * num_groups + chunk * 32 // group_size
                inside = is_row & (chunk * 32 < num_columns)
                scale = tl.load(scale_ptr + at, mask=inside, other=0.0).to(tl.float32)
                middle = tl.zeros_like(scale) + MIDDLE
                if HAS_ZERO:
                    middle += tl.load(zero_ptr + at, mask=inside, other=0).to(tl.float32)
            before = tl.zeros((ROWS, CHUNKS), tl.int32)
            for index in tl.static_range(BITS):
                place = chunk * BITS + index
                inside = is_row & (place < num_words)
                word = tl.load(packed_ptr + row * num_words + place, mask=inside, other=0)
                for e in tl.static_range(32):
                    if (e * BITS + BITS - 1) // 32 == index:
                        if e * BITS >= 32 * index:
                            field = (word >> (e * BITS - 32 * index)) & MASK
                        else:
                            field = (before >> (e * BITS - 32 * index + 32)) & (
                                2 ** (32 * index - e * BITS) - 1
                            )
                            field |= (word << (32 * index - e * BITS)) & MASK
                        value = (field | 0x4B000000).to(tl.float32, bitcast=True)
                        x = tl.reshape(values[e], (1, CHUNKS))
                        if WHOLE_CHUNKS:
                            part += (value - middle) * x
                        else:
                            at = row * num_groups + (chunk * 32 + e) // group_size
                            inside = is_row & (chunk * 32 + e < num_columns)
                            scale = tl.load(scale_ptr + at, mask=inside, other=0.0).to(tl.float32)
                            code = value - MIDDLE
                            if HAS_ZERO:
                                code -= tl.load(zero_ptr + at, mask=inside, other=0).to(tl.float32)
                            part += code * scale * x
                before = word
            if WHOLE_CHUNKS:
                part *= scale
            total += part
        y = tl.sum(total, axis=1)[:, None]
        tl.store(y_ptr + row, y.to(y_ptr.dtype.element_ty), mask=is_row)

    # For many tokens, one tile [OUTPUTS, TOKENS] of y^T over one split of the columns:
    #     tile += scale * ((code - zero) @ x^T)   where a step lies within one group: the integers
    #                                             are exact in any floating type
    #     tile += ((code - zero) * scale) @ x^T   otherwise
    @triton.jit  # type: ignore[untyped-decorator]
    def tile_kernel(  # type: ignore[no-untyped-def]
        x_ptr,
        packed_ptr,
        scale_ptr,
        zero_ptr,
        y_ptr,
        num_tokens,
        num_outputs,
        num_columns,
        num_words,
        num_groups,
        group_size,
        steps_per_split,
        BITS: tl.constexpr,
        HAS_ZERO: tl.constexpr,
        WHOLE_STEPS: tl.constexpr,
        OUTPUTS: tl.constexpr,
        TOKENS: tl.constexpr,
        STEP: tl.constexpr,
    ):
        MASK: tl.constexpr = 2**BITS - 1
        CODES: tl.constexpr = 32 // BITS
        row = (tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)).to(tl.int64)[:, None]
        token = (tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)).to(tl.int64)[None, :]
        is_row, is_token = row < num_outputs, token < num_tokens
        tile = tl.zeros((OUTPUTS, TOKENS), tl.float32)
        first = tl.program_id(2) * steps_per_split * STEP
        last = tl.minimum(first + steps_per_split * STEP, num_columns)
        for start in range(first, last, STEP):
            column = start + tl.arange(0, STEP)
            if 32 % BITS == 0:
                place = start // CODES + tl.arange(0, STEP // CODES)[None, :]
                words = tl.load(
                    packed_ptr + row * num_words + place,
                    mask=is_row & (place < num_words),
                    other=0,
                )
                shift = tl.arange(0, CODES)[None, None, :] * BITS
                code = tl.reshape((words[:, :, None] >> shift) & MASK, (OUTPUTS, STEP))
            else:
                code = tl.zeros((OUTPUTS, STEP // 32, 32), tl.uint32)
                for index in tl.static_range(BITS):
                    place = (start // 32 + tl.arange(0, STEP // 32)[None, :]) * BITS + index
                    inside = is_row & (place < num_words)
                    word = tl.load(packed_ptr + row * num_words + place, mask=inside, other=0)
                    word = word.to(tl.uint32, bitcast=True)[:, :, None]
                    shift = tl.arange(0, 32)[None, None, :] * BITS - 32 * index
                    moved = (word >> tl.maximum(shift, 0)) << tl.maximum(-shift, 0)
                    code |= tl.where((shift > -BITS) & (shift < 32), moved, 0)
                code = tl.reshape((code & MASK).to(tl.int32), (OUTPUTS, STEP))
            code -= 2 ** (BITS - 1)
            inside = column < num_columns
            x = tl.load(
                x_ptr + token * num_columns + column[:, None],
                mask=is_token & inside[:, None],
                other=0.0,
            )
            if WHOLE_STEPS:
                at = row * num_groups + start // group_size
                if HAS_ZERO:
                    code -= tl.load(zero_ptr + at, mask=is_row, other=0).to(tl.int32)
                scale = tl.load(scale_ptr + at, mask=is_row, other=0.0).to(tl.float32)
                product = tl.dot(code.to(x.dtype), x, input_precision="tf32x3")
                tile += product * scale
            else:
                at = row * num_groups + column[None, :] // group_size
                here = is_row & inside[None, :]
                if HAS_ZERO:
                    code -= tl.load(zero_ptr + at, mask=here, other=0).to(tl.int32)
                scale = tl.load(scale_ptr + at, mask=here, other=0.0).to(tl.float32)
                weight = (code.to(tl.float32) * scale).to(x.dtype)
                tile = tl.dot(weight, x, tile, input_precision="tf32x3")
        at = (tl.program_id(2) * num_tokens + token) * num_outputs + row
        tl.store(y_ptr + at, tile.to(y_ptr.dtype.element_ty), mask=is_row & is_token)

    return triton, token_kernel, tile_kernel
