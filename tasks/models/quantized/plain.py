"""A parameter that is stored as it is: what a method changes beside the weights it quantizes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch

from tasks.models.quantized_tensor import Packed


@dataclass(frozen=True)
class PlainTensor:
    value: torch.Tensor
    facts: dict[str, float] = field(default_factory=dict)

    kind: ClassVar[str] = "plain"

    def dequantize(self) -> torch.Tensor:
        return self.value.float()

    @property
    def shape(self) -> torch.Size:
        return self.value.shape

    @property
    def num_bits(self) -> int:
        return self.value.numel() * self.value.itemsize * 8

    def pack(self) -> Packed:
        return Packed({"value": self.value}, {})


def unpack(packed: Packed, facts: dict[str, float]) -> PlainTensor:
    return PlainTensor(packed.parts["value"], facts)
