"""Nights by themselves: the flow that a schedule starts, and the two ways to have it started."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from prefect import State, flow
from prefect.client.orchestration import get_client
from prefect.deployments.runner import RunnerDeployment
from prefect.exceptions import ObjectNotFound
from prefect.runner import Runner
from prefect.schedules import Cron
from prefect.settings import get_current_settings
from prefect.states import Completed
from prefect.types.entrypoint import EntrypointType

from flows.compress_model import compress_model
from flows.notifying import told_if_it_fails
from flows.preflight import preflight
from flows.stopping import DeadlineReached, NightSkipped
from infra.prefect_server import prefect_api
from infra.settings import Settings, quiet_environment, read_settings
from tasks.recipe import Recipe
from tasks.recipe_file import load_recipe
from tasks.recipe_resolution import resolve
from tasks.run_records import RunRecord

POOL_TYPE = "process"
END_TIMEOUT_S = 30.0
"""Longest that a night may take to free its workers when it is stopped."""


@flow(name="run nightly", flow_run_name="{recipe.name}", persist_result=False)
def run_nightly(recipe: Recipe) -> RunRecord | State[Any]:
    """Run one night of a recipe, which may come from a form: it is checked as one from a file."""
    quiet_environment(read_settings())
    with told_if_it_fails(recipe):
        recipe = resolve(recipe, Path.cwd())
    preflight(recipe)
    try:
        record = compress_model.fn(recipe)
    except NightSkipped as skipped:
        return Completed(name="Skipped", message=str(skipped))
    except DeadlineReached as reached:
        return Completed(name="Deadline", message=str(reached))
    if record.status in ("deadline", "refused"):
        return Completed(name=record.status.capitalize(), message=record.error, data=record)
    return record


@flow(name="run recipe file", flow_run_name="{path}", persist_result=False)
def run_recipe_file(path: str, overrides: list[str] | None = None) -> RunRecord | State[Any]:
    """Run one night of the recipe that a file holds by then.

    Args:
        overrides: As `--set` takes them: `a.b=value`.
    """
    return run_nightly.fn(load_recipe(Path(path), overrides))


def serve_recipe(recipe: Recipe) -> None:
    """Start nights when the schedule says so, until this process is stopped.

    Without PREFECT_API_URL Prefect's server is a part of this process, on a port of 127.0.0.1.

    Raises:
        ValueError: the recipe has no cron.
    """
    schedule = describe_schedule(recipe)
    home = read_settings().home / "serve"
    home.mkdir(parents=True, exist_ok=True)
    with prefect_api(home, schedules=True) as wait_until_up:
        wait_until_up()
        deployment = RunnerDeployment.from_flow(
            run_nightly,
            recipe.name,
            schedule=schedule,
            parameters=as_parameters(recipe),
            entrypoint_type=EntrypointType.MODULE_PATH,
        )
        runner = Runner()  # pauses the schedule when it ends
        runner.add_deployment(deployment)
        run_beside(runner)


def run_beside(runner: Runner) -> None:
    """Run Prefect's runner in a thread of its own until this one is interrupted.

    In the main thread it would take SIGTERM for itself, and kill a night rather than end it.
    """
    loop = asyncio.new_event_loop()
    work = loop.create_task(runner.start())

    def run() -> None:
        asyncio.set_event_loop(loop)
        with suppress(asyncio.CancelledError):
            loop.run_until_complete(work)

    thread = threading.Thread(target=run, name="runner", daemon=True)
    thread.start()
    try:
        thread.join()
    except KeyboardInterrupt:
        end_nights(END_TIMEOUT_S)
        loop.call_soon_threadsafe(work.cancel)
        thread.join(END_TIMEOUT_S)
        raise
    work.result()


def end_nights(timeout_s: float) -> None:
    """Ask the nights that this process has started to end, and wait until they have."""
    nights = list(find_nights())
    for pid in nights:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    end = time.monotonic() + timeout_s
    while time.monotonic() < end and set(nights) & set(find_nights()):
        time.sleep(0.1)


def find_nights() -> Iterator[int]:
    for children in Path("/proc/self/task").glob("*/children"):
        with suppress(FileNotFoundError, ProcessLookupError):
            for pid in children.read_text().split():
                if b"PREFECT__FLOW_RUN_ID=" in Path(f"/proc/{pid}/environ").read_bytes():
                    yield int(pid)


def deploy_recipe(recipe: Recipe, pool: str) -> str:
    """Register a recipe with Prefect's server, whose workers then run its nights.

    Returns:
        The deployment's name.

    Raises:
        ValueError: the recipe has no cron, no server is named, or it has no such work pool.
    """
    schedule = describe_schedule(recipe)
    if not get_current_settings().api.url:
        raise ValueError(
            "deploy needs a Prefect server that stays: set PREFECT_API_URL, for example to "
            "http://127.0.0.1:4200/api, or use `nightpress serve`, which needs none"
        )
    check_pool(pool)
    deployment = RunnerDeployment.from_flow(
        run_nightly,
        recipe.name,
        schedule=schedule,
        parameters=as_parameters(recipe),
        work_pool_name=pool,
        job_variables={"env": worker_environment(read_settings())},
        entrypoint_type=EntrypointType.MODULE_PATH,
    )
    deployment.apply()
    return deployment.full_name


def describe_schedule(recipe: Recipe) -> Cron:  # type: ignore[valid-type]
    if recipe.schedule.cron is None:
        raise ValueError(
            "schedule.cron: nothing says when nights begin; add for example "
            "schedule: {cron: '0 2 * * *', timezone: Europe/Berlin}"
        )
    return Cron(recipe.schedule.cron, timezone=recipe.schedule.timezone)


def check_pool(name: str) -> None:
    with get_client(sync_client=True) as client:
        try:
            pool = client.read_work_pool(name)
        except ObjectNotFound:
            raise ValueError(
                f"no work pool {name!r}; make it: prefect work-pool create --type process {name}"
            ) from None
    if pool.type != POOL_TYPE:
        raise ValueError(f"work pool {name!r}: expected type {POOL_TYPE}, got {pool.type}")


def as_parameters(recipe: Recipe) -> dict[str, Any]:
    return {"recipe": recipe.model_dump(mode="json")}


def worker_environment(settings: Settings) -> dict[str, str]:
    """A process worker runs each night in a new folder: its state has to be elsewhere."""
    store = settings.store_override
    return {"NIGHTPRESS_HOME": str(settings.home)} | ({"NIGHTPRESS_STORE": store} if store else {})
