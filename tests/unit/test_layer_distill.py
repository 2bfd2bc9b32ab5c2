"""Layer-by-layer distillation: the rounding that is learned, and what a block learns through it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tasks.models.quantized.integer import IntegerTensor
from tasks.quantize.block import Block, Quantized
from tasks.quantize.calibration import Prefix, enter_model, put_weights, run_block
from tasks.quantize.decoder_blocks import linear_weights
from tasks.quantize.learned_rounding import (
    Learned,
    codes_and_steps,
    rounded_weight,
    start_learning,
    to_integer,
)
from tasks.quantize.methods import absmax, gptq, layer_distill

OPTIONS: dict[str, Any] = {"bits": 2, "group_size": 16}


@pytest.fixture
def block(tiny_llama: Path) -> Callable[[], Block]:
    """Build the model's second block, behind a first one that is not quantized."""

    def build() -> Block:
        ids = torch.randint(300, (16, 32), generator=torch.Generator().manual_seed(0))
        prefix = enter_model(Path, str(tiny_llama), ids, trust_remote_code=False)
        with torch.no_grad():
            prefix.streams = [run_block(prefix, stream) for stream in prefix.streams]
        prefix.next_block = 1
        names = linear_weights(prefix.model, prefix.blocks[1])
        weights = {name: prefix.model.get_parameter(name).detach().clone() for name in names}
        return Block(weights, torch.float32, prefix)

    return build


def start(weight: torch.Tensor, dtype: torch.dtype = torch.float32, **options: Any) -> Learned:
    return start_learning(weight, absmax.round_weight(weight, dtype, **options))


@torch.no_grad()
def outputs(prefix: Prefix) -> torch.Tensor:
    return torch.cat([run_block(prefix, stream) for stream in prefix.streams])


def error_of(given: Block, done: Quantized) -> float:
    """Return how far off the block is, relative to what it adds to its stream."""
    before = outputs(given.calibrated)
    put_weights(given.calibrated, done)
    lost = (outputs(given.calibrated) - before).square().sum()
    return float(lost / (before - torch.cat(given.calibrated.streams)).square().sum())


def test_without_steps_it_is_gptq(block: Callable[[], Block]) -> None:
    done = layer_distill.quantize(block(), steps=0, **OPTIONS)
    for name, start in gptq.quantize(block(), **OPTIONS).items():
        tensor = done[name]
        assert isinstance(start, IntegerTensor) and isinstance(tensor, IntegerTensor)
        assert torch.equal(tensor.codes, start.codes)
        assert torch.equal(tensor.scale, start.scale)


def test_a_block_learns_more_than_gptq_finds(block: Callable[[], Block]) -> None:
    rounded = error_of(given := block(), absmax.quantize(given, **OPTIONS))
    fitted = error_of(given := block(), gptq.quantize(given, **OPTIONS))
    learned = error_of(given := block(), layer_distill.quantize(given, steps=100, **OPTIONS))
    assert learned < 0.1 * rounded
    assert learned < 0.8 * fitted


def test_the_error_is_what_the_block_then_shows(block: Callable[[], Block]) -> None:
    given = block()
    kept = {name: value.clone() for name, value in given.calibrated.model.state_dict().items()}
    done = layer_distill.quantize(given, steps=5, **OPTIONS)
    for name, value in given.calibrated.model.state_dict().items():
        assert torch.equal(value, kept[name]), "the model is the caller's to change"
    (error,) = {tensor.facts["output_error"] for tensor in done.values()}
    assert error == pytest.approx(error_of(given, done), rel=1e-4)


def test_vectors_are_learned_with_the_weights(block: Callable[[], Block]) -> None:
    given = block()
    done = layer_distill.quantize(given, steps=5, **OPTIONS)
    vectors = set(done) - set(given.weights)
    block_name = "model.layers.1."
    assert vectors == {
        f"{block_name}{name}.weight" for name in ("input_layernorm", "post_attention_layernorm")
    }
    assert all(not torch.equal(done[n].dequantize(), torch.ones(32)) for n in vectors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_learned_is_what_is_stored(dtype: torch.dtype) -> None:
    learned = start(torch.randn(6, 32), dtype, bits=3, group_size=8)
    with torch.no_grad():
        learned.latent.add_(torch.randn_like(learned.latent))
        learned.growth.add_(0.3 * torch.randn_like(learned.growth))
        expected = rounded_weight(learned)
    stored = to_integer(learned, {})
    assert stored.scale.dtype == dtype
    assert torch.equal(stored.dequantize(), expected)
    assert stored.codes.min() == -4 and stored.codes.max() == 3


def test_a_group_of_zeros_stays_zero() -> None:
    weight = torch.randn(2, 16)
    weight[0, :8] = 0
    learned = start(weight, bits=2, group_size=8)
    rounded_weight(learned).sum().backward()
    assert learned.latent.grad is not None and not learned.latent.grad[0, 0].any()
    assert learned.latent.grad[0, 1].any()
    with torch.no_grad():
        learned.growth.add_(1.0)
        assert not rounded_weight(learned)[0, :8].any()


def test_the_gradients_are_those_of_learned_step_sizes() -> None:
    """d v / d s is round(w / s) - w / s inside the range and its end outside; times ds / dlog s."""
    learned = start(torch.randn(4, 16), bits=2)
    with torch.no_grad():
        learned.latent.mul_(1.7)  # some lie outside, on both sides
        step = codes_and_steps(learned)[1]
        wanted = learned.latent * learned.first_step / step
    outside = (wanted < -2) | (wanted > 1)
    assert outside.any() and not outside.all()
    by_step = torch.where(outside, wanted.clamp(-2, 1), wanted.round() - wanted)
    rounded_weight(learned).sum().backward()
    assert learned.growth.grad is not None and learned.latent.grad is not None
    expected = (by_step * step).sum(dim=2, keepdim=True)
    torch.testing.assert_close(learned.growth.grad, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(learned.latent.grad, (~outside) * learned.first_step)
