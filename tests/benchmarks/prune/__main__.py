"""Measure pruning: `python -m tests.benchmarks.prune [PART ...] [--smoke] [--write]`."""

from tests.benchmarks.prune.scale import FULL, SMOKE
from tests.benchmarks.running import run_benchmark

PARTS = ("quality", "recovery", "over_time", "throughput", "scaling", "memory")

if __name__ == "__main__":
    run_benchmark("prune", PARTS, FULL, SMOKE)
