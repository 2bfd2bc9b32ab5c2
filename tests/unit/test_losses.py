"""Distillation losses against their formulas: gradients, limits and identities."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from kernels.chunked_kd import naive
from kernels.chunked_kd.naive import Term
from tasks.distill.blocks import next_tokens
from tasks.distill.layers import make_projection, map_layers
from tasks.distill.losses import (
    attention_maps,
    cross_entropy,
    forward_kl,
    hidden_cosine,
    hidden_mse,
    jsd,
    logit_mse,
    reverse_kl,
    total_variation,
)
from tasks.distill.objective import build_objective
from tasks.recipe_file import load_recipe
from tasks.stages import distill_stage

NUM_TOKENS, VOCAB = 7, 11
LABELS = torch.arange(NUM_TOKENS)


def draw_logits(seed: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(NUM_TOKENS, VOCAB, generator=generator, dtype=dtype)


def value(term: Term, student: torch.Tensor, teacher: torch.Tensor | None) -> torch.Tensor:
    """The loss of each token, [NUM_TOKENS]."""
    return naive.losses(student, teacher, LABELS[: len(student)] % VOCAB, [term])[0]


def gradient(term: Term, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """d/dz of the summed loss, [NUM_TOKENS, VOCAB]."""
    student = student.clone().requires_grad_()
    (slope,) = torch.autograd.grad(value(term, student, teacher).sum(), student)
    return slope


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 20.0])
def test_gradient_is_difference_of_softened_probabilities(temperature: float) -> None:
    # lecture 004:131, corrected: dL_D/dz_k = (p_k - q_k) / T with p the student's softmax
    student, teacher = draw_logits(1), draw_logits(2)
    p = torch.softmax(student / temperature, dim=-1)
    q = torch.softmax(teacher / temperature, dim=-1)
    expected = temperature**2 * (p - q) / temperature
    got = gradient(forward_kl.loss(temperature=temperature), student, teacher)
    assert torch.allclose(got, expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize(("temperature", "tolerance"), [(100.0, 0.01), (20.0, 0.04)])
def test_hot_limit_matches_logits(temperature: float, tolerance: float) -> None:
    # 004:131 with its missing 1/N: for zero-mean logits about (z_k - v_k) / (N T^2)
    student, teacher = draw_logits(1), draw_logits(2)
    student = student - student.mean(dim=-1, keepdim=True)
    teacher = teacher - teacher.mean(dim=-1, keepdim=True)
    limit = (student - teacher) / VOCAB
    got = gradient(forward_kl.loss(temperature=temperature), student, teacher)
    assert (got - limit).norm() / limit.norm() < tolerance
    assert (got - limit * VOCAB).norm() / (limit * VOCAB).norm() > 0.5  # 1/N is not optional
    # so that half the logits' squared distance is what hot soft labels tend to
    of_squares = gradient(logit_mse.loss(), student, teacher) / 2
    assert torch.allclose(of_squares, limit, atol=1e-10)


def test_temperature_factor_makes_gradients_agree() -> None:
    # T^2 g agrees between T = 100 and 1000 within 1%; the total variation's factor is T
    student, teacher = draw_logits(1), draw_logits(2)
    for loss in (forward_kl.loss, reverse_kl.loss, jsd.loss, total_variation.loss):
        warm, hot = (gradient(loss(temperature=t), student, teacher) for t in (100.0, 1000.0))
        assert (warm - hot).norm() / hot.norm() < 0.02


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), temperature=st.floats(0.5, 10.0))
def test_kl_is_cross_entropy_less_entropy(seed: int, temperature: float) -> None:
    student, teacher = draw_logits(seed), draw_logits(seed + 1)
    log_p = torch.log_softmax(student / temperature, dim=-1)
    q = torch.softmax(teacher / temperature, dim=-1)
    crossed = -(q * log_p).sum(dim=-1)
    entropy = -(q * q.log()).sum(dim=-1)
    term = forward_kl.loss(temperature=temperature)
    kl = value(term, student, teacher) / temperature**2
    assert torch.allclose(kl, crossed - entropy, atol=1e-10)
    assert (kl >= -1e-12).all()
    same = value(term, teacher, teacher)
    assert torch.equal(same, torch.zeros(NUM_TOKENS, dtype=torch.float64))
    other_way = value(reverse_kl.loss(temperature=temperature), teacher, student)
    assert torch.allclose(other_way, kl * temperature**2, atol=1e-10)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_divergences_between_the_two_keep_their_bounds(seed: int) -> None:
    student, teacher = draw_logits(seed), draw_logits(seed + 1)
    tv = value(total_variation.loss(), student, teacher)
    assert (tv <= 1).all()
    kl = value(forward_kl.loss(temperature=1.0), student, teacher)
    assert (kl >= 2 * tv**2 - 1e-12).all()  # Pinsker
    even = value(jsd.loss(beta=0.5), student, teacher)
    assert (even <= math.log(2)).all()
    assert torch.allclose(even, value(jsd.loss(beta=0.5), teacher, student), atol=1e-12)
    # 1 - m's share of p, so that beta -> 0 gives beta times the forward KL, beta -> 1 the reverse
    assert torch.allclose(value(jsd.loss(beta=1e-4), student, teacher) / 1e-4, kl, rtol=0.01)
    reverse = value(reverse_kl.loss(), student, teacher)
    assert torch.allclose(
        value(jsd.loss(beta=1 - 1e-4), student, teacher) / 1e-4, reverse, rtol=0.01
    )


def test_softening_keeps_the_order_and_raises_the_entropy() -> None:
    # for (.9, .1) the ratio is 9^(1/T): 1.5 at T = 5.419
    logits = torch.tensor([0.9, 0.1], dtype=torch.float64).log()
    soft = torch.softmax(logits / 5.419, dim=-1)
    assert float(soft[0] / soft[1]) == pytest.approx(1.5, abs=1e-3)


def test_cross_entropy_is_the_label_s_surprise() -> None:
    logits = torch.log(torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]]))
    got = naive.losses(logits, None, torch.tensor([0, 2]), [cross_entropy.loss()])[0]
    assert got.tolist() == pytest.approx([math.log(2), -math.log(0.8)], abs=1e-6)


def test_hidden_states_by_hand() -> None:
    student = [torch.tensor([[[1.0, 0.0], [3.0, 4.0]]]), torch.tensor([[[1.0, 1.0], [0.0, 2.0]]])]
    teacher = [torch.tensor([[[0.0, 1.0], [3.0, 4.0]]]), torch.tensor([[[1.0, 1.0], [0.0, -2.0]]])]
    assert hidden_mse.loss(student, teacher).tolist() == [[0.5, 4.0]]  # (1 + 0)/2, (0 + 8)/2
    assert hidden_mse.loss(student, teacher, layers="last").tolist() == [[0.0, 8.0]]
    cosine = hidden_cosine.loss(student, teacher, layers="all")
    assert torch.allclose(cosine, torch.tensor([[0.5, 1.0]]), atol=1e-6)  # (1 + 0)/2, (0 + 2)/2
    last = hidden_cosine.loss(student, teacher)
    assert torch.allclose(last, torch.tensor([[0.0, 2.0]]), atol=1e-6)


def test_attention_rows_by_hand() -> None:
    even = torch.tensor([[1.0, 0.0], [0.5, 0.5]])
    sharp = torch.tensor([[1.0, 0.0], [0.75, 0.25]])
    student, teacher = even.expand(1, 2, 2, 2), sharp.expand(1, 2, 2, 2)
    expected = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    got = attention_maps.loss([student], [teacher])
    assert got.tolist()[0] == pytest.approx([0.0, expected])  # a row that sees itself alone is 0
    # other numbers of heads: the mean maps are compared
    heads = torch.stack([even, sharp, even, sharp])[None]
    mean = (even + sharp) / 2
    assert torch.allclose(
        attention_maps.loss([student], [heads]),
        attention_maps.loss([student[:, :1]], [mean[None, None]]),
    )


def test_layers_are_spread_evenly_and_the_last_goes_with_the_last() -> None:
    assert map_layers(3, 6) == [1, 3, 5]
    assert map_layers(6, 12) == [1, 3, 5, 7, 9, 11]
    assert map_layers(4, 4) == [0, 1, 2, 3]
    assert map_layers(3, 10) == [2, 6, 9]
    assert map_layers(4, 2)[-1] == 1
    for num_student in range(1, 13):
        for num_teacher in range(num_student, 25):
            chosen = map_layers(num_student, num_teacher)
            assert chosen == sorted(set(chosen))
            assert chosen[0] >= 0
            assert chosen[-1] == num_teacher - 1


def test_a_projection_is_learned_where_widths_differ() -> None:
    assert make_projection(8, 8, seed=0) is None
    first, second = (make_projection(8, 12, seed=0) for _ in range(2))
    assert first is not None
    assert second is not None
    assert torch.equal(first.weight, second.weight)
    gram = first.weight.T @ first.weight
    assert torch.allclose(gram, torch.eye(8), atol=1e-5)  # keeps lengths and angles


def weighted(alpha: float, temperature: float) -> float:
    """alpha L + (1 - alpha) L_D on one fixed batch, in fp32."""
    objective = build_objective(
        [
            {"name": "cross_entropy", "options": {}, "weight": alpha},
            {"name": "forward_kl", "options": {"temperature": temperature}, "weight": 1 - alpha},
        ]
    )
    student, teacher = (draw_logits(s, torch.float32) for s in (1, 2))
    terms = [loss.term for loss in objective.losses if loss.term]
    sums = naive.losses(student, teacher, LABELS, terms).sum(dim=1)
    return float(sums @ torch.tensor(objective.weights))


def test_mixture_of_hard_and_soft_loss() -> None:
    # 004:247: alpha = 1 is bit-equal to cross-entropy; linear in alpha; T leaves L unchanged
    hard = functional.cross_entropy(draw_logits(1, torch.float32), LABELS, reduction="none")
    assert weighted(1.0, 2.0) == float(hard.sum()) == weighted(1.0, 7.0)
    middle = (weighted(0.0, 2.0) + weighted(1.0, 2.0)) / 2
    assert weighted(0.5, 2.0) == pytest.approx(middle, rel=1e-6)


def test_targets_are_the_next_tokens_and_a_block_s_last_has_none() -> None:
    ids = torch.tensor([[3, 1, 4, 1], [5, 9, 2, 6]])
    mask = torch.tensor([[1, 0, 1, 0], [0, 0, 0, 1]], dtype=torch.uint8)
    labels, learned = next_tokens(ids, mask)
    assert labels[:, :3].tolist() == [[1, 4, 1], [9, 2, 6]]
    assert learned.tolist() == [[0, 1, 0, 0], [0, 0, 1, 0]]


def test_a_loss_named_twice_has_two_labels() -> None:
    chosen = [
        {"name": "forward_kl", "options": {"temperature": t}, "weight": 1.0} for t in (1.0, 4.0)
    ]
    assert build_objective(chosen).labels == ["forward_kl_0", "forward_kl_1"]


def squares(student: Any, teacher: Any, labels: Any) -> Any:
    """A loss of a user's own."""
    return (student - teacher).square().mean(dim=1)


