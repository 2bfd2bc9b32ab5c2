"""compressed-tensors, the format that transformers and vLLM load.

    codes                                          written as
    integers, weights alone, any width             pack-quantized: words of 32 bits
    int8 per row, inputs in int8 per token         int-quantized: int8
    float8 per row                                 float-quantized: float8_e4m3fn

8 bits of weights alone are packed too: vLLM runs integer weights with 16-bit activations (its
scheme WNA16) from packed words only, and takes `int-quantized` for W8A8. Its kernels run 4 and 8
bits; other widths load in transformers, which multiplies them out.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from kernels.group_quant.fused import pack
from tasks.models.folder import load_config
from tasks.models.quantized.float8 import Float8Tensor
from tasks.models.quantized.integer import IntegerTensor
from tasks.models.quantized_tensor import QuantizedTensor
from tasks.quantize.checkpoint_tensors import cast, read_tensors, write_checkpoint

HOLDS = ("integer", "float8", "plain")
INTEGERS = (
    {"symmetric": (True, None)},
    {"symmetric": (False,), "mixed_precision": (None,)},
)
RUNTIMES = ("transformers", "vllm")

PER_TOKEN = {
    "num_bits": 8,
    "type": "int",
    "symmetric": True,
    "strategy": "token",
    "group_size": None,
    "dynamic": True,
}
"""How inputs are rounded, each token by itself, as they come."""
WORD = 32


class Scheme(NamedTuple):
    """What the weights of one config group have in common."""

    format: str
    type: str
    bits: int
    group_size: int | None
    symmetric: bool
    activations: str | None


def write(
    source: Path,
    out: Path,
    quantized: Mapping[str, QuantizedTensor],
    unquantized: Sequence[str],
    dtype: torch.dtype,
) -> dict[str, str | int | float]:
    """Write config.json and model.safetensors to `out`; return facts.

    Args:
        source: The model's folder.
        quantized: Weights to write as codes and steps, by name, and parameters that are replaced.
        unquantized: Linear modules that keep their weight.

    Raises:
        ValueError: nothing is quantized; zero points and several widths; a weight is too large for
            the dtype.
    """
    schemes: dict[Scheme, list[str]] = {}
    for name, weight in quantized.items():
        if (scheme := find_scheme(weight)) is not None:
            schemes.setdefault(scheme, []).append(name)
    if not schemes:
        raise ValueError(
            "format compressed-tensors: no weight is quantized; "
            "use format safetensors, or a method such as absmax or gptq"
        )
    if len(schemes) > 1 and not all(scheme.symmetric for scheme in schemes):
        raise ValueError(
            "format compressed-tensors: transformers loads zero points where all weights have the "
            "same bits and group size, got several; use symmetric: true, or format safetensors"
        )
    scheme_of = {name: scheme for scheme, names in schemes.items() for name in names}
    tensors: dict[str, torch.Tensor] = {}
    num_flushed = num_code_bytes = 0
    for name, value in read_tensors(source):
        tensor = quantized.get(name)
        if tensor is not None and name in scheme_of:
            parts = store_parts(tensor, scheme_of[name])
            stem = name.removesuffix("weight")
            tensors |= {f"{stem}{part}": data.contiguous() for part, data in parts.items()}
            num_code_bytes += sum(data.nbytes for p, data in parts.items() if p != "weight_shape")
        else:
            value = value if tensor is None else tensor.dequantize()
            tensors[name], flushed = cast(name, value, dtype)
            num_flushed += flushed
    num_weights = sum(quantized[name].shape.numel() for name in scheme_of)
    config = load_config(source) | {"quantization_config": describe_schemes(schemes, unquantized)}
    write_checkpoint(out, config, tensors, dtype)
    facts: dict[str, str | int | float] = {
        "num_flushed": num_flushed,
        "effective_bits": 8 * num_code_bytes / num_weights,
    }
    widths = sorted({scheme.bits for scheme in schemes} - {4, 8})
    if widths:
        facts["container"] = "; ".join(map(describe_container, widths))
    return facts


def find_scheme(tensor: QuantizedTensor) -> Scheme | None:
    """Return how a weight is stored; None for a parameter that is only replaced."""
    if isinstance(tensor, Float8Tensor):
        return Scheme("float-quantized", "float", 8, None, True, None)
    if not isinstance(tensor, IntegerTensor):
        return None
    return Scheme(
        "pack-quantized" if tensor.activations is None else "int-quantized",
        "int",
        tensor.bits,
        tensor.group_size,
        tensor.zero is None,
        tensor.activations,
    )


def store_parts(tensor: QuantizedTensor, scheme: Scheme) -> dict[str, torch.Tensor]:
    """Return the tensors that hold a weight, by the ends of their names."""
    if isinstance(tensor, Float8Tensor):
        return {"weight": tensor.values, "weight_scale": tensor.scale}
    assert isinstance(tensor, IntegerTensor)
    if scheme.format == "int-quantized":
        return {"weight": tensor.codes, "weight_scale": tensor.scale}
    parts = {
        "weight_packed": pack(tensor.codes, tensor.bits),
        "weight_scale": tensor.scale,
        "weight_shape": torch.tensor(tensor.codes.shape),
    }
    if tensor.zero is not None:  # packed down the rows
        parts["weight_zero_point"] = pack(tensor.zero.t().contiguous(), tensor.bits).t()
    return parts


def describe_container(bits: int) -> str:
    return (
        f"int{bits}: {WORD} codes in {bits} words of {WORD} bits, some across two words; "
        f"multiplied out to be computed with, as no runtime multiplies in int{bits}"
    )


def describe_schemes(
    schemes: Mapping[Scheme, Sequence[str]], unquantized: Sequence[str]
) -> dict[str, Any]:
    """Return the `quantization_config` of config.json.

    Args:
        schemes: Names of weights by how they are stored.
    """
    groups = {}
    for number, (scheme, names) in enumerate(schemes.items()):
        modules = sorted(name.removesuffix(".weight") for name in names)
        groups[f"group_{number}"] = {
            "targets": ["Linear"] if len(schemes) == 1 else modules,
            "format": scheme.format,
            "weights": {
                "num_bits": scheme.bits,
                "type": scheme.type,
                "symmetric": scheme.symmetric,
                "strategy": "channel" if scheme.group_size is None else "group",
                "group_size": scheme.group_size,
                "dynamic": False,
            },
            "input_activations": None if scheme.activations is None else PER_TOKEN,
        }
    formats = {scheme.format for scheme in schemes}
    # transformers 5.23 builds modules for zero points that are not packed, which these are: it
    # reads them while it multiplies out, and only so.
    zero_points = {} if all(scheme.symmetric for scheme in schemes) else {"dequantize": True}
    return zero_points | {
        "quant_method": "compressed-tensors",
        "format": formats.pop() if len(formats) == 1 else "mixed-precision",
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": sorted(unquantized),
    }
