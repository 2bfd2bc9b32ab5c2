"""One bit per weight, its sign, and one magnitude per row: weight[r, c] ~ sign[r, c] * alpha[r]."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from kernels.group_quant import fused
from tasks.models.quantized_tensor import Packed


@dataclass(frozen=True)
class BinaryTensor:
    signs: torch.Tensor
    """int8 [out, in], each +1 or -1."""
    alpha: torch.Tensor
    """[out, 1], in the dtype that is stored."""
    facts: dict[str, float] = field(default_factory=dict)
    activations: str | None = None
    """`binary` where the layer takes each token's input as signs and one magnitude, too."""

    kind: ClassVar[str] = "binary"

    def dequantize(self) -> torch.Tensor:
        return self.signs * self.alpha.float()

    @property
    def shape(self) -> torch.Size:
        return self.signs.shape

    @property
    def num_bits(self) -> int:
        num_rows, num_columns = self.signs.shape
        words = num_rows * math.ceil(num_columns / 32)
        return 32 * words + self.alpha.numel() * self.alpha.itemsize * 8

    def pack(self) -> Packed:
        """Pack 32 signs to a word; a set bit is +1."""
        bits = torch.where(self.signs > 0, 0, -1).to(torch.int8)
        about = {"num_columns": self.signs.shape[1], "activations": self.activations}
        return Packed({"signs": fused.pack(bits, 1), "alpha": self.alpha}, about)


def unpack(packed: Packed, facts: dict[str, float]) -> BinaryTensor:
    parts, about = packed
    bits = fused.unpack(parts["signs"], 1, about["num_columns"])
    return BinaryTensor(2 * bits + 1, parts["alpha"], facts, about["activations"])
