"""What a worker of the prune stage holds: the model, its units, and the calibration windows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from tasks.corpus.text import calibration_windows
from tasks.models.checkpoint import load_model, load_tokenizer
from tasks.models.streaming import open_streamed
from tasks.prune.repair.stream import Anatomy, examine_anatomy
from tasks.prune.shapes.shape import Shape, choose_shape
from tasks.prune.units.groups import find_units
from tasks.prune.units.units import Sublayer, Units, list_sublayers


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


def build_bench(work: Work) -> Bench:
    folder, options = work.localize(work.model_uri), work.options
    model = open_model(folder, options)
    ids = calibration_windows(
        work.localize(work.text_uri),
        load_tokenizer(folder),
        options["num_windows"],
        options["window"],
    )
    return set_up(work, model, ids)


def open_model(folder: Path, options: dict[str, Any]) -> Any:
    """Load a model in float32, or stream it, as the recipe's `cluster.offload` says."""
    opened = open_streamed if options.get("offload") == "layers" else load_model
    return opened(folder, "float32", options["trust_remote_code"])


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
