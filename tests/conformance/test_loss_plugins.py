"""What every file in tasks/distill/losses must keep to."""

import inspect
from typing import Any

import pytest
import torch

from kernels.chunked_kd import naive
from kernels.chunked_kd.naive import Term
from tasks.distill_options import needs_a_teacher
from tasks.plugins import load_plugin, plugin_constant, plugin_names, resolve_options

NUM_TOKENS, VOCAB = 6, 13
LABELS = torch.arange(NUM_TOKENS) * 2 % VOCAB


@pytest.fixture(params=plugin_names("loss"))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def over(name: str) -> str:
    return str(plugin_constant("loss", name, "OVER"))


def draw(name: str, seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """What one model shows of a block: logits [N, V], hidden states or attention scores."""
    shape = {"logits": (NUM_TOKENS, VOCAB), "hidden_states": (1, NUM_TOKENS, VOCAB)}
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(shape.get(over(name), (1, 2, NUM_TOKENS, NUM_TOKENS)), generator=generator)
    return drawn.to(dtype)


def call(name: str, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """One loss for each of NUM_TOKENS tokens."""
    loss, options = load_plugin("loss", name), resolve_options("loss", name, {})
    if over(name) == "logits":
        term = loss(**options)
        assert isinstance(term, Term)
        return naive.losses(student, teacher if needs_a_teacher(name) else None, LABELS, [term])[0]
    if over(name) == "attentions":
        student, teacher = student.softmax(-1), teacher.softmax(-1)
    got = loss([student], [teacher], **options)
    assert isinstance(got, torch.Tensor)
    return got[0]


def test_says_what_it_is(name: str) -> None:
    assert over(name) in ("logits", "hidden_states", "attentions")
    assert isinstance(needs_a_teacher(name), bool)
    assert {*plugin_constant("loss", name, "OUTPUTS")} <= {"distribution", "score"}
    parameters = inspect.signature(load_plugin("loss", name)).parameters.values()
    positional = [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY]
    assert positional == ([] if over(name) == "logits" else ["student", "teacher"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gives_a_finite_fp32_loss_per_token(name: str, dtype: torch.dtype) -> None:
    got = call(name, draw(name, 0, dtype), draw(name, 1, dtype))
    assert got.shape == (NUM_TOKENS,)
    assert got.isfinite().all()
    if over(name) == "logits":
        assert got.dtype is torch.float32


def test_stays_finite_on_extreme_values(name: str) -> None:
    student = (draw(name, 0) * 1e4).requires_grad_()
    got = call(name, student, draw(name, 1))
    got.sum().backward()
    assert got.isfinite().all()
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_each_token_stands_for_itself(name: str) -> None:
    student, teacher = draw(name, 0), draw(name, 1)
    before = call(name, student, teacher)
    student[..., 0, 0] += 1.0
    after = call(name, student, teacher)
    assert before[0] != after[0]
    assert torch.equal(before[1:], after[1:])


def test_descending_its_gradient_lowers_it(name: str) -> None:
    student, teacher = draw(name, 0).requires_grad_(), draw(name, 1)
    before = call(name, student, teacher)
    (slope,) = torch.autograd.grad(before.sum(), student)
    after = call(name, student.detach() - 1e-2 * slope, teacher)
    assert after.sum() < before.sum()


def test_is_zero_where_the_student_is_the_teacher(name: str) -> None:
    if not needs_a_teacher(name):
        return
    same, other = draw(name, 0), draw(name, 1)
    assert call(name, same, same).abs().max() < 1e-6
    assert (call(name, same, other) > 1e-3).all()


def test_says_whether_a_store_serves_it(name: str) -> None:
    """Stored teacher logits hold probabilities of a few tokens, and nothing else."""
    stored = naive.StoredTeacher(
        ids=torch.arange(3).expand(NUM_TOKENS, 3),
        log_probs=torch.full((NUM_TOKENS, 3), 0.25).log(),
        log_tail=torch.full((NUM_TOKENS,), 0.25).log(),
    )
    loss, options = load_plugin("loss", name), resolve_options("loss", name, {})
    served = over(name) == "logits"
    if served:
        try:
            naive.losses(draw(name, 0), stored, LABELS, [loss(**options)])
        except ValueError:
            served = False
    assert served == plugin_constant("loss", name, "FROM_STORE")


def test_states_its_formula(name: str) -> None:
    doc = inspect.getdoc(load_plugin("loss", name)) or ""
    assert "=" in doc.splitlines()[0]


def test_options_have_their_limits() -> None:
    bad: list[tuple[str, dict[str, Any]]] = [
        ("forward_kl", {"temperature": 0}),
        ("jsd", {"beta": 1.0}),
        ("hidden_mse", {"layers": "some"}),
        ("cross_entropy", {"temperature": 2.0}),
    ]
    for name, options in bad:
        with pytest.raises(ValueError, match=next(iter(options))):
            resolve_options("loss", name, options)
