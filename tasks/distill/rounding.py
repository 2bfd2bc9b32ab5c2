"""Training through a quantization method's rounding, so that the student learns to live with it.

    forwards   each decoder block computes with Q(W), what the method makes of its weights W
    backwards  dL/dW = dL/dQ(W), as if Q were the identity: the straight-through estimator

W, the latent weights, are what is trained and saved; quantizing them gives the weights that the
student computed with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from tasks.plugins import load_plugin
from tasks.quantize.block import Block, Quantized
from tasks.quantize.decoder_blocks import find_blocks, linear_weights

Quantize = Callable[[dict[str, torch.Tensor]], Quantized]


def round_in_forward(rounding: dict[str, Any], student: Any) -> None:
    """Let the linear weights of a decoder's blocks be rounded during each forward pass.

    Between the passes the model's parameters are the latent weights, under their own names.

    Args:
        rounding: `method`, its `options`, and `dtype`, in which its steps are stored.

    Reference: Bengio et al. 2013, arXiv 1308.3432, the straight-through estimator.
    """
    method = partial(load_plugin("method", rounding["method"]), **rounding["options"])
    dtype = getattr(torch, rounding["dtype"])
    for block in find_blocks(student):
        linears = {
            name: student.get_submodule(name.removesuffix(".weight"))
            for name in linear_weights(student, block)
        }
        round_block(block, linears, lambda weights: method(Block(weights, dtype)))


def round_block(block: nn.Module, linears: Mapping[str, nn.Module], quantize: Quantize) -> None:
    """Let one block's linear modules compute with rounded weights while the block runs.

    Args:
        linears: By the name of their weight in the model.
    """
    latents: dict[str, nn.Parameter] = {}

    def put_rounded(block: nn.Module, args: Any) -> None:
        latents.update((name, linear.get_parameter("weight")) for name, linear in linears.items())
        for name, value in straight_through(latents, quantize).items():
            linears[name]._parameters["weight"] = value  # type: ignore[assignment]

    def put_back(block: nn.Module, args: Any, output: Any) -> None:
        for name, latent in latents.items():
            linears[name]._parameters["weight"] = latent
        latents.clear()

    block.register_forward_pre_hook(put_rounded)
    block.register_forward_hook(put_back, always_call=True)


def straight_through(
    latents: Mapping[str, nn.Parameter], quantize: Quantize
) -> dict[str, torch.Tensor]:
    """Return what the latent weights are rounded to, with the gradient of the identity."""
    with torch.no_grad():
        done = quantize({name: latent.float() for name, latent in latents.items()})
    # latent - latent is exactly 0, so the forward pass sees the rounded weight to the last bit.
    return {
        name: tensor.dequantize().to(latents[name]) + (latents[name] - latents[name].detach())
        for name, tensor in done.items()
    }
