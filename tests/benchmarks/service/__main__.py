"""Measure the service: `python -m tests.benchmarks.service [PART ...] [--smoke] [--write]`."""

from tests.benchmarks.running import run_benchmark
from tests.benchmarks.service.scale import FULL, SMOKE

PARTS = ("overhead", "transfer", "listing", "forecast")

if __name__ == "__main__":
    run_benchmark("service", PARTS, FULL, SMOKE)
