"""GPTQ: round column after column, and let the columns not yet rounded make up for the error.

    after the columns Q are rounded to V_Q, the others are  W_R + (W_Q - V_Q) H_QR H_RR^-1

which is the best they can do for tr((W - V) H (W - V)^T).
"""

from collections.abc import Mapping
from itertools import accumulate
from typing import Annotated, Literal

import torch
from pydantic import Field

from kernels.group_quant import fused
from tasks.models.quantized.integer import IntegerTensor
from tasks.models.quantized.plain import PlainTensor
from tasks.quantize.block import Block, Quantized, round_scale
from tasks.quantize.calibration import collect_hessians, put_weights, shared_inputs
from tasks.quantize.clipping import search_clipping
from tasks.quantize.column_rounding import ColumnGrid, round_columns
from tasks.quantize.hessian import damped_factor, output_energy

CALIBRATED = True
ENCODINGS = ("integer",)

MOST_ROWS = 256
"""Rows of a weight from which its `output_error` is told; all of them would cost half as much again
as the rounding does."""


def quantize(
    block: Block,
    *,
    bits: Literal[8, 4, 3, 2] = 4,
    group_size: Annotated[int, Field(gt=0)] | None = 128,
    symmetric: bool = True,
    act_order: bool = True,
    true_sequential: bool = False,
    clip_search: bool = True,
    damping: Annotated[float, Field(gt=0)] = 0.01,
) -> Quantized:
    """Quantize each weight so that the layer's outputs on the calibration text stay close.

    Args:
        bits: Bits per code.
        group_size: Columns that share a step; None for one step per row.
        symmetric: Codes about 0; otherwise a zero point per group.
        act_order: Round the columns with the largest mean square input first.
        true_sequential: Fit each weight to what enters it when those that run before it in the
            block are quantized; one pass over the text for each input that weights share.
        clip_search: Shrink each group's step where that lowers its weighted squared error.
        damping: Added to the Hessian's diagonal, as a fraction of its mean.

    Reference: Frantar et al. 2022, arXiv 2210.17323, algorithm 1; static groups, activation order
        and true sequential quantization as in the authors' code.
    """
    prefix, done = block.calibrated, Quantized()
    everything = list(block.weights)
    sharing = shared_inputs(prefix, everything)
    hessians = {} if true_sequential else collect_hessians(prefix, everything)
    for names in sharing:
        if true_sequential:
            put_weights(prefix, done)
            hessians = collect_hessians(prefix, names)
        done |= quantize_together(
            {name: block.weights[name] for name in names},
            hessians[names[0]],
            block.dtype,
            bits,
            group_size,
            symmetric,
            act_order,
            clip_search,
            damping,
        )
    put_weights(prefix, {name: PlainTensor(weight) for name, weight in block.weights.items()})
    return done


def quantize_together(
    weights: Mapping[str, torch.Tensor],
    hessian: torch.Tensor,
    scale_dtype: torch.dtype,
    bits: int = 4,
    group_size: int | None = 128,
    symmetric: bool = True,
    act_order: bool = True,
    clip_search: bool = True,
    damping: float = 0.01,
) -> dict[str, IntegerTensor]:
    """Quantize weights [out, in] that share an input, as the rows of one matrix.

    Steps are fixed from the incoming weights, so columns keep their place on disk whatever the
    order in which they are rounded. A column whose input was always 0 is rounded to nearest.
    Arguments that are not given here are `quantize`'s.

    Args:
        hessian: Sum of x x^T over the calibration tokens, [in, in].
    """
    weight = torch.cat(list(weights.values())).float()
    hessian = hessian.float()
    order = torch.arange(len(hessian), device=weight.device).flip(0)  # last is rounded first
    if act_order:
        order = hessian.diagonal().argsort(descending=True, stable=True).flip(0)
    back = order.argsort()
    hessian = hessian.index_select(0, order).index_select(1, order)
    factor, used = damped_factor(hessian, damping)

    zero = None
    if symmetric:
        scale = fused.absmax_scale(weight, bits, group_size)
    else:
        scale = fused.range_scale(weight, bits, group_size)
        zero = fused.zero_point(weight, scale, bits)
    if clip_search:
        importance = factor.diagonal().square()[back]
        scale = search_clipping(weight, scale, importance, bits, zero)
    scale = round_scale(scale, scale_dtype)

    columns = weight.index_select(1, order).T.contiguous()
    stops = list(accumulate(len(part) for part in weights.values()))
    parts = [
        slice(stop - len(part), stop) for part, stop in zip(weights.values(), stops, strict=True)
    ]
    looked_at = [sample_rows(rows, weight.device) for rows in parts]
    energy = output_energy(columns[:, torch.cat(looked_at)], hessian)
    energies = energy.split_with_sizes([len(rows) for rows in looked_at])
    codes, errors, losses = round_columns(columns, factor, column_grids(scale, zero, bits, order))
    losses -= used * hessian.diagonal().mean() * errors.square().sum(0)
    if zero is not None:
        codes += zero.T.repeat_interleave(len(codes) // zero.shape[1], dim=0)[order]
    codes = codes.to(torch.int8)[back].T.contiguous()

    def make(rows: slice, looked_at: torch.Tensor, energy: torch.Tensor) -> IntegerTensor:
        whole, lost = float(energy.sum()), float(losses[looked_at].sum())
        facts = {"output_error": max(lost, 0.0) / whole if whole > 0 else 0.0, "damping": used}
        return IntegerTensor(
            codes[rows].cpu(),
            scale[rows].cpu(),
            bits,
            group_size,
            facts,
            None if zero is None else zero[rows].cpu(),
        )

    made = map(make, parts, looked_at, energies)
    return dict(zip(weights, made, strict=True))


def sample_rows(rows: slice, device: torch.device) -> torch.Tensor:
    """Return the rows, or MOST_ROWS to twice as many, evenly spaced, where there are more."""
    step = max((rows.stop - rows.start) // MOST_ROWS, 1)
    return torch.arange(rows.start, rows.stop, step, device=device)


def column_grids(
    scale: torch.Tensor, zero: torch.Tensor | None, bits: int, order: torch.Tensor
) -> list[ColumnGrid]:
    """Return each column's grid, in the given order; the zero point is taken off the codes."""
    limit = 2 ** (bits - 1) - 1
    steps = scale.float().T.contiguous().unbind()
    if zero is None:
        grids = [ColumnGrid(step, -limit - 1, limit) for step in steps]
    else:
        shifts = zero.float().T.contiguous().unbind()
        grids = [
            ColumnGrid(step, -limit - 1 - shift, limit - shift)
            for step, shift in zip(steps, shifts, strict=True)
        ]
    return [grids[column * len(grids) // len(order)] for column in order.tolist()]
