"""Frozen linear layers in 4 bits: NF4, multiplied out for each product and kept nowhere.

On a CPU the codes are ours (tasks/quantize/methods/nf4.py), on a GPU those of bitsandbytes.

Reference: Dettmers et al. 2023, QLoRA, arXiv 2305.14314, equations 5 and 6.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from tasks.models.quantized.codebook import unpack
from tasks.quantize.methods.nf4 import quantize_weight


def hold_in_nf4(linear: nn.Linear) -> nn.Module:
    """Return a frozen layer that computes with the NF4 of a linear layer's weight.

    Raises:
        ValueError: it is on a GPU and bitsandbytes is not installed.
    """
    return hold_by_bitsandbytes(linear) if linear.weight.is_cuda else NF4Linear(linear)


def hold_by_bitsandbytes(linear: nn.Linear) -> nn.Module:
    try:
        import bitsandbytes as bnb
    except ImportError:
        raise ValueError(
            "trainable: qlora on a GPU expects the package bitsandbytes, which is not installed; "
            "pip install bitsandbytes, or say trainable: lora"
        ) from None
    device = linear.weight.device
    stored = {"quant_type": "nf4", "compress_statistics": True}
    held = bnb.nn.Linear4bit(linear.in_features, linear.out_features, bias=False, **stored)
    held.weight = bnb.nn.Params4bit(linear.weight.detach().cpu(), requires_grad=False, **stored)
    held.bias = linear.bias
    return held.to(device).requires_grad_(False)  # type: ignore[no-any-return]  # moving quantizes


class NF4Linear(nn.Module):
    """y = x W^T + b, W in 4.127 bits per weight.

    The codes are no parameters and no buffers: no cast touches them, and no checkpoint holds
    what the initialiser gives again.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.packed = quantize_weight(linear.weight.detach()).pack()
        self.bias = linear.bias
        self.requires_grad_(False)

    def dequantize(self) -> torch.Tensor:
        """Return the weight that this computes with, float32 [out, in]."""
        return unpack(self.packed, {}).dequantize()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = Product.apply(x, self)  # type: ignore[no-untyped-call]
        return y if self.bias is None else y + self.bias.to(y.dtype)


class Product(torch.autograd.Function):
    """x W^T, whose backward pass dequantizes W again rather than keep it."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, layer: NF4Linear) -> torch.Tensor:
        ctx.layer = layer
        return F.linear(x, layer.dequantize().to(x.dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        (gradient,) = gradients
        return gradient @ ctx.layer.dequantize().to(gradient.dtype), None
