"""Channels: which artifact of an export people run, as a history that only grows.

The n-th entry is the object `<99999999 - n>.json`, so the newest sorts first and reading the
channel is one listing of one key. Of two publishers that append the same entry, one wins.
"""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import takewhile
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn

from pydantic import BaseModel, ConfigDict, Field

from tasks.errors import StorageError
from tasks.publish.artifact import Sha256
from tasks.publish.documents import parse_document
from tasks.publish.manifest import AnyManifest, read_manifest

if TYPE_CHECKING:
    from infra.storage import Store

SCHEMA_VERSION = 1
LAST = 99_999_999
FOREIGN = "find out who wrote it; once the object is gone, the channel is as it was before"
Action = Literal["publish", "promote", "rollback"]


class ChannelEntry(BaseModel):
    """One change of what a channel serves."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    schema_version: int = SCHEMA_VERSION
    n: Annotated[int, Field(ge=1, lt=LAST)]
    """Position in the channel's history, from 1."""
    digest: Sha256
    """The artifact that the channel serves from here on."""
    previous: Sha256 | None
    """The artifact that it served until here."""
    action: Action
    by: str
    why: str
    at: str
    """UTC, ISO 8601."""


def channel_prefix(recipe_name: str, export: str, channel: str) -> str:
    return f"channels/{recipe_name}/{export}/{channel}/"


def read_newest(store: Store, recipe_name: str, export: str, channel: str) -> ChannelEntry | None:
    """Return what the channel says now; None where nothing was ever published there."""
    keys = store.list(channel_prefix(recipe_name, export, channel), limit=1)
    return parse_entry(store.read(keys[0]), keys[0]) if keys else None


def read_history(store: Store, recipe_name: str, export: str, channel: str) -> list[ChannelEntry]:
    """Return all entries, the newest first."""
    keys = store.list(channel_prefix(recipe_name, export, channel))
    return [parse_entry(data, key) for key, data in zip(keys, store.read_many(keys), strict=True)]


def read_turned_away(store: Store, recipe_name: str, export: str, channel: str) -> set[str]:
    """Return the artifacts that the channel was rolled back from and has served nothing since."""
    keys = store.list(channel_prefix(recipe_name, export, channel))
    newest_first = (parse_entry(store.read(key), key) for key in keys)
    rollbacks = takewhile(lambda entry: entry.action == "rollback", newest_first)
    return {entry.previous for entry in rollbacks if entry.previous}


def parse_entry(data: bytes, key: str) -> ChannelEntry:
    """Read an entry, and hold it against its place in the history.

    Raises:
        StorageError: it is none, or was written by a newer major version.
    """
    entry = parse_document(ChannelEntry, data, SCHEMA_VERSION, key, FOREIGN)
    if not key.endswith(f"/{entry_name(entry.n)}"):
        raise StorageError(f"{key} says that it is {entry_name(entry.n)}", FOREIGN)
    return entry


def entry_name(n: int) -> str:
    return f"{LAST - n:08d}.json"


def append_entry(
    store: Store,
    recipe_name: str,
    export: str,
    channel: str,
    newest: ChannelEntry | None,
    digest: str,
    action: Action,
    by: str,
    why: str,
) -> ChannelEntry | None:
    """Append behind `newest`; None, and nothing is changed, where somebody else was first."""
    entry = ChannelEntry(
        n=newest.n + 1 if newest else 1,
        digest=digest,
        previous=newest.digest if newest else None,
        action=action,
        by=by,
        why=why,
        at=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    key = f"{channel_prefix(recipe_name, export, channel)}{entry_name(entry.n)}"
    return entry if store.create(key, entry.model_dump_json(indent=1).encode()) else None


def promote(store: Store, manifest: AnyManifest, channel: str, by: str, why: str) -> ChannelEntry:
    """Make a channel serve an artifact that is in the store, whatever it served before.

    Raises:
        ValueError: it serves that one already.
        StorageError: somebody else changed the channel at the same moment.
    """
    name, export, digest = manifest.recipe_name, manifest.export, manifest.digest
    newest = read_newest(store, name, export, channel)
    if newest and newest.digest == digest:
        raise ValueError(f"{name}/{export}@{channel} serves sha256:{digest[:12]} already")
    entry = append_entry(store, name, export, channel, newest, digest, "promote", by, why)
    return entry or lost(name, export, channel)


def rollback(
    store: Store, recipe_name: str, export: str, channel: str, by: str, why: str
) -> ChannelEntry:
    """Make a channel serve again what it served before; again and again, further back each time.

    Raises:
        ValueError: there is nothing further back.
        StorageError: that artifact is gone, or somebody else changed the channel just now.
    """
    history = read_history(store, recipe_name, export, channel)
    served: list[str] = []
    for entry in reversed(history):
        if entry.action == "rollback":
            served = served[:-1]
        else:
            served.append(entry.digest)
    if len(served) < 2:
        raise ValueError(
            f"{recipe_name}/{export}@{channel} has no earlier artifact to roll back to; its "
            f"history has {len(history)} entries"
        )
    target = read_manifest(store, recipe_name, export, served[-2]).digest
    done = append_entry(
        store, recipe_name, export, channel, history[0], target, "rollback", by, why
    )
    return done or lost(recipe_name, export, channel)


def lost(recipe_name: str, export: str, channel: str) -> NoReturn:
    raise StorageError(
        f"{recipe_name}/{export}@{channel} was changed by somebody else at the same moment",
        "look at what it serves now, and decide again",
    )
