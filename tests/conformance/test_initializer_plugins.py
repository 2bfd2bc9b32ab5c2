"""What every file in tasks/models/initializers must keep to."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import MixtralConfig, MixtralForCausalLM

from tasks.models.checkpoint import load_model
from tasks.models.initializer_context import InitializerContext, Student
from tasks.plugins import load_plugin, plugin_constant, plugin_names, resolve_options


@pytest.fixture(params=plugin_names("initializer"))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def folder(name: str, tiny_llama: Path, tmp_path: Path) -> Path:
    """An incoming model that the initialiser is for."""
    return save_mixture(tmp_path / "mixture") if name == "dense_from_experts" else tiny_llama


def save_mixture(folder: Path) -> Path:
    sizes = {"hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2}
    MixtralForCausalLM(
        MixtralConfig(vocab_size=300, bos_token_id=0, eos_token_id=0, **sizes, **heads, **experts)
    ).save_pretrained(folder)
    return folder


def initialize(name: str, folder: Path, seed: int = 0) -> Student:
    ids_BT = torch.arange(256, dtype=torch.int32).view(8, 32)
    context = InitializerContext(folder, ids_BT, seed, trust_remote_code=False)
    done = load_plugin("initializer", name)(context, **resolve_options("initializer", name, {}))
    assert isinstance(done, Student)
    return done


def weights(student: Student) -> dict[str, torch.Tensor]:
    return dict(student.model.named_parameters())


def test_takes_one_context(name: str) -> None:
    parameters = inspect.signature(load_plugin("initializer", name)).parameters.values()
    positional = [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY]
    assert positional == ["context"]
    assert isinstance(plugin_constant("initializer", name, "NEEDS_DECODER"), bool)


def test_gives_a_trainable_fp32_model(name: str, folder: Path) -> None:
    model = initialize(name, folder).model
    assert all(p.requires_grad and p.dtype is torch.float32 for p in model.parameters())
    ids = torch.arange(8).unsqueeze(0).to(model.device)
    assert model(input_ids=ids).logits.isfinite().all()


def test_is_saved_as_a_stock_model(name: str, folder: Path, tmp_path: Path) -> None:
    model = initialize(name, folder).model
    model.save_pretrained(tmp_path / "saved")
    ids = torch.arange(8).unsqueeze(0).to(model.device)
    assert torch.equal(
        load_model(tmp_path / "saved")(input_ids=ids).logits, model(input_ids=ids).logits
    )


def test_the_seed_decides(name: str, folder: Path) -> None:
    first = weights(initialize(name, folder, seed=3))
    torch.manual_seed(99)
    second = weights(initialize(name, folder, seed=3))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_incoming_and_fresh_share_a_shape_only(make_llama: Callable[..., Path]) -> None:
    folder = make_llama(intermediate_size=48)
    model: Any = load_model(folder)
    before = dict(model.named_parameters())
    incoming, fresh, other = (
        weights(initialize(*which))
        for which in (("incoming", folder), ("fresh", folder), ("fresh", folder, 1))
    )
    assert all(torch.equal(before[key], incoming[key]) for key in before)
    assert {k: v.shape for k, v in before.items()} == {k: v.shape for k, v in fresh.items()}
    matrices = [key for key in before if before[key].ndim == 2]
    assert not any(torch.equal(before[key], fresh[key]) for key in matrices)
    assert not any(torch.equal(other[key], fresh[key]) for key in matrices)
