"""The block types of GGUF, from integer codes as they are: no weight is rounded a second time.

Each block holds 32 weights of a row, their step first, in float16:

    Q8_0   w = d q,              q int8
    Q4_0   w = d (q - 8),        q in 0..15, two to a byte: 0..15 in the low halves, 16..31 above
    Q4_1   w = d q + m,          m = -d zero, in float16
"""

import numpy as np
import torch
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from tasks.models.quantized.integer import IntegerTensor

BLOCK = 32


def choose_type(tensor: IntegerTensor) -> GGMLQuantizationType:
    """Return the type whose blocks hold the codes and steps as they are.

    Raises:
        ValueError: there is none.
    """
    kinds = {
        (8, False): GGMLQuantizationType.Q8_0,
        (4, False): GGMLQuantizationType.Q4_0,
        (4, True): GGMLQuantizationType.Q4_1,
    }
    kind = kinds.get((tensor.bits, tensor.zero is not None))
    if kind is None or tensor.group_size != BLOCK or tensor.scale.dtype != torch.float16:
        zeros = "" if tensor.zero is None else " and zero points"
        raise ValueError(
            "format gguf: expected codes of 8 bits, or of 4 with or without zero points, in groups "
            f"of 32 with float16 steps; got {tensor.bits} bits, group_size {tensor.group_size}, "
            f"steps in {tensor.scale.dtype}{zeros}; set group_size: 32 and dtype: float16"
        )
    return kind


def pack_blocks(tensor: IntegerTensor, rows: torch.Tensor | None = None) -> NDArray[np.uint8]:
    """Return the weight's blocks [out, bytes per row], its rows in a given order."""
    kind = choose_type(tensor)
    codes, scale, zero = tensor.codes, tensor.scale, tensor.zero
    if rows is not None:
        codes, scale = codes[rows], scale[rows]
        zero = None if zero is None else zero[rows]
    num_rows, num_groups = scale.shape
    groups = codes.reshape(num_rows, num_groups, BLOCK)
    heads = [scale]
    if kind == GGMLQuantizationType.Q8_0:
        body = groups.view(torch.uint8)
    else:
        unsigned = (groups + 8).view(torch.uint8)
        body = unsigned[:, :, : BLOCK // 2] | unsigned[:, :, BLOCK // 2 :] << 4
    if zero is not None:
        heads.append((-scale.float() * (zero.float() + 8)).half())
    parts = [head.contiguous().view(torch.uint8).view(num_rows, num_groups, 2) for head in heads]
    packed: NDArray[np.uint8] = torch.cat([*parts, body], dim=2).flatten(1).numpy()
    return packed
