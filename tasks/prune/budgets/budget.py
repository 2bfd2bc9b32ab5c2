"""The budget: of all uniform shapes that cost no more than asked, the one that should lose least.

Layers multiply what a layer costs, and hidden dimensions what every width costs, so the cost of a
shape is no sum over kinds and a linear program cannot say it. But it is linear in each kind by
itself: the number of the finest kind that fits follows from those of the others, and all of them
can be tried.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import PchipInterpolator

Floats = NDArray[np.float64]

BYTES_PER_PARAMETER = 4

MAX_CHOICES = 256
"""Numbers of units that are tried of each kind but the finest, evenly spread over all."""

LEVELS = (0.75, 0.5, 0.25)
"""Fractions of each kind at which the loss is measured, and at the least that can stay."""


TIE_NATS = 1e-9
"""Of shapes that should lose the same, the dearest is chosen: this much per budget's worth."""


class Room(NamedTuple):
    """How far each kind of unit can be cut."""

    num_units: dict[str, int]
    choices: dict[str, tuple[int, ...]]
    """Numbers of units that may stay, ascending; one where a kind is not to be cut."""

    @property
    def least(self) -> dict[str, int]:
        return {kind: choices[0] for kind, choices in self.choices.items()}

    @property
    def most(self) -> dict[str, int]:
        return {kind: choices[-1] for kind, choices in self.choices.items()}

    def corners(self) -> list[dict[str, int]]:
        """Return the shapes with the least or the most of each kind, in `Cost`'s order."""
        ends = [(choices[0], choices[-1]) for choices in self.choices.values()]
        return [dict(zip(self.choices, corner, strict=True)) for corner in product(*ends)]

    def levels(self) -> list[dict[str, int]]:
        """Return the shapes with one kind cut to one level, all others whole."""
        found = []
        for kind, choices in self.choices.items():
            wanted = [fraction * self.num_units[kind] for fraction in LEVELS]
            numbers = {choices[0], *(nearest(choices, size) for size in wanted)}
            found += [
                self.num_units | {kind: n}
                for n in sorted(numbers, reverse=True)
                if len(choices) > 1 and n < self.num_units[kind]
            ]
        return found

    def whole(self, kind: str) -> Room:
        """Return the room that is left when as many as possible of a kind stay."""
        return self._replace(choices=self.choices | {kind: self.choices[kind][-1:]})


class Cost(NamedTuple):
    """A cost that is linear in each kind's number of units: that of parameters exactly, that of
    time nearly."""

    room: Room
    corners: list[float]
    """Cost of `room.corners()`."""

    def of(self, num_kept: Mapping[str, Any]) -> Floats:
        """Return the cost of shapes, given as numbers per kind or as arrays [shapes] of them."""
        table = np.array(self.corners).reshape([2] * len(self.room.choices) + [1])
        for kind, choices in self.room.choices.items():
            way = (np.asarray(num_kept[kind]) - choices[0]) / max(choices[-1] - choices[0], 1)
            table = table[0] * (1 - way) + table[1] * way
        return table


def increasing_cost(room: Room, corners: list[float]) -> Cost:
    """Return a cost that was measured, without what noise makes of it: more units cost no less."""
    table = np.array(corners).reshape([2] * len(room.choices))
    for axis in range(table.ndim):
        table = np.maximum.accumulate(table, axis=axis)
    return Cost(room, table.ravel().tolist())


def interpolate_rise(choices: Sequence[int], rises: Mapping[int, float]) -> Floats:
    """Return by how much the loss should rise with each number of units kept, [choices].

    A monotone cubic through what was measured; where fewer units lost less, by chance, the larger
    loss of the more.

    Args:
        rises: Rise in nats/token by number of units kept.
    """
    numbers = sorted(rises)
    values = np.maximum.accumulate([rises[n] for n in reversed(numbers)])[::-1]
    if len(numbers) == 1:
        return np.full(len(choices), values[0])
    found: Floats = PchipInterpolator(numbers, values)(np.array(choices, dtype=float))
    return found


def best_shape(
    room: Room,
    cost: Cost,
    losses: Mapping[str, Floats],
    budget: float,
    refused: Sequence[Mapping[str, int]] = (),
) -> dict[str, int] | None:
    """Return the shape in the room with the least predicted loss under the budget, if any fits.

    Args:
        losses: Rise of the loss by kind, for each of `cost.room`'s choices; the sum over kinds is
            what is predicted for a shape.
        refused: Numbers of some kinds that must not come together.
    """
    free = [kind for kind in room.choices if not any(kind in numbers for numbers in refused)]
    finest = max(free or room.choices, key=lambda kind: len(room.choices[kind]))
    others = [kind for kind in room.choices if kind != finest]
    tried = {kind: thin(room.choices[kind]) for kind in others}
    grid = np.meshgrid(*tried.values(), indexing="ij") if tried else []
    shapes = {kind: numbers.ravel() for kind, numbers in zip(others, grid, strict=True)}

    choices = np.array(room.choices[finest])
    cheapest = cost.of(shapes | {finest: choices[0]})
    dearest = cost.of(shapes | {finest: choices[-1]})
    margin = budget * (1 + 1e-9) - cheapest
    per_choice = (dearest - cheapest) / max(int(choices[-1] - choices[0]), 1)
    flat = np.where(margin >= 0, np.inf, -np.inf)
    with np.errstate(divide="ignore", invalid="ignore"):
        fitting = np.where(per_choice > 0, choices[0] + margin / per_choice, flat)
    positions = np.searchsorted(choices, fitting + 1e-9, side="right") - 1
    shapes[finest] = choices[np.maximum(positions, 0)]

    predicted = predict_loss(cost.room, losses, shapes)
    predicted = predicted - TIE_NATS * cost.of(shapes) / budget
    predicted[positions < 0] = np.inf
    for numbers in refused:
        clash = [shapes[kind] == number for kind, number in numbers.items()]
        predicted[np.logical_and.reduce(clash)] = np.inf
    best = int(np.argmin(predicted))
    if not np.isfinite(predicted[best]):
        return None
    return {kind: int(shapes[kind][best]) for kind in room.choices}


def predict_loss(
    room: Room, losses: Mapping[str, Floats], num_kept: Mapping[str, Any]
) -> NDArray[np.float64]:
    """Return the rise of the loss of shapes, [shapes]."""
    parts = [
        losses[kind][np.searchsorted(choices, num_kept[kind])]
        for kind, choices in room.choices.items()
    ]
    return np.atleast_1d(np.sum(np.broadcast_arrays(*parts), axis=0))


def nearest(choices: Sequence[int], size: float) -> int:
    return min(choices, key=lambda n: (abs(n - size), n))


def thin(choices: tuple[int, ...]) -> list[int]:
    """Return at most MAX_CHOICES of the choices, both ends among them."""
    positions = np.linspace(0, len(choices) - 1, min(len(choices), MAX_CHOICES))
    return [choices[int(position)] for position in positions.round()]


def find_finalists(
    room: Room,
    cost: Cost,
    losses: Mapping[str, Floats],
    budget: float,
    refused: Sequence[Mapping[str, int]] = (),
) -> list[dict[str, int]]:
    """Return the best shape of all, and the best ones that leave one kind as it is.

    A sum over kinds does not know how cuts act together; measuring these finds out.
    """
    rooms = [room, *(room.whole(kind) for kind, choices in room.choices.items() if choices[1:])]
    found = [best_shape(narrowed, cost, losses, budget, refused) for narrowed in rooms]
    unique = {tuple(shape.values()): shape for shape in found if shape}
    return list(unique.values())
