"""Inputs that weights share, the order in which they run, and GPTQ that follows it."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from tasks.models.checkpoint import load_model
from tasks.models.quantized.plain import PlainTensor
from tasks.quantize.block import Block
from tasks.quantize.calibration import (
    Prefix,
    advance,
    collect_hessians,
    enter_model,
    put_weights,
    shared_inputs,
)
from tasks.quantize.decoder_blocks import linear_weights
from tasks.quantize.methods import gptq


@pytest.fixture
def prefix(make_llama: Callable[..., Path]) -> Prefix:
    ids = torch.randint(200, (8, 32), generator=torch.Generator().manual_seed(1))
    return enter_model(Path, str(make_llama()), ids, trust_remote_code=False)


def block_of(prefix: Prefix) -> Block:
    names = linear_weights(prefix.model, prefix.blocks[0])
    weights = {name: prefix.model.get_parameter(name).detach().clone() for name in names}
    return Block(weights, torch.float32, prefix)


def test_shared_inputs_come_in_the_order_of_the_run(prefix: Prefix) -> None:
    names = list(block_of(prefix).weights)
    groups = shared_inputs(prefix, names[::-1])
    shown = [{name.split(".")[-2] for name in group} for group in groups]
    assert shown == [
        {"q_proj", "k_proj", "v_proj"},
        {"o_proj"},
        {"gate_proj", "up_proj"},
        {"down_proj"},
    ]


def test_a_weight_that_no_token_reaches_comes_last_and_is_rounded_to_nearest(
    prefix: Prefix,
) -> None:
    torch.manual_seed(0)
    prefix.blocks[0].idle = nn.Linear(32, 4)
    name = "model.layers.0.idle.weight"
    block = block_of(prefix)
    assert shared_inputs(prefix, list(block.weights))[-1] == [name]
    assert not collect_hessians(prefix, [name])[name].any()
    done = gptq.quantize(block, bits=8, group_size=16)[name]
    assert (done.dequantize() - block.weights[name]).abs().max() <= 0.51 * done.scale.max()


def test_true_sequential_fits_weights_to_inputs_from_quantized_ones(prefix: Prefix) -> None:
    block = block_of(prefix)
    done = gptq.quantize(block, bits=2, group_size=16, true_sequential=True)
    at_once = gptq.quantize(block, bits=2, group_size=16, true_sequential=False)
    assert set(done) == set(at_once) == set(block.weights)
    for name, weight in block.weights.items():
        assert torch.equal(prefix.model.get_parameter(name), weight)
    (output,) = (name for name in block.weights if "o_proj" in name)
    earlier = {name: done[name] for name in block.weights if name.split(".")[-2][0] in "qkv"}
    put_weights(prefix, earlier)
    (weight,) = gptq.quantize_together(
        {output: block.weights[output]},
        collect_hessians(prefix, [output])[output],
        torch.float32,
        bits=2,
        group_size=16,
    ).values()
    assert torch.equal(done[output].dequantize(), weight.dequantize())
    assert not torch.equal(at_once[output].dequantize(), weight.dequantize())
    for name in earlier:  # what enters the first weights is the same
        assert torch.equal(done[name].dequantize(), at_once[name].dequantize())


def test_only_the_next_block_has_weights_of_its_own(tiny_llama: Path) -> None:
    ids = torch.arange(2 * 16).view(2, 16)
    prefix = enter_model(Path, str(tiny_llama), ids, trust_remote_code=False)
    dense = load_model(tiny_llama)

    def owners() -> list[bool]:
        projections = [block.mlp.down_proj.weight for block in prefix.blocks]
        return [weight.data_ptr() != weight.source.stored.data_ptr() for weight in projections]

    assert owners() == [True] + [False] * (len(prefix.blocks) - 1)
    name = "model.layers.0.mlp.down_proj.weight"
    halved = PlainTensor(dense.get_parameter(name).detach() / 2)
    before = [stream.clone() for stream in prefix.streams]
    advance(prefix, {name: halved})
    assert owners()[:2] == [False, True]
    assert torch.equal(prefix.model.get_parameter(name), dense.get_parameter(name))
    with torch.no_grad():
        dense.get_parameter(name).copy_(halved.value)
        layer, arguments = dense.model.layers[0], prefix.arguments[0]
        expected = [layer(stream, **arguments) for stream in before]
    for stream, wanted in zip(prefix.streams, expected, strict=True):
        assert torch.equal(stream, wanted[0] if isinstance(wanted, tuple) else wanted)
