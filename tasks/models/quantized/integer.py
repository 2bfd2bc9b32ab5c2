"""Integer codes and steps: weight[r, c] ~ (code[r, c] - zero[r, g]) * scale[r, g], g = c // size.

Codes and zero points are signed here; the packed words hold them with 2^(bits - 1) added.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from kernels.group_quant import fused
from tasks.models.quantized_tensor import Packed


@dataclass(frozen=True)
class IntegerTensor:
    codes: torch.Tensor
    """int8 [out, in]."""
    scale: torch.Tensor
    """[out, groups], in the dtype that is stored."""
    bits: int
    group_size: int | None
    """Columns that share a step; None where a whole row does."""
    facts: dict[str, float] = field(default_factory=dict)
    zero: torch.Tensor | None = None
    """int8 [out, groups]; None where the codes are symmetric about 0."""
    activations: str | None = None
    """`int8` where the layer takes each token's input in int8, too."""

    kind: ClassVar[str] = "integer"

    def dequantize(self) -> torch.Tensor:
        return fused.dequantize(self.codes, self.scale.float(), self.zero)

    @property
    def shape(self) -> torch.Size:
        return self.codes.shape

    @property
    def num_bits(self) -> int:
        num_rows, num_columns = self.codes.shape
        code_bits = num_rows * math.ceil(num_columns * self.bits / 32) * 32
        zero_bits = 0 if self.zero is None else self.zero.numel() * 8
        return code_bits + self.scale.numel() * self.scale.itemsize * 8 + zero_bits

    def pack(self) -> Packed:
        parts = {"codes": fused.pack(self.codes, self.bits), "scale": self.scale}
        if self.zero is not None:
            parts["zero"] = self.zero
        about = {
            "bits": self.bits,
            "group_size": self.group_size,
            "num_columns": self.codes.shape[1],
            "activations": self.activations,
        }
        return Packed(parts, about)


def unpack(packed: Packed, facts: dict[str, float]) -> IntegerTensor:
    parts, about = packed
    codes = fused.unpack(parts["codes"], about["bits"], about["num_columns"])
    return IntegerTensor(
        codes,
        parts["scale"],
        about["bits"],
        about["group_size"],
        facts,
        parts.get("zero"),
        about["activations"],
    )
