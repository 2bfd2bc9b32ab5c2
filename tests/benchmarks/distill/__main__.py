"""Measure distillation: `python -m tests.benchmarks.distill [PART ...] [--smoke] [--write]`."""

from tests.benchmarks.distill.scale import FULL, SMOKE
from tests.benchmarks.running import run_benchmark

PARTS = ("loss_memory", "recovered", "throughput", "distilbert", "distilbert_speed")

if __name__ == "__main__":
    run_benchmark("distill", PARTS, FULL, SMOKE)
