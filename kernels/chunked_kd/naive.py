"""Losses of distillation over whole rows of logits: the specification, token by token.

With p = softmax(z / T) of the student's logits z, q = softmax(v / T) of the teacher's v, sums over
the vocabulary:

    cross_entropy    -log p[label], T = 1
    forward_kl       T^2 sum q (log q - log p)
    reverse_kl       T^2 sum p (log p - log q)
    jsd              T^2 (beta sum q (log q - log m) + (1 - beta) sum p (log p - log m)),
                     m = beta q + (1 - beta) p
    total_variation  T/2 sum |p - q|
    logit_mse        mean (z - v)^2, at every T: T^2 times the mean of the softened logits' squares
    function         whatever it returns

The factors keep the size of the gradient with respect to z at every temperature: divergences that
are quadratic in a small difference get T^2, the total variation, which is linear, gets T.

A stored teacher gives the log-probabilities of a few tokens at T = 1 and the mass of all others.
Its divergences are sums over those tokens and one bucket for the rest, in which the student's
probabilities are added up, so that they are at most those over the whole vocabulary. At T != 1
the teacher's tail is softened as if its mass were spread evenly over the rest.

`fused.py` returns weighted sums of these losses over tokens, and makes the gradients with them.

Reference: Hinton et al. 2015, arXiv 1503.02531, section 2 (T^2); Agarwal et al. 2023, arXiv
2306.13649, equation 1 (JSD); Wen et al. 2023, arXiv 2307.15190, section 3 (reverse KL, total
variation); Kim et al. 2021, arXiv 2105.08919, equation 3 (logit MSE).
"""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from torch.nn import functional

Kind = Literal[
    "cross_entropy",
    "forward_kl",
    "reverse_kl",
    "jsd",
    "total_variation",
    "logit_mse",
    "function",
]
FLOOR = -100.0
"""Least log-probability of a bucket: an empty one has no logarithm."""


class Term(NamedTuple):
    """One loss over logits."""

    kind: Kind
    temperature: float = 1.0
    """Of the divergences; cross-entropy has none but 1."""
    beta: float = 0.5
    """The teacher's share of jsd's middle distribution, above 0 and below 1."""
    function: Callable[[torch.Tensor, torch.Tensor | None, torch.Tensor], torch.Tensor] | None = (
        None
    )
    """Of kind `function`: (student logits [n, V], teacher logits [n, V] or None where no teacher is
    given, labels [n]) -> [n] for any number of tokens n, each by itself."""


class Head(NamedTuple):
    """How hidden states become logits: softcap * tanh((h W^T + bias) * scale / softcap)."""

    weight: torch.Tensor
    """[V, D]"""
    bias: torch.Tensor | None = None
    """[V]"""
    scale: float = 1.0
    softcap: float | None = None
    """None: no tanh."""


class DenseTeacher(NamedTuple):
    """A teacher whose logits are made as the student's are."""

    hidden: torch.Tensor
    """[N, D']"""
    head: Head


class StoredTeacher(NamedTuple):
    """What is kept of a teacher's distribution, at temperature 1."""

    ids: torch.Tensor
    """Integer [N, K], ascending, each at most once, at least one, then -1."""
    log_probs: torch.Tensor
    """Floating point [N, K], -inf where ids are -1."""
    log_tail: torch.Tensor
    """[N]: log of the mass of all other tokens."""


def losses(
    student_logits: torch.Tensor,
    teacher: torch.Tensor | StoredTeacher | None,
    labels: torch.Tensor,
    terms: Sequence[Term],
) -> torch.Tensor:
    """Return the losses in nats [num_terms, N], float32 or wider.

    Args:
        student_logits: z, floating point [N, V].
        teacher: Logits v [N, V], a stored teacher, or None where no term needs one.
        labels: int64 [N].

    Raises:
        ValueError: a term cannot be had from this teacher.
    """
    check_terms(terms, teacher)
    z = student_logits.to(torch.promote_types(student_logits.dtype, torch.float32))
    return torch.stack([_loss(term, z, teacher, labels) for term in terms])


