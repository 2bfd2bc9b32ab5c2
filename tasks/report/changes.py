"""What differs between a night and the one before it that came to its end."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import yaml

from tasks.errors import QualityGateError
from tasks.evaluate.gate import paired_difference, read_evaluated
from tasks.quality_records import Difference
from tasks.report.earlier_nights import format_start
from tasks.report.report_data import Changes, ExportChange, ValueChange
from tasks.run_records import EvaluatedModel, RunRecord

if TYPE_CHECKING:
    from infra.storage import Store

ABSENT = "\N{EN DASH}"


def find_changes(
    store: Store, record: RunRecord, recipe: dict[str, Any], nights: list[RunRecord]
) -> Changes | None:
    """Hold a night against the last one that evaluated all its exports.

    Args:
        recipe: Resolved, as JSON values.
        nights: Earlier ones, the newest first.

    Returns:
        None where there is no such night.
    """
    ended_early = 0
    for before in nights:
        if before.exports:
            break
        ended_early += before.status in ("failed", "deadline", "cancelled")
    else:
        return None
    keys = {stage.title: stage.key for stage in before.stages}
    return Changes(
        started=format_start(before),
        num_ended_early=ended_early,
        exports=[
            change_export(store, export, old)
            for export in record.models
            for old in before.models
            if (export.kind, export.title) == ("export", old.title) and old.kind == "export"
        ],
        recipe=list_differences(read_recipe(store, before), recipe),
        data=list_differences(name_data(before), name_data(record)),
        other_stages=[s.title for s in record.stages if keys.get(s.title) != s.key],
        num_stages=len(record.stages),
    )


def change_export(store: Store, export: EvaluatedModel, before: EvaluatedModel) -> ExportChange:
    old, new = before.metrics, export.metrics
    return ExportChange(
        name=export.title,
        is_same=export.model.digest == before.model.digest,
        bytes_before=before.model.num_bytes,
        num_bytes=export.model.num_bytes,
        nats=compare(store, export, before) if old.protocol == new.protocol else None,
        speed=new.tokens_per_s / old.tokens_per_s
        if old.speed_protocol == new.speed_protocol and old.tokens_per_s
        else None,
    )


def compare(store: Store, export: EvaluatedModel, before: EvaluatedModel) -> Difference | None:
    """Pair two exports by document; None where the evidence was collected as garbage."""
    try:
        return paired_difference(
            read_evaluated(store, export.model, export.metrics),
            read_evaluated(store, before.model, before.metrics),
        )
    except (FileNotFoundError, QualityGateError, ValueError):
        return None


def read_recipe(store: Store, night: RunRecord) -> dict[str, Any]:
    try:
        found = yaml.safe_load(store.read(f"runs/{night.recipe}/{night.run_id}/recipe.yaml"))
    except (FileNotFoundError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}


def name_data(night: RunRecord) -> dict[str, str]:
    """Return digests, shortened, of what the recipe named that night."""
    teacher = {model.title: model.model.digest for model in night.models[:1]}
    return {name: digest[:12] for name, digest in (teacher | night.data).items()}


def list_differences(before: dict[str, Any], now: dict[str, Any]) -> list[ValueChange]:
    """Return the leaves that differ, by dotted key; nothing where either side is not known."""
    if not before or not now:
        return []
    old, new = dict(list_leaves(before)), dict(list_leaves(now))
    return [
        ValueChange(name=name, before=old.get(name, ABSENT), now=new.get(name, ABSENT))
        for name in [*new, *(name for name in old if name not in new)]
        if old.get(name) != new.get(name)
    ]


def list_leaves(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Walk a tree of JSON values; an empty branch is a leaf."""
    branches = value.items() if isinstance(value, dict) else enumerate(value)
    for key, branch in branches:
        inner = f"{name}.{key}" if name else str(key)
        if isinstance(branch, dict | list) and branch:
            yield from list_leaves(branch, inner)
        else:
            yield inner, "none" if branch is None else str(branch)
