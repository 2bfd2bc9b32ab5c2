"""The command line of a benchmark: its parts, on all models or some."""

from __future__ import annotations

import argparse
import importlib
from typing import Any

import torch

from tests.benchmarks.subjects import find_subjects
from tests.benchmarks.tables import as_text, write_tables


def run_benchmark(name: str, parts: tuple[str, ...], full: Any, smoke: Any) -> None:
    """Run `tests.benchmarks.<name>.<part>` for the parts that are asked for.

    Args:
        full: The benchmark's scale, as its parts take it.
        smoke: The smallest.
    """
    parser = argparse.ArgumentParser(
        prog=f"tests.benchmarks.{name}", description=f"Measure what the {name} stage is worth."
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(parts)}")
    parser.add_argument("--models", nargs="+", help="only these models")
    parser.add_argument("--smoke", action="store_true", help="as little as shows that it runs")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/results.md")
    given = parser.parse_args()
    if unknown := set(given.parts) - set(parts):
        parser.error(f"unknown parts {sorted(unknown)}; choose from {list(parts)}")
    if given.smoke and given.write:
        parser.error("--smoke measures too little for docs/results.md")
    torch.set_num_threads(1)
    subjects = find_subjects()
    if given.models:
        names = [subject.name for subject in subjects]
        if unknown := set(given.models) - set(names):
            parser.error(f"unknown models {sorted(unknown)}; choose from {names}")
        subjects = [subject for subject in subjects if subject.name in given.models]
    for part in given.parts or parts:
        module = importlib.import_module(f"tests.benchmarks.{name}.{part}")
        tables = module.run(subjects, smoke if given.smoke else full)
        print(f"\n{as_text(tables)}\n", flush=True)
        if given.write and tables:
            write_tables(name, part, tables)
