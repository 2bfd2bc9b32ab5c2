"""Rows a second and peak memory of a corpus larger than memory is meant to be, on 1 and 2 workers.

The command itself is measured: `nightpress corpus build` on text written for it, with a state
folder of its own, from the source to the packed blocks.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from tests.benchmarks.cells import Cell, Cells
from tests.benchmarks.subjects import ROOT, Subject
from tests.benchmarks.tables import Table, table

MIB = 2**20
TEXT_MIB = {"full": (128, 2048), "smoke": (50,)}
"""Text of a corpus, by scale: memory that grows with it shows between two sizes."""
WORKERS = (1, 2)
FILTERS = ("length", "exact_dedup", "minhash_dedup")
DISK_PER_TEXT = 12
"""Bytes on disk at the most, for each byte of text."""
REPEATED = 0.02
"""Fraction of rows that an earlier one is, word for word."""
POLL_S = 0.2


def run(subjects: list[Subject], scale: Any) -> list[Table]:
    cells = Cells("data", "streaming", scale.name)
    subject = subjects[-1]
    rows = []
    for size in TEXT_MIB[scale.name]:
        for workers in WORKERS:
            measure = partial(measure_build, subject, size, workers)
            cell = cells.compute(f"{size}-MiB", workers, measure=measure)
            seconds = sum(cell["seconds"].values())
            rows.append(
                [
                    f"{size:,}",
                    str(workers),
                    f"{cell['num_rows']:,}",
                    f"{cell['num_kept']:,}",
                    *(f"{cell['seconds'][stage]:,.0f}" for stage in ("source", "corpus")),
                    f"{cell['num_rows'] / seconds:,.0f}",
                    f"{size / seconds:.2f}",
                    f"{cell['driver_peak_bytes'] / MIB:,.0f}",
                    f"{cell['worker_peak_bytes'] / MIB:,.0f}",
                    f"{cell['disk_bytes'] / MIB:,.0f}",
                ]
            )
    header = ["text, MiB", "workers", "rows", "kept", "source, s", "corpus, s", "rows/s", "MiB/s"]
    header += ["driver's peak RSS, MiB", "a worker's, MiB", "store, MiB"]
    return [table(f"{subject.name}'s tokenizer; filters {', '.join(FILTERS)}", header, rows)]


def measure_build(subject: Subject, text_mib: int, workers: int) -> Cell:
    """Build a corpus of that much text in a process of its own; all it has written goes again."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        needed, free = DISK_PER_TEXT * text_mib * MIB, shutil.disk_usage(place).free
        if needed > free:
            raise OSError(
                f"{place}: expected {needed / 2**30:.0f} GiB free, got {free / 2**30:.0f}; set "
                "TMPDIR to a larger disk"
            )
        num_rows = write_text(subject, place / "text.jsonl", text_mib * MIB)
        return {"num_rows": num_rows} | build(subject, place, workers)


def write_text(subject: Subject, path: Path, num_bytes: int) -> int:
    """Write rows of ten sentences of the model's own training text; return how many."""
    documents = [json.loads(line)["text"] for line in subject.training.open(encoding="utf-8")]
    sentences = [s for text in documents for s in text.split(". ") if 20 < len(s) < 400]
    rng = random.Random(0)
    written, num_rows, earlier = 0, 0, ""
    with path.open("w", encoding="utf-8") as file:
        while written < num_bytes:
            repeats = earlier and rng.random() < REPEATED
            line = earlier if repeats else ". ".join(rng.choices(sentences, k=10))
            if not earlier or rng.random() < REPEATED:
                earlier = line
            written += file.write(json.dumps({"text": line}) + "\n")
            num_rows += 1
    return num_rows


def build(subject: Subject, place: Path, workers: int) -> Cell:
    recipe = {
        "name": "streaming",
        "teacher": {"model": str(subject.folder)},
        "calibration": {"text": str(subject.calibration), "num_windows": 1},
        "evaluation": {"text": str(subject.heldout)},
        "corpus": {
            "sources": [{"name": "local_text", "options": {"path": str(place / "text.jsonl")}}],
            "filters": [{"name": name} for name in FILTERS],
        },
        "exports": [{"name": "full", "method": "none", "format": "safetensors"}],
        "cluster": {"workers": workers},
    }
    (place / "recipe.yaml").write_text(json.dumps(recipe))
    command = [str(Path(sys.executable).with_name("nightpress")), "corpus", "build"]
    environment = os.environ | {"NIGHTPRESS_HOME": str(place / "state"), "OMP_NUM_THREADS": "1"}
    with (place / "record.json").open("w") as out:
        process = subprocess.Popen(
            [*command, str(place / "recipe.yaml"), "--json"], cwd=ROOT, env=environment, stdout=out
        )
        driver_peak = 0
        while process.poll() is None:
            driver_peak = max(driver_peak, read_peak(process.pid))
            time.sleep(POLL_S)
    if process.returncode:
        raise RuntimeError(f"`nightpress corpus build` ended with {process.returncode}")
    record = json.loads((place / "record.json").read_text())
    stored = (p.stat().st_size for p in (place / "state/store").rglob("*") if p.is_file())
    return {
        "num_kept": record["corpus"]["corpus"]["num_documents"],
        "seconds": {stage["stage"]: stage["seconds"] for stage in record["stages"]},
        "driver_peak_bytes": driver_peak,
        "worker_peak_bytes": max(stage["peak_bytes"] or 0 for stage in record["stages"]),
        "disk_bytes": sum(stored),
    }


def read_peak(pid: int) -> int:
    """Return the largest resident set that a process has had, in bytes; 0 once it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)
