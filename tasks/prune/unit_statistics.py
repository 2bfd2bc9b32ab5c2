"""What a criterion may look at: the dense model, calibration windows, and what they share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch

from tasks.models.streaming import read_weight, resident
from tasks.prune.loss import measure_loss
from tasks.prune.units.units import NAMES, Sublayer, Units, list_sublayers, weights_by_unit


class Calibrated(NamedTuple):
    """The dense model, and what a pass of the calibration windows through it has shown."""

    model: Any
    groups: Sequence[Units]
    ids_WS: torch.Tensor
    num_kept: list[int]
    """Units that will stay, per group."""
    input_norms: list[torch.Tensor]
    """Per sublayer with units, the L2 norm [width] of each of the writer's inputs over all
    tokens; groups of other kinds are left out."""

    @property
    def sublayers(self) -> list[Sublayer]:
        """The groups, where all of them are KV groups or FFN neurons.

        Raises:
            ValueError: there are units of another kind, whose inputs nobody measures.
        """
        for group in self.groups:
            if not isinstance(group, Sublayer):
                raise ValueError(
                    "this criterion measures the inputs of KV groups and FFN neurons, got "
                    f"{NAMES[group.kind]}; choose ablation, magnitude, random or taylor, or "
                    "block_influence for layers"
                )
        return list_sublayers(self.groups)


class UnitStatistics(NamedTuple):
    """One sublayer, in the order of its units."""

    readers_UrD: torch.Tensor
    """[num_units, rows of all readers, hidden]: what the units read."""
    writer_UwD: torch.Tensor
    """[num_units, unit_width, hidden]: what they write."""
    input_norm_Uw: torch.Tensor
    """[num_units, unit_width]: L2 norm of the writer's inputs over all calibration tokens."""


def calibrate(
    model: Any, groups: Sequence[Units], ids_WS: torch.Tensor, num_kept: list[int]
) -> tuple[Calibrated, float]:
    """Run the windows through the model once; return also its loss in nats/token."""
    norms, nats = measure_inputs(model, list_sublayers(groups), ids_WS)
    return Calibrated(model, groups, ids_WS, num_kept, norms), nats


def measure_inputs(
    model: Any, sublayers: list[Sublayer], ids_WS: torch.Tensor
) -> tuple[list[torch.Tensor], float]:
    """Run the calibration windows [num_windows, window] through the model once.

    Returns:
        Per sublayer, the L2 norm [width] of each of the writer's inputs over all tokens; and the
        model's loss in nats/token.
    """
    squares = [torch.zeros(()) for _ in sublayers]

    def add(position: int, x: torch.Tensor) -> None:
        squares[position] = squares[position].to(x) + x.flatten(0, -2).square().sum(0)

    with observed(model, sublayers, add):
        nats = measure_loss(model, ids_WS)
    return [total.sqrt() for total in squares], nats


@contextmanager
def observed(
    model: Any, sublayers: list[Sublayer], see: Callable[[int, torch.Tensor], None]
) -> Iterator[None]:
    """Show every writer's input [..., width] and its sublayer's position, as it comes by."""

    def hook(position: int) -> Callable[..., None]:
        return lambda _, inputs, __: see(position, inputs[0])

    writers = [model.get_submodule(sublayer.writer) for sublayer in sublayers]
    handles = [writer.register_forward_hook(hook(i)) for i, writer in enumerate(writers)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def describe_units(calibrated: Calibrated) -> Iterator[UnitStatistics]:
    """Sort the weights of one sublayer after the other by unit; the readers' are copied.

    Raises:
        ValueError: there are units of another kind than KV groups and FFN neurons.
    """
    for sublayer, norm in zip(calibrated.sublayers, calibrated.input_norms, strict=True):
        norm_Uw = norm.view(sublayer.num_units, sublayer.unit_width)
        with ExitStack() as stack:
            for path in (*(path for path, _ in sublayer.readers), sublayer.writer):
                stack.enter_context(resident(calibrated.model.get_submodule(path)))
            yield UnitStatistics(*weights_by_unit(calibrated.model, sublayer), norm_Uw)


def read_written(model: Any, sublayer: Sublayer) -> torch.Tensor:
    """Return what a sublayer's units write, [num_units, unit_width, hidden]."""
    part = sublayer.slices[-1]
    rows = read_weight(model.get_parameter(part.name)).movedim(part.dim, 0)
    return rows.reshape(sublayer.num_units, sublayer.unit_width, -1)


def owned_parameters(model: Any, group: Units) -> list[str]:
    """Return the names of all parameters of which the group's units own a part."""
    if group.slices:
        return [part.name for part in group.slices]
    assert not isinstance(group, Sublayer)
    paths = [(path, model.get_submodule(path)) for path in group.paths]
    return [f"{path}.{name}" for path, module in paths for name, _ in module.named_parameters()]


def sum_by_unit(
    group: Units, names: list[str], values: Callable[[str], torch.Tensor]
) -> torch.Tensor:
    """Sum over what each unit owns, [num_units].

    Args:
        names: `owned_parameters` of the group.
        values: Returns, for a parameter's name, numbers of the parameter's shape.
    """
    if group.slices:
        total = torch.zeros(())
        for part in group.slices:
            entries = values(part.name).movedim(part.dim, 0)
            owned = entries[part.start : part.start + group.num_units * part.width]
            sums = owned.reshape(group.num_units, -1).sum(1)
            total = total.to(sums) + sums
        return total
    assert not isinstance(group, Sublayer)
    return torch.stack(
        [
            torch.stack([values(n).sum() for n in names if n.startswith(f"{path}.")]).sum()
            for path in group.paths
        ]
    )
