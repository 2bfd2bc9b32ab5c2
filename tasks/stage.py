"""The one mechanism behind resume, cheap re-runs and "nothing changed": content-addressed stages.

A stage is described by data alone (entry point, options, input records), so its key is known
without importing what computes it. Its output lies under `stages/<name>/<key>/attempts/<id>/`;
`complete.json`, created create-only, names the attempt that counts. Units of work within a stage
are objects under `stages/<name>/<key>/units/`, written by whoever computed them.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import socket
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from infra.energy import metered
from infra.storage import Store, put_folder
from tasks.code_version import code_version, module_file
from tasks.digests import digest_file, digest_of, list_files
from tasks.plugins import plugin_path
from tasks.records import Record
from tasks.run_records import Effort
from tasks.stage_space import Executor, Progress, StageSpace

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Stage:
    """What a stage does, to what."""

    name: str
    """`corpus`, `prune`, ...: the folder below `stages/`."""
    entry: str
    """`module:function`, called with (space, options, inputs) and returning a record."""
    options: dict[str, Any]
    """JSON values; nothing that says where or when the stage runs."""
    inputs: dict[str, Any]
    """Records by name; their digests enter the key."""
    plugins: tuple[tuple[str, str], ...] = ()
    """(kind, name) of the plugins that the options name; their sources enter the key."""
    execution: dict[str, Any] = field(default_factory=dict)
    """What the entry is told beside the options: how it runs, without a change to what it makes,
    so this does not enter the key."""

    @property
    def key(self) -> str:
        source = module_file(self.entry.partition(":")[0])
        assert source is not None, self.entry
        return digest_of(
            {
                "stage": self.name,
                "options": self.options,
                "inputs": {name: record.digest for name, record in self.inputs.items()},
                "code": code_version([source, *(plugin_path(*p) for p in self.plugins)]),
            }
        )


class Completion(Record):
    """`complete.json`: which attempt of a stage counts, and what it made."""

    schema_version: int = SCHEMA_VERSION
    attempt: str
    record: dict[str, Any]
    files: dict[str, str]
    """sha256 by relative path, of the attempt's folder."""
    seconds: float
    nodes: list[str]
    peak_bytes: int | None = None
    """Most that one worker held: on a GPU what its tensors took there, else its resident set, with
    libraries and mapped files; None where no worker ran."""
    effort: Effort | None = None
    """None where it was computed before efforts were measured."""


def read_completion(store: Store, stage: Stage) -> Completion | None:
    """Return the record of a stage that is done, or None."""
    try:
        data = store.read(f"stages/{stage.name}/{stage.key}/complete.json")
    except FileNotFoundError:
        return None
    return Completion(**json.loads(data))


def run_stage(
    stage: Stage, store: Store, executor: Executor, progress: Progress, scratch: Path
) -> tuple[Completion, bool]:
    """Return the stage's completion and whether it was there already."""
    if done := read_completion(store, stage):
        return done, True
    began = time.monotonic()
    executor.nodes.clear()
    executor.peak_bytes = None
    with _scratch_folder(scratch, stage.name) as folder:
        space = StageSpace(
            store=store,
            executor=executor,
            prefix=f"stages/{stage.name}/{stage.key}",
            attempt=uuid.uuid4().hex[:12],
            scratch=folder,
            progress=progress,
        )
        module_name, _, function = stage.entry.partition(":")
        entry = getattr(importlib.import_module(module_name), function)
        with metered() as alone:
            record: Record = entry(space, stage.options | stage.execution, **stage.inputs)
        files = {path: digest_file(space.out / path) for path in list_files(space.out)}
        put_folder(store, space.out, f"{space.prefix}/attempts/{space.attempt}")
        completion = Completion(
            attempt=space.attempt,
            record=record.model_dump(),
            files=files,
            seconds=round(time.monotonic() - began, 3),
            nodes=sorted(executor.nodes) or [socket.gethostname()],  # or nobody but this process
            peak_bytes=executor.peak_bytes,
            effort=space.tally.effort(executor.num_workers, alone),
        )
        data = json.dumps(completion.model_dump(), indent=1).encode()
        if not store.create(f"{space.prefix}/complete.json", data):
            adopted = read_completion(store, stage)  # another run was first: its output counts
            assert adopted is not None
            return adopted, True
    return completion, False


def clear_scratch(parent: Path) -> None:
    """Remove the scratch folders of processes that were killed on this machine."""
    for folder in parent.glob("*-*-*"):
        pid = folder.name.rsplit("-", 2)[1]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists():
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _scratch_folder(parent: Path, name: str) -> Iterator[Path]:
    parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{name}-{os.getpid()}-", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
