"""What a quantized weight is in memory, and its bytes: one safetensors file for many weights.

How its bits are read is the encoding: a file in `quantized/`, which defines a frozen dataclass
with what `QuantizedTensor` asks for, and `unpack`, which brings it back from its packed parts.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from safetensors.torch import load, save

from tasks.plugins import load_plugin


class Packed(NamedTuple):
    """What is stored of a weight."""

    parts: dict[str, torch.Tensor]
    about: dict[str, Any]
    """JSON; what the parts do not say by themselves."""


class QuantizedTensor(Protocol):
    """A weight [out, in] in fewer bits."""

    kind: ClassVar[str]
    """Name of the file in `quantized/`."""

    @property
    def facts(self) -> dict[str, float]:
        """What the method wants said: `weight_error`, or `output_error` and `damping`."""

    @property
    def shape(self) -> torch.Size: ...

    @property
    def num_bits(self) -> int:
        """Bits of the packed parts, codes and steps and all else."""

    def dequantize(self) -> torch.Tensor:
        """Return the weight that a reader computes with, float32 [out, in]."""

    def pack(self) -> Packed: ...


def effective_bits(tensors: Mapping[str, QuantizedTensor]) -> float:
    """Return the mean of the bits stored per weight; 0 of none."""
    num_weights = sum(tensor.shape.numel() for tensor in tensors.values())
    return sum(tensor.num_bits for tensor in tensors.values()) / max(num_weights, 1)


def pack_all(tensors: Mapping[str, QuantizedTensor]) -> Packed:
    """Return the parts of many weights by `<name>.<part>`, and by name what is said about each."""
    parts: dict[str, torch.Tensor] = {}
    about: dict[str, Any] = {}
    for name, tensor in tensors.items():
        packed = tensor.pack()
        parts |= {f"{name}.{part}": value.contiguous() for part, value in packed.parts.items()}
        about[name] = {
            "kind": tensor.kind,
            "parts": list(packed.parts),
            "facts": tensor.facts,
            "about": packed.about,
        }
    return Packed(parts, about)


def unpack_one(name: str, parts: Mapping[str, torch.Tensor], about: Any) -> QuantizedTensor:
    """Bring back one weight of those that `pack_all` packed.

    Args:
        parts: All parts, by `<name>.<part>`.
        about: What `pack_all` said about this weight.
    """
    own = {part: parts[f"{name}.{part}"] for part in about["parts"]}
    unpack = load_plugin("encoding", about["kind"])
    tensor: QuantizedTensor = unpack(Packed(own, about["about"]), about["facts"])
    return tensor


def to_bytes(tensors: Mapping[str, QuantizedTensor]) -> bytes:
    """Serialise as one safetensors file; equal tensors give equal bytes."""
    packed = pack_all(tensors)
    # One key: the order of several is not fixed.
    return bytes(save(packed.parts, {"about": json.dumps(packed.about, sort_keys=True)}))


def from_bytes(data: bytes) -> dict[str, QuantizedTensor]:
    (length,) = struct.unpack("<Q", data[:8])
    about = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["about"])
    parts = load(data)
    return {name: unpack_one(name, parts, said) for name, said in about.items()}
