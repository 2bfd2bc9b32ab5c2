"""Decoding speed in llama.cpp: random weights of real shapes, dense and pruned by half."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from gguf import GGMLQuantizationType, GGUFWriter
from transformers import LlamaConfig

from tasks.models.folder import GGUF_FILE
from tasks.models.quantized.integer import IntegerTensor
from tasks.quantize.gguf_blocks import BLOCK, choose_type, pack_blocks
from tasks.quantize.gguf_metadata import add_architecture
from tests.benchmarks.cells import Cell, Cells
from tests.benchmarks.quantize.scale import Scale
from tests.benchmarks.subjects import Subject
from tests.benchmarks.tables import Table, table
from tests.integration.llama_cpp import ask_llama_cpp, why_not

THREADS = 1
"""llama.cpp's threads spin until all have arrived: two, one of them beside another program, are
slower than one."""
NUM_PROMPT = 16
REPEATS = 3
"""The fastest counts, as other programs may run."""
NUM_VOCABULARY = 32000
BITS = {"F16": None, "Q8_0": 8, "Q4_0": 4}


class Shape(NamedTuple):
    """A Llama; the head has its own weights."""

    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    layers: int

    def halve(self) -> Shape:
        """Keep half the neurons and half the KV groups of every layer."""
        return self._replace(
            ffn=self.ffn // 2 // BLOCK * BLOCK,
            heads=self.heads // 2,
            kv_heads=self.kv_heads // 2,
        )


SHAPES = {
    "0.5B": Shape(hidden=896, ffn=4864, heads=14, kv_heads=2, layers=24),
    "1B": Shape(hidden=2048, ffn=5632, heads=32, kv_heads=4, layers=22),
}
"""Of Qwen2.5-0.5B and TinyLlama-1.1B, heads of 64, both with a vocabulary of 32,000."""
HEAD_SIZE = 64
FULL_TOKENS, SMOKE_TOKENS = 24, 4


def run(subjects: list[Subject], scale: Scale) -> list[Table]:
    if reason := why_not():
        print(f"decode is left out: {reason}")
        return []
    cells = Cells("quantize", "decode", scale.name)
    num_new = FULL_TOKENS if scale.name == "full" else SMOKE_TOKENS
    names = SHAPES if scale.name == "full" else ["0.5B"]
    return [tabulate(cells, name, num_new) for name in names]


def tabulate(cells: Cells, name: str, num_new: int) -> Table:
    dense, lines, reference = SHAPES[name], [], 0.0
    for label, shape in (("dense", dense), ("pruned 50%", dense.halve())):
        for kind in BITS:
            cell = cells.compute(name, label, kind, measure=partial(measure, shape, kind, num_new))
            speed = cell["num_decoded"] / cell["decode_s"]
            reference = reference or speed
            lines.append(
                [
                    label,
                    kind,
                    f"{cell['num_parameters'] / 1e6:,.0f} M",
                    f"{cell['num_bytes'] / 2**20:,.0f}",
                    f"{NUM_PROMPT / cell['prompt_s']:.1f}",
                    f"{speed:.1f}",
                    f"{speed / reference:.1f}",
                ]
            )
    header = ["model", "type", "parameters", "MiB", "prompt tokens/s", "tokens/s", "of dense F16"]
    title = (
        f"{name} Llama shape in llama.cpp, {THREADS} thread, {num_new} tokens after {NUM_PROMPT}, "
        f"best of {REPEATS}"
    )
    return table(title, header, lines)


def measure(shape: Shape, kind: str, num_new: int) -> Cell:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / GGUF_FILE
        num_parameters = write_random(file, shape, kind)
        speed = {"num_prompt": NUM_PROMPT, "num_new": num_new, "repeats": REPEATS}
        answer = ask_llama_cpp(file, speed=speed, threads=THREADS, context=256)
        return {
            "num_parameters": num_parameters,
            "num_bytes": file.stat().st_size,
            **answer["speed"],
        }


def write_random(file: Path, shape: Shape, kind: str) -> int:
    """Write a model of random codes as the export writes it; return its number of parameters.

    One block's matrices stand in all blocks. The embedding and the head are of the type, too.
    """
    config = LlamaConfig(
        vocab_size=NUM_VOCABULARY,
        hidden_size=shape.hidden,
        intermediate_size=shape.ffn,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=HEAD_SIZE,
    )
    writer = GGUFWriter(file, "llama")
    add_architecture(writer, config)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([f"t{index}" for index in range(NUM_VOCABULARY)])
    writer.add_token_types([1] * NUM_VOCABULARY)
    writer.add_token_merges(["t 0"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    queries, keys = shape.heads * HEAD_SIZE, shape.kv_heads * HEAD_SIZE
    matrices = {
        "attn_q": (queries, shape.hidden),
        "attn_k": (keys, shape.hidden),
        "attn_v": (keys, shape.hidden),
        "attn_output": (shape.hidden, queries),
        "ffn_gate": (shape.ffn, shape.hidden),
        "ffn_up": (shape.ffn, shape.hidden),
        "ffn_down": (shape.hidden, shape.ffn),
    }
    made = {name: random_matrix(size, kind) for name, size in matrices.items()}
    ends = random_matrix((NUM_VOCABULARY, shape.hidden), kind)
    gains = torch.ones(shape.hidden).numpy()
    for name in ("token_embd", "output"):
        writer.add_tensor(f"{name}.weight", ends[0], raw_dtype=ends[1])
    writer.add_tensor("output_norm.weight", gains)
    for block in range(shape.layers):
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{block}.{name}.weight", gains)
        for name, (data, raw_type) in made.items():
            writer.add_tensor(f"blk.{block}.{name}.weight", data, raw_dtype=raw_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    inside = sum(rows * columns for rows, columns in matrices.values())
    return shape.layers * inside + 2 * NUM_VOCABULARY * shape.hidden


def random_matrix(size: tuple[int, int], kind: str) -> tuple[Any, GGMLQuantizationType]:
    num_rows, num_columns = size
    generator = torch.Generator().manual_seed(num_rows)
    bits = BITS[kind]
    if bits is None:
        value = torch.randn(size, generator=generator).mul_(num_columns**-0.5).half()
        return value.view(torch.uint8).numpy(), GGMLQuantizationType.F16
    limit = 2 ** (bits - 1)
    codes = torch.randint(-limit, limit, size, generator=generator, dtype=torch.int8)
    scale = torch.full((num_rows, num_columns // BLOCK), num_columns**-0.5 / limit)
    tensor = IntegerTensor(codes, scale.half(), bits, BLOCK)
    return pack_blocks(tensor), choose_type(tensor)
