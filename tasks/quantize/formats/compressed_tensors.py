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
from tasks.quantize.checkpoint_tensors import cast, read_tensors, write_checkpoint
from tasks.quantize.quantized_tensor import QuantizedTensor


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
    schemes = {(tensor.bits, tensor.group_size) for tensor in quantized.values()}
    if not schemes:
        raise ValueError(
            "format compressed-tensors: no weight is quantized; "
            "use format safetensors, or a method such as absmax or gptq"
        )
    ((bits, group_size),) = schemes
    tensors, num_flushed = {}, 0
    for name, tensor in read_tensors(source):
        if name in quantized:
            codes = quantized[name].codes
            tensors[f"{name}_packed"] = pack(codes, bits)
            tensors[f"{name}_scale"] = quantized[name].scale
            tensors[f"{name}_shape"] = torch.tensor(codes.shape)
        else:
            tensors[name], flushed = cast(name, tensor, dtype)
            num_flushed += flushed
    config = load_config(source) | {
        "quantization_config": describe_scheme(bits, group_size, unquantized)
    }
    write_checkpoint(out, config, tensors, dtype)
    stored = sum(tensor.effective_bits * tensor.codes.numel() for tensor in quantized.values())
    num_weights = sum(tensor.codes.numel() for tensor in quantized.values())
    return {"num_flushed": num_flushed, "effective_bits": stored / num_weights}


def describe_scheme(
    bits: int, group_size: int | None, unquantized: Sequence[str]
) -> dict[str, object]:
    """Return the `quantization_config` of config.json."""
    weights = {
        "num_bits": bits,
        "type": "int",
        "symmetric": True,
        "strategy": "channel" if group_size is None else "group",
        "group_size": group_size,
        "dynamic": False,
    }
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
        "ignore": sorted(unquantized),
    }
