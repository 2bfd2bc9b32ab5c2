"""Criteria compute what their papers say: each against the plain way of computing it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import kendalltau
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from tasks.prune.bonsai_regression import fit_published, kendall_tau
from tasks.prune.criteria import (
    ablation,
    activation_norm,
    block_influence,
    bonsai,
    magnitude,
    random,
    taylor,
)
from tasks.prune.loss import measure_loss
from tasks.prune.unit_statistics import Calibrated, calibrate
from tasks.prune.units.groups import find_units
from tasks.prune.units.masking import masked
from tasks.prune.units.units import Kept, find_sublayers


@pytest.fixture
def calibrated(make_llama: Callable[..., Path]) -> Calibrated:
    model = AutoModelForCausalLM.from_pretrained(make_llama(seed=7), dtype=torch.float64).eval()
    ids = torch.randint(300, (4, 24), generator=torch.Generator().manual_seed(0))
    sublayers = find_sublayers(model)
    return calibrate(model, sublayers, ids, [s.num_units // 2 for s in sublayers])[0]


def without(calibrated: Calibrated, position: int, unit: int) -> Kept:
    kept = [np.ones(s.num_units, dtype=bool) for s in calibrated.sublayers]
    kept[position][unit] = False
    return kept


def streams(model: Any, ids: torch.Tensor) -> list[torch.Tensor]:
    with torch.no_grad():
        states = model(ids, output_hidden_states=True).hidden_states
    return list(states)


def test_ablation_is_the_loss_without_less_the_loss_with(calibrated: Calibrated) -> None:
    ids = calibrated.ids_WS[:3]
    scores = ablation.score(calibrated, num_windows=3, units_per_pass=5)
    dense = measure_loss(calibrated.model, ids)
    for position, unit in ((0, 1), (1, 17), (2, 0), (3, 63)):
        kept = without(calibrated, position, unit)
        with masked(calibrated.model, calibrated.sublayers, kept):
            loss = measure_loss(calibrated.model, ids)
        assert float(scores[position][unit]) == pytest.approx(loss - dense, rel=1e-5, abs=1e-6)


def test_block_influence_is_the_angle_between_streams(calibrated: Calibrated) -> None:
    """A unit of the first layer's FFN changes the stream after that layer and nothing before."""
    model, ids = calibrated.model, calibrated.ids_WS
    scores = block_influence.score(calibrated)
    after = streams(model, ids)[1]
    for unit in (0, 40):
        with masked(model, calibrated.sublayers, without(calibrated, 1, unit)):
            changed = streams(model, ids)[1]
        wanted = (1 - F.cosine_similarity(after, changed, dim=-1)).mean()
        torch.testing.assert_close(scores[1][unit], wanted)


def test_block_influence_needs_the_whole_stream(calibrated: Calibrated) -> None:
    ffn = [s for s in calibrated.sublayers if s.kind == "ffn"]
    part = calibrate(calibrated.model, ffn, calibrated.ids_WS, [32, 32])[0]
    with pytest.raises(ValueError, match=r"do not add up to its residual stream"):
        block_influence.score(part)


def test_block_influence_resolves_small_angles_in_single_precision() -> None:
    torch.manual_seed(0)
    x, weight, after = torch.randn(50, 3, 2), 1e-4 * torch.randn(8, 6), torch.randn(50, 8)
    parts = torch.einsum("tuw,duw->tud", x.double(), weight.double().unflatten(1, (3, 2)))
    whole = after.double()[:, None].expand_as(parts)
    wanted = 1 - F.cosine_similarity(whole, whole - parts, dim=-1)
    got = block_influence.turn(x, weight.T.reshape(3, 2, 8), after)
    torch.testing.assert_close(got.mean(0).double(), wanted.mean(0), rtol=1e-3, atol=0)


def test_block_influence_of_layers(calibrated: Calibrated) -> None:
    model, ids = calibrated.model, calibrated.ids_WS
    before, after, _ = streams(model, ids)
    wanted = (1 - F.cosine_similarity(before, after, dim=-1)).mean()
    torch.testing.assert_close(block_influence.score_layers(model, ids)[0], wanted)


def look_at_layers(calibrated: Calibrated) -> Calibrated:
    groups = find_units(calibrated.model, ["layers"])
    return calibrate(calibrated.model, groups, calibrated.ids_WS, [1])[0]


