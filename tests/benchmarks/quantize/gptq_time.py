"""GPTQ's time on the matrices of one block of a 1B Llama, against the published implementation's.

$NIGHTPRESS_GPTQ is a checkout of IST-DASLab/gptq. Its code runs as it is, on the CPU; only its wait
for the GPU is left out. Both get the same weights and Hessians, 4 bits, groups of 128 with steps
fixed beforehand, activation order and damping 0.01, in float32. Times are CPU seconds of one
thread, without the Hessian's sums. Ours has its clipping search in it, and takes the weights that
share an input together.

    floor = (out in^2 + in^3 / 3) / rate of a 2048^3 matrix product

are the operations of the updates and of one factorisation, at the rate of a matrix product.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import nn

from kernels.group_quant import fused
from tasks.models.quantized.integer import IntegerTensor
from tasks.quantize.hessian import relative_error
from tasks.quantize.methods.gptq import quantize_together
from tests.benchmarks.cells import Cell, Cells
from tests.benchmarks.quantize.scale import Scale
from tests.benchmarks.subjects import Subject
from tests.benchmarks.tables import Table, table

PUBLISHED = "NIGHTPRESS_GPTQ"
BITS = 4
GROUP_SIZE = 128
REPEATS = 2
"""In turns with the others; the fastest counts."""


class Case(NamedTuple):
    """Weights that share an input."""

    name: str
    num_rows: tuple[int, ...]
    num_columns: int


FULL = (
    Case("q, k, v", (2048, 512, 512), 2048),
    Case("o", (2048,), 2048),
    Case("gate, up", (8192, 8192), 2048),
    Case("down", (2048,), 8192),
)
SMOKE = (Case("q, k, v", (256, 128, 128), 256),)


def run(subjects: list[Subject], scale: Scale) -> list[Table]:
    cells = Cells("quantize", "gptq_time", scale.name)
    checkout = os.environ.get(PUBLISHED)
    cases = FULL if scale.name == "full" else SMOKE
    rows, totals = [], dict.fromkeys(("published", "ours", "floor"), 0.0)
    for case in cases:
        key = "ours alone" if checkout is None else "both"
        cell = cells.compute(case.name, key, measure=partial(measure_case, case, checkout))
        for name in totals:
            totals[name] += cell["seconds"].get(name, 0.0)
        shape = f"{' + '.join(map(str, case.num_rows))} x {case.num_columns}"
        losses = [f"{cell['losses'][name]:.5f}" for name in ("published", "ours") if checkout]
        rows.append(
            [
                f"{case.name}: {shape}",
                *time_columns(cell["seconds"]),
                " / ".join(losses) or f"{cell['losses']['ours']:.5f}",
                f"{cell['equal_codes']:.2%}" if checkout else "",
            ]
        )
    seconds = {name: total for name, total in totals.items() if total}
    rows.append(["the block", *time_columns(seconds), "", ""])
    title = f"GPTQ, {BITS} bits in groups of {GROUP_SIZE}, one thread, CPU seconds"
    if checkout is None:
        title += f" (${PUBLISHED} is not set: the published implementation was not measured)"
    header = ["weights", "published", "ours", "times as fast", "floor", "floor's share of ours"]
    return [table(title, [*header, "loss, published / ours", "equal codes, same steps"], rows)]


def time_columns(seconds: dict[str, float]) -> list[str]:
    published, ours, floor = seconds.get("published"), seconds["ours"], seconds["floor"]
    return [
        f"{published:.2f}" if published else "",
        f"{ours:.2f}",
        f"{published / ours:.1f}" if published else "",
        f"{floor:.2f}",
        f"{floor / ours:.0%}",
    ]


def measure_case(case: Case, checkout: str | None) -> Cell:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(case.num_columns + 512, case.num_columns, generator=generator)
    inputs *= 2 * torch.rand(case.num_columns, generator=generator).square()
    inputs[:, 1:] += 0.7 * inputs[:, :-1]  # neighbours move together
    hessian = (inputs.T @ inputs).double()
    weights = {
        str(index): 0.02 * torch.randn(rows, case.num_columns, generator=generator)
        for index, rows in enumerate(case.num_rows)
    }
    stacked = torch.cat(list(weights.values()))

    def compute() -> dict[str, IntegerTensor]:
        return quantize_together(weights, hessian, torch.float32, BITS, GROUP_SIZE)

    square = torch.randn(2048, 2048)
    solvers = [compute, lambda: square @ square]
    if checkout is not None:
        solvers += [
            partial(run_published, checkout, weight, hessian) for weight in weights.values()
        ]
    (ours, _, *theirs), (own_seconds, product_seconds, *their_seconds) = take_turns(solvers)

    width = case.num_columns
    floor = (sum(case.num_rows) * width**2 + width**3 / 3) * product_seconds / (2 * 2048**3)
    seconds = {"ours": own_seconds, "floor": floor}
    values = torch.cat([tensor.dequantize() for tensor in ours.values()])
    losses = {"ours": relative_error(stacked, values, hessian)}
    if checkout is None:
        return {"seconds": seconds, "losses": losses}

    seconds["published"] = sum(their_seconds)
    losses["published"] = relative_error(stacked, torch.cat(theirs), hessian)
    first = weights["0"]
    steps = fused.absmax_scale(first, BITS, None)
    given = run_published(checkout, first, hessian, steps)
    same = quantize_together(
        {"": first}, hessian, torch.float32, BITS, group_size=None, clip_search=False
    )[""]
    equal = (given / steps).round() == same.codes
    return {"seconds": seconds, "losses": losses, "equal_codes": float(equal.double().mean())}


def take_turns(solvers: Sequence[Callable[[], Any]]) -> tuple[list[Any], list[float]]:
    """Return what each gives, and its best time, measured in turns."""
    results, seconds = [None] * len(solvers), [math.inf] * len(solvers)
    for _ in range(REPEATS):
        for index, solve in enumerate(solvers):
            began = time.process_time()
            results[index] = solve()
            seconds[index] = min(seconds[index], time.process_time() - began)
    return results, seconds


def run_published(
    checkout: str,
    weight: torch.Tensor,
    hessian: torch.Tensor,
    steps: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the quantized weight.

    Args:
        checkout: Folder of the published code.
        steps: One per row, [out, 1], to be used instead of its own in groups.
    """
    gptq, quant = load_published(checkout)
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)

    layer.weight.data = weight.clone()
    solver = gptq.GPTQ(layer)
    solver.H = hessian.float()
    solver.quantizer = quant.Quantizer()
    solver.quantizer.configure(BITS, perchannel=True, sym=True, mse=False)
    if steps is not None:
        solver.quantizer.scale = steps
        solver.quantizer.zero = torch.full_like(steps, 2 ** (BITS - 1))
    grouped = {"groupsize": GROUP_SIZE, "static_groups": True} if steps is None else {}
    with patch.object(torch.cuda, "synchronize"), contextlib.redirect_stdout(io.StringIO()):
        solver.fasterquant(percdamp=0.01, actorder=True, **grouped)
    return layer.weight.data


def load_published(checkout: str) -> tuple[Any, Any]:
    """Import the checkout's `gptq` and `quant`.

    Raises:
        FileNotFoundError: the folder does not hold them.
    """
    if not (Path(checkout) / "gptq.py").is_file():
        raise FileNotFoundError(
            f"{PUBLISHED}: expected a checkout of IST-DASLab/gptq, got {checkout}, which has no "
            "gptq.py; unset it to measure ours alone"
        )
    sys.path.insert(0, checkout)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            import gptq  # type: ignore[import-not-found]
            import quant  # type: ignore[import-not-found]
    finally:
        sys.path.remove(checkout)
    return gptq, quant
