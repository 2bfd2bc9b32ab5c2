"""Activations times integer weights in groups: the specification, output by output.

    y[t, o] = sum over c of x[t, c] * (code[o, c] - zero[o, g]) * scale[o, g],  g = c // group_size

Codes are packed as `group_quant` packs them: a row is one long little-endian number, in which code
c, made unsigned by adding 2^(bits-1), stands at bit c * bits; 3-bit codes straddle words.

`fused.py` has the same signature; its results differ by the rounding of sums alone, on a GPU also
by that of the weights to x's dtype where groups are no whole number of tiles.
"""

import torch

from kernels.group_quant import naive


def matmul(
    x: torch.Tensor,
    packed: torch.Tensor,
    scale: torch.Tensor,
    bits: int,
    zero: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return y [..., out], in x's dtype.

    Args:
        x: Activations, float32, bfloat16 or float16 [..., in].
        packed: int32 [out, ceil(in * bits / 32)].
        scale: Steps, floating point [out, groups]; the number of groups divides `in`.
        bits: 2 to 8.
        zero: int8 [out, groups]; None where the codes are symmetric about 0.
    """
    codes = naive.unpack(packed, bits, x.shape[-1])
    weight = naive.dequantize(codes, scale.double(), zero)
    rows = x.double().reshape(-1, x.shape[-1])
    y = torch.empty(len(rows), len(weight), dtype=torch.float64)
    for token, values in enumerate(rows):
        for output, weights in enumerate(weight):
            y[token, output] = (values * weights).sum()
    return y.reshape(*x.shape[:-1], len(weight)).to(x.dtype)
