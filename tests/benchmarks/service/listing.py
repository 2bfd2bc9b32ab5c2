"""What commands take on a bucket with a thousand artifacts, in seconds and in requests.

The artifacts have the files, cards and reports that real ones have, of a few bytes each, in four
recipes of two exports, and a night has renewed the catalogue. Seconds are of whole processes on
OpenStack Swift, beside what a process takes that asks for nothing; requests are counted by a relay.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from infra.storage import Store, open_store
from tasks.digests import digest_files
from tasks.publish.artifact import MANIFEST_NAME, FileEntry
from tasks.publish.channels import append_entry
from tasks.publish.manifest import Manifest
from tasks.report.catalogue import write_catalogue
from tests.benchmarks.cells import Cell, Cells
from tests.benchmarks.service.nights import NIGHTPRESS, median_and_spread, timed
from tests.benchmarks.subjects import Subject
from tests.benchmarks.tables import Table, table
from tests.integration.swift_server import running_swift
from tests.unit.artifact_factory import store_artifact, write_files
from tests.unit.faulty_relay import Request, running_relay

BUCKET = "nightpress-bench"
STORE = f"s3://{BUCKET}/store"
NUM_RECIPES, EXPORTS, NUM_FILES = 4, ("int4", "int8"), 4
TARGET_S = 2.0
REPEATS = 3
NUM_THREADS = 16


def run(subjects: list[Subject], scale: Any) -> list[Table]:
    cells = Cells("service", "listing", scale.name)
    measure = partial(measure_commands, scale.num_artifacts)
    cell = cells.compute(scale.num_artifacts, "artifacts", measure=measure)
    rows = [
        [
            name,
            median_and_spread(found["seconds"], 2),
            ", ".join(f"{count} {kind}" for kind, count in found["requests"].items()),
            f"{TARGET_S:g} s" if name == "list" else "",
        ]
        for name, found in cell["commands"].items()
    ]
    title = f"{scale.num_artifacts:,} artifacts of {NUM_FILES} files on OpenStack Swift"
    return [table(title, ["command", "seconds", "requests", "target"], rows)]


def measure_commands(num_artifacts: int) -> Cell:
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (place / "swift").mkdir()
        with running_swift(place / "swift") as server:
            os.environ |= server.environment
            store = open_store(STORE)
            store.fs.call_s3("create_bucket", Bucket=BUCKET)  # type: ignore[attr-defined]
            fill(store, place / "template", num_artifacts)
            write_catalogue(store)
            commands = {
                "--version": ("--version",),
                "list": ("list",),
                "show recipe0/int4@nightly": ("show", "recipe0/int4@nightly"),
                "show recipe0": ("show", "recipe0"),
                "pull recipe0/int4@nightly": ("pull", "recipe0/int4@nightly", place / "pulled"),
            }
            endpoint = server.environment["AWS_ENDPOINT_URL"]
            return {
                "commands": {
                    name: measure_command(place, endpoint, *arguments)
                    for name, arguments in commands.items()
                }
            }


def measure_command(place: Path, endpoint: str, *arguments: str | Path) -> dict[str, Any]:
    place_of = () if arguments == ("--version",) else ("--store", STORE)
    command = (NIGHTPRESS, *arguments, *place_of)
    seconds = [timed(place / "state", *command).wall_s for _ in range(REPEATS)]
    counted: Counter[str] = Counter()

    def count(request: Request) -> None:
        listing = request.method == "GET" and "list-type=2" in request.path
        counted["LIST" if listing else request.method] += 1

    with running_relay(endpoint, count) as url:
        timed(place / "state", *command, AWS_ENDPOINT_URL=url)  # a pull finds all in place
    return {"seconds": seconds, "requests": dict(counted)}


def fill(store: Store, folder: Path, num_artifacts: int) -> None:
    """Write artifacts that share one manifest but for names, digests and times."""
    template = store_artifact(store, write_files(folder, "template", NUM_FILES - 1), channel=None)
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        list(pool.map(partial(write_one, store, template), range(num_artifacts - 1)))


def write_one(store: Store, template: Manifest, number: int) -> None:
    recipe, export = f"recipe{number % NUM_RECIPES}", EXPORTS[number // NUM_RECIPES % len(EXPORTS)]
    content = f"{number}".encode()
    entry = FileEntry(sha256=hashlib.sha256(content).hexdigest(), bytes=len(content))
    files = dict.fromkeys(template.files, entry)
    digest = digest_files({path: entry.sha256 for path, entry in files.items()})
    created = f"2026-{1 + number // 28 % 12:02d}-{1 + number % 28:02d}T02:10:00+00:00"
    manifest = template.model_copy(
        update={
            "recipe_name": recipe,
            "export": export,
            "digest": digest,
            "files": files,
            "num_bytes": sum(entry.bytes for entry in files.values()),
            "provenance": template.provenance.model_copy(update={"created": created}),
        }
    )
    for path in files:
        store.write(f"{manifest.prefix}/files/{path}", content)
    for name in ("README.md", "report.html"):
        store.write(f"{manifest.prefix}/{name}", b"x")
    store.write(f"{manifest.prefix}/{MANIFEST_NAME}", manifest.to_json())
    if number < NUM_RECIPES * len(EXPORTS):
        append_entry(store, recipe, export, "nightly", None, digest, "publish", "bench", "filled")