def check_terms(terms: Sequence[Term], teacher: object) -> None:
    """Raise ValueError where a term needs what the teacher does not give."""
    for term in terms:
        assert term.kind != "cross_entropy" or term.temperature == 1
        assert (term.kind == "function") == (term.function is not None)
        if teacher is None and term.kind not in ("cross_entropy", "function"):
            raise ValueError(f"{term.kind} compares with a teacher, and none is given")
        if isinstance(teacher, StoredTeacher) and term.kind in ("logit_mse", "function"):
            raise ValueError(
                f"{term.kind} needs a teacher's logits, and stored ones are probabilities of a few "
                "tokens; use a divergence, or run the teacher online"
            )


def _loss(
    term: Term, z: torch.Tensor, teacher: torch.Tensor | StoredTeacher | None, labels: torch.Tensor
) -> torch.Tensor:
    if term.kind == "cross_entropy":
        return functional.cross_entropy(z, labels, reduction="none")
    if term.function is not None:
        assert not isinstance(teacher, StoredTeacher)
        return term.function(z, None if teacher is None else teacher.to(z.dtype), labels)
    assert teacher is not None
    if isinstance(teacher, StoredTeacher):
        log_p = _student_buckets(z, teacher.ids, term.temperature)
        log_q = soften(teacher, z.shape[1], term.temperature, z.dtype)
    else:
        v = teacher.to(z.dtype)
        if term.kind == "logit_mse":
            return (z - v).square().mean(1)
        log_p = torch.log_softmax(z / term.temperature, dim=1)
        log_q = torch.log_softmax(v / term.temperature, dim=1)
    return _divergence(term, log_p, log_q)


def _divergence(term: Term, log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    p, q, square = log_p.exp(), log_q.exp(), term.temperature**2
    if term.kind == "forward_kl":
        return square * (q * (log_q - log_p)).sum(1)
    if term.kind == "reverse_kl":
        return square * (p * (log_p - log_q)).sum(1)
    if term.kind == "total_variation":
        return term.temperature / 2 * (p - q).abs().sum(1)
    assert term.kind == "jsd"
    log_m = (term.beta * q + (1 - term.beta) * p).log().clamp(min=FLOOR)
    of_teacher = (q * (log_q - log_m)).sum(1)
    of_student = (p * (log_p - log_m)).sum(1)
    return square * (term.beta * of_teacher + (1 - term.beta) * of_student)


def _student_buckets(z: torch.Tensor, ids: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return the student's log-probabilities of the stored tokens and of all others [N, K + 1]."""
    log_p = torch.log_softmax(z / temperature, dim=1)
    rows = []
    for values, stored in zip(log_p, ids, strict=True):
        kept = stored[stored >= 0]
        others = torch.ones_like(values, dtype=torch.bool)
        others[kept] = False
        empty = values.new_full((len(stored) - len(kept),), FLOOR)
        tail = values[others].logsumexp(0, keepdim=True).clamp(min=FLOOR)
        rows.append(torch.cat([values[kept], empty, tail]))
    return torch.stack(rows)


def soften(
    teacher: StoredTeacher, vocab_size: int, temperature: float, dtype: torch.dtype
) -> torch.Tensor:
    """Return log q of the stored tokens and of the bucket of all others at a temperature [N, K+1].

        tail mass at T  proportional to  (V - K) (tail / (V - K))^(1/T)

    Padding gets FLOOR, and nothing is below it.
    """
    num_others = vocab_size - (teacher.ids >= 0).sum(1)
    log_others = num_others.clamp(min=1).to(dtype).log()
    tail = log_others + (teacher.log_tail.to(dtype) - log_others) / temperature
    buckets = torch.cat([teacher.log_probs.to(dtype) / temperature, tail[:, None]], dim=1)
    return torch.log_softmax(buckets, dim=1).clamp(min=FLOOR)
