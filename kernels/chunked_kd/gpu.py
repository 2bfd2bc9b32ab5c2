"""Twin of `rows.py` on a GPU: starts one Triton program for each row of a chunk's logits."""

from collections.abc import Sequence
from typing import Any

import torch
import triton

from kernels.chunked_kd.naive import FLOOR, StoredTeacher, Term, soften
from kernels.chunked_kd.row_kernels import dense_kernel, stored_kernel
from kernels.chunked_kd.rows import Weighted, cut, differentiate

COLUMNS = 4096
"""Logits of one step of a row."""
NUM_WARPS = 8
FUNCTION_LOGITS = 2**24
"""Logits that a function is given at a time."""
KINDS = {
    "reverse_kl": 0,
    "jsd": 1,
    "total_variation": 2,
    "forward_kl": 3,
    "cross_entropy": 4,
    "logit_mse": 5,
}


def overwrite_by_gradient(
    z: torch.Tensor,
    teacher: torch.Tensor | StoredTeacher | None,
    labels: torch.Tensor,
    terms: Sequence[Term],
    weights: Sequence[float],
    softcap: float | None,
    with_gradient: bool,
) -> torch.Tensor:
    """Return the losses [num_terms, n] of float32 logits, as `rows.overwrite_by_gradient` does."""
    values = z.new_empty(len(terms), len(z))
    weighted = [Weighted(*each) for each in zip(terms, weights, values, strict=True)]
    functions = [each for each in weighted if each.term.kind == "function"]
    others = [each for each in weighted if each.term.kind != "function"]
    num_rows = max(FUNCTION_LOGITS // z.shape[1], 1) if functions else max(len(z), 1)
    for first in range(0, len(z), num_rows):
        here = slice(first, first + num_rows)
        block, of_teacher, of_labels = z[here], cut(teacher, here), labels[here]
        added = None
        for each in functions:
            part = each._replace(values=each.values[here])
            for gradient in differentiate(part, block, of_teacher, of_labels, with_gradient):
                added = gradient if added is None else added.add_(gradient)
        if added is not None and softcap is not None:
            added *= 1 - (block / softcap).square_()
        if others:
            parts = [each._replace(values=each.values[here]) for each in others]
            _launch(block, of_teacher, of_labels, parts, softcap, with_gradient)
        else:
            block.zero_()
        if added is not None:
            block += added
    return values


def _launch(
    z: torch.Tensor,
    teacher: torch.Tensor | StoredTeacher | None,
    labels: torch.Tensor,
    weighted: list[Weighted],
    softcap: float | None,
    with_gradient: bool,
) -> None:
    terms, weights, _ = zip(*weighted, strict=True)
    values = z.new_empty(len(terms), len(z))
    temperatures = tuple(dict.fromkeys(float(term.temperature) for term in terms))
    straight, pulled = [0.0] * len(temperatures), [0.0] * len(temperatures)
    at_label = 0.0
    for term, weight in zip(terms, weights, strict=True):
        group = temperatures.index(term.temperature)
        if term.kind == "cross_entropy":
            straight[group] += weight
            at_label += weight
        elif term.kind == "forward_kl":
            straight[group] += weight * term.temperature
            pulled[group] += weight * term.temperature
    constants: dict[str, Any] = {
        "KINDS": tuple(KINDS[term.kind] for term in terms),
        "GROUPS": tuple(temperatures.index(term.temperature) for term in terms),
        "BETAS": tuple(float(term.beta) for term in terms),
        "WEIGHTS": tuple(float(weight) for weight in weights),
        "TEMPERATURES": temperatures,
        "STRAIGHT": tuple(straight),
        "PULLED": tuple(pulled),
        "AT_LABEL": float(at_label),
        "SOFTCAP": 0.0 if softcap is None else float(softcap),
        "FLOOR": FLOOR,
        "WITH_GRADIENT": with_gradient,
    }
    num_rows, vocab_size = z.shape
    constants["COLUMNS"] = min(triton.next_power_of_2(vocab_size), COLUMNS)
    if isinstance(teacher, StoredTeacher):
        softened = torch.stack([soften(teacher, vocab_size, t, z.dtype) for t in temperatures])
        num_stored = teacher.ids.shape[1]
        stored_kernel[(num_rows,)](
            z,
            teacher.ids.contiguous(),
            softened,
            labels,
            values,
            num_rows,
            vocab_size,
            num_stored,
            BUCKETS=triton.next_power_of_2(num_stored + 1),
            num_warps=NUM_WARPS,
            **constants,
        )
    else:
        dense_kernel[(num_rows,)](
            z, teacher, labels, values, num_rows, vocab_size, num_warps=NUM_WARPS, **constants
        )
    for each, value in zip(weighted, values, strict=True):
        each.values.copy_(value)
