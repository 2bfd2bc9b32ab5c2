"""What a quantization method is given: the linear weights of one decoder block, and the block."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from tasks.models.quantized_tensor import QuantizedTensor
from tasks.quantize.calibration import Prefix

Quantized = dict[str, QuantizedTensor]
"""By the parameter's name in the model."""


@dataclass(frozen=True)
class Block:
    weights: dict[str, torch.Tensor]
    """By name, float32 [out, in]: the block's linear weights as they are before."""
    dtype: torch.dtype
    """Type in which steps are stored."""
    prefix: Prefix | None = None
    """The model behind its quantized beginning; None for a method that is not CALIBRATED."""

    @property
    def calibrated(self) -> Prefix:
        assert self.prefix is not None, "the method's file says CALIBRATED = False"
        return self.prefix

    def each(self, quantize: Callable[[torch.Tensor], QuantizedTensor]) -> Quantized:
        """Quantize weight by weight, where values alone decide."""
        return {name: quantize(weight) for name, weight in self.weights.items()}


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
