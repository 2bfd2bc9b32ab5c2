"""One process group under Ray Train: started, watched, and started again with who is there."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from infra.peak_memory import read_peak

R = TypeVar("R")

MAX_DEATHS = 3
"""Launches of a group that may fail before the stage gives up."""
RANK_TIMEOUT_S = 1800.0
"""Longest that one rank of a group waits for the others, as while they upload a checkpoint. A
rank that died is noticed at once."""


@dataclass(frozen=True)
class Group:
    """How many ranks, and what each of them gets."""

    num_workers: int
    min_workers: int
    """Fewest ranks that go on while others are lost. Where it is `num_workers`, lost ones are
    waited for."""
    num_cpus: int
    num_gpus: float
    rank_timeout_s: float
    only_node: bool
    """Whether the cluster is this machine alone, which nobody drains."""


def run_group(
    group: Group, fn: Callable[[dict[str, Any]], R], config: dict[str, Any], scratch: Path
) -> tuple[int, R]:
    """Run `fn(config)` on all ranks; return rank 0's peak memory in bytes and its result.

    Ray must have been joined. Ray Train's own checkpoints are not used: `fn` keeps its own, for
    whatever number of ranks goes on from them. A group that runs with fewer ranks is started
    again with more within a minute of their being there.

    Raises:
        RuntimeError: it failed more often than it may; the message says what each rank said.
    """
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    if group.only_node:  # saves a process
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchConfig, TorchTrainer

    elastic = group.min_workers < group.num_workers
    scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="ray-train-", dir=scratch) as storage:
        trainer = TorchTrainer(
            partial(_call_measured, fn),
            train_loop_config=config,
            scaling_config=ScalingConfig(
                num_workers=(group.min_workers, group.num_workers)
                if elastic
                else group.num_workers,
                use_gpu=group.num_gpus > 0,
                resources_per_worker={"CPU": group.num_cpus}
                | ({"GPU": group.num_gpus} if group.num_gpus else {}),
            ),
            run_config=RunConfig(
                storage_path=storage, failure_config=FailureConfig(max_failures=MAX_DEATHS)
            ),
            torch_config=TorchConfig(
                backend="nccl" if group.num_gpus else "gloo", timeout_s=group.rank_timeout_s
            ),
        )
        try:
            measured: tuple[int, R] = _beside_main_thread(trainer.fit).return_value
        except TrainingFailedError as error:
            failures = getattr(error, "worker_failures", {}) or {"controller": error}
            reasons = (f"rank {rank}: {last_words(each)}" for rank, each in failures.items())
            raise RuntimeError(
                f"the group of {group.num_workers} failed {MAX_DEATHS + 1} times, at last with "
                + "; ".join(reasons)
            ) from error
    return measured


def last_words(error: Exception) -> str:
    """Return what was raised on a rank; above it Ray has the traceback."""
    lines = str(error).strip().splitlines()
    begin = max((i for i, line in enumerate(lines) if line[:1].strip()), default=0)
    return "\n".join(lines[begin:])[:500]


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
