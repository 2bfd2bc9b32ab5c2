"""The int8 product against its specification, on the CPU and interpreted."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.vector_int8 import fused, naive

ROOT = Path(__file__).parents[2]


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 5),
    st.integers(1, 5),
    st.integers(1, 140),
    st.integers(0, 3),
    st.integers(0, 10**6),
)
def test_fused_equals_naive(
    num_tokens: int, num_outputs: int, num_columns: int, num_outliers: int, seed: int
) -> None:
    torch.manual_seed(seed)
    x = torch.randn(num_tokens, num_columns) * 10.0 ** (seed % 7 - 3)
    x[0] = 0
    codes = torch.randint(-127, 128, (num_outputs, num_columns), dtype=torch.int8)
    scale = torch.rand(num_outputs)
    columns = torch.randperm(num_columns)[:num_outliers]
    weight = torch.randn(num_outputs, len(columns))
    x[:, columns] *= 60
    expected = naive.linear(x, codes, scale, columns, weight)
    got = fused.linear(x, codes, scale, columns, weight)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5 * float(x.abs().max()))
    assert torch.equal(fused.linear(x, codes, scale), naive.linear(x, codes, scale))


def test_integers_with_rows_that_reach_127_are_multiplied_exactly() -> None:
    torch.manual_seed(0)
    x = torch.randint(-127, 128, (2, 3, 50)).float()
    codes = torch.randint(-127, 128, (7, 50), dtype=torch.int8)
    x[..., 0], codes[:, 1] = 127, -127
    y = fused.linear(x, codes, torch.ones(7))
    assert torch.equal(y.long(), x.long() @ codes.long().T)


@pytest.mark.parametrize("is_exact", [True, False])
def test_the_largest_sums_do_not_saturate(is_exact: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not is_exact:  # the way of a CPU whose own int8 product saturates
        monkeypatch.setattr(fused, "int_mm_is_exact", lambda: False)
    elif not fused.int_mm_is_exact():
        pytest.skip("this CPU's own int8 product saturates")
    quantized = torch.tensor([[127], [-127]], dtype=torch.int8).repeat(1, 5000)
    codes = torch.tensor([[-128], [127], [1]], dtype=torch.int8).repeat(1, 5000)
    codes[:, 0] = 3
    expected = quantized.long() @ codes.long().T
    assert torch.equal(fused.multiply_exactly(quantized, codes).long(), expected)


def test_strides_of_one_token_do_not_matter() -> None:
    x = torch.randn(1, 64).as_strided((1, 64), (0, 1))
    codes = torch.randint(-127, 128, (5, 64), dtype=torch.int8)
    assert torch.equal(fused.linear(x, codes, torch.ones(5)), naive.linear(x, codes, torch.ones(5)))
    quantized = codes[:1].as_strided((1, 64), (0, 1))
    expected = quantized.long() @ codes.long().T
    assert torch.equal(fused.multiply_exactly(quantized, codes).long(), expected)


def test_an_outlier_column_does_not_take_the_range_of_the_others() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(8, 64), torch.randn(16, 64)
    x[:, 5] *= 1000
    scale = weight.abs().amax(1) / 127
    codes = torch.round(weight / scale[:, None]).to(torch.int8)
    columns = torch.tensor([5])
    exact = x @ weight.T
    without = (fused.linear(x, codes, scale) - exact).abs().max()
    error = (fused.linear(x, codes, scale, columns, weight[:, columns]) - exact).abs().max()
    assert error < 0.5 < without / 20


def test_half_precision_comes_back_in_its_type() -> None:
    x = torch.randn(4, 32).bfloat16()
    codes = torch.randint(-127, 128, (5, 32), dtype=torch.int8)
    scale = torch.rand(5).bfloat16()
    got = fused.linear(x, codes, scale)
    assert got.dtype == torch.bfloat16
    assert torch.equal(got, naive.linear(x, codes, scale))


INTERPRETED = """
import torch
from kernels.vector_int8 import fused, gpu
torch.manual_seed(0)
for num_tokens, num_outputs, num_columns in [(1, 3, 5), (17, 40, 130), (130, 33, 257)]:
    for columns in (None, torch.tensor([0, num_columns - 1])):
        x = torch.randn(num_tokens, num_columns) * 10.0 ** torch.randint(-45, 30, (num_tokens, 1))
        x[0] = 0
        codes = torch.randint(-128, 128, (num_outputs, num_columns), dtype=torch.int8)
        scale = torch.rand(num_outputs)
        quantized, step = gpu.quantize_triton(x, columns)
        for got, expected in zip((quantized, step), fused.quantize_tokens(x, columns)):
            assert torch.equal(got, expected), (num_tokens, num_columns)
        y = gpu.multiply_triton(quantized, step, codes, scale)
        product = fused.multiply_exactly(quantized, codes)
        assert torch.equal(y, product.float() * step[:, None] * scale), (num_tokens, num_columns)
"""


COMPILED = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from kernels.vector_int8 import gpu
SHARED_BYTES = 227 * 1024
_, quantize_kernel, multiply_kernel = gpu._triton_kernels()
def compile_kernel(kernel, pointers, constants):
    types = {p.name: "constexpr" if p.name in constants else pointers.get(p.name, "i32")
             for p in kernel.params}
    source = ASTSource(kernel, types, constants)
    options = {"num_stages": 4, "num_warps": 8 if constants.get("TOKENS") == 128 else 4}
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    assert compiled.asm["cubin"] and compiled.metadata.shared < SHARED_BYTES, compiled.metadata
compile_kernel(
    quantize_kernel,
    {"x_ptr": "*bf16", "is_outlier_ptr": "*i8", "quantized_ptr": "*i8", "step_ptr": "*fp32"},
    {"HAS_OUTLIERS": True, "COLUMNS": 4096},
)
for tokens, outputs in [(16, 32), (128, 128)]:
    compile_kernel(
        multiply_kernel,
        {"quantized_ptr": "*i8", "step_ptr": "*fp32", "codes_ptr": "*i8", "scale_ptr": "*bf16",
         "y_ptr": "*fp32"},
        {"TOKENS": tokens, "OUTPUTS": outputs, "STEP": 128},
    )
"""


@pytest.mark.parametrize(("script", "interpret"), [(INTERPRETED, "1"), (COMPILED, "0")])
def test_triton_kernels_without_a_gpu(script: str, interpret: str) -> None:
    environment = os.environ | {"TRITON_INTERPRET": interpret}
    subprocess.run([sys.executable, "-c", script], env=environment, cwd=ROOT, check=True)
