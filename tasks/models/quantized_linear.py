"""Linear layers that compute with a quantized weight as it is stored.

Some encodings ask for an input that is quantized as well, token by token; few bits may stay packed.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from kernels.int4_matmul import fused as int4_matmul
from kernels.vector_int8 import fused as vector_int8
from tasks.models.quantized.binary import BinaryTensor
from tasks.models.quantized.integer import IntegerTensor
from tasks.models.quantized.outlier_columns import OutlierColumnsTensor
from tasks.models.quantized_tensor import QuantizedTensor

PACKED_BITS = (2, 3, 4)
"""Widths of codes that are multiplied without being unpacked first; wider ones gain little."""


def make_linear(tensor: QuantizedTensor, bias: torch.Tensor | None) -> nn.Module | None:
    """Return the layer that computes with a quantized weight and a quantized input.

    None where the input stays as it is: there a linear layer with the dequantized weight does.

    Raises:
        ValueError: the encoding asks for an input that no layer here makes.
    """
    if isinstance(tensor, OutlierColumnsTensor):
        codes = torch.zeros(tensor.shape, dtype=torch.int8)
        codes[:, tensor.rest()] = tensor.codes
        return Int8Linear(codes, tensor.scale, bias, tensor.columns.long(), tensor.values)
    activations = getattr(tensor, "activations", None)
    if activations is None:
        return None
    if isinstance(tensor, BinaryTensor) and activations == "binary":
        return BinaryLinear(tensor.signs, tensor.alpha, bias)
    if isinstance(tensor, IntegerTensor) and activations == "int8" and has_step_per_row(tensor):
        return Int8Linear(tensor.codes, tensor.scale, bias)
    raise ValueError(
        "expected activations int8 behind one symmetric step per row, or binary behind binary "
        f"weights; got {activations!r} behind {tensor.kind}"
    )


def make_packed_linear(tensor: IntegerTensor, bias: torch.Tensor | None) -> PackedLinear:
    """Return the layer whose weight stays packed.

    Raises:
        ValueError: scale or zero point are not those of equal groups of columns.
    """
    num_rows, num_columns = tensor.shape
    grid = tensor.scale.shape
    if len(grid) != 2 or grid[0] != num_rows or grid[1] < 1 or num_columns % grid[1]:
        raise ValueError(
            f"expected a scale [{num_rows}, groups], groups a divisor of {num_columns}, "
            f"got {list(grid)}"
        )
    if tensor.zero is not None and (tensor.zero.shape, tensor.zero.dtype) != (grid, torch.int8):
        raise ValueError(
            f"expected an int8 zero point {list(grid)}, "
            f"got {tensor.zero.dtype} {list(tensor.zero.shape)}"
        )
    return PackedLinear(tensor.pack().parts["codes"], tensor.scale, tensor.bits, tensor.zero, bias)


def has_step_per_row(tensor: IntegerTensor) -> bool:
    return tensor.scale.shape == (len(tensor.codes), 1) and tensor.zero is None


class Int8Linear(nn.Module):
    """y = (x_codes @ codes^T) * x_step * scale, plus the kept columns as they are."""

    codes: torch.Tensor
    scale: torch.Tensor
    bias: torch.Tensor | None
    columns: torch.Tensor | None
    values: torch.Tensor | None

    def __init__(
        self,
        codes: torch.Tensor,
        scale: torch.Tensor,
        bias: torch.Tensor | None,
        columns: torch.Tensor | None = None,
        values: torch.Tensor | None = None,
    ) -> None:
        """Take over a weight [out, in].

        Args:
            codes: int8 [out, in].
            scale: [out, 1].
            columns: int64 [kept]; what the codes say of them is not looked at.
            values: [out, kept].
        """
        super().__init__()
        self.register_buffer("codes", codes)
        self.register_buffer("scale", scale.flatten())
        self.register_buffer("bias", bias)
        self.register_buffer("columns", columns)
        self.register_buffer("values", values)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = vector_int8.linear(x, self.codes, self.scale, self.columns, self.values)
        return y if self.bias is None else y + self.bias.to(y.dtype)


class BinaryLinear(nn.Module):
    """y = (sign(x) @ signs^T) * mean(abs(x)) * alpha, sign(0) = +1."""

    signs: torch.Tensor
    alpha: torch.Tensor
    bias: torch.Tensor | None

    def __init__(self, signs: torch.Tensor, alpha: torch.Tensor, bias: torch.Tensor | None) -> None:
        """Take over a weight [out, in].

        Args:
            signs: int8 [out, in].
            alpha: [out, 1].
        """
        super().__init__()
        self.register_buffer("signs", signs)
        self.register_buffer("alpha", alpha.flatten())
        self.register_buffer("bias", bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        magnitude = x.float().abs().mean(dim=-1, keepdim=True)
        signs = torch.where(x >= 0, 1.0, -1.0)
        y = (F.linear(signs, self.signs.float()) * magnitude * self.alpha.float()).to(x.dtype)
        return y if self.bias is None else y + self.bias.to(y.dtype)


class PackedLinear(nn.Module):
    """y = x @ ((codes - zero) * scale)^T, the codes packed as they are on disk."""

    codes: torch.Tensor
    scale: torch.Tensor
    zero: torch.Tensor | None
    bias: torch.Tensor | None

    def __init__(
        self,
        codes: torch.Tensor,
        scale: torch.Tensor,
        bits: int,
        zero: torch.Tensor | None,
        bias: torch.Tensor | None,
    ) -> None:
        """Take over a weight [out, in].

        Args:
            codes: Packed words, int32 [out, ceil(in * bits / 32)].
            scale: [out, groups].
            zero: int8 [out, groups]; None where the codes are symmetric about 0.
        """
        super().__init__()
        self.bits = bits
        self.register_buffer("codes", codes)
        self.register_buffer("scale", scale)
        self.register_buffer("zero", zero)
        self.register_buffer("bias", bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = int4_matmul.matmul(x, self.codes, self.scale, self.bits, self.zero)
        return y if self.bias is None else y + self.bias.to(y.dtype)
