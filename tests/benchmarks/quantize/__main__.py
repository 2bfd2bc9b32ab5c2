"""Measure quantization: `python -m tests.benchmarks.quantize [PART ...] [--smoke] [--write]`."""

from __future__ import annotations

import argparse
import importlib

import torch

from tests.benchmarks.quantize.scale import FULL, SMOKE
from tests.benchmarks.subjects import find_subjects
from tests.benchmarks.tables import as_text, write_tables

PARTS = ("quality", "outliers", "training", "gptq_time", "kernels", "decode")


def main() -> None:
    parser = argparse.ArgumentParser(prog="tests.benchmarks.quantize", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--models", nargs="+", help="only these models")
    parser.add_argument("--smoke", action="store_true", help="as little as shows that it runs")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/results.md")
    given = parser.parse_args()
    if unknown := set(given.parts) - set(PARTS):
        parser.error(f"unknown parts {sorted(unknown)}; choose from {list(PARTS)}")
    if given.smoke and given.write:
        parser.error("--smoke measures too little for docs/results.md")
    torch.set_num_threads(1)
    subjects = find_subjects()
    if given.models:
        names = [subject.name for subject in subjects]
        if unknown := set(given.models) - set(names):
            parser.error(f"unknown models {sorted(unknown)}; choose from {names}")
        subjects = [subject for subject in subjects if subject.name in given.models]
    for part in given.parts or PARTS:
        module = importlib.import_module(f"tests.benchmarks.quantize.{part}")
        tables = module.run(subjects, SMOKE if given.smoke else FULL)
        print(f"\n{as_text(tables)}\n", flush=True)
        if given.write:
            write_tables("quantize", part, tables)


if __name__ == "__main__":
    main()
