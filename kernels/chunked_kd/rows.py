"""Losses of a chunk of logits, which their gradient replaces, a few rows in cache at a time.

With s = z / T, a divergence's gradient follows from what it says of each probability:

    dL/ds = p X - p sum(p X),  X = dL/dp up to a constant:
    forward_kl        -q / p                     so that dL/ds = p - q; a label's q is 0 and 1
    reverse_kl        log p - log q
    jsd               (1 - beta) (log p - log m)
    total_variation   sign(p - q) / 2

Terms of one temperature share p and q, and their X are added up first.

For a stored teacher p and q are over its tokens and one bucket of the rest, in which each token
gets its part of the bucket's dL/ds, in proportion to its probability. Stored tokens are taken out
of the logits meanwhile, by -inf, so that the rest is summed as it is and never as 1 less a sum.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from kernels.chunked_kd.naive import FLOOR, StoredTeacher, Term, soften

CACHED_LOGITS = 2**17
"""Logits of one model that are worked on together: as float32 half a mebibyte."""


class Weighted(NamedTuple):
    """A term, its weight in the sum that is differentiated, and where its losses go."""

    term: Term
    weight: float
    values: torch.Tensor
    """[n], to be filled."""


def overwrite_by_gradient(
    z: torch.Tensor,
    teacher: torch.Tensor | StoredTeacher | None,
    labels: torch.Tensor,
    terms: Sequence[Term],
    weights: Sequence[float],
    softcap: float | None,
    with_gradient: bool,
) -> torch.Tensor:
    """Return the losses [num_terms, n], and leave their weighted sum's gradient in z [n, V].

    With a softcap, the gradient is that with respect to the logits before it. Without gradient,
    what is left in z is of no use.
    """
    values = z.new_empty(len(terms), len(z))
    num_rows = max(CACHED_LOGITS // z.shape[1], 1)
    for first in range(0, len(z), num_rows):
        here = slice(first, first + num_rows)
        block, of_block = z[here], values[:, here]
        weighted = [Weighted(*each) for each in zip(terms, weights, of_block, strict=True)]
        parts = _gradients(block, cut(teacher, here), labels[here], weighted, with_gradient)
        total: torch.Tensor | None = None
        for part in parts:
            total = part if total is None else total.add_(part)
        if total is not None and softcap is not None:
            total *= 1 - (block / softcap).square_()
        if total is not None:
            block.copy_(total)
    return values


def cut(
    teacher: torch.Tensor | StoredTeacher | None, rows: slice
) -> torch.Tensor | StoredTeacher | None:
    """Return what the teacher says of these rows."""
    if isinstance(teacher, StoredTeacher):
        return StoredTeacher(*(part[rows] for part in teacher))
    return None if teacher is None else teacher[rows]


def _gradients(
    z: torch.Tensor,
    teacher: torch.Tensor | StoredTeacher | None,
    labels: torch.Tensor,
    weighted: list[Weighted],
    with_gradient: bool,
) -> Iterator[torch.Tensor]:
    """Fill the values; yield gradients with respect to z, to be added up; z stays."""
    groups: dict[float, list[Weighted]] = {}
    for each in weighted:
        if each.term.kind == "function":
            yield from differentiate(each, z, teacher, labels, with_gradient)
        elif each.term.kind == "logit_mse":
            assert isinstance(teacher, torch.Tensor)
            difference = z - teacher
            each.values.copy_(difference.square().mean(1))
            if with_gradient:
                yield difference.mul_(2 * each.weight / z.shape[1])
        else:
            groups.setdefault(each.term.temperature, []).append(each)
    for temperature, group in groups.items():
        if isinstance(teacher, StoredTeacher):
            gradient = _over_buckets(z, teacher, labels, temperature, group, with_gradient)
        else:
            gradient = _over_tokens(z, teacher, labels, temperature, group, with_gradient)
        if with_gradient:
            yield gradient


def differentiate(
    each: Weighted,
    z: torch.Tensor,
    teacher: torch.Tensor | StoredTeacher | None,
    labels: torch.Tensor,
    with_gradient: bool,
) -> Iterator[torch.Tensor]:
    """Fill a function's values; yield its gradient."""
    assert each.term.function is not None and not isinstance(teacher, StoredTeacher)
    logits = z.clone().requires_grad_(with_gradient)
    with torch.set_grad_enabled(with_gradient):
        values = each.term.function(logits, teacher, labels)
    each.values.copy_(values.detach())
    if with_gradient:
        yield torch.autograd.grad(values, logits, torch.full_like(values, each.weight))[0]


