"""What every file in tasks/distill/losses must keep to."""

import inspect
import sys
from typing import Any

import pytest
import torch

from tasks.plugins import load_plugin, plugin_names, resolve_options

NUM_TOKENS, VOCAB = 6, 13


@pytest.fixture(params=plugin_names("loss"))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def draw(dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, NUM_TOKENS, VOCAB, generator=generator).to(dtype)
    labels = torch.randint(VOCAB, (NUM_TOKENS,), generator=generator)
    return {"student_logits": logits[0], "teacher_logits": logits[1], "labels": labels}


def needs_teacher(name: str) -> bool:
    return bool(sys.modules[load_plugin("loss", name).__module__].NEEDS_TEACHER)


def call(name: str, **tensors: Any) -> torch.Tensor:
    if not needs_teacher(name):
        tensors["teacher_logits"] = None
    got = load_plugin("loss", name)(**tensors, **resolve_options("loss", name, {}))
    assert isinstance(got, torch.Tensor)
    return got


def test_takes_three_tensors_and_keyword_options(name: str) -> None:
    parameters = inspect.signature(load_plugin("loss", name)).parameters.values()
    positional = [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY]
    assert positional == ["student_logits", "teacher_logits", "labels"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gives_a_finite_fp32_loss_per_token(name: str, dtype: torch.dtype) -> None:
    got = call(name, **draw(dtype))
    assert got.shape == (NUM_TOKENS,)
    assert got.dtype is torch.float32
    assert got.isfinite().all()


def test_stays_finite_on_extreme_logits(name: str) -> None:
    tensors = draw()
    tensors["student_logits"] = tensors["student_logits"] * 1e4
    student = tensors["student_logits"].requires_grad_()
    got = call(name, **tensors)
    got.sum().backward()
    assert got.isfinite().all()
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_each_token_stands_for_itself(name: str) -> None:
    tensors = draw()
    before = call(name, **tensors)
    tensors["student_logits"] = tensors["student_logits"].clone()
    tensors["student_logits"][0, 0] += 1.0
    after = call(name, **tensors)
    assert before[0] != after[0]
    assert torch.equal(before[1:], after[1:])


def test_descending_its_gradient_lowers_it(name: str) -> None:
    tensors = draw(torch.float32)
    student = tensors["student_logits"].clone().requires_grad_()
    before = call(name, **(tensors | {"student_logits": student}))
    (slope,) = torch.autograd.grad(before.sum(), student)
    after = call(name, **(tensors | {"student_logits": student.detach() - 1e-2 * slope}))
    assert after.sum() < before.sum()


def test_says_whether_it_needs_the_teacher(name: str) -> None:
    if not needs_teacher(name):
        return
    tensors = draw()
    before = call(name, **tensors)
    tensors["teacher_logits"] = tensors["teacher_logits"].roll(1, dims=-1)
    assert not torch.equal(before, call(name, **tensors))


def test_states_its_formula(name: str) -> None:
    doc = inspect.getdoc(load_plugin("loss", name)) or ""
    assert "=" in doc.splitlines()[0]
