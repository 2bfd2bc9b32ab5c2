"""Optimal Brain Quantization, which chooses the next weight greedily, as the oracle of GPTQ.

Reference: Frantar & Alistarh 2022, arXiv 2208.11580, equations 7 and 8 and algorithm 3.
"""

import itertools

import torch

from tasks.quantize.methods import gptq
from tests.unit.layer_cases import correlated_case, loss

BITS = 3
SEEDS = range(20)


def round_greedily(row: torch.Tensor, hessian: torch.Tensor, step: float) -> torch.Tensor:
    """Round one row, always next the weight whose rounding costs least, and adjust the others."""
    row, inverse = row.clone(), torch.linalg.inv(hessian)
    left = list(range(len(row)))
    while left:
        index = torch.tensor(left)
        nearest = (row[index] / step).round().clamp(-(2 ** (BITS - 1)), 2 ** (BITS - 1) - 1) * step
        cost = (row[index] - nearest).square() / inverse.diagonal()[index]
        position = int(cost.argmin())
        chosen = left.pop(position)
        error = (row[chosen] - nearest[position]) / inverse[chosen, chosen]
        for other in left:
            row[other] -= error * inverse[chosen, other]
        row[chosen] = nearest[position]
        column = inverse[:, chosen].clone()
        inverse -= column.outer(column) / column[chosen]
    return row


def losses(num_columns: int, seed: int) -> tuple[float, float, torch.Tensor, torch.Tensor, float]:
    """Return what GPTQ and OBQ lose on one row, the row, the Hessian and the step."""
    weight, hessian = correlated_case(num_rows=1, num_columns=num_columns, seed=seed)
    done = gptq.quantize_together(
        {"weight": weight},
        hessian,
        torch.float32,
        bits=BITS,
        group_size=None,
        clip_search=False,
        damping=1e-6,
    )["weight"]
    step = float(done.scale)
    greedy = round_greedily(weight[0].double(), hessian, step)
    return (
        loss(weight, done.dequantize(), hessian),
        loss(weight, greedy[None], hessian),
        weight,
        hessian,
        step,
    )


def test_gptq_loses_about_as_much_as_obq() -> None:
    found = [losses(num_columns=24, seed=seed)[:2] for seed in SEEDS]
    ours, greedy = (torch.tensor(values) for values in zip(*found, strict=True))
    ratio = float((ours.log() - greedy.log()).mean().exp())
    assert 0.7 < ratio < 1.2


def test_neither_loses_less_than_the_optimum() -> None:
    codes = torch.tensor(
        list(itertools.product(range(-(2 ** (BITS - 1)), 2 ** (BITS - 1)), repeat=4))
    )
    for seed in SEEDS:
        ours, greedy, weight, hessian, step = losses(num_columns=4, seed=seed)
        difference = weight.double() - codes * step
        optimum = float(((difference @ hessian) * difference).sum(1).min())
        assert ours >= optimum * (1 - 1e-6)
        assert greedy >= optimum * (1 - 1e-6)
