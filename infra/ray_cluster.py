"""The Ray session: connect, ship the code, run units of work on a pool of workers, train.

One pool of workers lives from the first unit of a run to its end, so that libraries are
imported once a worker; it is let go while a process group trains, since that needs the CPUs
and GPUs that the pool holds.
"""

import os
import signal
import socket
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlparse

from infra.peak_memory import read_peak, reset_peak

S = TypeVar("S")
U = TypeVar("U")
R = TypeVar("R")

ROOT = Path(__file__).parent.parent
EXCLUDED = [".git", ".venv", ".nightpress", "tests", "docs", "configs/demo/text"]
MAX_DEATHS = 3
"""Worker deaths that one unit may see before the stage gives up."""
GROUP_TIMEOUT_S = 1800
"""Longest that one rank of a group waits for the others, as while they upload a checkpoint. A
rank that died is noticed at once."""


def check_address(address: str, timeout_s: float = 5.0) -> None:
    """Knock at a Ray cluster's door.

    Raises:
        ValueError: nobody answers there.
    """
    if address in ("local", "auto"):
        return
    parsed = urlparse(address if "://" in address else f"ray://{address}")
    host, port = parsed.hostname or "", parsed.port or (10001 if "://" in address else 6379)
    try:
        socket.create_connection((host, port), timeout=timeout_s).close()
    except OSError as error:
        raise ValueError(
            f"cluster.ray: no Ray cluster answers at {address} ({error}); start one with "
            "`ray start --head`, or say `ray: local`"
        ) from None


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
    ) -> None:
        self.address = os.environ.get("RAY_ADDRESS", address)
        self.num_workers = num_workers
        self.gpus_per_worker = gpus_per_worker
        self.threads_per_worker = threads_per_worker
        self.scratch = scratch
        self.nodes: set[str] = set()
        self.peak_bytes: int | None = None
        self._ray: Any = None
        self._pool: list[Any] = []
        self._arriving: dict[Any, int] = {}
        """Futures of workers that the cluster has not placed yet, and their places in the pool."""

    def connect(self) -> Any:
        """Start or join Ray once; return the module."""
        if self._ray is None:
            import ray

            local = self.address == "local"
            on_sigterm = signal.getsignal(signal.SIGTERM)
            ray.init(
                # "local" is a cluster of our own; None would join any that runs on this machine.
                address=self.address,
                # Logical CPUs: workers are placed by them; threads are pinned per worker.
                num_cpus=self.num_workers * self.threads_per_worker if local else None,
                include_dashboard=False if local else None,
                log_to_driver=bool(os.environ.get("NIGHTPRESS_DEBUG")),
                logging_level="ERROR",
                runtime_env=self._runtime_env(local),
            )
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, on_sigterm)  # Ray has put its own in place
            self._ray = ray
        return self._ray

    def _runtime_env(self, local: bool) -> dict[str, Any]:
        threads = str(self.threads_per_worker)
        passed = ("DS_ACCELERATOR", "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME", "HF_HUB_OFFLINE")
        env_vars = {name: os.environ[name] for name in passed if name in os.environ}
        env_vars |= {"OMP_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "false"}
        if self.gpus_per_worker == 0:
            env_vars["DS_ACCELERATOR"] = "cpu"
        # A local worker imports the installed packages; a cluster gets this checkout's files.
        shipped = {} if local else {"working_dir": str(ROOT), "excludes": EXCLUDED}
        return {"env_vars": env_vars} | shipped

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
        """Run the group under Ray Train. Its checkpoints are not used: `fn` keeps its own."""
        self.connect()
        self.release()
        os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
        if self.address == "local":  # nobody drains the only node; saves a process
            os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
        from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
        from ray.train.torch import TorchConfig, TorchTrainer

        gpus = self.gpus_per_worker
        self.scratch.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="ray-train-", dir=self.scratch) as storage:
            trainer = TorchTrainer(
                partial(_call_measured, fn),
                train_loop_config=config,
                scaling_config=ScalingConfig(
                    num_workers=num_workers,
                    use_gpu=gpus > 0,
                    resources_per_worker={"CPU": self.threads_per_worker}
                    | ({"GPU": gpus} if gpus else {}),
                ),
                run_config=RunConfig(
                    storage_path=storage,
                    failure_config=FailureConfig(max_failures=MAX_DEATHS),
                ),
                torch_config=TorchConfig(
                    backend="nccl" if gpus else "gloo", timeout_s=GROUP_TIMEOUT_S
                ),
            )
            try:
                peak, result = _beside_main_thread(trainer.fit).return_value
            except TrainingFailedError as error:
                failures = getattr(error, "worker_failures", {}) or {"controller": error}
                reasons = (f"rank {r}: {str(e).strip()[:500]}" for r, e in failures.items())
                raise RuntimeError(
                    f"the group of {num_workers} failed {MAX_DEATHS + 1} times, at last with "
                    + "; ".join(reasons)
                ) from error
        self._see_peak(peak)
        return result  # type: ignore[no-any-return]

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


def _beside_main_thread(fn: Callable[[], R]) -> R:
    """Call `fn` in a thread of its own: in the main thread Ray Train would take Ctrl-C for itself
    and end the process as if all were well."""
    outcome: Future[R] = Future()

    def call() -> None:
        try:
            outcome.set_result(fn())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=call, daemon=True).start()
    return outcome.result()


def _call_measured(fn: Callable[[dict[str, Any]], R], config: dict[str, Any]) -> tuple[int, R]:
    """Return the peak memory of this rank, a process of its own, and what it returned."""
    result = fn(config)
    return read_peak(), result


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
