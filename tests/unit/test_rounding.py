"""Training through a method's rounding: what the student computes with, and what it is taught."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from flows.planning import make_plan
from flows.preflight import check_training
from infra.local_executor import LocalExecutor
from infra.storage import open_store
from tasks.distill.rounded_distillation import distill_rounded
from tasks.distill.rounding import round_in_forward
from tasks.inputs import find_inputs
from tasks.models.checkpoint import describe_model, load_model
from tasks.plugins import load_plugin, plugin_constant, plugin_names, resolve_options
from tasks.quantize.block import Block
from tasks.quantize.decoder_blocks import find_blocks, linear_weights
from tasks.recipe_file import load_recipe
from tasks.stage_space import StageSpace
from tests.conformance.test_quantize_plugins import OPTIONS

IDS = torch.arange(40).view(2, 20)
TERNARY = {"method": "absmax", "options": {"bits": 2, "group_size": 16}, "dtype": "bfloat16"}
ROUNDERS = [
    name
    for name in plugin_names("method")
    if not plugin_constant("method", name, "CALIBRATED")
    and plugin_constant("method", name, "ENCODINGS")
]
TRAIN = "{losses: [{name: forward_kl}], num_tokens: 1024, batch_blocks: 8, micro_batch_blocks: 4}"


def loss_of(model: Any) -> torch.Tensor:
    loss: torch.Tensor = model(input_ids=IDS, labels=IDS, use_cache=False).loss
    return loss


def export_weights(model: Any, rounding: dict[str, Any]) -> None:
    """Put into the model what the export of its weights would compute with."""
    quantize = load_plugin("method", rounding["method"])
    dtype = getattr(torch, rounding["dtype"])
    for block in find_blocks(model):
        weights = {n: model.get_parameter(n).detach() for n in linear_weights(model, block)}
        done = quantize(Block(weights, dtype), **rounding["options"])
        with torch.no_grad():
            for name in weights:
                model.get_parameter(name).copy_(done[name].dequantize())


@pytest.mark.parametrize("method", ROUNDERS)
def test_the_student_computes_what_its_export_will(method: str, tiny_llama: Path) -> None:
    options = resolve_options("method", method, OPTIONS.get(method, {}))
    rounding = {"method": method, "options": options, "dtype": "bfloat16"}
    student, exported = load_model(tiny_llama), load_model(tiny_llama)
    before = {name: (p, p.detach().clone()) for name, p in student.named_parameters()}
    unrounded = loss_of(student)
    round_in_forward(rounding, student)
    export_weights(exported, rounding)
    assert torch.equal(loss_of(student), loss_of(exported))
    assert not torch.equal(loss_of(student), unrounded)
    for (name, (parameter, value)), (after, same) in zip(
        before.items(), student.named_parameters(), strict=True
    ):
        assert name == after and parameter is same
        assert torch.equal(value, same)


def test_latent_weights_get_the_gradient_of_the_rounded_ones(tiny_llama: Path) -> None:
    student, exported = load_model(tiny_llama), load_model(tiny_llama)
    round_in_forward(TERNARY, student)
    export_weights(exported, TERNARY)
    for model in (student, exported):
        loss_of(model).backward()
    for (name, latent), rounded in zip(
        student.named_parameters(), exported.parameters(), strict=True
    ):
        assert latent.grad is not None and torch.equal(latent.grad, rounded.grad), name


def test_a_forward_pass_that_fails_leaves_the_latent_weights(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    student = load_model(tiny_llama)
    before = dict(student.named_parameters())
    round_in_forward(TERNARY, student)

    def fail(*args: Any, **kwargs: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(find_blocks(student)[0].mlp, "forward", fail)
    with pytest.raises(MemoryError):
        loss_of(student)
    after = dict(student.named_parameters())
    assert list(after) == list(before)
    assert all(after[name] is before[name] for name in before)


def test_training_through_the_rounding_lowers_the_rounded_loss(tiny_llama: Path) -> None:
    student = load_model(tiny_llama)
    round_in_forward(TERNARY, student)
    optimizer = torch.optim.AdamW(student.parameters(), lr=3e-3)
    losses = []
    for _ in range(20):
        loss = loss_of(student)
        losses.append(float(loss))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["exports.0.train=" + TRAIN], "train: expected a method that rounds by the weights alone"),
        (
            ["exports.1.train=" + TRAIN, "exports.1.mixed_precision={bytes: 100000, bits: [4, 8]}"],
            "leave out one of the two",
        ),
        (["exports.1.train={losses: [{name: kl}], num_tokens: 10}"], "unknown loss 'kl'"),
    ],
)
def test_what_cannot_be_trained_is_told(recipe_file: Path, overrides: list[str], told: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        load_recipe(recipe_file, overrides)
    assert told in str(caught.value)


def test_an_uneven_batch_is_found_before_anything_runs(recipe_file: Path) -> None:
    uneven = TRAIN.replace("batch_blocks: 8", "batch_blocks: 6", 1)
    recipe = load_recipe(recipe_file, ["exports.1.train=" + uneven])
    with pytest.raises(ValueError, match="batch_blocks must be a multiple"):
        check_training(recipe)


def test_only_the_trained_export_gets_a_training(recipe_file: Path, tmp_path: Path) -> None:
    recipe = load_recipe(recipe_file, ["exports.1.train=" + TRAIN])
    store = open_store(f"file://{tmp_path}/store")
    titles = [s.title for s in make_plan(recipe, find_inputs(recipe, store), store).stages]
    made = titles[titles.index("quantize int4") : titles.index("evaluate int8")]
    assert made == ["quantize int4", "evaluate int4", "train int8", "quantize int8"]
    assert recipe.exports[1].train is not None
    assert recipe.exports[1].train.losses[0].options == {"temperature": 2.0}


def test_a_group_size_that_does_not_divide_stops_before_training(
    make_llama: Callable[..., Path], tmp_path: Path
) -> None:
    folder = make_llama(intermediate_size=72)
    store = open_store(f"file://{tmp_path}/store")
    space = StageSpace(
        store=store,
        executor=LocalExecutor(),
        prefix="stages/distill/key",
        attempt="attempt",
        scratch=tmp_path / "scratch",
        progress=lambda done, total: None,
    )
    model = describe_model(folder, str(folder))
    run = partial(distill_rounded, space, {"trust_remote_code": False, "rounding": TERNARY})
    with pytest.raises(ValueError, match="has 72 columns, got group_size 16"):
        run(teacher=model, student=model, corpus=model)  # type: ignore[arg-type]
