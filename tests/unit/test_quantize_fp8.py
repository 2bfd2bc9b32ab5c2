"""FP8 (E4M3) with a scale per row."""

import pytest
import torch

from tasks.models.quantized_tensor import effective_bits
from tasks.quantize.methods import fp8


def test_values_on_the_grid_come_back_bit_exact() -> None:
    """448 and 256 are E4M3 values, 2^-6 the smallest normal one, 2^-9 the smallest of all."""
    row = torch.tensor([[448.0, -256.0, 1.125, 2**-6, 2**-9, 0.0, -240.0]])
    for factor in (1.0, 2.0**-8):
        done = fp8.quantize_weight(row * factor, torch.float32)
        assert torch.equal(done.dequantize(), row * factor)


def test_normal_values_are_within_one_part_in_sixteen() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(20, 63, generator=generator)
    done = fp8.quantize_weight(weight, torch.float32)
    is_normal = (weight / done.scale).abs() >= 2**-6
    error = ((done.dequantize() - weight) / weight).abs()
    assert (error[is_normal] <= 1 / 16).all()
    assert is_normal.float().mean() > 0.99
    assert effective_bits({"w": done}) == pytest.approx(8 + 32 / 63)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_scale_rounded_down_makes_no_nan(dtype: torch.dtype) -> None:
    largest = torch.linspace(0.9, 1.1, 200)[:, None]
    done = fp8.quantize_weight(largest * torch.tensor([1.0, -1.0, 0.5]), dtype)
    assert (done.scale.float() * 448 < largest).any()
    assert done.dequantize().isfinite().all()
    assert torch.allclose(done.dequantize()[:, 0], largest[:, 0], rtol=0.01)
