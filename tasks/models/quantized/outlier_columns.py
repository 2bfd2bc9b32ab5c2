"""int8 codes with a step per row, and some columns as they were.

The layer takes its input in the same two parts: the columns named go through in full precision,
the rest of each token in int8 with a step of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch

from tasks.models.quantized_tensor import Packed


@dataclass(frozen=True)
class OutlierColumnsTensor:
    codes: torch.Tensor
    """int8 [out, in - outliers], the other columns in their order."""
    scale: torch.Tensor
    """[out, 1], in the dtype that is stored."""
    columns: torch.Tensor
    """int32 [outliers], ascending: which columns of the weight are kept."""
    values: torch.Tensor
    """[out, outliers], in the dtype that is stored."""
    facts: dict[str, float] = field(default_factory=dict)

    kind: ClassVar[str] = "outlier_columns"

    def dequantize(self) -> torch.Tensor:
        weight = torch.empty(self.shape)
        weight[:, self.rest()] = self.codes * self.scale.float()
        weight[:, self.columns.long()] = self.values.float()
        return weight

    def rest(self) -> torch.Tensor:
        """Return the columns that the codes stand for, int64 [in - outliers]."""
        is_rest = torch.ones(self.shape[1], dtype=torch.bool)
        is_rest[self.columns.long()] = False
        return is_rest.nonzero().flatten()

    @property
    def shape(self) -> torch.Size:
        return torch.Size([len(self.codes), self.codes.shape[1] + len(self.columns)])

    @property
    def num_bits(self) -> int:
        parts = (self.codes, self.scale, self.columns, self.values)
        return sum(8 * part.numel() * part.itemsize for part in parts)

    def pack(self) -> Packed:
        parts = {
            "codes": self.codes,
            "scale": self.scale,
            "columns": self.columns,
            "values": self.values,
        }
        return Packed(parts, {})


def unpack(packed: Packed, facts: dict[str, float]) -> OutlierColumnsTensor:
    """Bring back a weight.

    Raises:
        ValueError: the codes are of another type.
    """
    parts = packed.parts
    if parts["codes"].dtype != torch.int8:
        raise ValueError(f"expected codes in int8, got {parts['codes'].dtype}")
    return OutlierColumnsTensor(
        parts["codes"], parts["scale"], parts["columns"], parts["values"], facts
    )
