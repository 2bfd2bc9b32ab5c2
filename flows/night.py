"""A run at work: its store, its workers, and the one Prefect task that all stages are.

Whether a stage is a hit is decided by its completion record in the store and by nothing else;
Prefect is told, and keeps no second truth.
"""

from __future__ import annotations

import errno
import json
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any, TypeVar

import httpx
import yaml
from prefect import State, Task, task
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import TaskRun
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from prefect.states import Completed

from flows.costs import cost_of
from flows.operations import count_operations
from flows.progress import Reporter, make_reporter
from flows.stopping import (
    GRACE_S,
    Deadline,
    StoppableExecutor,
    check_turn,
    find_deadline,
    give_back,
    take_turn,
)
from infra.ray_cluster import RayExecutor
from infra.settings import Settings, read_settings
from infra.storage import Store, open_store
from tasks.errors import ClusterError, StorageError
from tasks.publish.loader_process import LoaderProcess
from tasks.recipe import Recipe
from tasks.records import Record
from tasks.run_records import StageResult
from tasks.stage import Completion, Stage, clear_scratch, run_stage
from tasks.stage_space import Executor

T = TypeVar("T", bound=Record)

PROGRESS_STEPS = 10
"""Updates of a stage's progress in Prefect's UI; each is a request to its API."""


@dataclass
class Night:
    """What a run works with: the store, the workers, and the stages done so far."""

    store: Store
    executor: Executor
    settings: Settings
    reporter: Reporter
    run_id: str
    """`<UTC>-<id>`, the folder below runs/<recipe>/."""
    started: str
    """UTC, ISO 8601."""
    began: float
    """time.monotonic() at the start."""
    deadline: Deadline
    free_workers: Callable[[], None]
    """Gives all CPUs and GPUs back, also those of a training that was left in its middle."""
    loader: LoaderProcess
    """For the load gate; it runs from its first use on."""
    recipe: Recipe
    results: list[StageResult] = field(default_factory=list)

    def complete(self, title: str, stage: Stage, record_type: type[T]) -> T:
        """Return the stage's record; on a miss, compute it first."""
        state: State[Any] = stage_task.with_options(name=stage.name)(
            self, title, stage, return_state=True
        )
        completion = state.result()
        assert isinstance(completion, Completion)
        effort, operations = completion.effort, count_operations(stage)
        self.results.append(
            StageResult(
                title=title,
                stage=stage.name,
                key=stage.key,
                outcome="cached" if state.name == "Cached" else "computed",
                seconds=completion.seconds,
                nodes=completion.nodes,
                peak_bytes=completion.peak_bytes,
                operations=sum(operations.values()) if operations else None,
                operations_by_group=operations,
                effort=effort,
                cost=cost_of(self.recipe, completion.seconds, effort) if effort else None,
            )
        )
        return record_type(**completion.record)

    @property
    def seconds(self) -> float:
        return round(time.monotonic() - self.began, 1)


@contextmanager
def open_night(recipe: Recipe) -> Iterator[Night]:
    """Open the store and, at first use, the cluster; close them whatever happens.

    The resolved recipe is written to the store at once, so that a night that was killed is seen.

    Raises:
        NightSkipped: another night of the recipe runs, and this one is not to wait.
        DeadlineReached: while it was waiting.
    """
    deadline = find_deadline(recipe)
    settings = read_settings()
    clear_scratch(settings.scratch)
    store = open_store(settings.store_uri(recipe.publish.store), settings.home / "cache")
    cluster = RayExecutor(
        recipe.cluster.ray,
        recipe.cluster.workers,
        recipe.cluster.gpus_per_worker,
        recipe.cluster.threads_per_worker,
        settings.scratch,
        recipe.cluster.min_workers,
        recipe.cluster.rank_timeout_s,
    )
    now = datetime.now(UTC)
    run_id = f"{now:%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex[:6]}"
    started = now.isoformat(timespec="seconds")
    lease = take_turn(recipe, store, run_id, deadline)
    night = Night(
        store,
        StoppableExecutor(cluster, deadline, partial(check_turn, lease, deadline)),
        settings,
        make_reporter(),
        run_id,
        started,
        time.monotonic(),
        deadline,
        cluster.close,
        LoaderProcess(),
        recipe,
    )
    resolved = yaml.safe_dump(json.loads(recipe.model_dump_json()), sort_keys=False)
    try:
        store.write(f"runs/{recipe.name}/{run_id}/recipe.yaml", resolved.encode())
        yield night
    finally:
        night.reporter.close()
        night.loader.close()
        cluster.close()
        give_back(lease)


def is_passing(task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
    """Retry only what may pass by itself: a store or a cluster that did not answer."""
    error = state.result(raise_on_failure=False)
    if isinstance(error, OSError):
        return error.errno not in (errno.ENOSPC, errno.ENOENT, errno.EACCES)
    return isinstance(error, StorageError | ClusterError)


RETRIES: Any = {
    "retries": 2,
    "retry_delay_seconds": [5, 30],
    "retry_condition_fn": is_passing,
}
"""Arguments of every task's decorator."""


@task(task_run_name="{title}", cache_policy=NO_CACHE, persist_result=False, **RETRIES)
def stage_task(night: Night, title: str, stage: Stage) -> Completion | State[Completion]:
    night.reporter.begin(title)
    progress = UiProgress(night.reporter, title)
    with night.deadline.enforced(GRACE_S):
        completion, cached = run_stage(
            stage, night.store, night.executor, progress, night.settings.scratch
        )
    outcome = "cached" if cached else "computed"
    night.reporter.end(title, outcome, completion.seconds)
    return Completed(name="Cached", data=completion) if cached else completion


class UiProgress:
    """Passes units done on to the reporter, and now and then to Prefect's UI.

    A server that does not answer is asked once, and no more in this stage: to show progress is
    not worth a second of a night's workers.
    """

    def __init__(self, reporter: Reporter, title: str) -> None:
        self.reporter = reporter
        self.title = title
        self.artifact: Any = None
        self.shown = 0
        self.is_heard = True

    def __call__(self, done: int, total: int) -> None:
        self.reporter.update(done, total)
        step = PROGRESS_STEPS * done // max(total, 1)
        if self.is_heard and (self.artifact is None or step > self.shown):
            self.shown = step
            try:
                with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}):
                    self._show(100.0 * done / max(total, 1))
            except httpx.HTTPError:
                self.is_heard = False

    def _show(self, percent: float) -> None:
        if self.artifact is None:
            self.artifact = create_progress_artifact(progress=percent, description=self.title)
        else:
            update_progress_artifact(self.artifact, progress=percent)
