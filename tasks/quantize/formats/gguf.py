"""GGUF, the format that llama.cpp loads: one file with the weights, the tokenizer, and the config.

Integer codes are written as they are, so what a method chose survives bit for bit: in groups of 32
with float16 steps, 8 bits are Q8_0, 4 bits Q4_0, and 4 bits with zero points Q4_1 (whose minimum
d * zero is rounded to float16). Vectors are float32, as llama.cpp wants them.
"""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from gguf import (
    GGML_QUANT_VERSION,
    MODEL_ARCH_NAMES,
    GGMLQuantizationType,
    GGUFWriter,
    LlamaFileType,
    get_tensor_name_map,
    quantize,
)
from numpy.typing import NDArray

from tasks.errors import CheckpointError
from tasks.models.folder import GGUF_FILE, load_config, read_config
from tasks.models.quantized.integer import IntegerTensor
from tasks.models.quantized.plain import PlainTensor
from tasks.models.quantized_tensor import QuantizedTensor
from tasks.quantize.checkpoint_tensors import cast, read_tensors, write_config
from tasks.quantize.gguf_blocks import BLOCK, choose_type, pack_blocks
from tasks.quantize.gguf_metadata import (
    add_architecture,
    check_architecture,
    check_kind,
    name_architecture,
    rope_divisors,
    row_order,
    shifts_norms,
)
from tasks.quantize.gguf_tokenizer import add_tokenizer, read_tokenizer

HOLDS = ("integer", "plain")
RUNTIMES = ("llama.cpp", "transformers")
INTEGERS = (
    {"bits": (4, 8), "group_size": (32,), "symmetric": (True, None), "dtype": ("float16",)},
    {"bits": (4,), "group_size": (32,), "symmetric": (False,), "dtype": ("float16",)},
)

EMBEDDINGS = ("model.embed_tokens.weight", "lm_head.weight")
PLAIN = {
    torch.float32: GGMLQuantizationType.F32,
    torch.float16: GGMLQuantizationType.F16,
    torch.bfloat16: GGMLQuantizationType.BF16,
}
FILE_TYPES = {
    GGMLQuantizationType.F32: LlamaFileType.ALL_F32,
    GGMLQuantizationType.F16: LlamaFileType.MOSTLY_F16,
    GGMLQuantizationType.BF16: LlamaFileType.MOSTLY_BF16,
    GGMLQuantizationType.Q8_0: LlamaFileType.MOSTLY_Q8_0,
    GGMLQuantizationType.Q4_0: LlamaFileType.MOSTLY_Q4_0,
    GGMLQuantizationType.Q4_1: LlamaFileType.MOSTLY_Q4_1,
}
"""What the file is said to be, by the type of most of its matrices."""
log = logging.getLogger(__name__)


class Converted(NamedTuple):
    """A parameter as it stands in the file."""

    data: NDArray[Any]
    """Vectors as float32; of matrices the bytes, [out, bytes per row]."""
    kind: GGMLQuantizationType
    num_flushed: int = 0


def check(source: Path) -> None:
    """Make sure that llama.cpp computes what this model does, and reads its tokenizer.

    Raises:
        ValueError: it does not.
    """
    check_kind(load_config(source))
    check_architecture(read_config(source))
    read_tokenizer(source)


def write(
    source: Path,
    out: Path,
    quantized: Mapping[str, QuantizedTensor],
    unquantized: Sequence[str],
    dtype: torch.dtype,
    *,
    embeddings: Literal["plain", "Q8_0", "Q4_0"] = "plain",
) -> dict[str, str | int | float]:
    """Write config.json and model.gguf to `out`; return facts.

    Args:
        source: The model's folder.
        quantized: Weights to write as they are, by name, and parameters that are replaced.
        unquantized: Linear modules that keep their weight; the file says so by its types.
        embeddings: Type of the embedding and the head, rounded to nearest; `plain` is the dtype,
            as it is for a matrix whose width is no multiple of 32. Those are listed.

    Raises:
        ValueError: an architecture, tokenizer or encoding that GGUF cannot hold; a weight is too
            large for the dtype.
        CheckpointError: a parameter that the architecture does not have.
    """
    check(source)
    config = read_config(source)
    architecture = name_architecture(config)
    writer = GGUFWriter(out / GGUF_FILE, architecture)
    add_architecture(writer, config)
    add_tokenizer(writer, source, config.vocab_size)
    if (divisors := rope_divisors(config)) is not None:
        writer.add_tensor("rope_freqs.weight", divisors.numpy())
    arch = next(key for key, name in MODEL_ARCH_NAMES.items() if name == architecture)
    names = get_tensor_name_map(arch, config.num_hidden_layers)
    num_flushed = num_code_bytes = num_weights = 0
    kept_plain: list[str] = []
    num_of_kind = Counter[GGMLQuantizationType]()
    for name, stored in read_tensors(source):
        renamed = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if renamed is None:
            raise CheckpointError(
                f"format gguf: llama.cpp's {architecture} has no tensor for {name}",
                "use format compressed-tensors",
            )
        rounds = embeddings != "plain" and name in EMBEDDINGS
        if rounds and stored.shape[1] % BLOCK:
            kept_plain.append(renamed)
            rounds = False
        tensor = quantized.get(name, PlainTensor(stored))
        rows = row_order(name, config)
        if isinstance(tensor, IntegerTensor):
            done = Converted(pack_blocks(tensor, rows), choose_type(tensor))
            num_code_bytes += done.data.nbytes
            num_weights += tensor.shape.numel()
        elif rounds:
            done = round_matrix(tensor.dequantize(), GGMLQuantizationType[embeddings])
        else:
            value = tensor.dequantize() if rows is None else tensor.dequantize()[rows]
            is_gain = shifts_norms(config) and name.endswith("norm.weight")
            done = convert_plain(name, value + 1 if is_gain else value, dtype)
        writer.add_tensor(renamed, done.data, raw_dtype=done.kind)
        num_flushed += done.num_flushed
        if stored.ndim == 2 and name not in EMBEDDINGS:
            num_of_kind[done.kind] += 1
    writer.add_quantization_version(GGML_QUANT_VERSION)
    writer.add_file_type(FILE_TYPES[num_of_kind.most_common(1)[0][0]])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    write_config(out, load_config(source), dtype)
    facts: dict[str, str | int | float] = {
        "num_flushed": num_flushed,
        "effective_bits": 8 * num_code_bytes / num_weights if num_weights else 8 * dtype.itemsize,
    }
    if kept_plain:
        facts["kept_plain"] = ", ".join(kept_plain)
        log.warning(
            "%s: no multiple of %d wide, so not in %s", facts["kept_plain"], BLOCK, embeddings
        )
    return facts


def convert_plain(name: str, value: torch.Tensor, dtype: torch.dtype) -> Converted:
    """Return a parameter that is not quantized: llama.cpp wants vectors in float32."""
    if value.ndim == 1:
        return Converted(value.float().numpy(), GGMLQuantizationType.F32)
    done, num_flushed = cast(name, value, dtype)
    return Converted(done.contiguous().view(torch.uint8).numpy(), PLAIN[dtype], num_flushed)


def round_matrix(value: torch.Tensor, kind: GGMLQuantizationType) -> Converted:
    return Converted(quantize(value.numpy(), kind), kind)
