"""The student as it is trained: a forward pass that ends in the losses, not in logits.

Shapes: B blocks of T tokens, hidden size D; logits are N rows of V (tasks/distill/examples.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from kernels.chunked_kd import naive
from kernels.chunked_kd.fused import chunked_losses
from kernels.chunked_kd.naive import DenseTeacher
from tasks.distill.examples import Examples
from tasks.distill.heads import forward_as, head_logits, logit_rows, run, take_apart
from tasks.distill.objective import Objective
from tasks.distill.teaching import Lesson
from tasks.models.model_kind import head_kind

Sums = tuple[torch.Tensor, torch.Tensor]
"""The weighted sum of all losses, a scalar; each loss's own sum, detached [num_losses]."""


class StudentLoss(nn.Module):
    """A student, and what it is held against.

    Losses over logits are computed inside the head's own module, a chunk of tokens at a time: no
    [N, V] ever exists, of neither model, and where ZeRO-3 partitions the head, its hooks gather it
    as for any other module. A student whose head cannot be taken apart makes whole logits.

    Args:
        projection: From the student's hidden states to the teacher's width; trained along, and
            thrown away afterwards.
        layer_map: The teacher's layer that each of the student's is held against.
        vocab_size: Logits that count, of two language models; None for all.
    """

    def __init__(
        self,
        student: Any,
        objective: Objective,
        projection: nn.Linear | None = None,
        layer_map: Sequence[int] = (),
        vocab_size: int | None = None,
    ) -> None:
        super().__init__()
        self.student = student
        self.projection = projection
        self.objective = objective
        self.layer_map = layer_map
        is_language_model = head_kind(type(student).__name__) in ("causal_lm", "masked_lm")
        self.vocab_size = vocab_size if is_language_model else None
        self.parts = take_apart(student)
        self.outputs = objective.outputs()
        over_logits = [objective.losses[place] for place in objective.over("logits")]
        self.terms = [loss.term for loss in over_logits if loss.term]
        self.look_at_teacher = [loss.needs_teacher for loss in over_logits]
        self.weights = [loss.weight for loss in over_logits]

    def forward(self, examples: Examples, lesson: Lesson) -> Sums:
        """Return the losses, each summed with its weights over rows or tokens."""
        whole = self.parts is None or isinstance(lesson.logits, torch.Tensor)
        model = self.student if whole or not self.parts else self.parts.backbone
        output = run(model, examples.inputs, self.outputs)
        sums = torch.zeros(len(self.objective.losses), device=examples.labels.device)
        total = sums.sum()
        places = self.objective.over("logits")
        if places:
            over_logits = self.over_whole_logits if whole else self.over_chunks
            total, sums[places] = over_logits(output, lesson, examples)
        for what in ("hidden_states", "attentions"):
            for place in self.objective.over(what):
                loss = self.objective.losses[place]
                assert loss.compare
                losses_BT = loss.compare(*self.matched_layers(output, lesson, what))
                summed = (losses_BT * examples.tokens).sum()
                sums[place] = summed.detach()
                total = total + loss.weight * summed
        return total, sums

    def over_chunks(self, output: Any, lesson: Lesson, examples: Examples) -> Sums:
        """Compute the losses over logits from hidden states, inside the head's module.

        Only causal language models are taken apart, whose labelled rows are all rows.
        """
        parts, teacher = self.parts, lesson.logits
        assert parts
        assert not isinstance(teacher, torch.Tensor)

        def losses(hidden_ND: torch.Tensor) -> Sums:
            return chunked_losses(
                hidden_ND,
                parts.head(),
                examples.labels.flatten(),
                examples.rows.flatten(),
                self.terms,
                self.weights,
                teacher,
                self.vocab_size,
            )

        with forward_as(parts.linear, losses):
            done: Sums = parts.linear(output.last_hidden_state.flatten(0, 1))
        return done

    def over_whole_logits(self, output: Any, lesson: Lesson, examples: Examples) -> Sums:
        """Compute the losses over the logits that the student's own forward pass has made."""
        logits_NV = logit_rows(output, examples.inputs)[:, : self.vocab_size]
        teacher = lesson.logits
        if isinstance(teacher, DenseTeacher):
            teacher = head_logits(*teacher)
        if isinstance(teacher, torch.Tensor):
            teacher = teacher[:, : self.vocab_size]
        losses_LN = naive.losses(logits_NV, teacher, examples.labels.flatten(), self.terms)
        rows_N, labelled_N = examples.rows.flatten(), examples.labelled.flatten()
        weights = [rows_N if looks else labelled_N for looks in self.look_at_teacher]
        sums = (losses_LN * torch.stack(weights)).sum(dim=1)
        return sums @ sums.new_tensor(self.weights), sums.detach()

    def matched_layers(
        self, output: Any, lesson: Lesson, what: str
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Return each of the student's layers, and the teacher's that it is held against."""
        student = list(getattr(output, what)[-len(self.layer_map) :])  # not the embedding's
        if what == "hidden_states" and self.projection:
            student = [self.projection(hidden_BTD) for hidden_BTD in student]
        teacher = getattr(lesson, what)
        return student, [teacher[layer] for layer in self.layer_map]
