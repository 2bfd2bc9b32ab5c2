"""compressed-tensors, the format that transformers and vLLM load: integer codes, packed in words.

Weights alone are quantized, so every width is written as `pack-quantized`, 8 bits too: vLLM runs
integer weights with 16-bit activations (its scheme WNA16) from packed words only, and takes
`int-quantized` for W8A8. Its kernels run 4 and 8 bits; other widths load in transformers.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from kernels.group_quant.fused import pack
from tasks.models.checkpoint import load_config
from tasks.models.quantized.integer import IntegerTensor
from tasks.models.quantized_tensor import QuantizedTensor, effective_bits
from tasks.quantize.checkpoint_tensors import cast, read_tensors, write_checkpoint

HOLDS = ("integer", "plain")


def write(
    source: Path,
    out: Path,
    quantized: Mapping[str, QuantizedTensor],
    unquantized: Sequence[str],
    dtype: torch.dtype,
) -> dict[str, int | float]:
    """Write config.json and model.safetensors to `out`; return facts.

    Args:
        source: The model's folder.
        quantized: Weights to write as `weight_packed`, `weight_scale` and `weight_shape`, by name.
        unquantized: Linear modules that keep their weight.

    Raises:
        ValueError: nothing is quantized, or a weight is too large for the dtype.
    """
    schemes: dict[tuple[int, int | None], list[str]] = {}
    for name, weight in quantized.items():
        if isinstance(weight, IntegerTensor):
            schemes.setdefault((weight.bits, weight.group_size), []).append(name)
    if not schemes:
        raise ValueError(
            "format compressed-tensors: no weight is quantized; "
            "use format safetensors, or a method such as absmax or gptq"
        )
    tensors, num_flushed = {}, 0
    for name, value in read_tensors(source):
        tensor: QuantizedTensor | None = quantized.get(name)
        if isinstance(tensor, IntegerTensor):
            tensors[f"{name}_packed"] = pack(tensor.codes, tensor.bits)
            tensors[f"{name}_scale"] = tensor.scale
            tensors[f"{name}_shape"] = torch.tensor(tensor.codes.shape)
        else:
            value = value if tensor is None else tensor.dequantize()
            tensors[name], flushed = cast(name, value, dtype)
            num_flushed += flushed
    config = load_config(source) | {"quantization_config": describe_schemes(schemes, unquantized)}
    write_checkpoint(out, config, tensors, dtype)
    packed = {name: quantized[name] for names in schemes.values() for name in names}
    return {"num_flushed": num_flushed, "effective_bits": effective_bits(packed)}


def describe_schemes(
    schemes: Mapping[tuple[int, int | None], Sequence[str]], unquantized: Sequence[str]
) -> dict[str, object]:
    """Return the `quantization_config` of config.json.

    Args:
        schemes: Names of weights by their bits and group size.
    """
    groups = {}
    for number, ((bits, group_size), names) in enumerate(schemes.items()):
        weights = {
            "num_bits": bits,
            "type": "int",
            "symmetric": True,
            "strategy": "channel" if group_size is None else "group",
            "group_size": group_size,
            "dynamic": False,
        }
        modules = sorted(name.removesuffix(".weight") for name in names)
        targets = ["Linear"] if len(schemes) == 1 else modules
        groups[f"group_{number}"] = {"targets": targets, "weights": weights}
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": sorted(unquantized),
    }