def _over_tokens(
    z: torch.Tensor,
    v: torch.Tensor | None,
    labels: torch.Tensor,
    temperature: float,
    group: list[Weighted],
    with_gradient: bool,
) -> torch.Tensor:
    log_p = _log_softmax(z, temperature)
    at_label = log_p.gather(1, labels[:, None])
    compared = v is not None and any(each.term.kind != "cross_entropy" for each in group)
    log_q = _log_softmax(v, temperature) if v is not None and compared else None
    gradient = _mix(log_p, log_q, group, with_gradient)
    return _learn_labels(gradient, at_label, labels, group)


def _log_softmax(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    return torch.log_softmax(logits if temperature == 1 else logits / temperature, dim=1)


def _learn_labels(
    gradient: torch.Tensor, log_p: torch.Tensor, labels: torch.Tensor, group: list[Weighted]
) -> torch.Tensor:
    """Fill cross-entropies from log p of the labels [n, 1]; subtract 1 there in the gradient."""
    for each in group:
        if each.term.kind == "cross_entropy":
            each.values.copy_(-log_p[:, 0])
            gradient.scatter_add_(1, labels[:, None], torch.full_like(log_p, -each.weight))
    return gradient


def _over_buckets(
    z: torch.Tensor,
    teacher: StoredTeacher,
    labels: torch.Tensor,
    temperature: float,
    group: list[Weighted],
    with_gradient: bool,
) -> torch.Tensor:
    ids = torch.where(teacher.ids >= 0, teacher.ids, teacher.ids[:, :1]).long()
    stored = z.gather(1, ids).masked_fill_(teacher.ids < 0, -torch.inf)
    rest = z.scatter(1, ids, -torch.inf)
    if temperature != 1:
        rest /= temperature
    least = torch.finfo(z.dtype)
    largest = rest.amax(1, keepdim=True).clamp_(min=least.min)  # all tokens may be stored
    shares = rest.sub_(largest).exp_()
    mass = shares.sum(1, keepdim=True).clamp_(min=least.tiny)
    logits = torch.cat([stored / temperature, largest + mass.log()], dim=1)
    at_label = z.gather(1, labels[:, None]) / temperature - logits.logsumexp(1, keepdim=True)
    log_p = torch.log_softmax(logits, dim=1).clamp_(min=FLOOR)
    log_q = soften(teacher, z.shape[1], temperature, z.dtype)
    by_bucket = _mix(log_p, log_q, group, with_gradient)
    gradient = shares.mul_(by_bucket[:, -1:] / mass).scatter_add_(1, ids, by_bucket[:, :-1])
    return _learn_labels(gradient, at_label, labels, group)


def _mix(
    log_p: torch.Tensor, log_q: torch.Tensor | None, group: list[Weighted], with_gradient: bool
) -> torch.Tensor:
    """Fill the divergences; return the gradient of all [n, V], a cross-entropy's without its label.

    gradient = straight p - pulled q + curved - p sum(curved),  curved = sum of weighted p X
    """
    p = log_p.exp()
    if log_q is None:
        return p.mul_(sum(each.weight for each in group))
    q, difference = log_q.exp(), log_q - log_p
    straight = pulled = 0.0
    curved: torch.Tensor | None = None
    for (kind, temperature, beta, _), weight, values in group:
        slope, square = weight * temperature, temperature**2
        if kind == "cross_entropy":
            straight += weight
            continue
        if kind == "forward_kl":
            values.copy_(torch.linalg.vecdot(q, difference).mul_(square))
            straight, pulled = straight + slope, pulled + slope
            continue
        if kind == "reverse_kl":
            weighted = p * difference
            values.copy_(weighted.sum(1).mul_(-square))
            slope = -slope
        elif kind == "total_variation":
            sign = p - q
            values.copy_(sign.abs().sum(1).mul_(temperature / 2))
            weighted, slope = sign.sign_().mul_(p), weight / 2
        else:
            assert kind == "jsd"
            log_m = torch.lerp(p, q, beta).log_().clamp_(min=FLOOR)
            of_teacher = torch.linalg.vecdot(q, log_q - log_m).mul_(square * beta)
            weighted = log_m.neg_().add_(log_p).mul_(p)
            values.copy_(weighted.sum(1).mul_(square * (1 - beta)).add_(of_teacher))
            slope *= 1 - beta
        if with_gradient:
            curved = weighted.mul_(slope) if curved is None else curved.add_(weighted, alpha=slope)
    if curved is not None:
        p *= straight - curved.sum(1, keepdim=True)
        p += curved
    elif straight != 1:
        p *= straight
    return p.sub_(q, alpha=pulled) if pulled else p
