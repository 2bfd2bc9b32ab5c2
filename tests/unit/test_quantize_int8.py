"""int8 inputs: vector-wise, and LLM.int8() where a few columns are large."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from tasks.models.checkpoint import load_model, save_model
from tasks.models.quantized.integer import IntegerTensor
from tasks.models.quantized_linear import make_linear
from tasks.models.quantized_tensor import QuantizedTensor, from_bytes, to_bytes
from tasks.quantize.block import Block
from tasks.quantize.calibration import advance, enter_model
from tasks.quantize.decoder_blocks import find_layout
from tasks.quantize.formats import nightpress
from tasks.quantize.methods import absmax, llm_int8, vector_int8

FP32 = torch.float32
Method = Callable[[Block], dict[str, QuantizedTensor]]


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def integers(num_rows: int, num_columns: int, seed: int) -> torch.Tensor:
    """Integers whose rows all reach 127."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(-127, 128, (num_rows, num_columns), generator=generator).float()
    values[:, seed] = 127
    return values


def vector_wise(weight: torch.Tensor) -> IntegerTensor:
    done = vector_int8.quantize(Block({"w": weight}, FP32))["w"]
    assert isinstance(done, IntegerTensor)
    return done


def test_absmax_of_one_row_by_hand() -> None:
    row = torch.tensor([[20.0, 10.0, -20.0, 0.5, 1.2]])
    expected = [127, 64, -127, 3, 8]
    assert absmax.round_weight(row, FP32).codes[0].tolist() == expected
    assert not absmax.round_weight(torch.zeros(2, 3), FP32).codes.any()
    layer = make_linear(vector_wise(torch.eye(5)), None)
    assert layer is not None
    seen = torch.tensor([expected]) * 20 / 127
    assert torch.allclose(layer(row), seen, atol=1e-6)
    assert not layer(torch.zeros(1, 5)).any()


@pytest.mark.parametrize("num_columns", [5, 64, 2000])
def test_the_product_of_integers_is_exact(num_columns: int) -> None:
    weight, x = integers(6, num_columns, seed=1), integers(9, num_columns, seed=2)
    layer = make_linear(vector_wise(weight), None)
    assert layer is not None
    assert torch.equal(layer(x), (x.double() @ weight.double().T).float())
    assert torch.equal(layer(x.view(3, 3, -1)).view(9, 6), layer(x))


