"""Distillation losses against their formulas: gradients, limits and identities."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.distill.losses import cross_entropy, forward_kl
from tasks.distill.objective import build_terms, sum_terms

NUM_TOKENS, VOCAB = 7, 11


def draw_logits(seed: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(NUM_TOKENS, VOCAB, generator=generator, dtype=dtype)


def gradient(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """d/dz of the summed forward KL, [NUM_TOKENS, VOCAB]."""
    student = student.clone().requires_grad_()
    labels = torch.zeros(len(student), dtype=torch.long)
    forward_kl.loss(student, teacher, labels, temperature=temperature).sum().backward()
    assert student.grad is not None
    return student.grad


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 20.0])
def test_gradient_is_difference_of_softened_probabilities(temperature: float) -> None:
    # lecture 004:131, corrected: dL_D/dz_k = (p_k - q_k) / T with p the student's softmax
    student, teacher = draw_logits(1), draw_logits(2)
    p = torch.softmax(student / temperature, dim=-1)
    q = torch.softmax(teacher / temperature, dim=-1)
    expected = temperature**2 * (p - q) / temperature
    assert torch.allclose(gradient(student, teacher, temperature), expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize(("temperature", "tolerance"), [(100.0, 0.01), (20.0, 0.04)])
def test_hot_limit_matches_logits(temperature: float, tolerance: float) -> None:
    # 004:131 with its missing 1/N: for zero-mean logits about (z_k - v_k) / (N T^2)
    student, teacher = draw_logits(1), draw_logits(2)
    student = student - student.mean(dim=-1, keepdim=True)
    teacher = teacher - teacher.mean(dim=-1, keepdim=True)
    limit = (student - teacher) / VOCAB
    got = gradient(student, teacher, temperature)
    assert (got - limit).norm() / limit.norm() < tolerance
    assert (got - limit * VOCAB).norm() / (limit * VOCAB).norm() > 0.5  # 1/N is not optional


def test_temperature_factor_makes_gradients_agree() -> None:
    # T^2 g agrees between T = 100 and 1000 within 1%
    student, teacher = draw_logits(1), draw_logits(2)
    warm, hot = (gradient(student, teacher, t) for t in (100.0, 1000.0))
    assert (warm - hot).norm() / hot.norm() < 0.01


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), temperature=st.floats(0.5, 10.0))
def test_kl_is_cross_entropy_less_entropy(seed: int, temperature: float) -> None:
    student, teacher = draw_logits(seed), draw_logits(seed + 1)
    labels = torch.zeros(NUM_TOKENS, dtype=torch.long)
    log_p = torch.log_softmax(student / temperature, dim=-1)
    q = torch.softmax(teacher / temperature, dim=-1)
    crossed = -(q * log_p).sum(dim=-1)
    entropy = -(q * q.log()).sum(dim=-1)
    kl = forward_kl.loss(student, teacher, labels, temperature=temperature) / temperature**2
    assert torch.allclose(kl, crossed - entropy, atol=1e-10)
    assert (kl >= -1e-12).all()
    same = forward_kl.loss(teacher, teacher, labels, temperature=temperature)
    assert torch.equal(same, torch.zeros(NUM_TOKENS, dtype=torch.float64))


def test_softening_keeps_the_order_and_raises_the_entropy() -> None:
    # for (.9, .1) the ratio is 9^(1/T): 1.5 at T = 5.419
    logits = torch.tensor([0.9, 0.1], dtype=torch.float64).log()
    soft = torch.softmax(logits / 5.419, dim=-1)
    assert float(soft[0] / soft[1]) == pytest.approx(1.5, abs=1e-3)


def test_cross_entropy_is_the_label_s_surprise() -> None:
    logits = torch.log(torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]]))
    got = cross_entropy.loss(logits, None, torch.tensor([0, 2]))
    assert got.tolist() == pytest.approx([math.log(2), -math.log(0.8)], abs=1e-6)


def weighted(alpha: float, temperature: float) -> float:
    """alpha L + (1 - alpha) L_D on one fixed batch, in fp32."""
    terms = build_terms(
        [
            {"name": "cross_entropy", "options": {}, "weight": alpha},
            {"name": "forward_kl", "options": {"temperature": temperature}, "weight": 1 - alpha},
        ]
    )
    student, teacher = (draw_logits(s, torch.float32).unsqueeze(0) for s in (1, 2))
    ids = torch.arange(NUM_TOKENS).unsqueeze(0)
    sums = sum_terms(terms, student, teacher, ids, torch.ones_like(ids))
    return float((torch.tensor([t.weight for t in terms]) * sums).sum())


def test_mixture_of_hard_and_soft_loss() -> None:
    # 004:247: alpha = 1 is bit-equal to cross-entropy; linear in alpha; T leaves L unchanged
    logits, labels = draw_logits(1, torch.float32), torch.arange(NUM_TOKENS).roll(-1)
    hard = cross_entropy.loss(logits, None, labels)
    hard[-1] = 0  # a block's last token predicts nothing
    assert weighted(1.0, 2.0) == float(hard.sum()) == weighted(1.0, 7.0)
    middle = (weighted(0.0, 2.0) + weighted(1.0, 2.0)) / 2
    assert weighted(0.5, 2.0) == pytest.approx(middle, rel=1e-6)


def test_only_learned_tokens_count_and_targets_are_the_next_tokens() -> None:
    (term,) = build_terms([{"name": "cross_entropy", "options": {}, "weight": 1.0}])
    ids = torch.tensor([[3, 1, 4, 1], [5, 9, 2, 6]])
    mask = torch.tensor([[1, 0, 1, 0], [0, 0, 0, 1]], dtype=torch.uint8)
    logits = draw_logits(3, torch.float32)[:4].expand(2, 4, VOCAB)
    per_token = -torch.log_softmax(logits, dim=-1)
    expected = per_token[0, 1, 4] + per_token[1, 2, 6]  # position 0 of a block has no predictor
    got = sum_terms([term], logits, None, ids, mask)
    assert torch.allclose(got, expected.unsqueeze(0))


def test_padding_changes_nothing() -> None:
    terms = build_terms([{"name": "forward_kl", "options": {"temperature": 2.0}, "weight": 1.0}])
    student, teacher = (draw_logits(s, torch.float32).unsqueeze(0) for s in (1, 2))
    ids = torch.arange(NUM_TOKENS).unsqueeze(0)
    mask = torch.ones_like(ids)
    mask[:, 4:] = 0
    before = sum_terms(terms, student, teacher, ids, mask)
    student[:, 5:] = 100.0
    ids[:, 5:] = 0
    assert torch.equal(before, sum_terms(terms, student, teacher, ids, mask))


def test_a_loss_named_twice_has_two_labels() -> None:
    chosen = [
        {"name": "forward_kl", "options": {"temperature": t}, "weight": 1.0} for t in (1.0, 4.0)
    ]
    assert [term.label for term in build_terms(chosen)] == ["forward_kl_0", "forward_kl_1"]
