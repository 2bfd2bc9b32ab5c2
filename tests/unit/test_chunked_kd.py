"""The losses that never hold the logits against their specification, on the CPU and interpreted."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from kernels.chunked_kd import fused, naive, rows
from kernels.chunked_kd.naive import DenseTeacher, Head, StoredTeacher, Term

ROOT = Path(__file__).parents[2]
TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}
"""Of the largest value; bfloat16 rounds the logits and what is multiplied with the gradient."""
BOTH = [
    Term("cross_entropy"),
    Term("forward_kl"),
    Term("forward_kl", 2.0),
    Term("reverse_kl", 2.0),
    Term("jsd", 2.0, beta=0.9),
    Term("jsd", beta=0.3),
    Term("total_variation", 0.5),
    Term("total_variation", 2.0),
]
"""What every teacher can teach."""
QUARTIC = Term("function", function=lambda z, v, _: (z - v).pow(4).mean(dim=1))  # type: ignore[operator]
LOGITS = [Term("logit_mse", 3.0), QUARTIC]


@pytest.fixture(autouse=True)
def poison() -> Iterator[None]:
    """Uninitialised memory is NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


class Case(NamedTuple):
    hidden: torch.Tensor
    head: Head
    labels: torch.Tensor
    learned: torch.Tensor
    teacher: DenseTeacher | StoredTeacher
    teacher_naive: torch.Tensor | StoredTeacher
    terms: list[Term]
    weights: list[float]
    vocab_size: int

    def logits(self) -> torch.Tensor:
        return make_logits(self.hidden, self.head, self.vocab_size)

    def inputs(self) -> list[torch.Tensor]:
        return [x for x in (self.hidden, self.head.weight, self.head.bias) if x is not None]

    def expected(self) -> tuple[torch.Tensor, ...]:
        """Return the loss, the sums and the gradients, by autograd."""
        losses = naive.losses(self.logits(), self.teacher_naive, self.labels, self.terms)
        sums = (losses * self.learned).sum(dim=1)
        loss = sums @ sums.new_tensor(self.weights)
        return loss.detach(), sums.detach(), *torch.autograd.grad(loss, self.inputs())

    def got(self, chunk_tokens: int | None = None) -> tuple[torch.Tensor, ...]:
        loss, sums = self.run(chunk_tokens)
        return loss.detach(), sums, *torch.autograd.grad(loss, self.inputs())

    def run(self, chunk_tokens: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        return fused.chunked_losses(
            self.hidden,
            self.head,
            self.labels,
            self.learned,
            self.terms,
            self.weights,
            self.teacher,
            self.vocab_size,
            chunk_tokens,
        )


def make_logits(hidden: torch.Tensor, head: Head, vocab_size: int) -> torch.Tensor:
    z = hidden @ head.weight.T
    z = z.to(torch.promote_types(z.dtype, torch.float32))
    z = (z if head.bias is None else z + head.bias) * head.scale
    z = z if head.softcap is None else head.softcap * torch.tanh(z / head.softcap)
    return z[:, :vocab_size]


def store(logits: torch.Tensor, most: int) -> StoredTeacher:
    """Keep 1 to `most` of the likeliest tokens of each row."""
    log_probs = torch.log_softmax(logits, dim=1)
    rows = []
    for row, values in enumerate(log_probs):
        kept = values.topk(1 + row % most).indices.sort().values
        others = torch.ones_like(values, dtype=torch.bool)
        others[kept] = False
        filled = torch.full((most - len(kept),), -1)
        ids = torch.cat([kept, filled])
        probs = torch.cat([values[kept], torch.full((len(filled),), -torch.inf)])
        rows.append((ids.int(), probs.to(values), values[others].logsumexp(0)))
    return StoredTeacher(*(torch.stack(column) for column in zip(*rows, strict=True)))


def draw(
    num_tokens: int,
    vocab_size: int,
    stored: bool = False,
    rich: bool = True,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    terms: list[Term] | None = None,
) -> Case:
    """Draw a case.

    Args:
        rich: With bias, scale, softcap, tokens that are not learned and padded vocabularies.
    """
    torch.manual_seed(seed)
    width, wide = 7, 5
    padding, teacher_padding = (4, 1) if rich else (0, 0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, dtype=torch.float64).to(dtype)

    def head(columns: int, padding: int) -> Head:
        weight = normal(vocab_size + padding, columns).requires_grad_()
        bias = normal(len(weight)).requires_grad_() if rich else None
        return Head(weight, bias, scale=0.7, softcap=3.0) if rich else Head(weight)

    hidden = normal(num_tokens, width).requires_grad_()
    student = head(width, padding)
    teacher = DenseTeacher(normal(num_tokens, wide), head(wide, teacher_padding))
    v = make_logits(*teacher, vocab_size).detach()
    learned = torch.rand(num_tokens) < 0.7 if rich else torch.ones(num_tokens, dtype=torch.bool)
    few = store(v, min(9, vocab_size))
    terms = terms or (BOTH if stored else BOTH + LOGITS)
    return Case(
        hidden,
        student,
        torch.randint(vocab_size, (num_tokens,)),
        learned,
        few if stored else teacher,
        few if stored else v,
        terms,
        [0.2 + 0.1 * place for place in range(len(terms))],
        vocab_size,
    )


def assert_close(got: tuple[torch.Tensor, ...], expected: tuple[torch.Tensor, ...]) -> None:
    for ours, theirs in zip(got, expected, strict=True):
        error = (ours.double() - theirs.double()).abs().max()
        smallest = min(got, key=lambda x: x.dtype.itemsize).dtype
        assert error <= TOLERANCES[smallest] * theirs.abs().max() + 1e-300


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    num_tokens=st.integers(1, 12),
    vocab_size=st.integers(2, 40),
    stored=st.booleans(),
    rich=st.booleans(),
    chunk_tokens=st.one_of(st.none(), st.integers(1, 13)),
    seed=st.integers(0, 10**6),
)
def test_fused_equals_naive(
    num_tokens: int,
    vocab_size: int,
    stored: bool,
    rich: bool,
    chunk_tokens: int | None,
    seed: int,
) -> None:
    case = draw(num_tokens, vocab_size, stored, rich, seed=seed)
    assert_close(case.got(chunk_tokens), case.expected())


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize(("num_tokens", "vocab_size"), [(63, 100), (100, 2000), (5, 2000)])
def test_odd_sizes_in_every_dtype(
    dtype: torch.dtype, stored: bool, num_tokens: int, vocab_size: int
) -> None:
    case = draw(num_tokens, vocab_size, stored, rich=False, dtype=dtype)
    assert_close(case.got(chunk_tokens=17), case.expected())


