"""nightpress's own layout: whatever a method makes, as small as it is; our loader reads it.

It is for what no other software multiplies: GOBO, NF4 with double quantization, binary weights,
int8 with outlier columns. docs/format.md describes the files.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from tasks.models.folder import load_config
from tasks.models.packed_checkpoint import save_packed
from tasks.models.quantized.plain import PlainTensor
from tasks.models.quantized_tensor import QuantizedTensor, effective_bits
from tasks.quantize.checkpoint_tensors import cast, read_tensors, write_config

HOLDS = ("integer", "plain", "codebook", "float8", "binary", "outlier_columns")
INTEGERS = None
RUNTIMES = ()


def write(
    source: Path,
    out: Path,
    quantized: Mapping[str, QuantizedTensor],
    unquantized: Sequence[str],
    dtype: torch.dtype,
) -> dict[str, int | float]:
    """Write config.json, nightpress.json and nightpress.safetensors to `out`; return facts.

    Args:
        source: The model's folder.
        quantized: Weights to store packed, by name.
        unquantized: Linear modules that keep their weight.

    Raises:
        ValueError: a weight is too large for the dtype.
    """
    tensors: dict[str, QuantizedTensor] = {}
    num_flushed = 0
    for name, value in read_tensors(source):
        tensor = quantized.get(name, PlainTensor(value))
        if isinstance(tensor, PlainTensor):
            kept, flushed = cast(name, tensor.value, dtype)
            tensor = PlainTensor(kept)
            num_flushed += flushed
        tensors[name] = tensor
    write_config(out, load_config(source), dtype)
    save_packed(out, tensors)
    packed = {name: tensor for name, tensor in tensors.items() if tensor.kind != PlainTensor.kind}
    return {"num_flushed": num_flushed, "effective_bits": effective_bits(packed or tensors)}