def test_a_function_of_the_user_s_own_is_a_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.distill.objective.import_function", lambda name: squares)
    (loss,) = build_objective(
        [{"name": "mine.losses:squares", "options": {}, "weight": 1.0}]
    ).losses
    assert loss.needs_teacher
    assert loss.term
    student, teacher = draw_logits(1), draw_logits(2)
    assert torch.allclose(
        value(loss.term, student, teacher), value(logit_mse.loss(), student, teacher)
    )


def test_a_recipe_names_it_and_its_source_enters_the_key(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    module = tmp_path / "losses_of_mine.py"
    name = "losses_of_mine:squares"
    said = [f"steps.1.distill.losses=[{{name: '{name}'}}]"]
    keyed = []
    for power in (2, 4):
        module.write_text(f"def squares(z, v, y):\n    return ((z - v) ** {power}).mean(1)\n")
        recipe = load_recipe(recipe_file, said)
        options = recipe.steps[1].distill
        assert options
        stage = distill_stage(recipe, options, *[None] * 3)  # type: ignore[arg-type]
        assert ("loss", name) not in stage.plugins
        keyed.append(stage.options["loss_code"])
    assert keyed[0] != keyed[1]
    with pytest.raises(ValueError, match="takes no options"):
        load_recipe(
            recipe_file, [f"steps.1.distill.losses=[{{name: '{name}', options: {{a: 1}}}}]"]
        )
    with pytest.raises(ValueError, match="there is no Python module"):
        load_recipe(recipe_file, ["steps.1.distill.losses=[{name: 'no_such_module:f'}]"])
