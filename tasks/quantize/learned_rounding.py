"""A weight that is learned through its rounding, and the steps with it.

    v = c s,  c = clamp(round(u s_0 / s), -2^(bits-1), 2^(bits-1) - 1)

u is the latent weight in units of s_0, the step that it began with, so that one learning rate suits
weights of all sizes. Backwards, round is the identity and clamp is itself, which gives the step the
gradient of learned step size quantization.

Reference: Esser et al. 2020, arXiv 1902.08153, equation 3.
"""

from typing import NamedTuple

import torch

from tasks.models.quantized.integer import IntegerTensor
from tasks.quantize.block import round_scale

MARGIN = 0.49
"""How far from its code a latent weight may begin: half a step, less what keeps the rounding."""


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


def start_learning(weight: torch.Tensor, start: IntegerTensor) -> Learned:
    """Begin with given codes and steps, and with latent weights as near to the weight as those
    codes allow.

    Args:
        weight: [out, in].
    """
    first_step = start.scale.to(weight)[:, :, None]
    groups = weight.reshape(*start.scale.shape, -1)
    codes = start.codes.to(weight).reshape_as(groups)
    latent = codes + (groups / first_step - codes).clamp(-MARGIN, MARGIN)
    return Learned(
        latent=latent.requires_grad_(),
        growth=torch.zeros_like(first_step).requires_grad_(),
        first_step=first_step,
        some=groups.any(dim=2, keepdim=True).float(),
        bits=start.bits,
        group_size=start.group_size,
        dtype=start.scale.dtype,
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
