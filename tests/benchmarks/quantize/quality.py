"""Held-out loss, bytes and bits of every method at every width."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from functools import partial
from typing import Any

from tests.benchmarks.cells import Cells
from tests.benchmarks.quantize.scale import Scale
from tests.benchmarks.quantize.staging import Row, measure_dense, measure_row, paired_increase
from tests.benchmarks.subjects import Subject
from tests.benchmarks.tables import Table, table

GROUP: dict[str, int | None] = {"docs-lm": 64, "demo teacher": 64, "stories260K": None}
"""Columns per step; None where nothing but 4 divides all widths: one step per row."""
BLOCK = 64
"""Weights per scale of NF4, which runs over the ends of rows."""
CALIBRATED = ("gptq", "awq")
"""Methods that are measured with every seed."""


def list_rows(subject: Subject) -> Iterator[Row]:
    group = GROUP[subject.name]
    yield Row("float16", "none", {}, "safetensors")
    yield Row("bfloat16", "none", {}, "safetensors", "bfloat16")
    yield Row("fp8 E4M3", "fp8", {})
    yield Row("vector-wise int8 (W8A8)", "vector_int8", {})
    yield Row("LLM.int8()", "llm_int8", {}, "nightpress")
    yield from list_widths(8, None)
    for bits in (4, 3, 2):
        yield from list_widths(bits, group)
        if bits == 3 and group:
            yield from list_widths(bits, None)
    for mean in (3.25, 4.25):
        name = f"GPTQ, mixed precision, {mean} bits in the mean"
        yield Row(name, "gptq", {"group_size": group}, mixed_bits=mean)
    block = {"block_size": BLOCK}
    yield Row(f"NF4, block {BLOCK}", "nf4", block | {"double_quantization": False}, "nightpress")
    yield Row(f"NF4, block {BLOCK}, double quantization", "nf4", block, "nightpress")
    for bits in (3, 4):
        yield Row(f"GOBO {bits} bits", "gobo", {"bits": bits}, "nightpress")
    yield Row("binary", "binary", {}, "nightpress")


def list_widths(bits: int, group: int | None) -> Iterator[Row]:
    """Yield the rows of one width, all with as many columns to a step."""
    label = f"int{bits}, " + (f"group {group}" if group else "per row")
    given: dict[str, Any] = {"bits": bits, "group_size": group}
    yield Row(f"absmax {label}", "absmax", given)
    yield Row(f"GPTQ {label}", "gptq", given)
    if bits in (3, 4):
        yield Row(f"absmax {label}, zero point", "absmax", given | {"symmetric": False})
        yield Row(f"GPTQ {label}, zero point", "gptq", given | {"symmetric": False})
    if bits < 8:
        yield Row(f"AWQ {label}", "awq", given)
        yield Row(f"layer distillation {label}", "layer_distill", given)


def is_repeated(row: Row) -> bool:
    """Tell whether a row is measured with every seed; mixed precision takes minutes for one."""
    return row.method in CALIBRATED and row.mixed_bits is None


def run(subjects: list[Subject], scale: Scale) -> list[Table]:
    cells = Cells("quantize", "quality", scale.name)
    return [tabulate(cells, subject, scale) for subject in subjects]


def tabulate(cells: Cells, subject: Subject, scale: Scale) -> Table:
    dense = cells.compute(subject.name, "dense", measure=partial(measure_dense, subject, scale))
    lines = []
    for row in list_rows(subject):
        found = [
            cells.compute(
                subject.name,
                row.name,
                seed,
                measure=partial(measure_row, row, subject, seed, scale),
            )
            for seed in (scale.seeds if is_repeated(row) else scale.seeds[:1])
        ]
        means = [statistics.mean(cell["nats"]) for cell in found]
        first = found[0]
        lines.append(
            [
                row.name,
                f"{means[0]:.4f}",
                str(paired_increase(first["nats"], dense["nats"])),
                f"{max(means) - min(means):.4f}" if len(found) > 1 else "",
                f"{first['facts']['effective_bits']:.3f}",
                f"{first['num_bytes']:,}",
                f"{first['num_bytes'] / dense['num_bytes']:.3f}",
                f"{first['seconds']:.0f}",
            ]
        )
    mean = statistics.mean(dense["nats"])
    return table(
        f"{subject.name}; fp32 {mean:.4f} nats/token, {dense['num_bytes']:,} bytes",
        ["export", "nats/token", "increase", "spread", "bits", "bytes", "of fp32", "seconds"],
        lines,
    )
