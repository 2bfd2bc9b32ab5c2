"""A weight that is learned through its rounding, and the steps with it.

    v = c s,  c = clamp(round(u s_0 / s), -2^(bits-1), 2^(bits-1) - 1)

u is the latent weight in units of s_0, the step that it began with, so that one learning rate suits
weights of all sizes. Backwards, round is the identity and clamp is itself, which gives the step the
gradient of learned step size quantization.

Reference: Esser et al. 2020, arXiv 1902.08153, equation 3.
"""

from typing import NamedTuple

import torch

from kernels.group_quant import fused
from tasks.models.quantized.integer import IntegerTensor
from tasks.quantize.block import round_scale
from tasks.quantize.clipping import search_clipping


class Learned(NamedTuple):
    """Tensors are float32, and the first two are learned."""

    latent: torch.Tensor
    """u, [out, groups, columns]."""
    growth: torch.Tensor
    """log(s / s_0), [out, groups, 1]."""
    first_step: torch.Tensor
    """s_0, [out, groups, 1]."""
    some: torch.Tensor
    """[out, groups, 1]: 1, or 0 where a group is all zeros, which it then stays."""
    bits: int
    group_size: int | None
    dtype: torch.dtype
    """In which steps are stored."""


def start_learning(
    weight: torch.Tensor, bits: int, group_size: int | None, dtype: torch.dtype
) -> Learned:
    """Begin with each group's step at which rounding to nearest changes the weight least.

    Args:
        weight: [out, in].
    """
    everywhere = torch.ones_like(weight[0])
    scale = fused.absmax_scale(weight, bits, group_size)
    first_step = search_clipping(weight, scale, everywhere, bits)[:, :, None]
    groups = weight.reshape(*scale.shape, -1)
    return Learned(
        latent=(groups / first_step).requires_grad_(),
        growth=torch.zeros_like(first_step).requires_grad_(),
        first_step=first_step,
        some=groups.any(dim=2, keepdim=True).float(),
        bits=bits,
        group_size=group_size,
        dtype=dtype,
    )


def codes_and_steps(learned: Learned) -> tuple[torch.Tensor, torch.Tensor]:
    """Return c [out, groups, columns] and s [out, groups, 1], as a reader will see them."""
    exact = learned.first_step * learned.growth.exp()
    step = straight_through(exact, round_scale(exact.detach(), learned.dtype).float())
    largest = 2 ** (learned.bits - 1) - 1
    wanted = learned.latent * (learned.first_step * learned.some / step)
    inside = wanted.clamp(-largest - 1, largest)
    return straight_through(inside, inside.detach().round()), step


def straight_through(value: torch.Tensor, rounded: torch.Tensor) -> torch.Tensor:
    """Return `rounded`, to the last bit, with the gradient of `value`."""
    return rounded + (value - value.detach())


def rounded_weight(learned: Learned) -> torch.Tensor:
    """Return v, [out, in]."""
    codes, step = codes_and_steps(learned)
    return (codes * step).flatten(1)


@torch.no_grad()
def to_integer(learned: Learned, facts: dict[str, float]) -> IntegerTensor:
    codes, step = codes_and_steps(learned)
    return IntegerTensor(
        codes.flatten(1).to(torch.int8).cpu(),
        step[:, :, 0].to(learned.dtype).cpu(),
        learned.bits,
        learned.group_size,
        facts,
    )
