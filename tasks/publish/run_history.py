"""The nights of a recipe, read from `runs/`."""

from __future__ import annotations

from typing import TYPE_CHECKING

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
    check_name("recipe", recipe_name)
    keys = [key for key in store.list(f"runs/{recipe_name}/") if key.endswith("/run.json")]
    if not keys:
        raise ValueError(
            f"no runs of recipe {recipe_name!r} in {store.uri}; "
            f"{offer(recipe_name, store.children('runs'))}"
        )
    newest = keys if most is None else keys[-most:]  # a run's id begins with its time
    records = [
        parse_document(RunRecord, data, SCHEMA_VERSION, f"{store.uri}/{key}", DAMAGED)
        for key, data in zip(newest, store.read_many(newest), strict=True)
    ]
    return sorted(records, key=lambda record: record.started, reverse=True)
