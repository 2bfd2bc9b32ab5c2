"""NF4: the levels, the blocks, and the bits of double quantization."""

import pytest
import torch

from tasks.models.quantized_tensor import effective_bits, from_bytes, to_bytes
from tasks.quantize.methods import absmax, nf4

LEVELS = [
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
]
"""Published in arXiv 2305.14314, appendix E."""


def normal_weight(num_rows: int, num_columns: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(num_rows, num_columns, generator=generator) * 0.05


def test_the_levels_are_the_published_ones() -> None:
    levels = nf4.normal_levels()
    assert levels.tolist() == pytest.approx(LEVELS, abs=1e-6)
    assert {-1.0, 0.0, 1.0} <= set(levels.tolist())
    assert torch.equal(levels, levels.sort().values)


def test_bits_with_and_without_double_quantization() -> None:
    weight = normal_weight(2048, 1024)
    single = nf4.quantize_weight(weight, double_quantization=False)
    double = nf4.quantize_weight(weight)
    assert effective_bits({"w": single}) == pytest.approx(4.5, abs=5e-4)
    assert effective_bits({"w": double}) == pytest.approx(4.127, abs=5e-4)


@pytest.mark.parametrize("double_quantization", [False, True])
def test_each_weight_gets_the_level_nearest_to_it(double_quantization: bool) -> None:
    weight = normal_weight(6, 100)
    done = nf4.quantize_weight(weight, 64, double_quantization)
    assert done.scales is not None
    scale = done.scales.over(600).view(6, 100)
    nearest = (weight[..., None] - done.table * scale[..., None]).abs().amin(dim=2)
    assert torch.allclose((weight - done.dequantize()).abs(), nearest, atol=1e-7)


def test_blocks_run_over_the_ends_of_rows_and_the_last_may_be_short() -> None:
    weight = normal_weight(5, 50)
    done = nf4.quantize_weight(weight, 64, double_quantization=False)
    assert done.scales is not None
    expected = [block.abs().max().item() for block in weight.flatten().split(64)]
    assert done.scales.values().tolist() == expected
    assert len(expected) == 4
    back = from_bytes(to_bytes({"w": done}))["w"]
    assert torch.equal(back.dequantize(), done.dequantize())


def test_scales_in_8_bits_are_within_half_a_step() -> None:
    weight = normal_weight(512, 256)
    exact = nf4.quantize_weight(weight, double_quantization=False).scales
    rounded = nf4.quantize_weight(weight).scales
    assert exact is not None
    assert rounded is not None
    assert rounded.steps is not None
    assert rounded.codes.dtype == torch.int8
    half = rounded.steps.repeat_interleave(nf4.STEP_BLOCKS)[: len(rounded.codes)] / 2
    assert ((rounded.values() - exact.values()).abs() <= half * 1.001).all()


def test_scales_never_turn_negative() -> None:
    """One block beside others a thousand times larger."""
    weight = normal_weight(64, 64)
    weight[3] /= 1000
    done = nf4.quantize_weight(weight)
    assert done.scales is not None
    assert (done.scales.values() >= 0).all()
    assert (done.dequantize() * weight >= 0).all()


def test_quantizing_again_changes_nothing() -> None:
    done = nf4.quantize_weight(normal_weight(8, 64), double_quantization=False)
    again = nf4.quantize_weight(done.dequantize(), double_quantization=False)
    assert torch.equal(again.codes, done.codes)
    assert torch.equal(again.dequantize(), done.dequantize())


def test_normal_weights_lose_less_than_under_integer_codes() -> None:
    weight = normal_weight(128, 512)
    integer = absmax.round_weight(weight, torch.float32, bits=4, group_size=64)
    for double_quantization in (False, True):
        done = nf4.quantize_weight(weight, 64, double_quantization)
        assert done.facts["weight_error"] < 0.9 * integer.facts["weight_error"]
