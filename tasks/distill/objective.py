"""What training minimises: loss plugins, each with its weight, over one shared pass.

Shapes: B blocks of T tokens, vocabulary V, N = B T.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from tasks.plugins import load_plugin


@dataclass(frozen=True)
class Term:
    """One weighted loss of the sum."""

    label: str
    """Its name in the loss curve."""
    weight: float
    loss: Callable[..., torch.Tensor]
    """(student logits [N, V], teacher logits [N, V] or None, labels [N]) -> losses [N]."""
    needs_teacher: bool


def build_terms(losses: list[dict[str, Any]]) -> list[Term]:
    """Load the plugins that a recipe's `losses` name; a plugin named twice is numbered."""
    names = [chosen["name"] for chosen in losses]
    terms = []
    for index, chosen in enumerate(losses):
        loss = load_plugin("loss", chosen["name"])
        doubled = names.count(chosen["name"]) > 1
        terms.append(
            Term(
                label=f"{chosen['name']}_{index}" if doubled else chosen["name"],
                weight=chosen["weight"],
                loss=partial(loss, **chosen["options"]),
                needs_teacher=sys.modules[loss.__module__].NEEDS_TEACHER,
            )
        )
    return terms


def sum_terms(
    terms: list[Term],
    student_logits_BTV: torch.Tensor,
    teacher_logits_BTV: torch.Tensor | None,
    ids_BT: torch.Tensor,
    loss_mask_BT: torch.Tensor,
) -> torch.Tensor:
    """Sum each term, unweighted, over the learned tokens: [num_terms].

    Logits at a position are held against the token after it. The last position of a block has
    none; it is masked rather than cut off, which would copy the logits.
    """
    labels_N = ids_BT.roll(-1, dims=1).flatten()
    learned_N = learned_positions(loss_mask_BT).flatten()
    student_NV = student_logits_BTV.flatten(0, 1)
    teacher_NV = None if teacher_logits_BTV is None else teacher_logits_BTV.flatten(0, 1)
    sums = [(t.loss(student_NV, teacher_NV, labels_N) * learned_N).sum() for t in terms]
    return torch.stack(sums)


def learned_positions(loss_mask_BT: torch.Tensor) -> torch.Tensor:
    """1 where the next token is to be learned, [B, T]."""
    learned_BT = loss_mask_BT.roll(-1, dims=1)
    learned_BT[:, -1] = 0
    return learned_BT
