"""Fast twin of `naive.py`: logits are made, used and overwritten a chunk of tokens at a time.

A chunk's logits are replaced by their gradient G, and two products end it:

    grad hidden = learned * (G W),  grad W += G^T (learned * hidden)

so that nothing of a chunk outlives it, and the backward pass has no logits to make again.

Reference: Wijmans et al. 2024, arXiv 2411.09009 (a loss without its logits); Hsu et al. 2024,
arXiv 2410.10989, section 3.2 (gradients formed in the forward pass).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from kernels.chunked_kd import rows as cpu
from kernels.chunked_kd.naive import DenseTeacher, Head, StoredTeacher, Term, check_terms

CHUNK_LOGITS = {"cpu": 2**25, "cuda": 2**27}
"""Logits of one model that exist at a time: fewer, and adding to grad W takes the time."""
TILE = 2**14
"""Rows of grad W that a product in half precision is added to at a time."""


class _Gradients(NamedTuple):
    """float32 or wider; None where not asked for."""

    hidden: torch.Tensor | None
    weight: torch.Tensor | None
    bias: torch.Tensor | None


class _Job(NamedTuple):
    """What has no gradient."""

    head: Head
    labels: torch.Tensor
    learned: torch.Tensor
    terms: Sequence[Term]
    weights: Sequence[float]
    teacher: DenseTeacher | StoredTeacher | None
    vocab_size: int
    chunk_tokens: int
    differentiable: bool


def chunked_losses(
    hidden: torch.Tensor,
    head: Head,
    labels: torch.Tensor,
    learned: torch.Tensor,
    terms: Sequence[Term],
    weights: Sequence[float],
    teacher: DenseTeacher | StoredTeacher | None = None,
    vocab_size: int | None = None,
    chunk_tokens: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return sum_t weights_t sum_n learned_n loss_tn, a scalar, and the sums over tokens by term.

    The gradients with respect to `hidden`, the head's weight and its bias are formed with the
    losses; the backward pass only hands them on, once, and looks at no weight. Logits are rounded
    to the weights' dtypes as the models themselves round them; all between them and the gradient's
    products is float32 or wider.

    Args:
        hidden: The student's, floating point [N, D].
        labels: int64 [N].
        learned: [N], the weight of each token; tokens of weight 0 cost nothing.
        vocab_size: Only the first so many logits of both models count; None for all.
        chunk_tokens: Tokens whose logits exist at a time; None: as many as pay.

    Returns:
        The loss, and the sums [num_terms], detached; float32 or wider.

    Raises:
        ValueError: a term cannot be had from this teacher, or the vocabularies differ in size.
    """
    assert len(terms) == len(weights) > 0
    check_terms(terms, teacher)
    if all(term.kind == "cross_entropy" for term in terms):
        teacher = None
    sizes = [len(head.weight)]
    if isinstance(teacher, DenseTeacher):
        sizes.append(len(teacher.head.weight))
    if vocab_size is None and min(sizes) < max(sizes):
        raise ValueError(
            f"student and teacher have {sizes[0]} and {sizes[1]} logits; give vocab_size, the "
            "number of tokens that their tokenizer has"
        )
    if vocab_size is not None and vocab_size > min(sizes):
        raise ValueError(f"vocab_size is {vocab_size}, and a head has {min(sizes)} logits")
    vocab_size = vocab_size or sizes[0]
    if chunk_tokens is None:
        chunk_tokens = max(CHUNK_LOGITS["cuda" if hidden.is_cuda else "cpu"] // vocab_size, 1)
    job = _Job(
        head=head,
        labels=labels,
        learned=learned,
        terms=terms,
        weights=weights,
        teacher=teacher,
        vocab_size=vocab_size,
        chunk_tokens=chunk_tokens,
        differentiable=torch.is_grad_enabled(),
    )
    loss, sums = _ChunkedLosses.apply(hidden, head.weight, head.bias, job)  # type: ignore[no-untyped-call]
    return loss, sums


class _ChunkedLosses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        job: _Job,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        needed = [job.differentiable and needs for needs in ctx.needs_input_grad[:3]]
        with torch.autocast(hidden.device.type, enabled=False):
            sums, ctx.gradients = _go_through(hidden, job, *needed)
        ctx.dtypes = [None if x is None else x.dtype for x in (hidden, weight, bias)]
        loss = torch.dot(sums, sums.new_tensor(job.weights))
        ctx.mark_non_differentiable(sums)
        return loss, sums

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_loss: torch.Tensor, _: torch.Tensor) -> Any:
        assert ctx.gradients is not None, "the gradients were handed on already"
        gradients, ctx.gradients = ctx.gradients, None
        return *(
            None if gradient is None else gradient.mul_(grad_loss).to(dtype)
            for gradient, dtype in zip(gradients, ctx.dtypes, strict=True)
        ), None


