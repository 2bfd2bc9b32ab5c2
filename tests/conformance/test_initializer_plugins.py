"""What every file in tasks/models/initializers must keep to."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tasks.models.checkpoint import load_model
from tasks.plugins import load_plugin, plugin_names, resolve_options


@pytest.fixture(params=plugin_names("initializer"))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def initialize(name: str, folder: Path, seed: int = 0) -> Any:
    options = resolve_options("initializer", name, {})
    return load_plugin("initializer", name)(folder, seed, False, **options)


def weights(model: Any) -> dict[str, torch.Tensor]:
    return dict(model.named_parameters())


def test_takes_folder_seed_and_trust(name: str) -> None:
    parameters = inspect.signature(load_plugin("initializer", name)).parameters.values()
    positional = [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY]
    assert positional == ["folder", "seed", "trust_remote_code"]


def test_gives_a_trainable_fp32_model(name: str, tiny_llama: Path) -> None:
    model = initialize(name, tiny_llama)
    assert all(p.requires_grad and p.dtype is torch.float32 for p in model.parameters())
    ids = torch.arange(8).unsqueeze(0).to(model.device)
    assert model(input_ids=ids).logits.isfinite().all()


def test_the_seed_decides(name: str, tiny_llama: Path) -> None:
    first = weights(initialize(name, tiny_llama, seed=3))
    torch.manual_seed(99)
    second = weights(initialize(name, tiny_llama, seed=3))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_incoming_and_fresh_share_a_shape_only(make_llama: Callable[..., Path]) -> None:
    folder = make_llama(intermediate_size=48)
    before = weights(load_model(folder))
    incoming, fresh, other = (
        weights(initialize(*which))
        for which in (("incoming", folder), ("fresh", folder), ("fresh", folder, 1))
    )
    assert all(torch.equal(before[key], incoming[key]) for key in before)
    assert {k: v.shape for k, v in before.items()} == {k: v.shape for k, v in fresh.items()}
    matrices = [key for key in before if before[key].ndim == 2]
    assert not any(torch.equal(before[key], fresh[key]) for key in matrices)
    assert not any(torch.equal(other[key], fresh[key]) for key in matrices)
