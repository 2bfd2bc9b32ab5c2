"""The kernels against plain products: packed integer weights, and int8 activations and weights.

On a GPU calls are replayed from a CUDA graph over as many copies of the weight as its cache cannot
hold, and the floor is the time in which the weight's bytes can be read, at the rate at which a
gibibyte is copied. On a CPU the figures are one thread's own seconds.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch

from kernels.group_quant import fused as group_quant
from kernels.int4_matmul import fused as int4_matmul
from kernels.vector_int8 import fused as vector_int8
from tests.benchmarks.quantize.scale import Scale
from tests.benchmarks.subjects import Subject
from tests.benchmarks.tables import Table, table

Call = Callable[[], torch.Tensor]

PACKED_SHAPES = ((4096, 4096), (11008, 4096))
"""[out, in]; a Llama of 7B."""
PACKED_TOKENS = (1, 16)
GROUP_SIZE = 128
INT8_SIZES = (4096, 8192)
INT8_TOKENS = {"cuda": (1, 16, 128, 512, 2048), "cpu": (1, 16, 128)}
ROUNDS = 7
CACHE_BYTES = 2**28
"""More than any GPU's cache."""


def run(subjects: list[Subject], scale: Scale) -> list[Table]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    smoke = scale.name == "smoke"
    shapes = ((256, 256),) if smoke else PACKED_SHAPES
    sizes = (256,) if smoke else INT8_SIZES
    return [race_packed(device, shapes), race_int8(device, sizes, smoke)]


class Race(NamedTuple):
    """What one kind of machine compares with."""

    device: str
    dtype: torch.dtype
    said: str


def describe(device: str) -> Race:
    if device == "cuda":
        return Race(device, torch.bfloat16, f"{torch.cuda.get_device_name()}, bfloat16")
    threads = torch.get_num_threads()
    return Race(device, torch.float32, f"CPU, {threads} thread(s), float32; no GPU was measured")


def race_packed(device: str, shapes: tuple[tuple[int, int], ...]) -> Table:
    race = describe(device)
    read_rate = measure_read_rate() if device == "cuda" else None
    rows = []
    for num_outputs, num_columns in shapes:
        weight = torch.randn(num_outputs, num_columns, device=device)
        for bits in (4, 3):
            scale = group_quant.absmax_scale(weight, bits, GROUP_SIZE)
            codes = group_quant.quantize(weight, scale, bits)
            packed, scale = group_quant.pack(codes, bits), scale.to(race.dtype)
            num_bytes = packed.numel() * packed.itemsize + scale.numel() * scale.itemsize
            for num_tokens in PACKED_TOKENS:
                x = torch.randn(num_tokens, num_columns, device=device, dtype=race.dtype)
                plain, dequantized, ours = measure(
                    device,
                    plain_calls(x, weight.to(race.dtype)),
                    [lambda x=x, p=packed, s=scale, b=bits: dequantize_multiply(x, p, s, b)],
                    [
                        lambda x=x, p=p, s=scale, b=bits: int4_matmul.matmul(x, p, s, b)
                        for p in copies(packed)
                    ],
                )
                rows.append(
                    [
                        f"{num_outputs} x {num_columns}",
                        str(bits),
                        str(num_tokens),
                        f"{1e3 * ours:.3f}",
                        f"{1e3 * plain:.3f}",
                        f"{plain / ours:.2f}",
                        f"{dequantized / ours:.1f}",
                        f"{num_bytes / read_rate / ours:.0%}" if read_rate else "not measured",
                    ]
                )
    return table(
        f"int4_matmul, group {GROUP_SIZE}; {race.said}",
        "weight|bits|tokens|ms|ms plain|times plain|times dequantize first|of the floor".split("|"),
        rows,
    )


def race_int8(device: str, sizes: tuple[int, ...], smoke: bool) -> Table:
    race = describe(device)
    rows = []
    for size in sizes:
        weight = torch.randn(size, size, device=device)
        steps = weight.abs().amax(dim=1) / 127
        codes = torch.round(weight / steps[:, None]).to(torch.int8)
        columns = torch.arange(0, size, size // 8, device=device)
        outliers = weight[:, columns].to(race.dtype)
        for num_tokens in INT8_TOKENS[device][: 1 if smoke else None]:
            x = torch.randn(num_tokens, size, device=device, dtype=race.dtype)
            plain, ours, with_outliers = measure(
                device,
                plain_calls(x, weight.to(race.dtype)),
                [lambda x=x, c=c, s=steps: vector_int8.linear(x, c, s) for c in copies(codes)],
                [
                    lambda x=x, c=c, s=steps, k=columns, w=outliers: vector_int8.linear(
                        x, c, s, k, w
                    )
                    for c in copies(codes)
                ],
            )
            rows.append(
                [
                    f"{size} x {size}",
                    str(num_tokens),
                    f"{1e3 * ours:.3f}",
                    f"{1e3 * plain:.3f}",
                    f"{plain / ours:.2f}",
                    f"{plain / with_outliers:.2f}",
                ]
            )
    return table(
        f"vector_int8; {race.said}",
        "weight|tokens|ms|ms plain|times plain|times plain with 8 outlier columns".split("|"),
        rows,
    )


def plain_calls(x: torch.Tensor, weight: torch.Tensor) -> list[Call]:
    return [lambda w=w: x @ w.T for w in copies(weight)]


def dequantize_multiply(
    x: torch.Tensor, packed: torch.Tensor, scale: torch.Tensor, bits: int
) -> torch.Tensor:
    return x @ group_quant.dequantize(group_quant.unpack(packed, bits, x.shape[1]), scale).T


def copies(weight: torch.Tensor) -> list[torch.Tensor]:
    """Return as many copies as no GPU's cache can hold; on a CPU the weight itself."""
    if not weight.is_cuda:
        return [weight]
    return [weight.clone() for _ in range(1 + CACHE_BYTES // (weight.numel() * weight.itemsize))]


def measure(device: str, *contestants: list[Call]) -> list[float]:
    """Return the median seconds per call of each, taken in turns."""
    clocks = [(graph_clock if device == "cuda" else thread_clock)(calls) for calls in contestants]
    rounds = [[clock() for clock in clocks] for _ in range(ROUNDS)]
    return [statistics.median(seconds) for seconds in zip(*rounds, strict=True)]


def thread_clock(calls: list[Call]) -> Callable[[], float]:
    for call in calls:
        call()

    def clock() -> float:
        began = time.process_time()
        for call in calls:
            call()
        return (time.process_time() - began) / len(calls)

    return clock


def graph_clock(calls: list[Call]) -> Callable[[], float]:
    for call in calls:  # compiles what is new
        call()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()

    def clock() -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3 / len(calls)

    return clock


def measure_read_rate() -> float:
    """Return bytes per second: a copy reads each byte once and writes it once."""
    source = torch.empty(2**30, dtype=torch.int8, device="cuda")
    target = torch.empty_like(source)
    (seconds,) = measure("cuda", [lambda: target.copy_(source)])
    return 2 * source.numel() / seconds
