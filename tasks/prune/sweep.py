"""The sweep: score sub-models by forward passes, unit of work by unit of work.

A unit of work scores some pairs of sub-models, and before them the criterion's own choice, all on
the same windows: what makes a window hard then cancels, and how far the criterion's choice
stands above its neighbours tells how much the criterion is worth.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from tasks.corpus.text import calibration_windows
from tasks.models.checkpoint import load_model, load_tokenizer
from tasks.prune.groups import find_units
from tasks.prune.loss import measure_loss
from tasks.prune.masking import masked
from tasks.prune.repair import repair_submodels
from tasks.prune.sampling import choose_best, draw_submodel
from tasks.prune.shape import Shape, choose_shape
from tasks.prune.stream import Anatomy, examine_anatomy
from tasks.prune.units import Kept, Sublayer, Units, list_sublayers

FIT_PER_SCORED = 2
"""Windows that a sub-model is repaired on, per window that it is scored on."""
SUBMODELS_PER_PASS = 3
"""Repaired side by side, so that they share the dense model's pass; memory grows with it."""


@dataclass(frozen=True)
class Work:
    """What any unit of work of the stage is fixed by, besides its number."""

    localize: Callable[[str], Path]
    model_uri: str
    text_uri: str
    options: dict[str, Any]


class Bench(NamedTuple):
    """A worker's state: the model, its units, and the calibration windows."""

    work: Work
    model: Any
    shape: Shape
    groups: list[Units]
    anatomy: Anatomy
    ids_WS: torch.Tensor

    @property
    def sublayers(self) -> list[Sublayer]:
        return list_sublayers(self.groups)


class Choice(NamedTuple):
    """The criterion's opinion, and how many units of each group stay."""

    importance: list[NDArray[np.float64]]
    num_kept: list[int]
    fixed: list[bool]
    """Groups in which the criterion decides alone: all sub-models have its choice."""

    def best(self) -> Kept:
        return choose_best(self.importance, self.num_kept)

    def draw(self, seed: int, number: int) -> Kept:
        drawn = draw_submodel(self.importance, self.num_kept, seed, number)
        pairs = zip(self.fixed, self.best(), drawn, strict=True)
        return [best if fixed else other for fixed, best, other in pairs]


class SweepUnit(NamedTuple):
    """One unit of work; its number fixes the windows."""

    number: int
    submodels: tuple[int, ...]
    choice: Choice


def build_bench(work: Work) -> Bench:
    folder = work.localize(work.model_uri)
    options = work.options
    model = load_model(folder, "float32", options["trust_remote_code"])
    ids = calibration_windows(
        work.localize(work.text_uri),
        load_tokenizer(folder),
        options["num_windows"],
        options["window"],
    )
    return set_up(work, model, ids)


def set_up(work: Work, model: Any, ids_WS: torch.Tensor) -> Bench:
    """Find the shape to cut to, and the units.

    Raises:
        ValueError: the model cannot be cut to it.
    """
    remote = work.options["trust_remote_code"]
    shape = choose_shape(model, work.options, work.options["alignment"], remote)
    groups = find_units(model, shape.num_kept, remote)
    anatomy = examine_anatomy(model, list_sublayers(groups), ids_WS[0])
    return Bench(work, model, shape, groups, anatomy, ids_WS)


def cut_units(choice: Choice, options: dict[str, Any]) -> list[SweepUnit]:
    """Divide the sub-models among units of work."""
    size, total = options["submodels_per_unit"], options["num_submodels"]
    return [
        SweepUnit(number, tuple(range(first, min(first + size, total))), choice)
        for number, first in enumerate(range(0, total, size))
    ]


def list_submodels(unit: SweepUnit, seed: int) -> list[Kept]:
    """Return the sub-models of a unit of work, the criterion's choice first."""
    return [unit.choice.best(), *(unit.choice.draw(seed, n) for n in unit.submodels)]


def check_windows(options: dict[str, Any]) -> None:
    """Make sure that there are windows to score sub-models on, and others to repair them on.

    Raises:
        ValueError: there are not.
    """
    scored, total = options["windows_per_submodel"], options["num_windows"]
    if scored + int(options["repair"]) > total:
        most = total - int(options["repair"])
        raise ValueError(
            f"windows_per_submodel is {scored}, calibration.num_windows {total}; sub-models are "
            f"repaired on other windows than they are scored on: ask for at most {most}"
        )


def score_unit(bench: Bench, unit: SweepUnit) -> bytes:
    """Score a unit's sub-models; return JSON, their utilities (negative nats/token) in order."""
    options = bench.work.options
    submodels = list_submodels(unit, options["seed"])
    rng = np.random.default_rng([options["seed"], unit.number, 1])
    order = torch.from_numpy(rng.permutation(len(bench.ids_WS)))
    num_scored = options["windows_per_submodel"]
    score_ids = bench.ids_WS[order[:num_scored]]
    fit_ids = bench.ids_WS[order[num_scored : num_scored * (1 + FIT_PER_SCORED)]]
    losses: list[float] = []
    if options["repair"]:
        for first in range(0, len(submodels), SUBMODELS_PER_PASS):
            cuts = submodels[first : first + SUBMODELS_PER_PASS]
            _, scores = repair_submodels(
                bench.model, bench.groups, bench.anatomy, cuts, fit_ids, score_ids
            )
            losses += scores
    else:
        for kept in submodels:
            with masked(bench.model, bench.groups, kept):
                losses.append(measure_loss(bench.model, score_ids))
    return json.dumps([-loss for loss in losses]).encode()
