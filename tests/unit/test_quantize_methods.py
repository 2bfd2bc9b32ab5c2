"""What quantization methods share: steps as they are stored, bits, bytes and errors."""

import pytest
import torch

from tasks.models.quantized.integer import IntegerTensor
from tasks.models.quantized_tensor import effective_bits, from_bytes, to_bytes
from tasks.quantize.block import round_scale
from tasks.quantize.hessian import relative_error
from tasks.quantize.methods import absmax
from tests.unit.layer_cases import correlated_case


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bits", [4, 8])
def test_codes_are_chosen_for_the_step_that_is_stored(dtype: torch.dtype, bits: int) -> None:
    weight, _ = correlated_case()
    done = absmax.round_weight(weight, dtype, bits=bits)
    assert done.scale.dtype == dtype
    error = (weight - done.dequantize()).abs()
    assert (error <= done.scale.float() * 0.5001).all()


def test_a_step_that_the_dtype_cannot_hold() -> None:
    with pytest.raises(ValueError, match="bfloat16"):
        round_scale(torch.tensor([[7e4]]), torch.float16)
    assert round_scale(torch.tensor([[1e-9]]), torch.float16).tolist() == [[1.0]]


@pytest.mark.parametrize(
    ("bits", "group_size", "expected"), [(4, 64, 4.25), (4, 128, 4.125), (3, 128, 3.125)]
)
def test_effective_bits(bits: int, group_size: int, expected: float) -> None:
    codes, scale = torch.zeros(4, 256, dtype=torch.int8), torch.ones(4, 256 // group_size)
    tensor = IntegerTensor(codes, scale.half(), bits, group_size, {})
    assert effective_bits({"weight": tensor}) == expected


def test_bytes_bring_back_the_same_tensors() -> None:
    weight, _ = correlated_case()
    tensors = {
        "b.weight": absmax.round_weight(weight, torch.bfloat16, bits=3, group_size=8),
        "a.weight": absmax.round_weight(weight, torch.float16, bits=8),
    }
    data = to_bytes(tensors)
    back = from_bytes(data)
    assert to_bytes(back) == data == to_bytes(dict(reversed(tensors.items())))
    for name, tensor in tensors.items():
        assert torch.equal(back[name].codes, tensor.codes)
        assert torch.equal(back[name].scale, tensor.scale)
        assert back[name].scale.dtype == tensor.scale.dtype
        assert (back[name].bits, back[name].group_size) == (tensor.bits, tensor.group_size)
        assert back[name].facts == tensor.facts


def test_relative_error_without_a_hessian_is_that_of_the_weights() -> None:
    weight, hessian = correlated_case()
    approximation = weight + 0.1
    expected = float((weight - approximation).square().sum() / weight.square().sum())
    assert relative_error(weight, approximation) == pytest.approx(expected)
    assert relative_error(weight, approximation, torch.eye(40).double()) == pytest.approx(expected)
    assert relative_error(torch.zeros(2, 40), torch.zeros(2, 40), hessian) == 0.0
