"""GPTQ against what can be worked out by hand or by force."""

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.group_quant import fused
from tasks.errors import CheckpointError
from tasks.models.quantized.integer import IntegerTensor
from tasks.quantize import column_rounding
from tasks.quantize.clipping import search_clipping
from tasks.quantize.column_rounding import round_columns
from tasks.quantize.hessian import damped_factor, output_energy, relative_error
from tasks.quantize.methods import absmax, gptq
from tests.unit.layer_cases import correlated_case, loss

FP32 = torch.float32


def quantize_one(weight: torch.Tensor, hessian: torch.Tensor, **options: Any) -> IntegerTensor:
    return gptq.quantize_together({"weight": weight}, hessian, FP32, **options)["weight"]


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group_size", [None, 8])
def test_a_diagonal_hessian_rounds_to_nearest(group_size: int | None, symmetric: bool) -> None:
    weight, hessian = correlated_case()
    options: dict[str, Any] = {"bits": 4, "group_size": group_size, "symmetric": symmetric}
    nearest = absmax.round_weight(weight, FP32, **options)
    done = quantize_one(weight, hessian.diagonal().diag(), clip_search=False, **options)
    assert torch.equal(done.codes, nearest.codes)
    assert torch.equal(done.scale, nearest.scale)
    assert torch.equal(done.dequantize(), nearest.dequantize())


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_weights_on_the_grid_stay(bits: int, symmetric: bool) -> None:
    weight, hessian = correlated_case()
    options: dict[str, Any] = {"bits": bits, "group_size": 8, "symmetric": symmetric}
    on_grid = absmax.round_weight(weight, FP32, **options)
    done = quantize_one(on_grid.dequantize(), hessian, **options)
    assert torch.allclose(done.dequantize(), on_grid.dequantize(), atol=1e-6)
    assert done.facts["output_error"] < 1e-10


