"""The losses over chunks of logits by Triton, on a real GPU, against the CPU's."""

import pytest
import torch

from kernels.chunked_kd import fused
from kernels.chunked_kd.naive import DenseTeacher, Head, StoredTeacher, Term

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]

ALL = [
    Term("cross_entropy"),
    Term("forward_kl"),
    Term("forward_kl", 2.0),
    Term("reverse_kl", 2.0),
    Term("jsd", 2.0, beta=0.9),
    Term("total_variation", 3.0),
]
LOGITS = [
    Term("logit_mse"),
    Term("function", function=lambda z, v, _: (z - v).pow(4).mean(dim=1)),  # type: ignore[operator]
]


@pytest.mark.parametrize("teacher_kind", ["dense", "stored"])
@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize(("num_tokens", "vocab_size"), [(63, 100), (100, 2000), (33, 50257)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 3e-2)])
def test_losses_and_gradients_equal_those_of_the_cpu(
    teacher_kind: str,
    softcap: float | None,
    num_tokens: int,
    vocab_size: int,
    dtype: torch.dtype,
    tolerance: float,
) -> None:
    torch.manual_seed(0)
    hidden, teacher_hidden = torch.randn(num_tokens, 64), torch.randn(num_tokens, 32)
    weight, teacher_weight = torch.randn(vocab_size + 3, 64) / 4, torch.randn(vocab_size, 32) / 3
    labels, learned = torch.randint(vocab_size, (num_tokens,)), torch.rand(num_tokens) < 0.8
    log_q = torch.log_softmax(teacher_hidden @ teacher_weight.T, dim=1)
    ids = log_q.topk(37).indices.sort().values
    ids[::2, 20:] = -1
    log_probs = log_q.gather(1, ids.clamp(min=0)).masked_fill(ids < 0, -torch.inf)
    log_tail = torch.log1p(-log_probs.exp().sum(dim=1))
    terms = ALL if teacher_kind == "stored" else ALL + LOGITS

    def compute(device: str) -> list[torch.Tensor]:
        student, matrix = (x.to(device, dtype).requires_grad_() for x in (hidden, weight))
        teacher: DenseTeacher | StoredTeacher
        if teacher_kind == "stored":
            teacher = StoredTeacher(*(x.to(device) for x in (ids, log_probs, log_tail)))
        else:
            head = Head(teacher_weight.to(device, dtype), softcap=softcap)
            teacher = DenseTeacher(teacher_hidden.to(device, dtype), head)
        loss, sums = fused.chunked_losses(
            student,
            Head(matrix, scale=0.7, softcap=softcap),
            labels.to(device),
            learned.to(device),
            terms,
            [0.2 + 0.1 * place for place in range(len(terms))],
            teacher,
            vocab_size,
            chunk_tokens=25,
        )
        return [x.cpu() for x in (sums, *torch.autograd.grad(loss, (student, matrix)))]

    for got, expected in zip(compute("cuda"), compute("cpu"), strict=True):
        assert got.dtype == expected.dtype
        assert (got - expected).abs().max() <= tolerance * expected.abs().max()
