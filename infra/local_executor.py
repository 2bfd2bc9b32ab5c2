"""Units of work in this very process: for tests, and for a machine where Ray is not wanted."""

import socket
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

S = TypeVar("S")
U = TypeVar("U")
R = TypeVar("R")


class LocalExecutor:
    """Runs one unit after the other; a process group of one rank runs in place."""

    num_workers = 1

    def __init__(self) -> None:
        self.nodes: set[str] = set()

    def map(
        self,
        fn: Callable[[S, U], R],
        units: Iterable[U],
        state: Callable[[], S],
        num_workers: int | None = None,
    ) -> Iterator[R]:
        self.nodes.add(socket.gethostname())
        built = state()
        for unit in units:
            yield fn(built, unit)

    def run_group(
        self, fn: Callable[[dict[str, Any]], R], config: dict[str, Any], num_workers: int
    ) -> R:
        raise ValueError("a process group needs Ray: use the Ray executor")
