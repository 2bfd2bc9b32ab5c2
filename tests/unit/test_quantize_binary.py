"""Binary weights and activations."""

import pytest
import torch

from tasks.models.quantized_linear import make_linear
from tasks.models.quantized_tensor import effective_bits, from_bytes, to_bytes
from tasks.quantize.methods import binary


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_alpha_is_the_mean_absolute_weight_and_the_error_follows() -> None:
    weight = normal(7, 45)
    done = binary.quantize_weight("w", weight, torch.float32)
    assert torch.allclose(done.alpha[:, 0], weight.abs().mean(dim=1))
    error = (weight - done.dequantize()).double().square().sum(dim=1)
    expected = weight.double().square().sum(dim=1) - weight.double().abs().sum(dim=1) ** 2 / 45
    assert torch.allclose(error, expected, rtol=1e-6)


def test_the_sign_of_zero_is_positive() -> None:
    done = binary.quantize_weight("w", torch.tensor([[0.0, -0.0, -1.0, 3.0]]), torch.float32)
    assert done.dequantize().tolist() == [[1.0, 1.0, -1.0, 1.0]]


@pytest.mark.parametrize("num_columns", [31, 32, 33, 96])
def test_signs_take_one_bit(num_columns: int) -> None:
    weight = normal(5, num_columns)
    done = binary.quantize_weight("w", weight, torch.float16)
    words = done.pack().parts["signs"]
    assert words.shape == (5, -(-num_columns // 32))
    assert words.dtype == torch.int32
    assert ((words[:, 0] & 1) == (weight[:, 0] >= 0)).all()
    assert effective_bits({"w": done}) == (32 * words.shape[1] + 16) / num_columns
    back = from_bytes(to_bytes({"w": done}))["w"]
    assert torch.equal(back.dequantize(), done.dequantize())


def test_binary_activations_multiply_signs() -> None:
    weight, bias = normal(6, 40), normal(6, seed=1)
    done = binary.quantize_weight("w", weight, torch.float32, activations=True)
    layer = make_linear(done, bias)
    assert layer is not None
    x = normal(2, 3, 40, seed=2)
    x[0, 0, :4] = 0
    signs = torch.where(x >= 0, 1.0, -1.0)
    expected = (signs * x.abs().mean(dim=-1, keepdim=True)) @ done.dequantize().T + bias
    assert torch.allclose(layer(x), expected, atol=1e-5)


def test_weights_alone_need_no_layer_of_their_own() -> None:
    done = binary.quantize_weight("w", normal(6, 40), torch.float32)
    assert make_linear(done, None) is None


def test_a_mean_too_large_for_the_dtype_is_refused() -> None:
    with pytest.raises(ValueError, match=r"w holds 1e[+]06, .* use bfloat16 or float32"):
        binary.quantize_weight("w", torch.full((1, 4), 1e6), torch.float16)