@pytest.mark.parametrize("stored", [False, True])
def test_chunks_and_blocks_change_nothing(stored: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    case = draw(63, 100, stored, dtype=torch.float32)
    once = case.got(63)
    monkeypatch.setattr(rows, "CACHED_LOGITS", 300)
    for chunk_tokens in (1, 10, 62):
        assert_close(case.got(chunk_tokens), once)


@pytest.mark.parametrize("term", BOTH)
@pytest.mark.parametrize("stored", [False, True])
def test_each_term_by_itself(term: Term, stored: bool) -> None:
    case = draw(9, 30, stored, terms=[term])
    assert_close(case.got(4), case.expected())


def test_cross_entropy_needs_no_teacher() -> None:
    case = draw(9, 30, terms=[Term("cross_entropy")])._replace(teacher=None, teacher_naive=None)
    assert_close(case.got(4), case.expected())


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), temperature=st.floats(0.5, 5.0))
def test_divergences_are_what_they_should_be(seed: int, temperature: float) -> None:
    torch.manual_seed(seed)
    z, v = (3 * torch.randn(4, 20, dtype=torch.float64) for _ in range(2))
    labels = torch.zeros(4, dtype=torch.long)
    terms = [Term(kind, temperature) for kind in ("forward_kl", "reverse_kl", "jsd")]
    terms.append(Term("total_variation", temperature))
    whole, few = naive.losses(z, v, labels, terms), naive.losses(z, store(v, 6), labels, terms)
    assert (whole >= -1e-12).all() and (few >= -1e-12).all()
    assert (naive.losses(v, v, labels, terms).abs() <= 1e-12).all()
    # CE(q, p) - H(q) = KL(q || p)
    q, log_p = torch.softmax(v / temperature, 1), torch.log_softmax(z / temperature, 1)
    crossed, entropy = -(q * log_p).sum(1), -(q * q.log()).sum(1)
    torch.testing.assert_close(whole[0], temperature**2 * (crossed - entropy))
    # a tail in one bucket loses information, and never finds any
    warm = [term._replace(temperature=1.0) for term in terms]
    few, whole = naive.losses(z, store(v, 6), labels, warm), naive.losses(z, v, labels, warm)
    assert (few <= whole + 1e-12).all()
    everything = naive.losses(z, store(v, 20), labels, warm)[:, 3]
    assert (few[:, 3] <= everything + 1e-12).all()


