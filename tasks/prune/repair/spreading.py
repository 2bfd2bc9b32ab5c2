"""Weights of what is left of a sublayer, put back in the places that they have in the dense one."""

from __future__ import annotations

import torch

from tasks.prune.repair.least_squares import Affine


def spread(writer: Affine, columns: torch.Tensor) -> Affine:
    """Return a writer as wide as the dense one, zero where it has no columns."""
    wide = writer.weight_OI.new_zeros(len(writer.weight_OI), len(columns))
    wide[:, columns] = writer.weight_OI
    return Affine(wide, writer.bias_O)


def spread_rows(reader: Affine, rows: torch.Tensor, wide: Affine) -> Affine:
    """Return a reader as high as the dense one; what a unit that is cut reads stays."""
    weight = wide.weight_OI.clone()
    weight[rows] = reader.weight_OI
    if wide.bias_O is None or reader.bias_O is None:
        return Affine(weight, None)
    bias = wide.bias_O.clone()
    bias[rows] = reader.bias_O
    return Affine(weight, bias)
