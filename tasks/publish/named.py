"""What must stay in a store: all that a channel, one of the last runs, or a night at work names."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from infra.lease import is_gone, read_holder
from tasks.errors import StorageError
from tasks.publish.artifact import artifact_prefix
from tasks.publish.channels import parse_entry

if TYPE_CHECKING:
    from infra.storage import Store

AT_WORK_S = 24 * 3600
"""A lease that was not renewed for so long is nobody's, whatever the clocks say."""


class Named(NamedTuple):
    artifacts: set[str]
    """Prefixes `artifacts/<recipe>/<export>/<digest>`."""
    stages: set[str]
    """Prefixes `stages/<stage>/<key>`."""
    busy: set[str]
    """Recipes whose night is at work."""


class Loose(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class EndedStage(Loose):
    stage: str
    key: str


class EndedArtifact(Loose):
    digest: str


class EndedExport(Loose):
    export: str
    artifact: EndedArtifact | None


class EndedRun(Loose):
    """The part of `run.json` that names anything, whatever version wrote the rest."""

    stages: list[EndedStage]
    exports: list[EndedExport]


def read_named(store: Store, keep_runs: int, keep_entries: int | None, now: float) -> Named:
    """Read what must stay.

    Args:
        keep_runs: Runs per recipe, the newest, whose artifacts and stages are named.
        keep_entries: Entries per channel, the newest, whose artifacts are named; None for all.
        now: Seconds since the epoch.

    Raises:
        StorageError: something cannot be read, so that nobody knows what it names.
    """
    named = Named(read_served(store, keep_entries), set(), read_busy(store, now))
    ended: dict[str, list[str]] = {}
    for key in store.list("runs/"):
        parts = key.split("/")
        if len(parts) == 4 and parts[3] == "run.json":
            ended.setdefault(parts[1], []).append(key)
    for recipe, keys in ended.items():
        kept = sorted(keys, reverse=True)[:keep_runs]  # a run's id begins with its start
        for key, data in zip(kept, store.read_many(kept), strict=True):
            try:
                run = EndedRun.model_validate_json(data)
            except ValidationError:
                raise unreadable(store, key) from None
            named.stages.update(f"stages/{stage.stage}/{stage.key}" for stage in run.stages)
            named.artifacts.update(
                artifact_prefix(recipe, export.export, export.artifact.digest)
                for export in run.exports
                if export.artifact
            )
    return named


def read_served(store: Store, keep_entries: int | None) -> set[str]:
    """Return the artifacts that the entries of all channels name, or the newest of each."""
    channels: dict[str, list[str]] = {}
    for key in store.list("channels/"):
        folder, _, _ = key.rpartition("/")
        if folder.count("/") == 3:
            channels.setdefault(folder, []).append(key)
    keys = [key for found in channels.values() for key in found[:keep_entries]]
    served = set()
    for key, data in zip(keys, store.read_many(keys), strict=True):
        _, recipe, export, _, _ = key.split("/")
        try:
            entry = parse_entry(data, key)
        except StorageError as error:
            raise unreadable(store, key) from error
        served.add(artifact_prefix(recipe, export, entry.digest))
    return served


def read_busy(store: Store, now: float) -> set[str]:
    """Return the recipes whose lease is held, by somebody who may be alive."""
    busy = set()
    for key, found in store.objects("leases").items():
        folder, _, _ = key.rpartition("/")
        if now - found.modified < AT_WORK_S and folder.count("/") == 1:
            holder = read_holder(store, folder)
            if holder and not is_gone(holder):
                busy.add(folder.removeprefix("leases/"))
    return busy


def unreadable(store: Store, key: str) -> StorageError:
    return StorageError(
        f"{store.uri}/{key} cannot be read, so what it names is not known; nothing is deleted",
        "use the nightpress that wrote it, or repair or remove the object",
    )