def test_a_teacher_stored_whole_is_the_teacher() -> None:
    case = draw(3, 6)
    v = case.teacher_naive
    assert isinstance(v, torch.Tensor)
    log_q = torch.log_softmax(v, dim=1)
    ids, nothing = torch.arange(6).expand(3, 6), torch.full((3,), -torch.inf)
    whole = case._replace(terms=BOTH, weights=[1.0] * len(BOTH))
    stored = whole._replace(teacher=StoredTeacher(ids, log_q, nothing.double()))
    assert_close(stored.got(), whole.expected())


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_a_stored_tail_is_softened_as_if_spread_evenly(temperature: float) -> None:
    few = store(torch.randn(4, 20, dtype=torch.float64), 6)
    for row, (ids, log_probs, log_tail) in enumerate(zip(*few, strict=True)):
        kept, others = ids[ids >= 0].long(), torch.ones(20, dtype=torch.bool)
        others[kept] = False
        whole = torch.full((20,), float(log_tail - others.sum().log()), dtype=torch.float64)
        whole[kept] = log_probs[: len(kept)]
        softened = torch.log_softmax(whole / temperature, dim=0)
        got = naive.soften(few, 20, temperature, torch.float64)[row]
        torch.testing.assert_close(got[: len(kept)], softened[kept])
        torch.testing.assert_close(got[-1], softened[others].logsumexp(0))


def test_the_gradient_of_soft_labels() -> None:
    # T^2 d/dz KL = T (p - q); alpha = 1 leaves the cross-entropy bit for bit
    z, v = torch.randn(5, 11, dtype=torch.float64), torch.randn(5, 11, dtype=torch.float64)
    labels, gradient = torch.arange(5), z.clone()
    rows.overwrite_by_gradient(gradient, v, labels, [Term("forward_kl", 3.0)], [1.0], None, True)
    expected = 3 * (torch.softmax(z / 3, 1) - torch.softmax(v / 3, 1))
    assert (gradient - expected).abs().max() < 1e-10
    case = draw(9, 30, terms=[Term("cross_entropy"), Term("forward_kl", 2.0)])
    hard = case._replace(terms=case.terms[:1], weights=[1.0]).run()[0]
    assert case._replace(weights=[1.0, 0.0]).run()[0] == hard