def test_layers_are_ranked(calibrated: Calibrated) -> None:
    of_layers, model, ids = look_at_layers(calibrated), calibrated.model, calibrated.ids_WS
    (influence,) = block_influence.score(of_layers)
    assert torch.equal(influence, block_influence.score_layers(model, ids))
    (raised,) = ablation.score(of_layers, num_windows=4)
    silent = [np.full(s.num_units, s.layer != 1) for s in calibrated.sublayers]
    with masked(model, calibrated.sublayers, silent):
        without_layer = measure_loss(model, ids)
    wanted = without_layer - measure_loss(model, ids)
    assert float(raised[1]) == pytest.approx(wanted, rel=1e-4)
    (size,) = magnitude.score(of_layers)
    squares = [p.square().sum() for p in model.get_submodule("model.layers.1").parameters()]
    torch.testing.assert_close(size[1], torch.stack(squares).sum().sqrt().detach())
    assert [len(criterion.score(of_layers)[0]) for criterion in (taylor, random)] == [2, 2]


def test_layers_have_no_inputs_to_measure(calibrated: Calibrated) -> None:
    for criterion in (activation_norm, bonsai):
        with pytest.raises(ValueError, match=r"got layers; choose ablation"):
            criterion.score(look_at_layers(calibrated))


def test_hidden_dimensions_are_ranked(calibrated: Calibrated) -> None:
    groups = find_units(calibrated.model, ["hidden"])
    of_hidden = calibrate(calibrated.model, groups, calibrated.ids_WS, [16])[0]
    for criterion in (ablation, magnitude, random, taylor):
        (scores,) = criterion.score(of_hidden)
        assert scores.shape == (32,)
        assert len(scores.unique()) == 32


@pytest.mark.parametrize("level", ["element", "vector"])
def test_taylor_is_the_sum_of_weight_times_gradient(calibrated: Calibrated, level: Any) -> None:
    model, ids = calibrated.model, calibrated.ids_WS
    scores = taylor.score(calibrated, level=level)
    logits = model(ids).logits[:, :-1]
    F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).backward()
    mlp = model.get_submodule("model.layers.1.mlp")
    rows = [m.weight * m.weight.grad for m in (mlp.gate_proj, mlp.up_proj)]
    column = mlp.down_proj.weight * mlp.down_proj.weight.grad
    parts = torch.cat([rows[0][9], rows[1][9], column[:, 9]])
    wanted = parts.abs().sum() if level == "element" else parts.sum().abs()
    torch.testing.assert_close(scores[3][9], wanted.detach(), rtol=1e-5, atol=1e-9)


def test_the_scope_of_magnitude(calibrated: Calibrated) -> None:
    everywhere = magnitude.score(calibrated)
    by_layer = magnitude.score(calibrated, scope="layer")
    for wide, narrow in zip(everywhere, by_layer, strict=True):
        assert float(narrow.mean()) == pytest.approx(1)
        torch.testing.assert_close(wide / wide.mean(), narrow)


def test_the_published_regression_finds_what_was_planted() -> None:
    rng = np.random.default_rng(0)
    planted = rng.normal(size=12)
    masks = rng.integers(2, size=(120, 12)).astype(float)
    weights = fit_published(masks, masks @ planted, rng)
    assert kendalltau(weights, planted)[0] > 0.8


def test_kendall_tau_is_that_of_scipy() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.integers(8, size=(2, 30)).astype(float)  # with ties
    got = kendall_tau(torch.from_numpy(first), torch.from_numpy(second))
    assert got == pytest.approx(kendalltau(first, second)[0])


def test_bonsai_removes_in_rounds_down_to_the_shape(calibrated: Calibrated) -> None:
    rounds = list(bonsai.refine(calibrated, 10, 2, 0.25, 0))
    assert len(rounds) == 3  # the prior, and two rounds of a quarter each
    for prior, first, last, sublayer in zip(*rounds, calibrated.sublayers, strict=True):
        num_units = sublayer.num_units
        assert prior.max() == 1
        assert int((first < 1).sum()) == round(num_units / 4)
        assert int((last < 2).sum()) == num_units // 2
        # The first round's victims are the last ones', too.
        assert set(torch.where(first < 1)[0].tolist()) <= set(torch.where(last < 1)[0].tolist())


def test_bonsai_switches_off_a_share_and_then_the_complement(calibrated: Calibrated) -> None:
    prior = np.arange(20.0)
    odds = bonsai.weigh(prior, np.ones(20, dtype=bool), 0.1, 2)
    assert sorted(odds.open.tolist()) == [0, 1, 2, 3]  # the lowest fifth
    assert odds.num_off == 3
    assert odds.probabilities.argmax() == list(odds.open).index(0)
