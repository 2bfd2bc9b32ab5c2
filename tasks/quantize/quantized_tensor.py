"""A weight as integer codes and steps: in memory, and as the bytes of a unit of work."""

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from safetensors.torch import load, save

from kernels.group_quant.fused import dequantize


@dataclass(frozen=True)
class QuantizedTensor:
    """weight[r, c] ~ codes[r, c] * scale[r, c // group_size]."""

    codes: torch.Tensor
    """int8 [out, in], symmetric about 0."""
    scale: torch.Tensor
    """[out, groups], in the dtype that is stored."""
    bits: int
    group_size: int | None
    """Columns that share a step; None where a whole row does."""
    facts: dict[str, float]
    """What the method wants said: `weight_error`, or `output_error` and `damping`."""

    def dequantize(self) -> torch.Tensor:
        """Return the weight that a reader of the export computes with, float32 [out, in]."""
        return dequantize(self.codes, self.scale.float())

    @property
    def effective_bits(self) -> float:
        """Bits stored per weight: packed codes, and the steps."""
        num_rows, num_columns = self.codes.shape
        code_bits = num_rows * math.ceil(num_columns * self.bits / 32) * 32
        scale_bits = self.scale.numel() * self.scale.itemsize * 8
        return (code_bits + scale_bits) / self.codes.numel()


def round_scale(scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Round steps to the dtype that stores them; codes are then chosen for what a reader sees.

    A step that becomes 0 turns into 1: its weights are nothing beside the others.

    Raises:
        ValueError: a step is too large for the dtype.
    """
    rounded = scale.to(dtype)
    if not rounded.isfinite().all():
        raise ValueError(f"dtype: a step of {scale.max():.3g} overflows {dtype}; use bfloat16")
    return torch.where(rounded > 0, rounded, 1)


def to_bytes(tensors: Mapping[str, QuantizedTensor]) -> bytes:
    """Serialise as one safetensors file; equal tensors give equal bytes."""
    parts, about = {}, {}
    for name, tensor in tensors.items():
        parts[f"{name}.codes"] = tensor.codes.contiguous()
        parts[f"{name}.scale"] = tensor.scale.contiguous()
        about[name] = {"bits": tensor.bits, "group_size": tensor.group_size, "facts": tensor.facts}
    # One key: the order of several is not fixed.
    return bytes(save(parts, {"about": json.dumps(about, sort_keys=True)}))


def from_bytes(data: bytes) -> dict[str, QuantizedTensor]:
    (length,) = struct.unpack("<Q", data[:8])
    about = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["about"])
    parts = load(data)
    return {
        name: QuantizedTensor(parts[f"{name}.codes"], parts[f"{name}.scale"], **rest)
        for name, rest in about.items()
    }
