"""What ends a night before its last stage: its deadline, or another night in its place."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from types import FrameType
from typing import Any, NoReturn, TypeVar

from prefect.exceptions import TerminationSignal

from infra.lease import Lease, LeaseHeldError, take_lease
from infra.storage import Store
from tasks.errors import ClusterError, CompressionError
from tasks.recipe import Recipe
from tasks.stage_space import Executor

S = TypeVar("S")
U = TypeVar("U")
R = TypeVar("R")

WAIT_S = 5.0
"""Between two looks at whether the night before has ended."""

GRACE_S = 60.0
"""Longest that units of work which were begun before the deadline may still take."""


class DeadlineReached(CompressionError):
    """The night has to end; what is stored is kept."""


class NightSkipped(CompressionError):
    """Another night of the recipe is running."""


def is_cancellation(error: BaseException | None) -> bool:
    """Whether a signal to stop is at the root of an error, whatever a library has made of it: when
    one comes in the middle of `ray.wait`, Python raises a SystemError from it."""
    seen: set[int] = set()  # a chain of causes may be a circle
    while error is not None and id(error) not in seen:
        if isinstance(error, KeyboardInterrupt | TerminationSignal):
            return True
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return False


@dataclass(frozen=True)
class Deadline:
    """When a night starts no more work, by the clock that never jumps."""

    at: float | None
    """`time.monotonic()` then; None where there is no deadline."""
    clock: str
    """What a person calls it."""

    @property
    def reached(self) -> bool:
        return self.at is not None and time.monotonic() >= self.at

    def check(self) -> None:
        """Raises: DeadlineReached."""
        if self.reached:
            self._end()

    @contextmanager
    def enforced(self, grace_s: float) -> Iterator[None]:
        """Raise DeadlineReached `grace_s` after the deadline, whatever the main thread waits for.

        In another thread nothing is interrupted, so the deadline comes between units alone.
        """
        if self.at is None or threading.current_thread() is not threading.main_thread():
            yield
            return

        def end(number: int, frame: FrameType | None) -> NoReturn:
            self._end()

        began = time.monotonic()
        outer = signal.signal(signal.SIGALRM, end)
        remaining, _ = signal.setitimer(signal.ITIMER_REAL, max(self.at + grace_s - began, 0.001))
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, outer)
            if remaining:
                spent = time.monotonic() - began
                signal.setitimer(signal.ITIMER_REAL, max(remaining - spent, 0.001))

    def _end(self) -> NoReturn:
        raise DeadlineReached(f"the deadline, {self.clock}, came before the end")


def find_deadline(recipe: Recipe) -> Deadline:
    """Read the wall clock once; it may jump while the night runs."""
    schedule = recipe.schedule
    seconds = schedule.seconds_to_deadline(datetime.now(UTC))
    at = None if seconds is None else time.monotonic() + seconds
    return Deadline(at, f"{schedule.deadline} {schedule.timezone}")


def take_turn(recipe: Recipe, store: Store, run_id: str, deadline: Deadline) -> Lease:
    """Make this night the only one of its recipe on its store."""
    told = False
    while True:
        try:
            return take_lease(store, f"leases/{recipe.name}", run_id)
        except LeaseHeldError as error:
            if recipe.schedule.overlap == "skip":
                raise NightSkipped(f"skipped, {error}") from None
            if not told:
                print(f"nightpress: {error}; waiting for its end", file=sys.stderr, flush=True)
                told = True
        deadline.check()
        time.sleep(WAIT_S)


def check_turn(lease: Lease, deadline: Deadline) -> None:
    """Raise what ends the night, if something does."""
    deadline.check()
    if lease.lost:
        raise ClusterError(
            "this night was not heard of for so long that another one has taken its place",
            "look whether this machine was asleep or cut off from the store",
        )


def give_back(lease: Lease) -> None:
    try:
        lease.release()
    except OSError as error:
        print(f"nightpress: warning: the lease was left to expire: {error}", file=sys.stderr)


class StoppableExecutor:
    """Hands work on to another executor for as long as the night may go on.

    After that no unit of work begins; those that run end, and store what they made.
    """

    def __init__(self, inner: Executor, deadline: Deadline, check: Callable[[], None]) -> None:
        self.inner = inner
        self.deadline = deadline
        self.check = check
        """Raises what ends the night, if something does."""
        self.num_workers = inner.num_workers
        self.nodes = inner.nodes  # the very set, which the inner one fills

    @property
    def peak_bytes(self) -> int | None:
        return self.inner.peak_bytes

    @peak_bytes.setter
    def peak_bytes(self, num_bytes: int | None) -> None:
        self.inner.peak_bytes = num_bytes

    def map(
        self,
        fn: Callable[[S, U], R],
        units: Iterable[U],
        state: Callable[[], S],
        num_workers: int | None = None,
    ) -> Iterator[R]:
        self.check()
        ending: list[CompressionError] = []

        def admitted() -> Iterator[U]:
            for unit in units:
                try:
                    self.check()
                except CompressionError as error:
                    ending.append(error)
                    return
                yield unit

        yield from self.inner.map(fn, admitted(), state, num_workers)
        if ending:
            raise ending[0]

    def run_group(
        self, fn: Callable[[dict[str, Any]], R], config: dict[str, Any], num_workers: int
    ) -> R:
        """Run a group; at the deadline it is stopped at once and its last checkpoint counts."""
        self.check()
        with self.deadline.enforced(grace_s=0):
            return self.inner.run_group(fn, config, num_workers)
