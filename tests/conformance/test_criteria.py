"""What every file in tasks/prune/criteria must keep to."""

import copy
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tasks.plugins import load_plugin, plugin_names, resolve_options
from tasks.prune.unit_statistics import Calibrated, calibrate
from tasks.prune.units.units import find_sublayers

QUICK = {"bonsai": {"masks_per_round": 10, "windows_per_mask": 2, "removed_per_round": 0.5}}
"""Options for criteria that take minutes with their defaults."""


@pytest.fixture(params=plugin_names("criterion"))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def model(make_llama: Callable[..., Path]) -> Any:
    """In fp64, so that the order of sums decides nothing."""
    folder = make_llama(seed=5, num_attention_heads=8, num_key_value_heads=4, head_dim=4)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()


def look(model: Any, seed: int = 0) -> Calibrated:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(model.config.vocab_size, (4, 24), generator=generator)
    sublayers = find_sublayers(model)
    return calibrate(model, sublayers, ids, [s.num_units // 2 for s in sublayers])[0]


def score(name: str, calibrated: Calibrated) -> list[torch.Tensor]:
    options = resolve_options("criterion", name, QUICK.get(name, {}))
    got: list[torch.Tensor] = load_plugin("criterion", name)(calibrated, **options)
    return got


def permute_units(model: Any, orders: list[torch.Tensor]) -> Any:
    """Return a copy in which the units of each sublayer stand in another order."""
    permuted = copy.deepcopy(model)
    for sublayer, order in zip(find_sublayers(model), orders, strict=True):
        for path, rows in sublayer.readers:
            weight = permuted.get_submodule(path).weight.data
            weight.copy_(weight.unflatten(0, (-1, rows))[order].flatten(0, 1))
        weight = permuted.get_submodule(sublayer.writer).weight.data
        columns = weight.unflatten(1, (-1, sublayer.unit_width))
        weight.copy_(columns[:, order].flatten(1, 2))
    return permuted


def test_takes_what_is_calibrated_and_keyword_options(name: str) -> None:
    first, *options = inspect.signature(load_plugin("criterion", name)).parameters.values()
    assert first.name == "calibrated"
    assert all(option.kind is inspect.Parameter.KEYWORD_ONLY for option in options)


def test_gives_one_finite_number_per_unit(name: str, model: Any) -> None:
    calibrated = look(model)
    scores = score(name, calibrated)
    assert [s.shape for s in scores] == [(s.num_units,) for s in calibrated.sublayers]
    assert all(s.isfinite().all() for s in scores)
    assert all(len(s.unique()) > 1 for s in scores)
    assert not any(s.requires_grad for s in scores)


def test_importance_permutes_with_its_units(name: str, model: Any) -> None:
    generator = torch.Generator().manual_seed(1)
    calibrated = look(model)
    orders = [torch.randperm(s.num_units, generator=generator) for s in calibrated.sublayers]
    permuted = look(permute_units(model, orders))
    scores = score(name, calibrated)
    for got, wanted, order in zip(score(name, permuted), scores, orders, strict=True):
        torch.testing.assert_close(got, wanted[order])


def test_same_model_and_text_give_same_scores(name: str, model: Any) -> None:
    first, again = score(name, look(model)), score(name, look(model))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_leaves_model_and_text_alone(name: str, model: Any) -> None:
    calibrated, untouched = look(model), copy.deepcopy(model)
    logits = model(calibrated.ids_WS).logits
    score(name, calibrated)
    assert torch.equal(calibrated.ids_WS, look(model).ids_WS)
    assert torch.equal(model(calibrated.ids_WS).logits, logits)  # nor is a hook left behind
    for (path, after), before in zip(model.named_parameters(), untouched.parameters(), strict=True):
        assert torch.equal(after, before), path
        assert after.grad is None, path
        assert after.requires_grad == before.requires_grad, path
