"""The product with packed integer weights against its specification, on the CPU and interpreted."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.group_quant import fused as group_quant
from kernels.int4_matmul import fused, naive

ROOT = Path(__file__).parents[2]


def pack_weight(
    num_outputs: int, num_columns: int, bits: int, group_size: int | None, with_zero: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Return packed codes, scale and zero point of a random weight."""
    weight = torch.randn(num_outputs, num_columns)
    zero = None
    if with_zero:
        scale = group_quant.range_scale(weight, bits, group_size)
        zero = group_quant.zero_point(weight, scale, bits)
    else:
        scale = group_quant.absmax_scale(weight, bits, group_size)
    return group_quant.pack(group_quant.quantize(weight, scale, bits, zero), bits), scale, zero


@settings(max_examples=60, deadline=None)
@given(
    st.integers(2, 8),
    st.sampled_from([None, 1, 4, 8, 16, 32, 43, 64]),
    st.integers(1, 3),
    st.booleans(),
    st.integers(0, 10**6),
)
def test_fused_equals_naive(
    bits: int, group_size: int | None, num_groups: int, with_zero: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    num_columns = 1 + seed % 130 if group_size is None else group_size * num_groups
    packed, scale, zero = pack_weight(1 + seed % 7, num_columns, bits, group_size, with_zero)
    x = torch.randn(2, 1 + seed % 2, num_columns)
    expected = naive.matmul(x.double(), packed, scale, bits, zero)
    largest = (x.abs().sum(-1, keepdim=True) * scale.max() * 2**bits).double()
    assert ((fused.matmul(x, packed, scale, bits, zero) - expected).abs() <= 1e-6 * largest).all()


@pytest.mark.parametrize("bits", [3, 4])
@pytest.mark.parametrize("group_size", [32, 24])
def test_more_rows_than_fit_the_cache_and_half_precision(
    bits: int, group_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(fused, "CACHED", 96 * 5)
    packed, scale, zero = pack_weight(13, 96, bits, group_size, with_zero=True)
    x = torch.randn(3, 96).bfloat16()
    got = fused.matmul(x, packed, scale.bfloat16(), bits, zero)
    assert got.dtype == torch.bfloat16
    expected = naive.matmul(x, packed, scale.bfloat16(), bits, zero)
    torch.testing.assert_close(got, expected, rtol=2**-7, atol=1e-4)


def test_a_planted_product_is_exact() -> None:
    codes = torch.tensor([[-8, 7, 1, 0, 2, -1, 3, -4]], dtype=torch.int8)
    scale, zero = torch.tensor([[0.5, 2.0]]), torch.tensor([[1, -2]], dtype=torch.int8)
    x = torch.tensor([[1.0, 2, 3, 4, 5, 6, 7, 8]])
    # .5 (-9 + 12 + 0 - 4) + 2 (20 + 6 + 35 - 16)
    for module in (naive, fused):
        y = module.matmul(x, group_quant.pack(codes, 4), scale, 4, zero)
        assert y.tolist() == [[89.5]]


def test_any_strides_and_no_tokens() -> None:
    packed, scale, _ = pack_weight(6, 64, 4, 32, with_zero=False)
    x = torch.randn(64, 3)
    expected = fused.matmul(x.T.contiguous(), packed, scale, 4)
    assert torch.equal(fused.matmul(x.T, packed, scale, 4), expected)
    assert fused.matmul(x.T[:0], packed, scale, 4).shape == (0, 6)


INTERPRETED = """
import torch
from kernels.group_quant import fused as group_quant
from kernels.int4_matmul import gpu, naive
torch.manual_seed(0)
CASES = [(2, 5, 64, 32, True), (3, 70, 128, 64, True), (3, 9, 160, None, False),
         (3, 6, 86, 43, True), (4, 66, 128, 16, True), (4, 5, 63, None, True),
         (4, 9, 192, 64, False), (5, 3, 96, 32, True), (8, 7, 96, 8, False), (4, 3, 4160, 32, True)]
for bits, out, num_columns, size, with_zero in CASES:
    weight = torch.randn(out, num_columns)
    scale = group_quant.range_scale(weight, bits, size)
    zero = group_quant.zero_point(weight, scale, bits) if with_zero else None
    packed = group_quant.pack(group_quant.quantize(weight, scale, bits, zero), bits)
    for num_tokens, num_splits, dtype, tolerance in [
        (1, None, torch.float32, 1e-5), (3, 1, torch.float32, 1e-5), (18, 2, torch.float32, 1e-5),
        (1, None, torch.bfloat16, 2**-7),  # the interpreter cuts bfloat16 off
        (17, 2, torch.float16, 1e-3),
    ]:
        x = torch.randn(num_tokens, num_columns).to(dtype)
        expected = naive.matmul(x.double(), packed, scale, bits, zero)
        y = gpu.matmul_triton(x, packed, scale, bits, zero, num_splits)
        error = (y - expected).abs().max() / expected.abs().max()
        assert y.dtype == dtype
        assert error < tolerance, (bits, out, num_columns, size, num_tokens, dtype, error)
"""


COMPILED = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from kernels.int4_matmul import gpu
SHARED_BYTES = 227 * 1024
_, token_kernel, tile_kernel = gpu._triton_kernels()
def compile_kernel(kernel, constants, x_type):
    pointers = {"x_ptr": x_type, "packed_ptr": "*i32", "scale_ptr": x_type, "zero_ptr": "*i8",
                "y_ptr": x_type}
    types = {p.name: "constexpr" if p.name in constants else pointers.get(p.name, "i32")
             for p in kernel.params}
    source = ASTSource(kernel, types, constants)
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_stages": 4})
    assert compiled.asm["cubin"] and compiled.metadata.shared < SHARED_BYTES, compiled.metadata
for bits, whole in [(3, False), (4, True)]:
    constants = {"BITS": bits, "HAS_ZERO": True, "WHOLE_CHUNKS": whole, "ROWS": 8, "CHUNKS": 128}
    compile_kernel(token_kernel, constants, "*bf16")
    for x_type, size in [("*bf16", 2), ("*fp32", 4)]:
        constants = {"BITS": bits, "HAS_ZERO": True, "WHOLE_STEPS": whole, "TOKENS": 64,
                     "OUTPUTS": gpu.TILE_OUTPUTS, "STEP": gpu.LONGEST_STEP[size]}
        compile_kernel(tile_kernel, constants, x_type)
"""


@pytest.mark.parametrize(("script", "interpret"), [(INTERPRETED, "1"), (COMPILED, "0")])
def test_triton_kernels_without_a_gpu(script: str, interpret: str) -> None:
    environment = os.environ | {"TRITON_INTERPRET": interpret}
    subprocess.run([sys.executable, "-c", script], env=environment, cwd=ROOT, check=True)
