"""Integer quantization per group of input columns: the specification, loop by loop.

    Q = 2^(bits-1) - 1
    scale[r, g] = max |w| / Q  over the group's weights, or 1 where that is not a normal float
    code[r, c] = clamp(round_half_even(w[r, c] / scale[r, g]), -Q - 1, Q),  g = c // group_size
    w[r, c] ~ code[r, c] * scale[r, g]

With that scale the lowest code, -Q - 1, stays unused; a smaller one may use it. With a zero point
the range from the group's smallest weight (at most 0) to its largest (at least 0) is used in full:

    scale[r, g] = (max w - min w) / (2^bits - 1)
    zero[r, g] = clamp(-Q - 1 - round_half_even(min w / scale[r, g]), -Q - 1, Q)
    code[r, c] = clamp(round_half_even(w[r, c] / scale[r, g]) + zero[r, g], -Q - 1, Q)
    w[r, c] ~ (code[r, c] - zero[r, g]) * scale[r, g]

`fused.py` has the same signatures and the same results.
"""

import math

import torch

TINY = torch.finfo(torch.float32).tiny


def absmax_scale(weight: torch.Tensor, bits: int, group_size: int | None) -> torch.Tensor:
    """Return the step of each group, float32 [out, groups].

    Args:
        weight: float32 [out, in].
        group_size: Columns that share a step and divide `in`; None for whole rows.
    """
    size = group_size or weight.shape[1]
    scale = torch.empty(weight.shape[0], weight.shape[1] // size)
    for row in range(scale.shape[0]):
        for group in range(scale.shape[1]):
            step = weight[row, group * size : (group + 1) * size].abs().max() / (
                2 ** (bits - 1) - 1
            )
            scale[row, group] = step if step >= TINY else 1.0
    return scale


def range_scale(weight: torch.Tensor, bits: int, group_size: int | None) -> torch.Tensor:
    """Return the step of each group with a zero point, float32 [out, groups]."""
    size = group_size or weight.shape[1]
    scale = torch.empty(weight.shape[0], weight.shape[1] // size)
    for row in range(scale.shape[0]):
        for group in range(scale.shape[1]):
            values = weight[row, group * size : (group + 1) * size]
            step = (values.max().clamp(min=0) - values.min().clamp(max=0)) / (2**bits - 1)
            scale[row, group] = step if step >= TINY else 1.0
    return scale


def zero_point(weight: torch.Tensor, scale: torch.Tensor, bits: int) -> torch.Tensor:
    """Return the code that stands for 0, int8 [out, groups]."""
    limit = 2 ** (bits - 1) - 1
    size = weight.shape[1] // scale.shape[1]
    zero = torch.empty(scale.shape, dtype=torch.int8)
    for row in range(scale.shape[0]):
        for group in range(scale.shape[1]):
            low = weight[row, group * size : (group + 1) * size].min().clamp(max=0)
            code = -limit - 1 - torch.round(low / scale[row, group])
            zero[row, group] = int(code.clamp(-limit - 1, limit))
    return zero


def quantize(
    weight: torch.Tensor, scale: torch.Tensor, bits: int, zero: torch.Tensor | None = None
) -> torch.Tensor:
    """Return the nearest codes, int8 [out, in], of float32 weights under given steps."""
    limit = 2 ** (bits - 1) - 1
    size = weight.shape[1] // scale.shape[1]
    codes = torch.empty(weight.shape, dtype=torch.int8)
    for row in range(weight.shape[0]):
        for column in range(weight.shape[1]):
            code = torch.round(weight[row, column] / scale[row, column // size])
            if zero is not None:
                code += zero[row, column // size]
            codes[row, column] = int(code.clamp(-limit - 1, limit))
    return codes


def dequantize(
    codes: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None = None
) -> torch.Tensor:
    """Return the weights that codes stand for, in the scale's dtype [out, in]."""
    size = codes.shape[1] // scale.shape[1]
    weight = torch.empty(codes.shape, dtype=scale.dtype)
    for row in range(codes.shape[0]):
        for column in range(codes.shape[1]):
            code = int(codes[row, column])
            if zero is not None:
                code -= int(zero[row, column // size])
            weight[row, column] = code * scale[row, column // size]
    return weight


def pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Return int32 words [out, ceil(in * bits / 32)] in the layout of compressed-tensors.

    A row is one long little-endian number, in which code c, made unsigned by adding 2^(bits-1),
    stands at bit c * bits.
    """
    num_words = math.ceil(codes.shape[1] * bits / 32)
    packed = torch.empty(codes.shape[0], num_words, dtype=torch.int32)
    for row, values in enumerate(codes.tolist()):
        number = sum(
            value + 2 ** (bits - 1) << column * bits for column, value in enumerate(values)
        )
        data = bytearray(number.to_bytes(4 * num_words, "little"))
        packed[row] = torch.frombuffer(data, dtype=torch.int32)
    return packed


def unpack(packed: torch.Tensor, bits: int, num_columns: int) -> torch.Tensor:
    """Return the int8 codes [out, num_columns] that `pack` was given."""
    codes = torch.empty(packed.shape[0], num_columns, dtype=torch.int8)
    for row in range(packed.shape[0]):
        number = int.from_bytes(packed[row].numpy().tobytes(), "little")
        for column in range(num_columns):
            code = number >> column * bits & 2**bits - 1
            codes[row, column] = code - 2 ** (bits - 1)
    return codes
