"""The nights of a recipe, read from `runs/`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from tasks.errors import StorageError
from tasks.publish.documents import parse_document
from tasks.publish.names import check_name, offer
from tasks.run_records import RunRecord

if TYPE_CHECKING:
    from infra.storage import Store

SCHEMA_VERSION = 1
DAMAGED = "repair the object or remove it; the other runs are as they were"


def read_runs(store: Store, recipe_name: str, most: int | None = None) -> list[RunRecord]:
    """Return the records of all runs that came to an end, the newest first.

    Args:
        most: Of the newest that are enough; None for all.

    Raises:
        ValueError: the recipe has none; the message says which have.
        StorageError: a record is damaged, or newer than this reader.
    """
    found = list(try_runs(store, check_name("recipe", recipe_name), most))
    if not found:
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
