"""Publish and pull of one large artifact on a real S3 server, against `aws s3 cp` on the same.

Pulling, and both ways of the other one, are whole processes from their start to their end. Of
publishing there is no command: it is timed as a running night does it, after the gate and the load
check. Ours hashes every byte on each way, writes the manifest last and reads it back, and syncs
what it pulled to the disk; the other one does not. The server is OpenStack Swift (one replica, in a
folder).
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from infra.storage import open_store
from tests.benchmarks.cells import Cell, Cells
from tests.benchmarks.service.nights import NIGHTPRESS, median_and_spread, timed
from tests.benchmarks.subjects import Subject
from tests.benchmarks.tables import Table, table
from tests.integration.swift_server import running_swift

AWS = "NIGHTPRESS_AWS"
"""Environment variable with the path of the `aws` command; it is not one of our packages."""
BUCKET = "nightpress-bench"
TARGET = 0.9
PUBLISH = (sys.executable, "-m", "tests.benchmarks.service.publish_folder")


def run(subjects: list[Subject], scale: Any) -> list[Table]:
    aws = shutil.which(os.environ.get(AWS, ""))
    title = f"One artifact of {scale.artifact_mb:,} MB in a file of its own, on OpenStack Swift"
    if aws is None:
        print(f"{AWS} is not set to an `aws` command: nothing to compare with")
        title += f"; not measured, since {AWS} names no `aws` command"
        return [table(title, ["way"], [])]
    cells = Cells("service", "transfer", scale.name)
    measure = partial(measure_rounds, aws, scale)
    times = cells.compute("rounds", scale.rounds, measure=measure)["seconds"]
    rows = []
    for ours, theirs in (("publish", "aws up"), ("pull", "aws down")):
        ratios = [a / o for o, a in zip(times[ours], times[theirs], strict=True)]
        figures = (times[ours], times[theirs])
        rates = [f"{scale.artifact_mb / sorted(s)[len(s) // 2]:.0f}" for s in figures]
        spans = [median_and_spread(seconds) for seconds in figures]
        rows.append([ours, *spans, *rates, median_and_spread(ratios, 2), f"{TARGET:g}"])
    header = ["way", "ours, s", "aws s3 cp, s", "ours, MB/s", "aws, MB/s", "ratio", "target"]
    return [table(title, header, rows)]


def measure_rounds(aws: str, scale: Any) -> Cell:
    seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (place / "swift").mkdir()
        with running_swift(place / "swift") as server:
            os.environ |= server.environment
            open_store(f"s3://{BUCKET}").fs.call_s3("create_bucket", Bucket=BUCKET)  # type: ignore[attr-defined]
            for number in range(scale.rounds):
                work = place / str(number)
                write_model(work / "model", scale.artifact_mb)
                for name, spent in measure_round(aws, work, number % 2 == 1).items():
                    seconds.setdefault(name, []).append(spent)
                shutil.rmtree(work)
    return {"seconds": seconds}


def write_model(folder: Path, num_mb: int) -> None:
    """Write random bytes, so that nothing on the way can make them fewer."""
    folder.mkdir(parents=True)
    with (folder / "model.safetensors").open("wb") as file:
        for _ in range(num_mb):
            file.write(os.urandom(10**6))
        os.fsync(file.fileno())


def measure_round(aws: str, work: Path, aws_first: bool) -> dict[str, float]:
    """Return seconds by way; whoever comes first in one round comes second in the next."""
    store, copy = f"s3://{BUCKET}/store", f"s3://{BUCKET}/copy"
    quiet = ("--recursive", "--only-show-errors")
    ways: list[tuple[str, tuple[str | Path, ...]]] = [
        ("publish", (*PUBLISH, work / "model", store)),
        ("aws up", (aws, "s3", "cp", work / "model", copy, *quiet)),
        ("pull", (NIGHTPRESS, "pull", "tiny/int4", work / "pulled", "--store", store)),
        ("aws down", (aws, "s3", "cp", copy, work / "copied", *quiet)),
    ]
    if aws_first:
        ways = [ways[index] for index in (1, 0, 3, 2)]
    seconds = {}
    for name, command in ways:
        done = timed(work / "state", *command)
        seconds[name] = done.document.get("seconds", done.wall_s)
    for reached in ("pulled", "copied"):
        assert (work / reached / "model.safetensors").stat().st_size > 0
    return seconds
