"""The nights of a recipe, read from `runs/`."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal

from infra.lease import EXPIRY_S, is_gone, read_holder
from tasks.errors import StorageError
from tasks.publish.documents import parse_document
from tasks.publish.names import check_name, offer
from tasks.records import Record
from tasks.run_records import RunRecord

if TYPE_CHECKING:
    from infra.storage import Store

SCHEMA_VERSION = 1
RUN_ID = re.compile(r"\d{8}T\d{6}Z-[0-9a-f]{6}")
ID_TIME = "%Y%m%dT%H%M%SZ"
DAMAGED = "repair the object or remove it; the other runs are as they were"


class UnfinishedRun(Record):
    """A run that has begun and left no record of its end."""

    run_id: str
    started: str
    """UTC, ISO 8601."""
    status: Literal["running", "killed"]
    """`killed`: nobody holds its lease any more, and it wrote nothing when it ended; its store may
    also have refused to take it."""


def unfinished_runs(store: Store, recipe_name: str) -> list[UnfinishedRun]:
    """Return the runs that left their recipe and no record, the newest first."""
    unfinished = [run_id for run_id, has_ended in begun_runs(store, recipe_name) if not has_ended]
    holder = read_holder(store, f"leases/{recipe_name}") if unfinished else None
    if holder and (is_gone(holder) or abs(time.time() - holder.renewed) > EXPIRY_S):
        holder = None
    return [
        UnfinishedRun(
            run_id=run_id,
            started=begin_of(run_id).isoformat(),
            status="running" if holder and holder.run_id == run_id else "killed",
        )
        for run_id in unfinished
    ]


def killed_before(store: Store, recipe_name: str, run_id: str) -> UnfinishedRun | None:
    """Return the run before this one, which holds the lease, if that one was killed."""
    runs = begun_runs(store, recipe_name)
    before, has_ended = next((run for run in runs if run[0] < run_id), ("", True))
    if has_ended:
        return None
    started = begin_of(before).isoformat()
    return UnfinishedRun(run_id=before, started=started, status="killed")


def begun_runs(store: Store, recipe_name: str) -> list[tuple[str, bool]]:
    """Return (id, whether it left a record) of all runs that left their recipe, newest first."""
    keys = {tuple(key.split("/")[2:]) for key in store.list(f"runs/{recipe_name}/")}
    ids = sorted((key[0] for key in keys if key[1:] == ("recipe.yaml",)), reverse=True)
    return [(run_id, (run_id, "run.json") in keys) for run_id in ids if RUN_ID.fullmatch(run_id)]


def begin_of(run_id: str) -> datetime:
    """Return when a run began, which its id begins with."""
    return datetime.strptime(run_id.partition("-")[0], ID_TIME).replace(tzinfo=UTC)


def read_runs(store: Store, recipe_name: str, most: int | None = None) -> list[RunRecord]:
    """Return the records of all runs that came to an end, the newest first.

    Args:
        most: Of the newest that are enough; None for all.

    Raises:
        ValueError: the recipe has none, not even one under way; the message says which have.
        StorageError: a record is damaged, or newer than this reader.
    """
    found = list(try_runs(store, check_name("recipe", recipe_name), most))
    if not found and not store.list(f"runs/{recipe_name}/", limit=1):
        raise ValueError(
            f"no runs of recipe {recipe_name!r} in {store.uri}; "
            f"{offer(recipe_name, store.children('runs'))}"
        )
    for run in found:
        if isinstance(run, StorageError):
            raise run
    return [run for run in found if isinstance(run, RunRecord)]


def readable_runs(store: Store, recipe_name: str) -> list[RunRecord]:
    """Return the records that this version can read, the newest first."""
    return [run for run in try_runs(store, recipe_name) if isinstance(run, RunRecord)]


def try_runs(
    store: Store, recipe_name: str, most: int | None = None
) -> Iterator[RunRecord | StorageError]:
    """Yield the newest runs first, or in their places why one cannot be read."""
    keys = [key for key in store.list(f"runs/{recipe_name}/") if key.endswith("/run.json")]
    newest = keys[::-1][:most]  # a run's id begins with its time
    for key, data in zip(newest, store.read_many(newest), strict=True):
        try:
            yield parse_document(RunRecord, data, SCHEMA_VERSION, f"{store.uri}/{key}", DAMAGED)
        except StorageError as error:
            yield error
