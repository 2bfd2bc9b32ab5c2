"""What a student is shown of its teacher, and the teacher in the worker that shows it.

Shapes: B blocks of T tokens, N = B T, hidden size D, vocabulary V.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from kernels.chunked_kd.naive import DenseTeacher, StoredTeacher
from tasks.distill.engine import gathered
from tasks.distill.examples import Examples
from tasks.distill.heads import Parts, logit_rows, run, take_apart
from tasks.distill.objective import Objective


@dataclass(frozen=True)
class Lesson:
    """What one forward pass of the student is held against; empty where no loss looks."""

    logits: DenseTeacher | StoredTeacher | torch.Tensor | None = None
    """A tensor, rows [N, V], where the teacher's head cannot be taken apart."""
    hidden_states: tuple[torch.Tensor, ...] = ()
    """After each layer, [B, T, D]."""
    attentions: tuple[torch.Tensor, ...] = ()
    """Of each layer, [B, H, T, T]."""


class Teacher(Protocol):
    def __call__(self, rows_B: torch.Tensor, examples: Examples) -> AbstractContextManager[Lesson]:
        """Show what the teacher makes of some blocks, whose places in the corpus are `rows_B`.

        The lesson holds as long as the context is open.
        """
        ...


@contextmanager
def no_teacher(rows_B: torch.Tensor, examples: Examples) -> Iterator[Lesson]:
    yield Lesson()


class Backbone(nn.Module):
    """The root under which ZeRO-3 finds the teacher's modules."""

    def __init__(self, model: Any, parts: Parts | None) -> None:
        super().__init__()
        self.model = model
        self.parts = parts

    def forward(self, examples: Examples, outputs: dict[str, bool]) -> Any:
        called = self.parts.backbone if self.parts else self.model
        return run(called, examples.inputs, outputs)


class OnlineTeacher:
    """A teacher that runs beside the student.

    Args:
        model: In evaluation mode.
    """

    def __init__(self, model: Any, objective: Objective) -> None:
        self.objective = objective
        self.num_layers: int = model.config.num_hidden_layers
        self.parts = take_apart(model) if objective.compares_logits else None
        self.module: Any = Backbone(model, self.parts)

    @contextmanager
    def __call__(self, rows_B: torch.Tensor, examples: Examples) -> Iterator[Lesson]:
        wanted = self.objective.outputs()
        with torch.no_grad():
            output = self.module(examples, wanted)
        shown = {
            what: getattr(output, what)[-self.num_layers :]
            for what in ("hidden_states", "attentions")
            if f"output_{what}" in wanted
        }
        if not self.objective.compares_logits:
            yield Lesson(**shown)
        elif self.parts is None:
            yield Lesson(logits=logit_rows(output, examples.inputs), **shown)
        else:
            hidden_ND = output.last_hidden_state.flatten(0, 1)
            with gathered(self.parts.linear.parameters()):
                yield Lesson(logits=DenseTeacher(hidden_ND, self.parts.head()), **shown)
