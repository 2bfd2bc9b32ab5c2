"""The nights of a recipe, read from `runs/`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tasks.records import RunRecord

if TYPE_CHECKING:
    from infra.storage import Store


def read_runs(store: Store, recipe_name: str) -> list[RunRecord]:
    """Return the records of all runs that came to an end, the newest first.

    Raises:
        ValueError: the recipe has none.
    """
    keys = [key for key in store.list(f"runs/{recipe_name}/") if key.endswith("/run.json")]
    if not keys:
        raise ValueError(f"no runs of recipe {recipe_name!r} in {store.uri}")
    records = [RunRecord.model_validate_json(data) for data in store.read_many(keys)]
    return sorted(records, key=lambda record: record.started, reverse=True)
