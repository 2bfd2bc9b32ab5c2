"""Measure quantization: `python -m tests.benchmarks.quantize [PART ...] [--smoke] [--write]`."""

from tests.benchmarks.quantize.scale import FULL, SMOKE
from tests.benchmarks.running import run_benchmark

PARTS = ("quality", "outliers", "training", "gptq_time", "kernels", "decode")

if __name__ == "__main__":
    run_benchmark("quantize", PARTS, FULL, SMOKE)
