"""Refine a feed-forward sublayer as a whole: to the stream, and the last one to the logits."""

from __future__ import annotations

from typing import NamedTuple, TypeVar

import torch

from tasks.prune.repair.feed_forward import FeedForward, StreamFit
from tasks.prune.repair.gauss_newton import minimise
from tasks.prune.repair.readout import Readout
from tasks.prune.repair.stream import Head

CHECKED = 8
"""Of the fitted windows, one in so many is kept back to see how far a step should go."""
AnyFit = TypeVar("AnyFit", StreamFit, Readout)


class Streams(NamedTuple):
    """The residual streams of the tokens that a sublayer is fitted on, [tokens, hidden]."""

    before_TD: torch.Tensor
    """The pruned one before the sublayer."""
    dense_TD: torch.Tensor
    """The dense one after it."""


def refine_sublayer(
    sublayer: FeedForward, fit: StreamFit, streams: Streams, head: Head | None, num_steps: int
) -> FeedForward:
    """Take Levenberg-Marquardt steps from the sublayer that linear least squares has found.

    Args:
        head: For the last sublayer, what makes logits of its output, where that is known.
    """
    sublayer = minimise(*divided(fit), sublayer, num_steps)
    if head is None:
        return sublayer
    readout = Readout(fit.x_TI, *streams, head.norm, head.linear)
    return minimise(*divided(readout), sublayer, num_steps)


def divided(problem: AnyFit) -> tuple[AnyFit, AnyFit]:
    """Part a fit into what steps are made for and what they are checked on, the last windows."""
    last = len(problem.x_TI) - len(problem.x_TI) // CHECKED
    return problem.tokens(slice(0, last)), problem.tokens(slice(last, None))
