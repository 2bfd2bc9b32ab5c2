"""Units of work in this very process: for tests, and for a machine where Ray is not wanted."""

import socket
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from infra.peak_memory import read_peak, reset_peak

S = TypeVar("S")
U = TypeVar("U")
R = TypeVar("R")


class LocalExecutor:
    """Runs one unit after the other; a process group of one rank runs in place."""

    num_workers = 1

    def __init__(self) -> None:
        self.nodes: set[str] = set()
        self.peak_bytes: int | None = None

    def map(
        self,
        fn: Callable[[S, U], R],
        units: Iterable[U],
        state: Callable[[], S],
        num_workers: int | None = None,
    ) -> Iterator[R]:
        self.nodes.add(socket.gethostname())
        reset_peak()
        built = state()
        for unit in units:
            result = fn(built, unit)
            self.peak_bytes = max(self.peak_bytes or 0, read_peak())
            yield result

    def run_group(
        self, fn: Callable[[dict[str, Any]], R], config: dict[str, Any], num_workers: int
    ) -> R:
        raise ValueError("a process group needs Ray: use the Ray executor")
