"""Linear layers that quantize their input as well, token by token, as some encodings ask for."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from kernels.vector_int8 import fused
from tasks.models.quantized.binary import BinaryTensor
from tasks.models.quantized.integer import IntegerTensor
from tasks.models.quantized.outlier_columns import OutlierColumnsTensor
from tasks.models.quantized_tensor import QuantizedTensor


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
        y = fused.linear(x, self.codes, self.scale, self.columns, self.values)
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
