"""Mixed precision: how many bits each weight gets, out of a budget of bytes.

The weights that share an input (q, k and v; gate and up) get the same width, since runtimes fuse
them. One unit of work is one decoder block: each of its groups is quantized alone at each width,
and the rise is KL(dense || quantized) in nats/token on calibration windows that the method has not
seen; the loss itself is too noisy, and too good on windows that the method was fitted to. The
rises are taken to add up, and an integer program chooses one width per group:

    minimise  sum rise[g, b] x[g, b]   with  sum bits[g, b] x[g, b] <= budget,  sum_b x[g, b] = 1
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from scipy.optimize import Bounds, LinearConstraint, milp

from tasks.models.quantized.integer import IntegerTensor
from tasks.plugins import load_plugin
from tasks.prune.loss import predict
from tasks.prune.utilities.kl import measure as negative_kl
from tasks.quantize.block import Block, Quantized
from tasks.quantize.block_work import BlockWork, Part, read_block
from tasks.quantize.calibration import Prefix, advance, put_weights, shared_inputs

if TYPE_CHECKING:
    from tasks.stage_space import StageSpace

GROUP = "sensitivity"
WINDOWS_TOGETHER = 2
"""In one forward pass; the dense model's logits are kept for as many."""
Shapes = Mapping[str, tuple[int, int]]


class Measured(NamedTuple):
    """Weights that share an input, and what each width of theirs costs."""

    names: tuple[str, ...]
    rises: dict[int, float]
    """KL from the dense model in nats/token, by bits."""


class Chosen(NamedTuple):
    parts: list[list[Part]]
    """Per block."""
    facts: dict[str, str | int | float]


def choose_widths(
    space: StageSpace,
    work: BlockWork,
    enter: Callable[[torch.Tensor], Prefix],
    shapes: Sequence[Shapes],
    ids_WS: torch.Tensor,
    unquantized_bytes: int,
    options: dict[str, Any],
) -> Chosen:
    """Measure, and solve for, the bits of each weight.

    Args:
        enter: Takes windows to the dense model's first block, in the worker.
        shapes: Per block (out, in) by the weight's name.
        ids_WS: Calibration tokens.
        unquantized_bytes: What the rest of the model takes on disk.
        options: The stage's.

    Raises:
        ValueError: the budget is below the smallest possible size, or there are too few windows.
    """
    mixed, group_size = options["mixed_precision"], options["method_options"].get("group_size")
    symmetric = options["method_options"].get("symmetric", True)
    widths = sorted(mixed["bits"])
    room = 8 * (mixed["bytes"] - unquantized_bytes)
    costs = {
        name: {bits: stored_bits(shape, bits, group_size, work.dtype, symmetric) for bits in widths}
        for block in shapes
        for name, shape in block.items()
    }
    check_room(room, costs, unquantized_bytes)
    num_windows = mixed["num_windows"]
    if num_windows >= len(ids_WS):
        raise ValueError(
            f"mixed_precision: num_windows is {num_windows}, calibration.num_windows "
            f"{len(ids_WS)}; widths are measured on other windows than the method is fitted to: "
            f"ask for at most {len(ids_WS) - 1}"
        )
    answers = space.compute_units(
        partial(measure_block, work, widths, ids_WS[:num_windows]),
        list(range(len(shapes))),
        partial(enter, ids_WS[num_windows:]),
        group=GROUP,
    )
    blocks = [[read_measured(entry) for entry in json.loads(answer)] for answer in answers]
    flat = [measured for block in blocks for measured in block]
    bits_of = solve_widths(flat, costs, room)
    parts = [
        [
            Part(measured.names, options["method_options"] | {"bits": bits_of[measured.names]})
            for measured in block
        ]
        for block in blocks
    ]
    return Chosen(parts, describe(flat, bits_of, costs))


def stored_bits(
    shape: tuple[int, int],
    bits: int,
    group_size: int | None,
    dtype: torch.dtype,
    symmetric: bool = True,
) -> int:
    """Return what one weight takes on disk, codes, steps and zero points."""
    groups = 1 if group_size is None else shape[1] // group_size
    codes = torch.empty(shape, dtype=torch.int8, device="meta")
    scale = torch.empty(shape[0], groups, dtype=dtype, device="meta")
    zero = None if symmetric else torch.empty_like(scale, dtype=torch.int8)
    return IntegerTensor(codes, scale, bits, group_size, zero=zero).num_bits


