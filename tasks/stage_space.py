"""What a running stage may use: the store under its own prefix, scratch space, workers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

from infra.energy import Reading, metered
from infra.storage import SCHEME, Store, localize
from tasks.effort import Tally

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
