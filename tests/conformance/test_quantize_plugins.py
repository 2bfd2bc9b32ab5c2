"""What every quantization method and every export format keeps to, parametrised over the files."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from tasks.models.checkpoint import describe_model, load_model
from tasks.models.quantized_tensor import from_bytes, to_bytes
from tasks.plugins import load_plugin, plugin_constant, plugin_names, resolve_options
from tasks.quantize.block import Block, Quantized
from tasks.quantize.calibration import enter_model, put_weights, run_block
from tasks.quantize.checkpoint_tensors import read_tensors
from tasks.quantize.decoder_blocks import find_layout
from tasks.quantize.methods import absmax
from tasks.recipe import Export

METHODS = plugin_names("method")
FORMATS = plugin_names("format")
RUNTIMES = set(get_args(get_args(Export.model_fields["runtime"].annotation)[0]))


@pytest.fixture
def block(tiny_llama: Path) -> Callable[..., Block]:
    """Build the first block of a model, behind 8 windows of calibration text."""

    def build(dtype: torch.dtype = torch.float32, zero_row: int | None = None) -> Block:
        ids = torch.arange(8 * 32).view(8, 32) % 200
        prefix = enter_model(Path, str(tiny_llama), ids, trust_remote_code=False)
        names = list(find_layout(tiny_llama, trust_remote_code=False).blocks[0])
        weights = {name: prefix.model.get_parameter(name).detach() for name in names}
        if zero_row is not None:
            for weight in weights.values():
                weight[zero_row] = 0
        return Block({name: w.clone() for name, w in weights.items()}, dtype, prefix)

    return build


OPTIONS: dict[str, dict[str, Any]] = {
    "awq": {"group_size": 16},
    "gptq": {"group_size": 16},
    "layer_distill": {"group_size": 16, "steps": 10},
}
"""What the narrow model asks for."""
LARGEST_ERROR: dict[str, float] = {"binary": 0.45}
"""Relative squared error of the coarsest methods."""
CODES = {"gguf": ((torch.float16, 32),)}
"""Type of the steps and group size, of formats that do not take all."""
RESCALED = ("awq",)
"""Methods whose weights stand for the old ones only together: a scale moves between them."""


def run_method(name: str, block: Block) -> Quantized:
    """Run a method, an uncalibrated one without the text."""
    if not plugin_constant("method", name, "CALIBRATED"):
        block = replace(block, prefix=None)
    options = resolve_options("method", name, OPTIONS.get(name, {}))
    done: Quantized = load_plugin("method", name)(block, **options)
    return done


@pytest.mark.parametrize("name", METHODS)
def test_a_method_says_what_it_needs_and_makes(name: str) -> None:
    assert isinstance(plugin_constant("method", name, "CALIBRATED"), bool)
    assert set(plugin_constant("method", name, "ENCODINGS")) <= set(plugin_names("encoding"))


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_says_what_it_holds(name: str) -> None:
    assert set(plugin_constant("format", name, "HOLDS")) <= set(plugin_names("encoding"))
    assert set(plugin_constant("format", name, "RUNTIMES")) <= RUNTIMES
    taken = plugin_constant("format", name, "INTEGERS")
    assert taken is None or all(isinstance(asked, dict) for asked in taken)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", METHODS)
def test_a_method_returns_tensors_that_stand_for_the_weights(
    name: str, dtype: torch.dtype, block: Callable[..., Block]
) -> None:
    given = block(dtype)
    before = {weight: value.clone() for weight, value in given.weights.items()}
    done = run_method(name, given)
    encodings = {tensor.kind for tensor in done.values()}
    assert encodings <= {*plugin_constant("method", name, "ENCODINGS"), "plain"}
    for weight, value in given.weights.items():
        assert torch.equal(value, before[weight])
        if name == "none":
            continue
        stands_for = done[weight].dequantize()
        assert stands_for.dtype == torch.float32
        assert stands_for.shape == done[weight].shape == value.shape
        if name not in RESCALED:
            difference = (stands_for - value).square().sum() / value.square().sum()
            assert difference < LARGEST_ERROR.get(name, 0.05)
        assert all(fact >= 0 for fact in done[weight].facts.values())


@pytest.mark.parametrize("name", METHODS)
def test_the_block_still_computes_nearly_the_same(name: str, block: Callable[..., Block]) -> None:
    given = block()
    prefix = given.calibrated

    @torch.no_grad()
    def added() -> torch.Tensor:
        return run_block(prefix, prefix.streams[0]) - prefix.streams[0]

    before = added()
    done = run_method(name, given)
    assert torch.equal(added(), before)
    put_weights(prefix, done)
    change = (added() - before).square().sum() / before.square().sum()
    assert change < 2 * LARGEST_ERROR.get(name, 0.05)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_gives_the_same_bytes_again(name: str, block: Callable[..., Block]) -> None:
    first, second = (to_bytes(run_method(name, block())) for _ in range(2))
    assert first == second


@pytest.mark.parametrize("name", METHODS)
def test_a_method_takes_a_zero_row(name: str, block: Callable[..., Block]) -> None:
    given = block(torch.bfloat16, zero_row=1)
    done = run_method(name, given)
    for weight in given.weights if done else ():
        assert not done[weight].dequantize()[1].any()


@pytest.mark.parametrize("name", METHODS)
def test_packed_parts_bring_back_the_tensor_and_are_as_large_as_said(
    name: str, block: Callable[..., Block]
) -> None:
    done = run_method(name, block(torch.bfloat16))
    back = from_bytes(to_bytes(done))
    assert set(back) == set(done)
    for weight, tensor in done.items():
        assert type(back[weight]) is type(tensor)
        assert torch.equal(back[weight].dequantize(), tensor.dequantize())
        assert back[weight].facts == tensor.facts
        parts = tensor.pack().parts.values()
        assert tensor.num_bits == sum(8 * part.numel() * part.itemsize for part in parts)


@pytest.mark.parametrize(
    ("name", "dtype", "group_size"),
    [
        (name, dtype, group_size)
        for name in FORMATS
        for dtype, group_size in CODES.get(name, ((torch.float32, 16), (torch.bfloat16, 16)))
    ],
)
def test_a_format_loads_and_gives_the_logits(
    name: str, dtype: torch.dtype, group_size: int, tiny_llama: Path, tmp_path: Path
) -> None:
    layout = find_layout(tiny_llama, trust_remote_code=False)
    weights = dict(read_tensors(tiny_llama, [n for block in layout.blocks for n in block]))
    quantized = {
        n: absmax.round_weight(w, dtype, bits=4, group_size=group_size) for n, w in weights.items()
    }
    write = load_plugin("format", name)
    outs = [tmp_path / "first", tmp_path / "second"]
    for out in outs:
        out.mkdir()
        facts = write(tiny_llama, out, quantized, layout.others, dtype)
        assert facts["num_flushed"] == 0
        assert facts["effective_bits"] > 0
    for path in outs[0].iterdir():
        assert path.read_bytes() == (outs[1] / path.name).read_bytes()
    assert describe_model(outs[0], "store://x").architecture == "LlamaForCausalLM"

    expected = load_model(tiny_llama, str(dtype).removeprefix("torch."))
    ids = torch.arange(20)[None]
    with torch.no_grad():
        for tensor_name, tensor in quantized.items():
            expected.get_parameter(tensor_name).copy_(tensor.dequantize())
        got = load_model(outs[0], "auto")
        assert got.dtype == dtype
        assert torch.equal(got(input_ids=ids).logits, expected(input_ids=ids).logits)
