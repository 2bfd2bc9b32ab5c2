"""Units of work on a pool of Ray workers, and process groups in their place.

One pool of workers lives from the first unit of a run to its end, so that libraries are
imported once a worker; it is let go while a process group trains, since that needs the CPUs
and GPUs that the pool holds.
"""

import socket
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from infra.peak_memory import read_peak, reset_peak
from infra.ray_group import RANK_TIMEOUT_S, Group, run_group
from infra.ray_session import effective_address, start_ray, worker_environment

S = TypeVar("S")
U = TypeVar("U")
R = TypeVar("R")

MAX_DEATHS = 3
"""Worker deaths that one unit may see before the stage gives up."""


class RayExecutor:
    """Runs units of work on Ray actors and process groups under Ray Train.

    Nothing happens before the first use, so a run whose every stage is stored never starts Ray.
    """

    def __init__(
        self,
        address: str,
        num_workers: int,
        gpus_per_worker: float,
        threads_per_worker: int,
        scratch: Path,
        min_workers: int | None = None,
        rank_timeout_s: float = RANK_TIMEOUT_S,
    ) -> None:
        self.address = effective_address(address)
        self.num_workers = num_workers
        self.gpus_per_worker = gpus_per_worker
        self.threads_per_worker = threads_per_worker
        self.scratch = scratch
        self.min_workers = min_workers
        self.rank_timeout_s = rank_timeout_s
        self.nodes: set[str] = set()
        self.peak_bytes: int | None = None
        self._ray: Any = None
        self._pool: list[Any] = []
        self._arriving: dict[Any, int] = {}
        """Futures of workers that the cluster has not placed yet, and their places in the pool."""

    def connect(self) -> Any:
        """Start or join Ray once; return the module."""
        if self._ray is None:
            given = worker_environment(self.address, self.threads_per_worker, self.gpus_per_worker)
            num_cpus = self.num_workers * self.threads_per_worker
            self._ray = start_ray(self.address, num_cpus, given)
        return self._ray

    def _start_worker(self, slot: int) -> None:
        """Ask for a worker in a place of the pool; it may take its time to come."""
        ray = self.connect()
        options = {"num_cpus": self.threads_per_worker, "num_gpus": self.gpus_per_worker}
        worker = ray.remote(Worker).options(**options).remote()
        self._pool[slot : slot + 1] = [worker]
        self._arriving[worker.arrive.remote()] = slot

    def map(
        self,
        fn: Callable[[S, U], R],
        units: Iterable[U],
        state: Callable[[], S],
        num_workers: int | None = None,
    ) -> Iterator[R]:
        ray = self.connect()
        # A unit is asked for when a worker is free for it: there may be no more of them, then.
        coming = ((unit, 0) for unit in units)
        waiting = list(islice(coming, num_workers or self.num_workers))
        size = len(waiting)
        while len(self._pool) < size:
            self._start_worker(len(self._pool))
        idle = [slot for slot in range(size) if slot not in self._arriving.values()]
        work = ray.put((fn, state))  # one reference per call of map: the workers' state key
        running: dict[Any, tuple[int, U, int]] = {}
        lost = 0
        while True:
            while idle and (waiting := waiting or list(islice(coming, 1))):
                unit, deaths = waiting.pop(0)
                slot = idle.pop(0)
                future = self._pool[slot].run.remote([work], unit)
                running[future] = (slot, unit, deaths)
            if not (running or waiting):
                return
            (future,), _ = ray.wait([*running, *self._arriving], num_returns=1)
            if future in self._arriving:
                slot = self._arriving.pop(future)
                try:
                    ray.get(future)
                except ray.exceptions.RayActorError as error:  # its node went before it had come
                    lost += 1
                    if lost >= MAX_DEATHS:
                        raise RuntimeError(
                            f"{lost} workers in turn did not start: {error}"
                        ) from error
                    self._start_worker(slot)
                else:
                    lost = 0
                    idle += [slot] if slot < size else []
                continue
            slot, unit, deaths = running.pop(future)
            try:
                node, peak, result = ray.get(future)
            except ray.exceptions.RayActorError as error:
                if deaths + 1 >= MAX_DEATHS:
                    raise RuntimeError(
                        f"a unit of work killed {MAX_DEATHS} workers in turn: {error}"
                    ) from error
                self._start_worker(slot)
                waiting.append((unit, deaths + 1))
                continue
            except ray.exceptions.RayTaskError as error:
                raise error.cause from error
            idle.append(slot)
            self.nodes.add(node)
            self._see_peak(peak)
            yield result

    def run_group(
        self, fn: Callable[[dict[str, Any]], R], config: dict[str, Any], num_workers: int
    ) -> R:
        """Let the pool go, whose CPUs and GPUs the group needs, and run it under Ray Train."""
        self.connect()
        self.release()
        group = Group(
            num_workers=num_workers,
            min_workers=min(self.min_workers or num_workers, num_workers),
            num_cpus=self.threads_per_worker,
            num_gpus=self.gpus_per_worker,
            rank_timeout_s=self.rank_timeout_s,
            only_node=self.address == "local",
        )
        peak, result = run_group(group, fn, config, self.scratch)
        self._see_peak(peak)
        return result

    def _see_peak(self, num_bytes: int) -> None:
        self.peak_bytes = max(self.peak_bytes or 0, num_bytes)

    def release(self) -> None:
        """Give the pool's CPUs and GPUs back."""
        for worker in self._pool:
            self._ray.kill(worker)
        self._pool, self._arriving = [], {}

    def close(self) -> None:
        if self._ray is not None:
            self.release()
            self._ray.shutdown()
            self._ray = None


class Worker:
    """A process of the pool; it keeps the state of the last `map` only."""

    def __init__(self) -> None:
        self.work: Any = None
        self.state: Any = None

    def arrive(self) -> None:
        """Return as soon as the worker has been placed."""

    def run(self, work: list[Any], unit: Any) -> tuple[str, int, Any]:
        """Run one unit; return where, the peak memory of this `map` so far, and the result.

        Args:
            work: One reference, to (fn, state builder).
        """
        import ray

        (reference,) = work
        if reference != self.work:
            self.state = None  # let the old one go before the new one is built
            reset_peak()
            fn, build = ray.get(reference)
            self.fn, self.state, self.work = fn, build(), reference
        result = self.fn(self.state, unit)
        return socket.gethostname(), read_peak(), result
