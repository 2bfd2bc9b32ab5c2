"""Quantization methods, GPTQ above all, against what can be worked out by hand or by force."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.group_quant import fused
from tasks.errors import CheckpointError
from tasks.models.quantized.integer import IntegerTensor
from tasks.models.quantized_tensor import effective_bits, from_bytes, to_bytes
from tasks.quantize.block import round_scale
from tasks.quantize.hessian import inverse_factor, relative_error
from tasks.quantize.methods import absmax, gptq

FP32 = torch.float32


def correlated_case(
    num_rows: int = 6, num_columns: int = 40, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """A random weight [out, in] and the Hessian of correlated inputs."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(num_columns, num_columns, generator=generator, dtype=torch.float64)
    inputs = torch.randn(4 * num_columns, num_columns, generator=generator).double() @ mixing
    return torch.randn(num_rows, num_columns, generator=generator), inputs.T @ inputs


def loss(weight: torch.Tensor, approximation: torch.Tensor, hessian: torch.Tensor) -> float:
    difference = weight.double() - approximation.double()
    return float(torch.trace(difference @ hessian @ difference.T))


@pytest.mark.parametrize("group_size", [None, 8])
def test_gptq_of_a_diagonal_hessian_rounds_to_nearest(group_size: int | None) -> None:
    weight, hessian = correlated_case()
    diagonal = hessian.diagonal().diag()
    nearest = absmax.round_weight(weight, FP32, bits=4, group_size=group_size)
    done = gptq.quantize_weight(weight, diagonal, FP32, group_size=group_size, clip_search=False)
    assert torch.equal(done.codes, nearest.codes)
    assert torch.equal(done.scale, nearest.scale)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_gptq_leaves_weights_on_the_grid(bits: int) -> None:
    weight, hessian = correlated_case()
    on_grid = absmax.round_weight(weight, FP32, bits=bits, group_size=8)
    done = gptq.quantize_weight(on_grid.dequantize(), hessian, FP32, bits=bits, group_size=8)
    assert torch.equal(done.codes, on_grid.codes)
    assert done.facts["output_error"] < 1e-12


@pytest.mark.parametrize("block_columns", [1, 3, 128])
def test_after_each_column_the_rest_is_the_best_it_can_be(
    block_columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gptq, "BLOCK_COLUMNS", block_columns)
    weight, hessian = correlated_case(num_rows=3, num_columns=8)
    weight = weight.double()
    damped = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(8)
    steps = fused.absmax_scale(weight, 3, None).expand(3, 8)
    met = weight.clone()
    codes = gptq.round_columns(met, steps, inverse_factor(hessian, 0.01)[0], bits=3)
    rounded = codes * steps
    for j in range(1, 8):  # W_R + (W_Q - V_Q) H_QR H_RR^-1, of which column j is then rounded
        moved = (weight - rounded)[:, :j] @ damped[:j, j:] @ torch.linalg.inv(damped[j:, j:])
        assert torch.allclose(met[:, j], (weight[:, j:] + moved)[:, 0], atol=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_gptq_loses_at_least_what_the_optimum_loses(seed: int) -> None:
    weight, hessian = correlated_case(num_rows=1, num_columns=4, seed=seed)
    done = gptq.quantize_weight(weight, hessian, FP32, bits=2, group_size=None, clip_search=False)
    values = [code * float(done.scale) for code in range(-2, 2)]
    candidates = torch.tensor(list(itertools.product(values, repeat=4)))
    optimum = min(loss(weight, row[None], hessian) for row in candidates)
    assert loss(weight, done.dequantize(), hessian) >= optimum * (1 - 1e-6)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([3, 4]), st.booleans(), st.booleans())
def test_gptq_beats_rounding_to_nearest(
    seed: int, bits: int, act_order: bool, clip_search: bool
) -> None:
    weight, hessian = correlated_case(num_rows=16, seed=seed)
    nearest = absmax.round_weight(weight, FP32, bits=bits, group_size=8)
    done = gptq.quantize_weight(
        weight,
        hessian,
        FP32,
        bits=bits,
        group_size=8,
        act_order=act_order,
        clip_search=clip_search,
    )
    assert done.facts["output_error"] < relative_error(weight, nearest.dequantize(), hessian)
    whole = loss(weight, torch.zeros_like(weight), hessian)
    expected = loss(weight, done.dequantize(), hessian) / whole
    assert done.facts["output_error"] == pytest.approx(expected)


def test_gptq_codes_move_with_their_columns() -> None:
    weight, hessian = correlated_case()
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    done = gptq.quantize_weight(weight, hessian, FP32, group_size=None)
    moved = gptq.quantize_weight(weight[:, order], hessian[order][:, order], FP32, group_size=None)
    assert torch.equal(moved.codes, done.codes[:, order])


def test_columns_that_saw_nothing_are_rounded_to_nearest() -> None:
    weight, hessian = correlated_case()
    dead = [3, 17, 39]
    hessian[dead], hessian[:, dead] = 0, 0
    nearest = absmax.round_weight(weight, FP32, bits=4, group_size=8)
    done = gptq.quantize_weight(weight, hessian, FP32, group_size=8, clip_search=False)
    assert torch.equal(done.codes[:, dead], nearest.codes[:, dead])
    nothing = gptq.quantize_weight(weight, torch.zeros_like(hessian), FP32, group_size=8)
    assert torch.equal(nothing.codes, nearest.codes)


def test_inverse_factor_and_its_damping() -> None:
    _, hessian = correlated_case()
    upper, used = inverse_factor(hessian, 0.01)
    damped = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(40)
    assert used == 0.01
    assert torch.equal(upper, upper.triu())
    assert torch.allclose(upper.T @ upper @ damped, torch.eye(40).double(), atol=1e-8)

    singular = torch.ones(4, 4, dtype=torch.float64)
    _, used = inverse_factor(singular, 1e-18)
    assert 1e-18 < used < 1e-10
    with pytest.raises(CheckpointError, match="infinities or NaN"):
        inverse_factor(singular * torch.nan, 0.01)


def test_clipping_never_raises_the_weighted_error() -> None:
    weight, hessian = correlated_case()
    weight[:, 5] *= 10  # an outlier in the first group
    importance = hessian.diagonal().float()
    scale = fused.absmax_scale(weight, 3, 8)
    chosen = gptq.search_clipping(weight, scale, importance, 3)

    def error(steps: torch.Tensor) -> torch.Tensor:
        values = fused.dequantize(fused.quantize(weight, steps, 3), steps)
        return (importance * (weight - values).square()).view(6, 5, 8).sum(2)

    assert (error(chosen) <= error(scale)).all()
    assert (chosen < scale).any()


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
    weight, hessian = correlated_case()
    tensors = {
        "b.weight": gptq.quantize_weight(weight, hessian, torch.bfloat16, group_size=8),
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
