"""What training minimises: loss plugins, each with its weight, over one pass of both models.

Shapes: B blocks of T tokens, N = B T, vocabulary V.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from kernels.chunked_kd.naive import Term
from tasks.distill_options import needs_a_teacher
from tasks.outside_code import import_function, is_outside
from tasks.plugins import load_plugin, plugin_constant

Compare = Callable[[Sequence[torch.Tensor], Sequence[torch.Tensor]], torch.Tensor]


@dataclass(frozen=True)
class Loss:
    """One weighted loss of the sum."""

    label: str
    """Its name in the loss curve."""
    weight: float
    over: str
    """What it looks at: `logits`, `hidden_states` or `attentions`."""
    needs_teacher: bool
    term: Term | None = None
    """Over logits: what the kernel computes."""
    compare: Compare | None = None
    """Over anything else: (student's layers, teacher's layers) -> losses [B, T]."""


@dataclass(frozen=True)
class Objective:
    losses: tuple[Loss, ...]

    @property
    def labels(self) -> list[str]:
        return [loss.label for loss in self.losses]

    @property
    def weights(self) -> list[float]:
        return [loss.weight for loss in self.losses]

    def over(self, what: str) -> list[int]:
        """Places of the losses that look at something."""
        return [place for place, loss in enumerate(self.losses) if loss.over == what]

    @property
    def compares_logits(self) -> bool:
        return any(self.losses[place].needs_teacher for place in self.over("logits"))

    def outputs(self) -> dict[str, bool]:
        """Keyword arguments that let a transformers model return what the losses look at."""
        kinds = ("hidden_states", "attentions")
        return {f"output_{what}": True for what in kinds if self.over(what)}


def build_objective(chosen: Sequence[dict[str, Any]]) -> Objective:
    """Load the losses that a recipe names; one that is named twice is numbered."""
    names = [loss["name"] for loss in chosen]
    return Objective(
        tuple(
            build_loss(
                loss, f"{loss['name']}_{place}" if names.count(loss["name"]) > 1 else loss["name"]
            )
            for place, loss in enumerate(chosen)
        )
    )


def build_loss(chosen: dict[str, Any], label: str) -> Loss:
    name, weight = chosen["name"], chosen["weight"]
    needs_teacher = needs_a_teacher(name)
    if is_outside(name):
        term = Term("function", function=import_function(name))
        return Loss(label, weight, "logits", needs_teacher, term=term)
    function, over = load_plugin("loss", name), plugin_constant("loss", name, "OVER")
    if over == "logits":
        return Loss(label, weight, over, needs_teacher, term=function(**chosen["options"]))
    compare = partial(function, **chosen["options"])
    return Loss(label, weight, over, needs_teacher, compare=compare)
