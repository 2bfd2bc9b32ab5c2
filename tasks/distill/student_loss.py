"""The student as it is trained: a forward pass that ends in the losses, not in logits.

Shapes: B blocks of T tokens, N = B T, hidden size D, vocabulary V.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from kernels.chunked_kd import naive
from kernels.chunked_kd.fused import chunked_losses
from kernels.chunked_kd.naive import DenseTeacher
from tasks.distill.heads import forward_as, head_logits, take_apart
from tasks.distill.objective import Objective
from tasks.distill.teaching import Lesson

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
        vocab_size: Logits that count, of both models; None for all.
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
        self.vocab_size = vocab_size
        self.parts = take_apart(student)
        self.outputs = objective.outputs()
        over_logits = [objective.losses[place] for place in objective.over("logits")]
        self.terms = [loss.term for loss in over_logits if loss.term]
        self.weights = [loss.weight for loss in over_logits]

    def forward(
        self,
        ids_BT: torch.Tensor,
        labels_BT: torch.Tensor,
        learned_BT: torch.Tensor,
        lesson: Lesson,
    ) -> Sums:
        """Return the losses, summed over the learned tokens.

        Args:
            learned_BT: 1 where the next token, `labels_BT`, is to be learned.
        """
        whole = self.parts is None or isinstance(lesson.logits, torch.Tensor)
        model = self.student if whole or not self.parts else self.parts.backbone
        output = model(input_ids=ids_BT, use_cache=False, **self.outputs)
        sums = torch.zeros(len(self.objective.losses), device=ids_BT.device)
        total = sums.sum()
        places = self.objective.over("logits")
        if places:
            over_logits = self.over_whole_logits if whole else self.over_chunks
            total, sums[places] = over_logits(
                output, lesson, labels_BT.flatten(), learned_BT.flatten()
            )
        for what in ("hidden_states", "attentions"):
            for place in self.objective.over(what):
                loss = self.objective.losses[place]
                assert loss.compare
                losses_BT = loss.compare(*self.matched_layers(output, lesson, what))
                summed = (losses_BT * learned_BT).sum()
                sums[place] = summed.detach()
                total = total + loss.weight * summed
        return total, sums

    def over_chunks(
        self, output: Any, lesson: Lesson, labels_N: torch.Tensor, learned_N: torch.Tensor
    ) -> Sums:
        """Compute the losses over logits from hidden states, inside the head's module."""
        parts, teacher = self.parts, lesson.logits
        assert parts
        assert not isinstance(teacher, torch.Tensor)

        def losses(hidden_ND: torch.Tensor) -> Sums:
            return chunked_losses(
                hidden_ND,
                parts.head(),
                labels_N,
                learned_N,
                self.terms,
                self.weights,
                teacher,
                self.vocab_size,
            )

        with forward_as(parts.linear, losses):
            done: Sums = parts.linear(output.last_hidden_state.flatten(0, 1))
        return done

    def over_whole_logits(
        self, output: Any, lesson: Lesson, labels_N: torch.Tensor, learned_N: torch.Tensor
    ) -> Sums:
        """Compute the losses over the logits that the student's own forward pass has made."""
        logits_NV, teacher = output.logits[..., : self.vocab_size].flatten(0, 1), lesson.logits
        if isinstance(teacher, DenseTeacher):
            teacher = head_logits(*teacher)
        if isinstance(teacher, torch.Tensor):
            teacher = teacher[:, : self.vocab_size]
        losses_LN = naive.losses(logits_NV, teacher, labels_N, self.terms)
        sums = (losses_LN * learned_N).sum(dim=1)
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
