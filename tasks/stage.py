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
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

from infra.energy import Reading, metered
from infra.storage import SCHEME, Store, localize, put_folder
from tasks.code_version import code_version, module_file
from tasks.digests import digest_file, digest_of, list_files
from tasks.effort import Tally
from tasks.plugins import plugin_path
from tasks.records import Effort, Record

SCHEMA_VERSION = 1

S = TypeVar("S")
U = TypeVar("U")
R = TypeVar("R")

Progress = Callable[[int, int], None]
"""Called with units done and units in all."""


class Executor(Protocol):
    """Who runs units of work: this process, or workers of a Ray cluster."""

    num_workers: int
    nodes: set[str]
    """Host names that have run something since this set was last cleared."""
    peak_bytes: int | None
    """Peak memory of the worker that held most since this was last set to None."""

    def map(
        self,
        fn: Callable[[S, U], R],
        units: Iterable[U],
        state: Callable[[], S],
        num_workers: int | None = None,
    ) -> Iterator[R]:
        """Yield `fn(state(), unit)` for each unit, as they finish; state is built once a worker.

        A unit whose worker died is run again elsewhere, a few times at the most.
        """

    def run_group(
        self, fn: Callable[[dict[str, Any]], R], config: dict[str, Any], num_workers: int
    ) -> R:
        """Run `fn(config)` on all ranks of a process group; return what rank 0 returned.

        The group is started again when a rank dies or raises, a few times at the most.

        Raises:
            RuntimeError: it failed more often than that.
        """


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


@dataclass
class StageSpace:
    """What a running stage may use: the store under its own prefix, scratch space, workers."""

    store: Store
    executor: Executor
    prefix: str
    """`stages/<name>/<key>`"""
    attempt: str
    scratch: Path
    """A local folder of this attempt, removed afterwards."""
    progress: Progress
    tally: Tally = field(default_factory=Tally)
    """What the workers have measured so far."""

    @property
    def out(self) -> Path:
        """Local folder whose files become the stage's output."""
        path = self.scratch / "out"
        path.mkdir(parents=True, exist_ok=True)
        return path

    def output_uri(self, relative: str = "") -> str:
        """URI that the given file or folder of `out` will have in the store."""
        return f"{SCHEME}{self.prefix}/attempts/{self.attempt}/{relative}".rstrip("/")

    def local(self, uri: str) -> Path:
        return self.localizer(uri)

    @property
    def localizer(self) -> Callable[[str], Path]:
        """`local` for workers: it pickles, and downloads on the machine where it is called."""
        return partial(localize, self.store)

    def compute_units(
        self,
        fn: Callable[[S, U], bytes],
        units: list[U],
        state: Callable[[], S],
        group: str,
        num_workers: int | None = None,
    ) -> list[bytes]:
        """Compute each unit's bytes once and for all; return them in the units' order.

        A unit's result is stored by the worker that made it, under its position in `units`, so
        a killed driver or worker costs at most the units in flight.
        """
        return self.store.read_many(self._store_units(fn, units, state, group, num_workers))

    def stream_units(
        self,
        fn: Callable[[S, U], bytes],
        units: list[U],
        state: Callable[[], S],
        group: str,
        num_workers: int | None = None,
    ) -> Iterator[bytes]:
        """Compute as `compute_units` does; yield one unit's bytes at a time, in the units' order.

        For results that are too large to be held together. All units are computed before the
        first is yielded.
        """
        for key in self._store_units(fn, units, state, group, num_workers):
            yield self.store.read(key)

    def _store_units(
        self,
        fn: Callable[[S, U], bytes],
        units: list[U],
        state: Callable[[], S],
        group: str,
        num_workers: int | None,
    ) -> list[str]:
        """Compute the units that are not in the store yet; return the keys of all."""
        folder = f"{self.prefix}/units/{group}/"
        stored = set(self.store.list(folder))
        keys = [f"{folder}{index:06d}" for index in range(len(units))]
        missing = [(key, unit) for key, unit in zip(keys, units, strict=True) if key not in stored]
        done = len(units) - len(missing)
        self.progress(done, len(units))
        readings = []
        if missing:
            work = partial(_compute_and_store, self.store, fn)
            for reading in self.executor.map(work, missing, state, num_workers):
                readings.append(reading)
                done += 1
                self.progress(done, len(units))
        most = min(num_workers or self.executor.num_workers, len(missing))
        self.tally.add(group, most, readings, num_stored=len(units) - len(missing))
        return keys

    def run_group(
        self, fn: Callable[[dict[str, Any]], R], config: dict[str, Any], num_workers: int
    ) -> R:
        """Run a process group as `Executor.run_group` does; what rank 0 took counts for each."""
        reading, result = self.executor.run_group(partial(_run_metered, fn), config, num_workers)
        self.tally.add("training", num_workers, [reading] * num_workers, in_step=True)
        return result


def _compute_and_store(
    store: Store, fn: Callable[[S, U], bytes], state: S, keyed: tuple[str, U]
) -> Reading:
    key, unit = keyed
    with metered() as reading:
        store.create(key, fn(state, unit))
    return reading


def _run_metered(fn: Callable[[dict[str, Any]], R], config: dict[str, Any]) -> tuple[Reading, R]:
    with metered() as reading:
        result = fn(config)
    return reading, result


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
