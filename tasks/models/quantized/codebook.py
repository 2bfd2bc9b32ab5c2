"""Codes that point into a table of values, with one scale per block of weights, and outliers.

    weight[i] ~ table[code[i]] * scale[i // block_size],  i counts row after row

Weights named as outliers are stored beside the codes and come back bit for bit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import torch

from kernels.group_quant import fused
from tasks.models.quantized_tensor import Packed


class BlockScales(NamedTuple):
    """One scale per block; in 8 bits, too, where `steps` is given.

    scale[b] = max(0, code[b] * steps[b // step_blocks] + offset)
    """

    codes: torch.Tensor
    """float32 [blocks], the scales themselves; or int8 [blocks]."""
    block_size: int
    """Weights that share a scale; the last block may be shorter."""
    steps: torch.Tensor | None = None
    """float32 [ceil(blocks / step_blocks)]."""
    offset: torch.Tensor | None = None
    """float32 [1]."""
    step_blocks: int = 1
    """Scales that share a step."""

    def values(self) -> torch.Tensor:
        """Return the scales, float32 [blocks]."""
        if self.steps is None or self.offset is None:
            return self.codes
        num_scales = len(self.codes)
        steps = self.steps.repeat_interleave(min(self.step_blocks, num_scales))[:num_scales]
        return (self.codes.float() * steps + self.offset).clamp(min=0)

    def over(self, num_weights: int) -> torch.Tensor:
        """Return each weight's scale, float32 [num_weights]."""
        return self.values().repeat_interleave(min(self.block_size, num_weights))[:num_weights]


class Outliers(NamedTuple):
    positions: torch.Tensor
    """int32 [outliers], counted row after row."""
    values: torch.Tensor
    """float32 [outliers]."""


@dataclass(frozen=True)
class CodebookTensor:
    codes: torch.Tensor
    """uint8 [out, in]."""
    table: torch.Tensor
    """float32 [at most 2^bits]."""
    bits: int
    facts: dict[str, float] = field(default_factory=dict)
    scales: BlockScales | None = None
    outliers: Outliers | None = None

    kind: ClassVar[str] = "codebook"

    def dequantize(self) -> torch.Tensor:
        values = self.table[self.codes.flatten().int()]
        if self.scales is not None:
            values *= self.scales.over(len(values))
        if self.outliers is not None:
            values[self.outliers.positions.long()] = self.outliers.values
        return values.view(self.codes.shape)

    @property
    def shape(self) -> torch.Size:
        return self.codes.shape

    @property
    def num_bits(self) -> int:
        num_rows, num_columns = self.codes.shape
        code_bits = num_rows * math.ceil(num_columns * self.bits / 32) * 32
        return code_bits + sum(
            8 * part.numel() * part.itemsize for name, part in self._parts() if name != "codes"
        )

    def pack(self) -> Packed:
        about = {"bits": self.bits, "num_columns": self.codes.shape[1]}
        if self.scales is not None:
            about |= {
                "block_size": self.scales.block_size,
                "step_blocks": self.scales.step_blocks,
            }
        parts = dict(self._parts())
        signed = (parts["codes"].short() - 2 ** (self.bits - 1)).to(torch.int8)
        return Packed(parts | {"codes": fused.pack(signed, self.bits)}, about)

    def _parts(self) -> list[tuple[str, torch.Tensor]]:
        named = [("codes", self.codes), ("table", self.table)]
        if self.scales is not None:
            named.append(("scales", self.scales.codes))
            if self.scales.steps is not None and self.scales.offset is not None:
                named += [("steps", self.scales.steps), ("offset", self.scales.offset)]
        if self.outliers is not None:
            named += [
                ("outlier_positions", self.outliers.positions),
                ("outliers", self.outliers.values),
            ]
        return named


def unpack(packed: Packed, facts: dict[str, float]) -> CodebookTensor:
    """Bring back a weight.

    Raises:
        ValueError: there are not as many scales as blocks, or steps as blocks of scales.
    """
    parts, about = packed
    bits = about["bits"]
    signed = fused.unpack(parts["codes"], bits, about["num_columns"])
    codes = (signed.short() + 2 ** (bits - 1)).to(torch.uint8)
    scales = outliers = None
    if "scales" in parts:
        scales = BlockScales(
            parts["scales"],
            about["block_size"],
            parts.get("steps"),
            parts.get("offset"),
            about["step_blocks"],
        )
        check_length("scales", scales.codes, codes.numel(), scales.block_size)
        if scales.steps is not None:
            check_length("steps", scales.steps, len(scales.codes), scales.step_blocks)
    if "outliers" in parts:
        outliers = Outliers(parts["outlier_positions"], parts["outliers"])
    return CodebookTensor(codes, parts["table"], bits, facts, scales, outliers)


def check_length(name: str, part: torch.Tensor, num_shared: int, size: int) -> None:
    """Hold a part against the number of values that share its elements, `size` by `size`."""
    expected = math.ceil(num_shared / size)
    if part.shape != (expected,):
        raise ValueError(f"expected {name} of shape [{expected}], got {list(part.shape)}")