def _go_through(
    hidden: torch.Tensor, job: _Job, for_hidden: bool, for_weight: bool, for_bias: bool
) -> tuple[torch.Tensor, _Gradients]:
    """Return the sums of losses [num_terms] and the gradients of the loss."""
    head, vocab_size = job.head, job.vocab_size
    wide = torch.promote_types(head.weight.dtype, torch.float32)

    def new_zeros(like: torch.Tensor | None, needed: bool) -> torch.Tensor | None:
        return torch.zeros_like(like, dtype=wide) if like is not None and needed else None

    gradients = _Gradients(
        new_zeros(hidden, for_hidden),
        new_zeros(head.weight, for_weight),
        new_zeros(head.bias, for_bias),
    )
    chosen = job.learned.nonzero().squeeze(1)
    num_chunks = max(-(-len(chosen) // job.chunk_tokens), 1)
    num_rows = -(-len(chosen) // num_chunks)
    z = hidden.new_empty(num_rows, vocab_size, dtype=wide)
    v = torch.empty_like(z) if isinstance(job.teacher, DenseTeacher) else None
    sums = z.new_zeros(len(job.terms))
    for tokens in torch.split(chosen, max(num_rows, 1)):
        share = job.learned[tokens].to(wide)
        rows = hidden[tokens].to(head.weight.dtype)
        logits = make_logits(rows, head, z[: len(tokens)])
        values = _overwrite_by_gradient(
            logits,
            _teach(job.teacher, tokens, v),
            job.labels[tokens],
            job.terms,
            job.weights,
            head.softcap,
            for_hidden or for_weight or for_bias,
        )
        sums += values @ share
        share *= head.scale
        _add_products(gradients, logits, rows, share, tokens, head.weight[:vocab_size])
    return sums, gradients


def _teach(
    teacher: DenseTeacher | StoredTeacher | None, tokens: torch.Tensor, v: torch.Tensor | None
) -> torch.Tensor | StoredTeacher | None:
    """Return the teacher's logits of these tokens, made in v, or what is stored of them."""
    if isinstance(teacher, StoredTeacher):
        return StoredTeacher(*(values[tokens] for values in teacher))
    if teacher is None or v is None:
        return None
    rows = teacher.hidden[tokens].to(teacher.head.weight.dtype)
    return make_logits(rows, teacher.head, v[: len(tokens)])


def _overwrite_by_gradient(z: torch.Tensor, *given: Any) -> torch.Tensor:
    if not z.is_cuda or z.dtype != torch.float32:
        return cpu.overwrite_by_gradient(z, *given)
    from kernels.chunked_kd import gpu

    with torch.cuda.device(z.device):
        return gpu.overwrite_by_gradient(z, *given)


def make_logits(rows: torch.Tensor, head: Head, out: torch.Tensor) -> torch.Tensor:
    """Return the first logits of these rows [n, D], as many as `out` [n, V] holds, in `out`."""
    weight = head.weight[: out.shape[1]]
    if weight.dtype == out.dtype:
        torch.mm(rows, weight.T, out=out)
    else:
        out.copy_(rows @ weight.T)
    if head.bias is not None:
        out += head.bias[: out.shape[1]]
    if head.scale != 1:
        out *= head.scale
    if head.softcap is not None:
        out.div_(head.softcap).tanh_().mul_(head.softcap)
    return out


def _add_products(
    gradients: _Gradients,
    slopes: torch.Tensor,
    rows: torch.Tensor,
    share: torch.Tensor,
    tokens: torch.Tensor,
    weight: torch.Tensor,
) -> None:
    """Add a chunk's part to the gradients.

    Args:
        slopes: The gradient of each token's loss with respect to its logits [n, V].
        share: Of each token in the loss, times the head's scale [n].
    """
    if gradients.bias is not None:
        gradients.bias[: len(weight)].addmv_(slopes.T, share)
    slopes = slopes.to(weight.dtype)
    if gradients.hidden is not None:
        gradients.hidden[tokens] = (slopes @ weight) * share[:, None]
    if gradients.weight is None:
        return
    total, rows = gradients.weight[: len(weight)], (rows * share[:, None]).to(weight.dtype)
    if total.dtype == weight.dtype:
        total.addmm_(slopes.T, rows)
        return
    for part, tile in zip(torch.split(total, TILE), torch.split(slopes, TILE, dim=1), strict=True):
        part += tile.T @ rows
