"""Round a matrix column after column, each error made up for by the columns that come after it.

The layer's loss is  tr((W - V) H (W - V)^T) = ||(W - V) L||^2  with  H = L L^T, L lower triangular.
Column j of (W - V) L is  (a_j - v_j) L_jj,  where

    a_j = w_j + sum over k > j of (w_k - v_k) L_kj / L_jj

so a walk from the last column to the first that rounds a_j makes each term of the loss as small as
the terms before it allow. This is GPTQ without the inverse of H, which it does not need.

Reference: Chen et al. 2025, arXiv 2507.18553 (GPTQ is Babai's nearest plane algorithm).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

BASE_COLUMNS = 16
"""Columns below which the walk goes one by one; above, halves meet in one matrix product."""


class ColumnGrid(NamedTuple):
    """What one column may be rounded to: step * code, code from `lowest` to `highest`."""

    step: torch.Tensor
    """[out]"""
    lowest: Any
    """A number, or [out]."""
    highest: Any


def round_columns(
    weight: torch.Tensor, factor: torch.Tensor, grids: Sequence[ColumnGrid]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return codes and W - V, both [in, out] in the weight's dtype, and each output's loss [out].

    Columns of the weight are rows here, so that each is contiguous.

    Args:
        weight: W^T, [in, out]; its memory becomes the codes'.
        factor: L, [in, in].
        grids: One per column.
    """
    adjusted = weight.clone()
    losses = weight.new_zeros(weight.shape[1])
    diagonal = factor.diagonal().clone()
    walk = _Walk(
        weight, adjusted, factor / diagonal, diagonal.square().tolist(), list(grids), losses
    )
    _round_between(walk, 0, len(weight))
    return weight, adjusted, losses


class _Walk(NamedTuple):
    weight: torch.Tensor
    """[in, out]: W^T before the walk has come by, codes behind it."""
    adjusted: torch.Tensor
    """[in, out]: a with what is known of it before, W - V behind the walk."""
    factor: torch.Tensor
    """L_kj / L_jj."""
    squares: list[float]
    """L_jj^2."""
    grids: list[ColumnGrid]
    losses: torch.Tensor


def _round_between(walk: _Walk, start: int, stop: int) -> None:
    if stop - start <= BASE_COLUMNS:
        _round_one_by_one(walk, start, stop)
        return
    middle = start + (stop - start + 1) // 2
    _round_between(walk, middle, stop)
    walk.adjusted[start:middle].addmm_(
        walk.factor[middle:stop, start:middle].T, walk.adjusted[middle:stop]
    )
    _round_between(walk, start, middle)


def _round_one_by_one(walk: _Walk, start: int, stop: int) -> None:
    factor = walk.factor[start:stop, start:stop].T.contiguous()
    weights, columns = walk.weight[start:stop].unbind(), walk.adjusted[start:stop].unbind()
    codes, values = torch.empty_like(weights[0]), torch.empty_like(weights[0])
    for j in reversed(range(stop - start)):
        column, (step, lowest, highest) = columns[j], walk.grids[start + j]
        if start + j + 1 < stop:
            column.addmv_(walk.adjusted[start + j + 1 : stop].T, factor[j, j + 1 :])
        torch.div(column, step, out=codes).round_().clamp_(lowest, highest)
        torch.mul(codes, step, out=values)
        column.sub_(values)
        walk.losses.addcmul_(column, column, value=walk.squares[start + j])
        torch.sub(weights[j], values, out=column)
        weights[j].copy_(codes)
