"""The Triton kernels compiled, on a real GPU, against their specifications."""

import pytest
import torch

from kernels.group_quant import fused as group_quant
from kernels.group_quant import naive as naive_group_quant
from kernels.int4_matmul import fused as int4_matmul
from kernels.vector_int8 import fused as vector_int8

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("group_size", [1, 43, 64, None])
@pytest.mark.parametrize("with_zero", [False, True])
def test_codes_equal_those_of_the_cpu(bits: int, group_size: int | None, with_zero: bool) -> None:
    torch.manual_seed(0)
    weight = torch.randn(257, 43 * 64) * 10.0 ** torch.randint(-20, 20, (257, 1))
    weight[0] = 0
    scale = group_quant.absmax_scale(weight, bits, group_size) / 2
    zero = group_quant.zero_point(weight, scale, bits) if with_zero else None
    on_gpu = None if zero is None else zero.cuda()
    codes = group_quant.quantize(weight.cuda(), scale.cuda(), bits, on_gpu)
    assert torch.equal(codes.cpu(), group_quant.quantize(weight, scale, bits, zero))
    packed = group_quant.pack(codes, bits)
    assert torch.equal(packed[:2].cpu(), naive_group_quant.pack(codes[:2].cpu(), bits))
    assert torch.equal(group_quant.unpack(packed, bits, weight.shape[1]), codes)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8])
@pytest.mark.parametrize(
    ("num_outputs", "num_columns", "group_size"),
    [(257, 512, 64), (64, 8256, 32), (100, 172, 43), (7, 96, 8), (33, 1000, None)],
)
@pytest.mark.parametrize("with_zero", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_packed_product_equals_the_dequantized_one(
    bits: int,
    num_outputs: int,
    num_columns: int,
    group_size: int | None,
    with_zero: bool,
    dtype: torch.dtype,
) -> None:
    torch.manual_seed(0)
    weight = torch.randn(num_outputs, num_columns, device="cuda")
    zero = None
    if with_zero:
        scale = group_quant.range_scale(weight, bits, group_size).to(dtype)
        zero = group_quant.zero_point(weight, scale.float(), bits)
    else:
        scale = group_quant.absmax_scale(weight, bits, group_size).to(dtype)
    codes = group_quant.quantize(weight, scale.float(), bits, zero)
    restored = group_quant.dequantize(codes, scale.double(), zero)
    packed = group_quant.pack(codes, bits)
    for num_tokens in (1, 2, 16, 129):
        x = torch.randn(num_tokens, num_columns, device="cuda", dtype=dtype)
        y = int4_matmul.matmul(x, packed, scale, bits, zero)
        expected = x.double() @ restored.T
        tolerance = 1e-5 if dtype == torch.float32 else torch.finfo(dtype).eps
        assert y.dtype == dtype
        assert (y - expected).abs().max() <= 2 * tolerance * expected.abs().max()
        again = int4_matmul.matmul(x, packed, scale, bits, zero)
        assert torch.equal(y, again)


@pytest.mark.parametrize("num_tokens", [1, 17, 300])
@pytest.mark.parametrize(("num_outputs", "num_columns"), [(33, 257), (512, 4096), (128, 10000)])
@pytest.mark.parametrize("num_outliers", [0, 5])
def test_int8_product_equals_that_of_the_cpu(
    num_tokens: int, num_outputs: int, num_columns: int, num_outliers: int
) -> None:
    torch.manual_seed(0)
    x = torch.randn(num_tokens, num_columns) * 10.0 ** torch.randint(-20, 20, (num_tokens, 1))
    x[0] = 0
    codes = torch.randint(-127, 128, (num_outputs, num_columns), dtype=torch.int8)
    scale = torch.rand(num_outputs)
    columns = torch.randperm(num_columns)[:num_outliers]
    weight = torch.randn(num_outputs, num_outliers)
    expected = vector_int8.linear(x, codes, scale, columns, weight)
    given = (value.cuda() for value in (x, codes, scale, columns, weight))
    got = vector_int8.linear(*given).cpu()
    largest = expected.abs().amax(dim=1, keepdim=True)
    assert ((got - expected).abs() <= 1e-5 * largest).all()


def test_integers_are_multiplied_exactly() -> None:
    x = torch.randint(-127, 128, (40, 640), device="cuda").float()
    codes = torch.randint(-127, 128, (70, 640), dtype=torch.int8, device="cuda")
    x[:, 0], codes[:, 1] = 127, -127
    y = vector_int8.linear(x, codes, torch.ones(70, device="cuda"))
    assert torch.equal(y.double(), x.double() @ codes.double().T)