@pytest.mark.parametrize("base_columns", [1, 3, 16])
def test_each_column_is_rounded_from_the_best_that_it_can_be(
    base_columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(column_rounding, "BASE_COLUMNS", base_columns)
    weight, hessian = correlated_case(num_rows=3, num_columns=8)
    weight = weight.double()
    factor, _ = damped_factor(hessian, 0.01)
    damped = factor @ factor.T
    scale = fused.absmax_scale(weight, 3, None)
    grids = gptq.column_grids(scale, None, 3, torch.arange(8))
    codes, errors, losses = round_columns(weight.T.clone(), factor, grids)
    rounded = codes.T * scale.double()
    assert torch.allclose(errors.T, weight - rounded, atol=1e-6)
    assert float(losses.sum()) == pytest.approx(loss(weight, rounded, damped), rel=1e-5)
    for j in range(7):  # W_R + (W_Q - V_Q) H_QR H_RR^-1, Q the columns after j
        late, early = slice(j + 1, None), slice(None, j + 1)
        moved = (weight - rounded)[:, late] @ damped[late, early]
        best = weight[:, early] + moved @ torch.linalg.inv(damped[early, early])
        nearest = torch.round(best[:, j] / scale[:, 0]).clamp(-4, 3)
        assert torch.equal(codes[j], nearest)


@pytest.mark.parametrize("symmetric", [True, False])
@settings(max_examples=20, deadline=None)
@given(
    st.integers(0, 10**6), st.sampled_from([2, 3, 4, 8]), st.booleans(), st.sampled_from([None, 8])
)
def test_gptq_beats_rounding_to_nearest(
    symmetric: bool, seed: int, bits: int, act_order: bool, group_size: int | None
) -> None:
    weight, hessian = correlated_case(num_rows=16, seed=seed)
    options: dict[str, Any] = {"bits": bits, "group_size": group_size, "symmetric": symmetric}
    nearest = absmax.round_weight(weight, FP32, **options)
    done = quantize_one(weight, hessian, act_order=act_order, **options)
    assert done.facts["output_error"] < relative_error(weight, nearest.dequantize(), hessian)
    expected = relative_error(weight, done.dequantize(), hessian)
    assert done.facts["output_error"] == pytest.approx(expected, rel=1e-3)


def test_the_error_of_many_rows_is_told_from_some() -> None:
    weight, hessian = correlated_case(num_rows=1100)
    rows = gptq.sample_rows(slice(100, 1100), weight.device)
    assert rows[0] == 100 and rows[-1] < 1100 and 256 <= len(rows) < 512
    done = quantize_one(weight, hessian, bits=3, group_size=8)
    expected = relative_error(weight, done.dequantize(), hessian)
    assert done.facts["output_error"] == pytest.approx(expected, rel=0.1)


def test_codes_move_with_their_columns() -> None:
    weight, hessian = correlated_case()
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    done = quantize_one(weight, hessian, group_size=None)
    moved = quantize_one(weight[:, order], hessian[order][:, order], group_size=None)
    assert torch.equal(moved.codes, done.codes[:, order])


@pytest.mark.parametrize("symmetric", [True, False])
def test_weights_that_share_an_input_are_quantized_as_each_alone(symmetric: bool) -> None:
    weight, hessian = correlated_case(num_rows=12)
    parts = {"q": weight[:7], "k": weight[7:8], "v": weight[8:]}
    done = gptq.quantize_together(parts, hessian, FP32, group_size=8, symmetric=symmetric)
    assert list(done) == list(parts)
    for name, part in parts.items():
        alone = quantize_one(part, hessian, group_size=8, symmetric=symmetric)
        assert torch.equal(done[name].codes, alone.codes)
        assert torch.equal(done[name].dequantize(), alone.dequantize())
        assert done[name].facts == pytest.approx(alone.facts, rel=1e-4)


def test_columns_that_saw_nothing_are_rounded_to_nearest() -> None:
    weight, hessian = correlated_case()
    dead = [3, 17, 39]
    hessian[dead], hessian[:, dead] = 0, 0
    nearest = absmax.round_weight(weight, FP32, bits=4, group_size=8)
    done = quantize_one(weight, hessian, group_size=8, clip_search=False)
    assert torch.equal(done.codes[:, dead], nearest.codes[:, dead])
    nothing = quantize_one(weight, torch.zeros_like(hessian), group_size=8, clip_search=False)
    assert torch.equal(nothing.codes, nearest.codes)
    assert nothing.facts["output_error"] == 0.0


@pytest.mark.parametrize("num_columns", [40, 600])
def test_the_factor_and_its_damping(num_columns: int) -> None:
    _, hessian = correlated_case(num_columns=num_columns)
    factor, used = damped_factor(hessian, 0.01)
    damping = 0.01 * float(hessian.diagonal().mean())
    damped = hessian + damping * torch.eye(num_columns, dtype=torch.float64)
    assert used == 0.01
    assert torch.equal(factor, factor.tril())
    assert torch.allclose(factor, torch.linalg.cholesky(damped), rtol=1e-9)


def test_damping_grows_until_the_factorisation_succeeds() -> None:
    singular = torch.ones(4, 4, dtype=torch.float64)
    _, used = damped_factor(singular, 1e-18)
    assert 1e-18 < used < 1e-10
    weight, _ = correlated_case(num_columns=4)
    assert quantize_one(weight, singular, group_size=4, damping=1e-10).facts["damping"] > 1e-10
    with pytest.raises(CheckpointError, match="infinities or NaN"):
        damped_factor(singular * torch.nan, 0.01)


def test_the_energy_of_outputs_reads_half_of_the_hessian() -> None:
    weight, hessian = correlated_case(num_rows=3, num_columns=700)
    expected = ((weight.double() @ hessian) * weight).sum(1)
    columns = weight.double().T.contiguous()
    assert torch.allclose(output_energy(columns, hessian), expected)


@pytest.mark.parametrize("bits", [2, 3])
def test_clipping_never_raises_the_weighted_error(bits: int) -> None:
    weight, hessian = correlated_case()
    weight[:, 5] *= 10  # an outlier in the first group
    importance = hessian.diagonal().float()
    for symmetric in (True, False):
        done = absmax.round_weight(weight, FP32, bits, 8, symmetric)
        chosen = search_clipping(weight, done.scale, importance, bits, done.zero)

        def error(steps: torch.Tensor, zero: torch.Tensor | None = done.zero) -> torch.Tensor:
            values = fused.dequantize(fused.quantize(weight, steps, bits, zero), steps, zero)
            return (importance * (weight - values).square()).view(6, 5, 8).sum(2)

        assert (error(chosen) <= error(done.scale) * (1 + 1e-5)).all()
        assert (chosen < done.scale).any()
        tried = torch.stack([error(done.scale * shrink) for shrink in (0.9, 0.75, 0.5)])
        assert (error(chosen) <= tried.amin(0) * (1 + 1e-5)).all()


@pytest.mark.parametrize("seed", range(5))
def test_gptq_loses_at_least_what_the_optimum_loses(seed: int) -> None:
    weight, hessian = correlated_case(num_rows=1, num_columns=4, seed=seed)
    done = quantize_one(weight, hessian, bits=2, group_size=None, clip_search=False)
    values = [code * float(done.scale) for code in range(-2, 2)]
    candidates = torch.tensor(list(itertools.product(values, repeat=4)))
    optimum = min(loss(weight, row[None], hessian) for row in candidates)
    assert loss(weight, done.dequantize(), hessian) >= optimum * (1 - 1e-6)