class Largest(TorchDispatchMode):
    """Remembers the most elements that an operation's result has had."""

    def __init__(self) -> None:
        super().__init__()
        self.num_elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else [result]:
            if isinstance(value, torch.Tensor):
                self.num_elements = max(self.num_elements, value.numel())
        return result


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_logits_never_exist(stored: bool, dtype: torch.dtype) -> None:
    num_tokens, vocab_size, chunk_tokens = 300, 2000, 10
    case = draw(num_tokens, vocab_size, stored, rich=False, dtype=dtype)
    with Largest() as largest:
        case.run(chunk_tokens)[0].backward()
    assert largest.num_elements <= max(chunk_tokens * vocab_size, case.head.weight.numel())
    with Largest() as largest:
        case.run()
    assert largest.num_elements == num_tokens * vocab_size  # it would have been seen


def test_a_frozen_head_gets_no_gradient_and_makes_none() -> None:
    case = draw(40, 500, rich=False, dtype=torch.float32)
    expected = case.expected()[2]
    frozen = case._replace(head=Head(case.head.weight.detach()))
    with Largest() as largest:
        loss, _ = frozen.run(chunk_tokens=3)
        loss.backward()
    assert largest.num_elements <= frozen.head.weight.numel()
    assert case.hidden.grad is not None
    torch.testing.assert_close(case.hidden.grad, expected)
    fixed = case._replace(hidden=case.hidden.detach())
    fixed.run()[0].backward()
    torch.testing.assert_close(case.head.weight.grad, case.expected()[3])


def test_without_gradients_there_is_only_the_loss() -> None:
    case = draw(9, 30)
    with torch.no_grad():
        loss, sums = case.run()
    assert not loss.requires_grad
    assert_close((loss, sums), case.expected()[:2])


def test_the_backward_pass_looks_at_no_weight() -> None:
    """As under ZeRO-3, where the weight is gathered for the head's own forward pass alone."""
    case = draw(9, 30)
    expected = case.expected()
    loss, _ = case.run()
    case.head.weight.data = torch.full_like(case.head.weight, torch.nan)
    assert_close(torch.autograd.grad(2 * loss, case.inputs()), tuple(2 * x for x in expected[2:]))


def test_the_backward_pass_hands_its_gradients_on_once() -> None:
    case = draw(9, 30)
    with pytest.raises(AssertionError, match="handed on already"):
        loss, _ = case.run()
        loss.backward(retain_graph=True)
        loss.backward()


@pytest.mark.parametrize("stored", [False, True])
def test_tokens_that_are_not_learned_may_hold_anything(stored: bool) -> None:
    case = draw(20, 30, stored)
    expected = case.got()
    with torch.no_grad():
        case.hidden[~case.learned] = torch.nan
    case.labels[~case.learned] = -100
    got = case.got()
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    none = case._replace(learned=torch.zeros(20))
    assert all((value == 0).all() for value in none.got())


def test_tokens_may_be_weighted() -> None:
    case = draw(20, 30)._replace(learned=torch.rand(20, dtype=torch.float64))
    assert_close(case.got(7), case.expected())


