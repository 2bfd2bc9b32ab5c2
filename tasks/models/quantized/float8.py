"""8-bit floats with 4 bits of exponent and 3 of mantissa: weight[r, c] ~ value[r, c] * scale[r]."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch

from tasks.models.quantized_tensor import Packed


@dataclass(frozen=True)
class Float8Tensor:
    values: torch.Tensor
    """float8_e4m3fn [out, in]."""
    scale: torch.Tensor
    """[out, 1], in the dtype that is stored."""
    facts: dict[str, float] = field(default_factory=dict)

    kind: ClassVar[str] = "float8"

    def dequantize(self) -> torch.Tensor:
        return self.values.float() * self.scale.float()

    @property
    def shape(self) -> torch.Size:
        return self.values.shape

    @property
    def num_bits(self) -> int:
        return 8 * (self.values.numel() + self.scale.numel() * self.scale.itemsize)

    def pack(self) -> Packed:
        return Packed({"values": self.values, "scale": self.scale}, {})


def unpack(packed: Packed, facts: dict[str, float]) -> Float8Tensor:
    return Float8Tensor(packed.parts["values"], packed.parts["scale"], facts)
