"""The group quantization kernel against its specification, and that against compressed-tensors."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.group_quant import fused, naive

ROOT = Path(__file__).parents[2]


@st.composite
def quantizations(draw: st.DrawFn) -> tuple[torch.Tensor, int, int | None]:
    """A weight with a zero row and very different magnitudes, the bits and the group size."""
    bits = draw(st.integers(2, 8))
    group_size = draw(st.sampled_from([None, 1, 4, 31, 32, 43]))
    num_groups = draw(st.integers(1, 3))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    num_columns = draw(st.integers(1, 70)) if group_size is None else group_size * num_groups
    weight = torch.randn(draw(st.integers(2, 4)), num_columns, generator=generator)
    weight *= 10.0 ** draw(st.integers(-45, 20))
    weight[0] = 0
    return weight, bits, group_size


@settings(max_examples=40, deadline=None)
@given(quantizations())
def test_fused_equals_naive(case: tuple[torch.Tensor, int, int | None]) -> None:
    weight, bits, group_size = case
    scale = naive.absmax_scale(weight, bits, group_size)
    codes = naive.quantize(weight, scale, bits)
    packed = naive.pack(codes, bits)
    assert torch.equal(fused.absmax_scale(weight, bits, group_size), scale)
    assert torch.equal(fused.quantize(weight, scale, bits), codes)
    assert torch.equal(fused.dequantize(codes, scale), naive.dequantize(codes, scale))
    assert torch.equal(fused.pack(codes, bits), packed)
    assert torch.equal(fused.unpack(packed, bits, codes.shape[1]), codes)
    assert torch.equal(naive.unpack(packed, bits, codes.shape[1]), codes)


@settings(max_examples=40, deadline=None)
@given(quantizations())
def test_fused_with_zero_points_equals_naive(case: tuple[torch.Tensor, int, int | None]) -> None:
    weight, bits, group_size = case
    weight[-1] = weight[-1].abs() + weight[-1].abs().max()  # far from 0, which is still a code
    scale = naive.range_scale(weight, bits, group_size)
    zero = naive.zero_point(weight, scale, bits)
    codes = naive.quantize(weight, scale, bits, zero)
    assert torch.equal(fused.range_scale(weight, bits, group_size), scale)
    assert torch.equal(fused.zero_point(weight, scale, bits), zero)
    assert torch.equal(fused.quantize(weight, scale, bits, zero), codes)
    restored = fused.dequantize(codes, scale, zero)
    assert torch.equal(restored, naive.dequantize(codes, scale, zero))
    error = (weight.double() - restored.double()).abs().view(*scale.shape, -1)
    assert (error <= scale.double()[:, :, None] * (1 + 2**bits * 2**-23)).all()  # both roundings
    assert not restored[0].any()


@settings(max_examples=40, deadline=None)
@given(quantizations())
def test_error_is_at_most_half_a_step_and_a_second_pass_changes_nothing(
    case: tuple[torch.Tensor, int, int | None],
) -> None:
    weight, bits, group_size = case
    scale = fused.absmax_scale(weight, bits, group_size)
    codes = fused.quantize(weight, scale, bits)
    restored = fused.dequantize(codes, scale)
    error = (weight.double() - restored.double()).abs().view(*scale.shape, -1)
    assert (error <= scale.double()[:, :, None] * (0.5 + 2**bits * 2**-24)).all()
    assert codes.min() > -(2 ** (bits - 1))  # the lowest code stays unused
    assert not codes[0].any()
    again = fused.quantize(restored, fused.absmax_scale(restored, bits, group_size), bits)
    assert torch.equal(again, codes)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 8), st.integers(1, 5), st.integers(1, 100), st.integers(0, 10**6))
def test_packing_is_that_of_compressed_tensors(
    bits: int, num_rows: int, num_columns: int, seed: int
) -> None:
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    limit = 2 ** (bits - 1)
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(-limit, limit, (num_rows, num_columns), generator=generator)
    codes = codes.to(torch.int8)
    packed = fused.pack(codes, bits)
    assert torch.equal(packed, pack_to_int32(codes, bits))
    assert torch.equal(fused.unpack(packed, bits, num_columns), codes)


def test_worked_example() -> None:
    weight = torch.tensor([[20, 10, -20, 0.5, 1.2]])  # step 20 / 127
    codes = naive.quantize(weight, naive.absmax_scale(weight, 8, None), 8)
    assert codes.tolist() == [[127, 64, -127, 3, 8]]


def test_a_smaller_step_uses_the_lowest_code() -> None:
    codes = fused.quantize(torch.tensor([[-9.0, 9.0]]), torch.ones(1, 1), 4)
    assert codes.tolist() == [[-8, 7]]


INTERPRETED = """
import torch
from kernels.group_quant import fused, naive
torch.manual_seed(0)
for bits in range(2, 9):
    for shape, size in [((3, 64), 32), ((5, 172), 43), ((7, 63), 63), ((33, 160), 1)]:
        weight = torch.randn(shape) * 10.0 ** torch.randint(-20, 20, (shape[0], 1))
        weight[0], weight[-1, 0] = 0, 1e-40
        scale = fused.absmax_scale(weight, bits, size) / 3
        scale[1] *= 1e-9
        zero = fused.zero_point(weight, scale, bits)
        for zero in (None, zero):
            got = fused.quantize_triton(weight, scale, bits, zero)
            assert torch.equal(got, naive.quantize(weight, scale, bits, zero)), (bits, shape, size)
"""


COMPILED = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from kernels.group_quant import fused
types = {"weight_ptr": "*fp32", "scale_ptr": "*fp32", "zero_ptr": "*i8", "codes_ptr": "*i8",
         "num_elements": "i32", "group_size": "i32", "BITS": "constexpr", "HAS_ZERO": "constexpr",
         "ELEMENTS": "constexpr"}
constants = {"BITS": 4, "HAS_ZERO": True, "ELEMENTS": 1024}
source = ASTSource(fused._triton_kernel()[1], types, constants)
assert triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["cubin"]
"""


@pytest.mark.parametrize(("script", "interpret"), [(INTERPRETED, "1"), (COMPILED, "0")])
def test_triton_kernel_without_a_gpu(script: str, interpret: str) -> None:
    environment = os.environ | {"TRITON_INTERPRET": interpret}
    subprocess.run([sys.executable, "-c", script], env=environment, cwd=ROOT, check=True)