def test_autocast_leaves_the_products_alone() -> None:
    case = draw(20, 30, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        got = case.got(7)
    assert_close(got, case.expected())
    half = case._replace(hidden=case.hidden.detach().bfloat16().requires_grad_())
    assert half.got()[2].dtype == torch.bfloat16


def test_what_cannot_be_had_is_said() -> None:
    case = draw(4, 30, stored=True)
    for term in LOGITS:
        with pytest.raises(ValueError, match=r"run the teacher online"):
            case._replace(terms=[term], weights=[1.0]).run()
    with pytest.raises(ValueError, match="forward_kl compares with a teacher"):
        case._replace(terms=[Term("forward_kl")], weights=[1.0], teacher=None).run()
    case = draw(4, 30)
    with pytest.raises(ValueError, match="34 and 31 logits; give vocab_size"):
        case._replace(vocab_size=None).run()
    with pytest.raises(ValueError, match="vocab_size is 32, and a head has 31"):
        case._replace(vocab_size=32).run()


INTERPRETED = """
import torch
from kernels.chunked_kd import gpu, rows
from kernels.chunked_kd.naive import StoredTeacher, Term
torch.manual_seed(0)
gpu.COLUMNS, gpu.FUNCTION_LOGITS = 32, 100
ONE = [Term("cross_entropy"), Term("forward_kl", 2.0)]
ALL = [*ONE, Term("reverse_kl", 2.0), Term("jsd", beta=0.3), Term("total_variation", 3.0),
       Term("jsd", 2.0, beta=0.9)]
LOGITS = [Term("logit_mse"), Term("function", function=lambda z, v, _: (z - v).pow(4).mean(1))]
CASES = [(ONE, "dense"), (ALL + LOGITS, "dense"), (LOGITS[1:], "dense"), (ALL, "stored"),
         (ONE[:1], "none")]
for num_rows, vocab_size, softcap in [(3, 63, None), (2, 100, 4.0)]:
    for terms, kind in CASES:
        z = 3 * torch.randn(num_rows, vocab_size)
        v = z + torch.randn(num_rows, vocab_size)
        z = z if softcap is None else softcap * torch.tanh(z / softcap)
        labels = torch.randint(vocab_size, (num_rows,))
        teacher = None if kind == "none" else v
        if kind == "stored":
            ids = torch.tensor([[0, 5, 62, -1], [7, -1, -1, -1], [1, 2, 3, 4]])[:num_rows]
            log_q = v.log_softmax(1).gather(1, ids.clamp(min=0))
            log_q[ids < 0] = -torch.inf
            teacher = StoredTeacher(ids, log_q, torch.log1p(-log_q.exp().sum(1)))
            labels[0] = 5
        weights = [0.3 + 0.2 * index for index in range(len(terms))]
        for with_gradient in (False, True):
            expected_z, got_z = z.clone(), z.clone()
            given = teacher, labels, terms, weights, softcap, with_gradient
            expected = rows.overwrite_by_gradient(expected_z, *given)
            got = gpu.overwrite_by_gradient(got_z, *given)
            torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
            if with_gradient:
                torch.testing.assert_close(got_z, expected_z, rtol=1e-5, atol=1e-6)
"""


COMPILED = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from kernels.chunked_kd import gpu, row_kernels
POINTERS = {"z_ptr": "*fp32", "v_ptr": "*fp32", "ids_ptr": "*i32", "log_q_ptr": "*fp32",
            "labels_ptr": "*i64", "values_ptr": "*fp32"}
CONSTANTS = {"KINDS": (4, 0, 1, 2, 3, 5), "GROUPS": (0, 1, 1, 0, 1, 0), "BETAS": (0.5,) * 6,
             "WEIGHTS": (0.5,) * 6, "TEMPERATURES": (1.0, 2.0), "STRAIGHT": (1.0, 0.5),
             "PULLED": (0.0, 0.5), "AT_LABEL": 1.0, "SOFTCAP": 30.0, "FLOOR": -100.0,
             "WITH_GRADIENT": True, "COLUMNS": gpu.COLUMNS}
def compile_kernel(kernel, **changed):
    constants = CONSTANTS | changed
    types = {p.name: "constexpr" if p.name in constants else POINTERS.get(p.name, "i32")
             for p in kernel.params}
    source = ASTSource(kernel, types, constants)
    target, options = GPUTarget("cuda", 90, 32), {"num_warps": gpu.NUM_WARPS}
    assert triton.compile(source, target=target, options=options).asm["cubin"]
compile_kernel(row_kernels.dense_kernel)
compile_kernel(row_kernels.dense_kernel, KINDS=(4,), v_ptr=None)
compile_kernel(row_kernels.stored_kernel, KINDS=(4, 0, 1, 2, 3), BUCKETS=128)
"""


@pytest.mark.parametrize(("script", "interpret"), [(INTERPRETED, "1"), (COMPILED, "0")])
def test_triton_kernels_without_a_gpu(script: str, interpret: str) -> None:
    environment = os.environ | {"TRITON_INTERPRET": interpret}
    subprocess.run([sys.executable, "-c", script], env=environment, cwd=ROOT, check=True)
