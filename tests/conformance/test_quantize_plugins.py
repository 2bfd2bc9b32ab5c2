"""What every quantization method and every export format keeps to, parametrised over the files."""

import importlib
from pathlib import Path

import pytest
import torch

from tasks.models.checkpoint import describe_model, load_model
from tasks.plugins import load_plugin, plugin_names, resolve_options
from tasks.quantize.checkpoint_tensors import read_tensors
from tasks.quantize.decoder_blocks import find_layout
from tasks.quantize.methods import absmax
from tasks.quantize.quantized_tensor import QuantizedTensor

METHODS = plugin_names("method")
FORMATS = plugin_names("format")


def run_method(name: str, weight: torch.Tensor, dtype: torch.dtype) -> QuantizedTensor | None:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(300, weight.shape[1], generator=generator, dtype=torch.float64)
    options = resolve_options("method", name, {})
    done = load_plugin("method", name)(weight, inputs.T @ inputs, dtype, **options)
    assert done is None or isinstance(done, QuantizedTensor)
    return done


@pytest.mark.parametrize("name", METHODS)
def test_a_method_says_whether_it_needs_calibration(name: str) -> None:
    module = importlib.import_module(f"tasks.quantize.methods.{name}")
    assert isinstance(module.NEEDS_HESSIAN, bool)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", METHODS)
def test_a_method_returns_codes_that_stand_for_the_weight(name: str, dtype: torch.dtype) -> None:
    weight = torch.randn(6, 256, generator=torch.Generator().manual_seed(0))
    before = weight.clone()
    done = run_method(name, weight, dtype)
    assert torch.equal(weight, before)
    if done is None:
        return
    groups = 1 if done.group_size is None else 256 // done.group_size
    assert done.codes.shape == (6, 256)
    assert done.codes.dtype == torch.int8
    assert int(done.codes.min()) >= -(2 ** (done.bits - 1))
    assert int(done.codes.max()) < 2 ** (done.bits - 1)
    assert done.scale.shape == (6, groups)
    assert done.scale.dtype == dtype
    assert (done.scale > 0).all()
    assert all(0 < fact < 0.05 for fact in done.facts.values())
    assert (weight - done.dequantize()).square().mean() < 0.05


@pytest.mark.parametrize("name", METHODS)
def test_a_method_gives_the_same_codes_again(name: str) -> None:
    weight = torch.randn(6, 256, generator=torch.Generator().manual_seed(0))
    first, second = (run_method(name, weight, torch.float32) for _ in range(2))
    if first is None or second is None:
        assert first is second
        return
    assert torch.equal(first.codes, second.codes)
    assert torch.equal(first.scale, second.scale)
    assert first.facts == second.facts


@pytest.mark.parametrize("name", METHODS)
def test_a_method_takes_a_zero_row(name: str) -> None:
    weight = torch.randn(3, 256, generator=torch.Generator().manual_seed(0))
    weight[1] = 0
    done = run_method(name, weight, torch.bfloat16)
    assert done is None or not done.dequantize()[1].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", FORMATS)
def test_a_format_loads_and_gives_the_logits(
    name: str, dtype: torch.dtype, tiny_llama: Path, tmp_path: Path
) -> None:
    layout = find_layout(tiny_llama, trust_remote_code=False)
    weights = dict(read_tensors(tiny_llama, [n for block in layout.blocks for n in block]))
    quantized = {
        n: absmax.quantize(w, None, dtype, bits=4, group_size=16) for n, w in weights.items()
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
