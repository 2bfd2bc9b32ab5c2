"""Levenberg-Marquardt for a single sublayer: what linear least squares cannot reach.

A feed-forward sublayer is not linear in its readers, but it is shallow: its Jacobian is a handful
of matrix products, so each step solves

    (J^T H J + lambda D) step = -gradient

by conjugate gradients without ever forming J. D is the diagonal of J^T J. Nothing is propagated
through other layers.

Reference: Marquardt 1963, "An algorithm for least-squares estimation of nonlinear parameters";
Martens 2010, "Deep learning via Hessian-free optimization", for the preconditioned conjugate
gradients and the curvature of a softmax.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol, Self, TypeVar

import torch

Parameters = list[torch.Tensor]

CG_STEPS = 10
DAMPING = 1e-3
SMALLEST_STEP = 1 / 16


class Linearised(NamedTuple):
    """A loss around one point."""

    gradient: Parameters
    curvature: Callable[[Parameters], Parameters]
    """p -> J^T H J p."""
    diagonal: Parameters
    """Of J^T H J, up to a common factor; a preconditioner."""


class Model(Protocol):
    """Something with parameters."""

    def parameters(self) -> Parameters: ...

    def with_parameters(self, parameters: Parameters) -> Self: ...


AnyModel = TypeVar("AnyModel", bound=Model)
Fitted = TypeVar("Fitted", bound=Model, contravariant=True)


class Problem(Protocol[Fitted]):
    def loss(self, model: Fitted) -> float: ...

    def linearise(self, model: Fitted) -> Linearised: ...


def minimise(
    problem: Problem[AnyModel], check: Problem[AnyModel], model: AnyModel, num_iterations: int
) -> AnyModel:
    """Return a model with a smaller loss, or the same one where no step makes it smaller.

    Args:
        problem: What the steps are made for.
        check: The same on other data; a step is as long as it makes this loss smaller.
    """
    damping, loss = DAMPING, check.loss(model)
    for _ in range(num_iterations):
        step = solve_step(problem.linearise(model), damping)
        length = 1.0
        while length >= SMALLEST_STEP:
            moved = zip(model.parameters(), step, strict=True)
            tried = model.with_parameters([p + length * s for p, s in moved])
            if (reached := check.loss(tried)) < loss:
                model, loss = tried, reached
                break
            length /= 2
        damping *= 0.3 if length == 1.0 else 10.0
    return model


def solve_step(around: Linearised, damping: float) -> Parameters:
    """Solve for the step by preconditioned conjugate gradients."""
    floors = [d + 1e-3 * d.mean() for d in around.diagonal]
    first = [-g / d for g, d in zip(around.gradient, floors, strict=True)]
    along = dot(first, around.curvature(first))
    factor = along / max(dot(first, scaled(first, floors)), 1e-30)
    penalty = [damping * factor * d for d in floors]
    preconditioner = [(1 + damping) * factor * d for d in floors]

    step = [torch.zeros_like(g) for g in around.gradient]
    rest = [-g for g in around.gradient]
    direction = [r / m for r, m in zip(rest, preconditioner, strict=True)]
    size = dot(rest, direction)
    for _ in range(CG_STEPS):
        curved = around.curvature(direction)
        curved = [c + d * p for c, d, p in zip(curved, direction, penalty, strict=True)]
        length = size / max(dot(direction, curved), 1e-30)
        step = [s + length * d for s, d in zip(step, direction, strict=True)]
        rest = [r - length * c for r, c in zip(rest, curved, strict=True)]
        preconditioned = [r / m for r, m in zip(rest, preconditioner, strict=True)]
        last, size = size, dot(rest, preconditioned)
        direction = [
            p + size / max(last, 1e-30) * d for p, d in zip(preconditioned, direction, strict=True)
        ]
    return step


def dot(a: Parameters, b: Parameters) -> float:
    return float(sum((x * y).sum(dtype=torch.float64) for x, y in zip(a, b, strict=True)))


def scaled(a: Parameters, b: Parameters) -> Parameters:
    return [x * y for x, y in zip(a, b, strict=True)]