def check_room(room: int, costs: Mapping[str, Mapping[int, int]], unquantized_bytes: int) -> None:
    """Make sure that the budget holds the model at its narrowest.

    Raises:
        ValueError: it does not.
    """
    least = sum(min(of_width.values()) for of_width in costs.values())
    if least > room:
        narrowest = min(next(iter(costs.values())))
        raise ValueError(
            f"mixed_precision: bytes is {unquantized_bytes + room // 8:,}, and all weights at "
            f"{narrowest} bits take {unquantized_bytes + least // 8:,}, of which "
            f"{unquantized_bytes:,} are not quantized; ask for more, or allow fewer bits"
        )


def measure_block(
    work: BlockWork, widths: list[int], ids_WS: torch.Tensor, prefix: Prefix, index: int
) -> bytes:
    """Return JSON: the weights of one block by the input that they share, with their rises.

    Args:
        ids_WS: Windows that the method has not seen.
    """
    while prefix.next_block < index:
        advance(prefix, {})
    weights = read_block(work, index, prefix.model.device)
    groups = shared_inputs(prefix, list(weights))
    quantize = load_plugin("method", work.method)
    by_width: dict[int, Quantized] = {}
    for bits in widths:
        options = work.parts[index][0].options | {"bits": bits}
        by_width[bits] = quantize(Block(weights, work.dtype, prefix), **options)
        restore(prefix, weights)

    rises = [dict.fromkeys(widths, 0.0) for _ in groups]
    for batch in torch.split(ids_WS, WINDOWS_TOGETHER):
        ((_, dense_NSV),) = predict(prefix.model, batch)
        for names, of_width in zip(groups, rises, strict=True):
            for bits, tensors in by_width.items():
                put_weights(prefix, {name: tensors[name] for name in names})
                ((_, logits_NSV),) = predict(prefix.model, batch)
                kl = -negative_kl(logits_NSV, batch, dense_NSV)
                of_width[bits] += kl * len(batch) / len(ids_WS)
                restore(prefix, {name: weights[name] for name in names})
    measured = zip(groups, rises, strict=True)
    return json.dumps([{"names": names, "rises": rise} for names, rise in measured]).encode()


@torch.no_grad()
def restore(prefix: Prefix, weights: Mapping[str, torch.Tensor]) -> None:
    for name, weight in weights.items():
        prefix.model.get_parameter(name).copy_(weight)


def read_measured(entry: dict[str, Any]) -> Measured:
    rises = {int(bits): float(rise) for bits, rise in entry["rises"].items()}
    return Measured(tuple(entry["names"]), rises)


def solve_widths(
    measured: Sequence[Measured], costs: Mapping[str, Mapping[int, int]], room: int
) -> dict[tuple[str, ...], int]:
    """Return the bits of each group with the least sum of rises.

    Args:
        costs: Bits on disk by the weight's name and width.
        room: Bits on disk that all may take together.
    """
    options = [(group, bits) for group in measured for bits in sorted(group.rises)]
    size = [sum(costs[name][bits] for name in group.names) for group, bits in options]
    one_each = np.array([[own is group for own, _ in options] for group in measured], dtype=float)
    solution = milp(
        np.array([group.rises[bits] for group, bits in options]),
        constraints=[
            LinearConstraint(one_each, 1, 1),
            LinearConstraint(np.array(size, dtype=float)[None] / room, -np.inf, 1 + 1e-12),
        ],
        integrality=np.ones(len(options)),
        bounds=Bounds(0, 1),
        options={"mip_rel_gap": 0.0},
    )
    assert solution.success, solution.message  # the narrowest widths are always a solution
    taken = [option for option, x in zip(options, solution.x, strict=True) if x > 0.5]
    return {group.names: bits for group, bits in taken}


def describe(
    measured: Sequence[Measured],
    bits_of: Mapping[tuple[str, ...], int],
    costs: Mapping[str, Mapping[int, int]],
) -> dict[str, str | int | float]:
    """Say how many weights got which width, and what the measurements promise."""
    facts: dict[str, str | int | float] = {}
    total = sum(len(group.names) for group in measured)
    for bits in sorted(set(bits_of.values())):
        number = sum(len(names) for names, chosen in bits_of.items() if chosen == bits)
        facts[f"weights_at_{bits}_bits"] = f"{number} of {total}"
    facts["expected_rise"] = round(sum(g.rises[bits_of[g.names]] for g in measured), 6)
    return facts
