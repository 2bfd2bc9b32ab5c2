"""Find what nothing names any more in a store, and delete it without harm to a night at work.

Only whole folders go: an artifact, or a stage's output under its key. What says that a folder is
whole (manifest.json, complete.json) goes first, so that nobody meets half of it as if it were all.
"""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal

from tasks.publish.artifact import MANIFEST_NAME
from tasks.publish.named import Named, read_named
from tasks.publish.names import NAME
from tasks.records import Record

if TYPE_CHECKING:
    from infra.storage import Store, StoredObject

MIN_AGE_S = 24 * 3600
"""Whatever was written later than this may be somebody's work in progress."""

FOLDERS = {
    "artifact": re.compile(rf"artifacts/{NAME}/{NAME}/[0-9a-f]{{64}}(?=/)"),
    "stage": re.compile(rf"stages/{NAME}/[0-9a-f]{{64}}(?=/)"),
}
"""What is deleted as one; keys of any other kind are left alone."""
HEADS = {"artifact": MANIFEST_NAME, "stage": "complete.json"}
NUM_THREADS = 8


class Keep(Record):
    """What is kept beside all that channels name."""

    runs: int = 14
    """Runs per recipe, the newest, whose artifacts and stages stay."""
    entries: int | None = None
    """Entries per channel, the newest, whose artifacts stay; None for all that were ever made."""
    stage_days: float = 14.0
    """Days since the last write into a stage's folder until it may go; a day at the least."""


class Removable(Record):
    """A folder that nothing names."""

    kind: Literal["artifact", "stage"]
    prefix: str
    num_objects: int
    num_bytes: int
    last_written: str
    """UTC, ISO 8601."""
    why: str


class Garbage(Record):
    """What gc found, or deleted."""

    deleted: bool
    folders: list[Removable]
    num_uploads: int
    """Uploads that were killed, and never became an object."""
    num_kept_artifacts: int
    num_kept_stages: int
    notes: list[str]

    @property
    def num_bytes(self) -> int:
        return sum(folder.num_bytes for folder in self.folders)


def find_garbage(store: Store, keep: Keep, now: float) -> Garbage:
    """Return what could be deleted, and delete nothing.

    Args:
        now: Seconds since the epoch.

    Raises:
        StorageError: a channel's entry, or a run's record, cannot be read.
    """
    named = read_named(store, keep.runs, keep.entries, now)
    folders: list[Removable] = []
    num_kept = {"artifact": 0, "stage": 0}
    for kind, pattern in FOLDERS.items():
        for prefix, objects in sorted(list_folders(store, kind, pattern).items()):
            found = judge(kind, prefix, objects, named, keep, now)
            if found:
                folders.append(found)
            else:
                num_kept[kind] += 1
    return Garbage(
        deleted=False,
        folders=folders,
        num_uploads=store.clear_uploads(MIN_AGE_S, dry_run=True),
        num_kept_artifacts=num_kept["artifact"],
        num_kept_stages=num_kept["stage"],
        notes=[
            f"a night of {recipe} is at work: its artifacts and all stages stay"
            for recipe in sorted(named.busy)
        ],
    )


def list_folders(
    store: Store, kind: str, pattern: re.Pattern[str]
) -> dict[str, dict[str, StoredObject]]:
    """Return the objects of every artifact, or of every stage, by the prefix of its folder."""
    folders: dict[str, dict[str, StoredObject]] = {}
    for key, found in store.objects(f"{kind}s").items():
        if match := pattern.match(key):
            folders.setdefault(match[0], {})[key] = found
    return folders


def judge(
    kind: str,
    prefix: str,
    objects: dict[str, StoredObject],
    named: Named,
    keep: Keep,
    now: float,
) -> Removable | None:
    """Return a folder with the reason why it may go; None where it stays."""
    newest = max(found.modified for found in objects.values())
    days = max(keep.stage_days, 1.0) if kind == "stage" else MIN_AGE_S / 86400
    if now - newest <= days * 86400:
        return None
    if kind == "stage":
        if prefix in named.stages or named.busy:
            return None
        why = f"in none of the last {keep.runs} runs, last written over {days:g} days ago"
    else:
        if prefix in named.artifacts or prefix.split("/")[1] in named.busy:
            return None
        whole = f"{prefix}/{MANIFEST_NAME}" in objects
        entries = (
            "on no channel"
            if keep.entries is None
            else (f"in none of the last {keep.entries} entries of a channel")
        )
        why = f"{entries} and in none of the last {keep.runs} runs"
        why = why if whole else f"never finished, no manifest; {why}"
    return Removable.model_validate(
        {
            "kind": kind,
            "prefix": prefix,
            "num_objects": len(objects),
            "num_bytes": sum(found.num_bytes for found in objects.values()),
            "last_written": datetime.fromtimestamp(newest, UTC).isoformat(timespec="seconds"),
            "why": why,
        }
    )


def delete_garbage(store: Store, garbage: Garbage, keep: Keep, now: float) -> Garbage:
    """Delete what was found, each folder only if it still may go at that moment.

    Returns:
        What was deleted; `notes` says what was not, and why.

    Raises:
        StorageError: as `find_garbage`.
    """
    witness = Witness(store, keep, now)
    deleted, notes = [], list(garbage.notes)
    for folder in garbage.folders:
        if delete_folder(store, folder, witness):
            deleted.append(folder)
        else:
            notes.append(f"{folder.prefix} is wanted again, and stays")
    num_uploads = store.clear_uploads(MIN_AGE_S)
    update = {"deleted": True, "folders": deleted, "num_uploads": num_uploads, "notes": notes}
    return garbage.model_copy(update=update)


class Witness:
    """Knows what must stay at this moment; reads it again when anything was appended."""

    def __init__(self, store: Store, keep: Keep, now: float) -> None:
        self.store = store
        self.keep = keep
        self.now = now
        self.seen: list[str] | None = None
        self.named = Named(set(), set(), set())

    def may_go(self, folder: Removable, objects: dict[str, StoredObject]) -> bool:
        seen = [key for root in ("channels/", "runs/", "leases/") for key in self.store.list(root)]
        if seen != self.seen:
            self.named = read_named(self.store, self.keep.runs, self.keep.entries, self.now)
            self.seen = seen
        return bool(judge(folder.kind, folder.prefix, objects, self.named, self.keep, self.now))


def delete_folder(store: Store, folder: Removable, witness: Witness) -> bool:
    """Delete a folder, its head first; False, and all of it is there, where it is wanted again."""
    objects = store.objects(folder.prefix)
    if not objects or not witness.may_go(folder, objects):
        return False
    head = f"{folder.prefix}/{HEADS[folder.kind]}"
    saved = store.read(head) if head in objects else None
    if saved is not None:
        store.delete(head)
        if not witness.may_go(folder, objects):  # somebody appended it while it was going
            store.create(head, saved)
            return False
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        list(pool.map(store.delete, sorted(set(objects) - {head})))
    return True
