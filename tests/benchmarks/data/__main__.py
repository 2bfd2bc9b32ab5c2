"""Measure training data: `python -m tests.benchmarks.data [PART ...] [--smoke] [--write]`."""

from tests.benchmarks.data.scale import FULL, SMOKE
from tests.benchmarks.running import run_benchmark

PARTS = ("dedup", "students", "order", "streaming")

if __name__ == "__main__":
    run_benchmark("data", PARTS, FULL, SMOKE)