def test_outlier_columns_of_integers_are_exact_too() -> None:
    weight, x = integers(6, 40, seed=1), integers(9, 40, seed=2)
    is_outlier = torch.zeros(40, dtype=torch.bool)
    is_outlier[[0, 17, 39]] = True
    weight[:, is_outlier] = normal(6, 3)
    x[:, is_outlier] *= 1000.5
    done = llm_int8.quantize_weight("w", weight, is_outlier, FP32)
    assert torch.equal(done.dequantize(), weight)
    layer = make_linear(done, None)
    assert layer is not None
    expected = x[:, is_outlier] @ weight[:, is_outlier].T + (
        x[:, ~is_outlier] @ weight[:, ~is_outlier].T
    )
    assert torch.equal(layer(x), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_vector_wise_layer_rounds_rows_tokens_and_adds_the_bias(dtype: torch.dtype) -> None:
    weight, bias, x = normal(12, 33), normal(12, seed=1), normal(2, 5, 33, seed=2).to(dtype)
    tensor = vector_wise(weight)
    layer = make_linear(tensor, bias)
    assert layer is not None
    step = x.float().abs().amax(dim=-1, keepdim=True) / 127
    rounded = (x.float() / step).round() * step
    expected = F.linear(rounded, tensor.dequantize(), bias)
    got = layer(x)
    assert got.dtype == dtype
    tolerance = 1e-5 if dtype == FP32 else 0.01
    assert torch.allclose(got.float(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("num_outliers", [0, 1, 32])
def test_any_number_of_columns_may_be_outliers(num_outliers: int) -> None:
    weight, x = normal(8, 32), normal(4, 32, seed=1)
    is_outlier = torch.arange(32) < num_outliers
    done = llm_int8.quantize_weight("w", weight, is_outlier, FP32)
    back = from_bytes(to_bytes({"w": done}))["w"]
    assert torch.equal(back.dequantize(), done.dequantize())
    assert torch.equal(done.dequantize()[:, is_outlier], weight[:, is_outlier])
    assert done.facts["outlier_fraction"] == num_outliers / 32
    layer = make_linear(done, None)
    assert layer is not None
    assert torch.allclose(layer(x), x @ weight.T, atol=1e-5 if num_outliers == 32 else 0.2)


def test_columns_are_outliers_where_the_input_reaches_the_threshold(tiny_llama: Path) -> None:
    ids = torch.arange(8 * 32).view(8, 32) % 200
    prefix = enter_model(Path, str(tiny_llama), ids, trust_remote_code=False)
    name = "model.layers.0.self_attn.q_proj.weight"
    inputs: list[torch.Tensor] = []
    module = prefix.model.get_submodule(name.removesuffix(".weight"))
    hook = module.register_forward_pre_hook(lambda _, args: inputs.append(args[0].abs().amax(1)))
    block = Block({name: prefix.model.get_parameter(name).detach()}, FP32, prefix)
    peaks_before = llm_int8.quantize(block, threshold=1e9)[name]
    largest = torch.cat(inputs).amax(dim=0)
    hook.remove()
    threshold = largest.sort().values[-3].item()
    done = llm_int8.quantize(block, threshold=threshold)[name]
    assert done.pack().parts["columns"].tolist() == (largest >= threshold).nonzero()[:, 0].tolist()
    assert len(done.pack().parts["columns"]) == 3
    assert peaks_before.facts["outlier_fraction"] == 0


@pytest.fixture(scope="module")
def planted(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same function, with two columns sixty times larger in front of each linear layer."""
    folder = tmp_path_factory.mktemp("planted")
    model = load_model(tiny_llama)
    with torch.no_grad():
        for layer in model.model.layers:
            attention, mlp = layer.self_attn, layer.mlp
            for norm, linears in (
                (layer.input_layernorm, (attention.q_proj, attention.k_proj, attention.v_proj)),
                (layer.post_attention_layernorm, (mlp.gate_proj, mlp.up_proj)),
            ):
                norm.weight[[3, 20]] *= 60
                for linear in linears:
                    linear.weight[:, [3, 20]] /= 60
    save_model(model, tiny_llama, folder)
    return folder


def logits_error(source: Path, out: Path, method: Method, calibrated: bool) -> float:
    """Export, load, and return the relative squared error of the logits."""
    ids = torch.arange(6 * 32).view(6, 32) % 200
    model = load_model(source)
    prefix = enter_model(Path, str(source), ids, trust_remote_code=False) if calibrated else None
    layout = find_layout(source, trust_remote_code=False)
    tensors: dict[str, QuantizedTensor] = {}
    for names in layout.blocks:
        weights = {name: model.get_parameter(name).detach() for name in names}
        done = method(Block(weights, FP32, prefix))
        if prefix is not None:
            advance(prefix, done)
        tensors |= done
    out.mkdir()
    nightpress.write(source, out, tensors, layout.others, FP32)
    with torch.no_grad():
        expected = model(input_ids=ids).logits
        got = load_model(out)(input_ids=ids).logits
    return float((got - expected).square().sum() / expected.square().sum())


def test_llm_int8_keeps_what_planted_outliers_take_from_int8(
    tiny_llama: Path, planted: Path, tmp_path: Path
) -> None:
    plain = logits_error(tiny_llama, tmp_path / "plain", vector_int8.quantize, calibrated=False)
    hurt = logits_error(planted, tmp_path / "hurt", vector_int8.quantize, calibrated=False)
    kept = logits_error(planted, tmp_path / "kept", llm_int8.quantize, calibrated=True)
    assert plain < 1e-3
    assert hurt > 20 * plain
    assert kept < 1.5 * plain
