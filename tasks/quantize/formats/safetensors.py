"""The plain checkpoint: every weight in the export's dtype, quantized ones as what they stand for.

It loads wherever the source does. A method's quality can be measured at any width this way, but
quantized weights are no smaller in it: their codes are multiplied out.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from tasks.models.folder import load_config
from tasks.models.quantized_tensor import QuantizedTensor
from tasks.quantize.checkpoint_tensors import cast, read_tensors, write_checkpoint

HOLDS = ("integer", "float8", "codebook", "binary", "outlier_columns", "plain")
INTEGERS = None
RUNTIMES = ("transformers", "vllm")


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
        quantized: Weights to replace, by name.
        unquantized: Linear modules that keep their weight.

    Raises:
        ValueError: a weight is too large for the dtype.
    """
    tensors, num_flushed = {}, 0
    for name, tensor in read_tensors(source):
        value = quantized[name].dequantize() if name in quantized else tensor
        tensors[name], flushed = cast(name, value, dtype)
        num_flushed += flushed
    write_checkpoint(out, load_config(source), tensors, dtype)
    return {"num_flushed": num_flushed, "effective_bits": 8 * dtype.itemsize}
