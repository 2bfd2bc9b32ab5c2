"""Repair: the least-squares solution, the residual target, and side-by-side scoring."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config

from tasks.prune.loss import loss_nats
from tasks.prune.repair import RIDGE, check_stream, refit, repair_submodels
from tasks.prune.slicing import build_sliced, slice_weights
from tasks.prune.stock_config import smaller_config
from tasks.prune.units import Kept, find_sublayers


@pytest.fixture
def model(make_llama: Callable[..., Path]) -> Any:
    return AutoModelForCausalLM.from_pretrained(make_llama(seed=3)).eval()


def windows(num_windows: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(300, (num_windows, 24), generator=torch.Generator().manual_seed(seed))


def halve(model: Any, seed: int = 0) -> Kept:
    rng = np.random.default_rng(seed)
    return [rng.permutation(s.num_units) < s.num_units // 2 for s in find_sublayers(model)]


def test_refit_is_the_ridge_solution() -> None:
    torch.manual_seed(0)
    x, target, weight = torch.randn(50, 6), torch.randn(50, 4), torch.randn(4, 6)
    got = refit(x, target, weight, ridge=0.1)
    penalty = 0.1 * float((x.T @ x).diagonal().mean())
    augmented = torch.cat([x, penalty**0.5 * torch.eye(6)])
    wanted = torch.cat([target, penalty**0.5 * weight.T])
    torch.testing.assert_close(got, torch.linalg.lstsq(augmented, wanted).solution.T)


def test_refit_finds_weights_that_fit_exactly() -> None:
    torch.manual_seed(0)
    x, planted = torch.randn(80, 6), torch.randn(4, 6)
    got = refit(x, x @ planted.T, torch.zeros(4, 6), ridge=1e-9)
    torch.testing.assert_close(got, planted)


def test_inputs_that_are_always_zero_change_nothing() -> None:
    weight = torch.randn(4, 6)
    torch.testing.assert_close(refit(torch.zeros(9, 6), torch.randn(9, 4), weight, RIDGE), weight)


def test_a_model_that_keeps_all_is_left_as_it_is(model: Any) -> None:
    sublayers = find_sublayers(model)
    everything = [np.ones(s.num_units, dtype=bool) for s in sublayers]
    (weights,), _ = repair_submodels(model, sublayers, [everything], windows(6))
    for sublayer, weight in zip(sublayers, weights, strict=True):
        original = model.get_submodule(sublayer.writer).weight
        torch.testing.assert_close(weight, original, atol=1e-4, rtol=1e-4)


def test_the_score_is_that_of_the_model_cut_and_repaired(model: Any) -> None:
    """Sub-models scored side by side do not see each other, nor the windows that score them."""
    sublayers = find_sublayers(model)
    submodels = [halve(model, seed) for seed in range(3)]
    fit_ids, score_ids = windows(6), windows(3, seed=1)
    weights, losses = repair_submodels(model, sublayers, submodels, fit_ids, score_ids)
    num_kept = {s.kind: s.num_units // 2 for s in sublayers}
    config = smaller_config(model.config, sublayers, num_kept)
    for kept, refitted, loss in zip(submodels, weights, losses, strict=True):
        state = slice_weights(model, sublayers, kept)
        state |= {f"{s.writer}.weight": w for s, w in zip(sublayers, refitted, strict=True)}
        sliced = build_sliced(config, state, trust_remote_code=False)
        with torch.no_grad():
            logits = sliced(score_ids).logits
        assert loss == pytest.approx(loss_nats(logits, score_ids), abs=1e-4)
    (alone,), (loss_alone,) = repair_submodels(model, sublayers, submodels[1:2], fit_ids, score_ids)
    assert loss_alone == pytest.approx(losses[1], abs=1e-5)
    for weight, other in zip(alone, weights[1], strict=True):
        torch.testing.assert_close(weight, other, atol=1e-4, rtol=1e-4)


def test_repair_brings_the_output_nearer_to_the_dense_models(model: Any) -> None:
    sublayers, kept = find_sublayers(model), halve(model)
    num_kept = {s.kind: s.num_units // 2 for s in sublayers}
    config = smaller_config(model.config, sublayers, num_kept)
    state = slice_weights(model, sublayers, kept)
    (weights,), _ = repair_submodels(model, sublayers, [kept], windows(40))
    refitted = {f"{s.writer}.weight": w for s, w in zip(sublayers, weights, strict=True)}
    ids = windows(8, seed=1)

    def divergence(weights: dict[str, torch.Tensor]) -> float:
        """KL(dense || smaller) in nats/token."""
        sliced = build_sliced(config, weights, trust_remote_code=False)
        with torch.no_grad():
            smaller, dense = sliced(ids).logits.log_softmax(-1), model(ids).logits.log_softmax(-1)
        return float((dense.exp() * (dense - smaller)).sum(-1).mean())

    assert divergence(state | refitted) < 0.7 * divergence(state)


def test_a_stream_that_is_no_plain_sum_is_refused(model: Any) -> None:
    """Gemma 2 normalises what a sublayer writes before it adds it."""
    check_stream(model, find_sublayers(model), windows(1)[0])
    torch.manual_seed(0)
    gemma = AutoModelForCausalLM.from_config(
        Gemma2Config(
            vocab_size=300,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
        )
    ).eval()
    with pytest.raises(ValueError, match=r"gemma2 does not add.*repair: false"):
        check_stream(gemma, find_sublayers(gemma), windows(1)[0])
