"""What a criterion may look at: a sublayer's weights, and how strongly its writer is driven."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from tasks.prune.loss import measure_loss
from tasks.prune.masking import visited
from tasks.prune.units import Sublayer


class UnitStatistics(NamedTuple):
    """One sublayer, in the order of its units."""

    readers_UrD: torch.Tensor
    """[num_units, rows of all readers, hidden]: what the units read."""
    writer_UwD: torch.Tensor
    """[num_units, unit_width, hidden]: what they write."""
    input_norm_Uw: torch.Tensor
    """[num_units, unit_width]: L2 norm of the writer's inputs over all calibration tokens."""


def measure_inputs(
    model: Any, sublayers: list[Sublayer], ids_WS: torch.Tensor
) -> tuple[list[torch.Tensor], float]:
    """Run the calibration windows [num_windows, window] through the model once.

    Returns:
        Per sublayer, the L2 norm [width] of each of the writer's inputs over all tokens; and the
        model's loss in nats/token.
    """
    squares = [torch.zeros(()) for _ in sublayers]

    def visit(position: int, x: torch.Tensor, _stream: torch.Tensor, _output: torch.Tensor) -> None:
        squares[position] = squares[position].to(x) + x.flatten(0, -2).square().sum(0)

    with visited(model, sublayers, visit):
        nats = measure_loss(model, ids_WS)
    return [total.sqrt() for total in squares], nats


def describe_units(model: Any, sublayer: Sublayer, input_norm: torch.Tensor) -> UnitStatistics:
    """Sort a sublayer's weights by unit; the readers' are copied."""
    num_units = sublayer.num_units
    readers = [
        model.get_submodule(path).weight.detach().view(num_units, rows, -1)
        for path, rows in sublayer.readers
    ]
    writer = model.get_submodule(sublayer.writer).weight.detach()
    return UnitStatistics(
        readers_UrD=torch.cat(readers, dim=1),
        writer_UwD=writer.T.reshape(num_units, sublayer.unit_width, -1),
        input_norm_Uw=input_norm.view(num_units, sublayer.unit_width),
    )
