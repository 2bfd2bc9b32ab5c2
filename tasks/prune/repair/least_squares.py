"""Ridge least squares for linear layers: refit their weights, or choose which inputs to keep."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch.nn import functional as F

RIDGE = 1e-2
"""Penalty on the change of a weight, as a fraction of the mean square of the layer's inputs."""
STEPS = 1024
"""Units are eliminated one by one up to so many, and in so many steps where there are more."""


class Affine(NamedTuple):
    """The weights of a linear layer."""

    weight_OI: torch.Tensor
    bias_O: torch.Tensor | None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight_OI, self.bias_O)

    def cpu(self) -> Affine:
        return Affine(self.weight_OI.cpu(), None if self.bias_O is None else self.bias_O.cpu())

    def rows(self, kept: torch.Tensor) -> Affine:
        bias = None if self.bias_O is None else self.bias_O[kept]
        return Affine(self.weight_OI[kept], bias)

    def columns(self, kept: torch.Tensor) -> Affine:
        return Affine(self.weight_OI[:, kept], self.bias_O)


class Inputs:
    """Inputs that several layers share; their normal equations are factorised once.

    W = W0 + (Y - X W0^T)^T M X (X^T M X + lambda I)^-1,  lambda = ridge x mean diagonal of X^T M X

    with M the diagonal matrix of the tokens' weights. Solved in fp64. A layer with a bias has an
    input more that is always 1; its weight is penalised as the others are.
    """

    def __init__(self, x_TI: torch.Tensor, weight_T: torch.Tensor, ridge: float = RIDGE) -> None:
        self.x_TI = x_TI
        self.weighted_TI = x_TI * weight_T[:, None]
        self.sum_T = weight_T
        size = x_TI.shape[1]
        self.gram = torch.empty(size + 1, size + 1, dtype=torch.float64, device=x_TI.device)
        self.gram[:size, :size] = self.weighted_TI.T @ x_TI
        self.gram[:size, size] = self.gram[size, :size] = self.weighted_TI.sum(0)
        self.gram[size, size] = weight_T.sum()
        self.penalty = ridge * self.gram[:size, :size].diagonal().mean().clamp_min(1e-12)
        self.gram.diagonal().add_(self.penalty)
        self.factors: dict[int, torch.Tensor] = {}

    def refit(self, start: Affine, target_TO: torch.Tensor) -> Affine:
        """Return the layer that least squares draws from `start` to the target."""
        error_TO = target_TO - start(self.x_TI)
        right = (self.weighted_TI.T @ error_TO).double()
        size = right.shape[0]
        if start.bias_O is not None:
            right = torch.cat([right, (self.sum_T @ error_TO).double()[None]])
            size += 1
        if size not in self.factors:
            self.factors[size] = torch.linalg.cholesky(self.gram[:size, :size])
        change = torch.cholesky_solve(right, self.factors[size]).T.to(start.weight_OI)
        if start.bias_O is None:
            return Affine(start.weight_OI + change, None)
        return Affine(start.weight_OI + change[:, :-1], start.bias_O + change[:, -1])


def eliminate(gram_CC: torch.Tensor, cross_CO: torch.Tensor, unit_width: int) -> torch.Tensor:
    """Remove units of inputs one after another, each time the one that is missed least.

    What is left is refitted after every removal, so a unit that others can stand in for goes
    early. The squared error of the fit grows by w_u^T (G^-1)_uu^-1 w_u when unit u goes.

    Args:
        gram_CC: G = X^T X of the inputs, [num_units * unit_width] each way; made regular here.
        cross_CO: X^T Y for the targets.
        unit_width: Inputs per unit, side by side.

    Returns:
        Per unit, [num_units] fp64: by how much the error grew when it went, and at least as much
        as for all that went before.

    Reference: Hassibi et al. 1993, "Optimal brain surgeon and general network pruning", equation
    5; Frantar and Alistarh 2022, arXiv 2208.11580, for groups of weights.
    """
    gram = gram_CC.to(torch.float64, copy=True)
    gram.diagonal().add_(1e-3 * gram.diagonal().mean().clamp_min(1e-12))
    inverse = torch.linalg.inv(gram)
    weights = inverse @ cross_CO.double()
    num_units = len(gram) // unit_width
    alive = torch.arange(num_units, device=gram.device)
    increase = torch.zeros(num_units, dtype=torch.float64)
    worst = 0.0
    while len(alive):
        units = len(alive)
        blocks = inverse.view(units, unit_width, units, unit_width).diagonal(dim1=0, dim2=2)
        grouped = weights.view(units, unit_width, -1)
        solved = torch.linalg.solve(blocks.permute(2, 0, 1), grouped)
        missed = (grouped * solved).sum((1, 2))
        gone = missed.argsort(stable=True)[: math.ceil(num_units / STEPS)]
        # A hair above all that went before, so that the order of removal can be read off.
        least = worst * (1 + 1e-9)
        increase[alive[gone].cpu()] = missed[gone].cpu().clamp_min(least)
        worst = max(least, float(missed[gone].max()))
        left = torch.ones(units, dtype=torch.bool, device=gram.device)
        left[gone] = False
        rows = left.repeat_interleave(unit_width)
        shared = inverse[rows][:, ~rows]
        share = shared @ torch.linalg.inv(inverse[~rows][:, ~rows])
        weights = weights[rows] - share @ weights[~rows]
        inverse = inverse[rows][:, rows] - share @ shared.T
        alive = alive[left]
    return increase
