"""What is in a store: every whole artifact, and the channels that serve it.

A manifest never changes, so what it says is read once: `catalogue.json` keeps it for all who list
the store from then on. Which artifacts there are, and what channels serve, is always asked anew.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from tasks.errors import StorageError
from tasks.publish.artifact import MANIFEST_NAME, artifact_prefix
from tasks.publish.channels import read_newest
from tasks.publish.documents import parse_document
from tasks.publish.manifest import AnyManifest, Manifest, read_manifest
from tasks.publish.references import MANIFEST_KEY
from tasks.records import Record

if TYPE_CHECKING:
    from infra.storage import Store

INDEX = "catalogue.json"
SCHEMA_VERSION = 1
NUM_THREADS = 16


class Listing(Record):
    """An artifact in the store, in short."""

    recipe: str
    export: str
    digest: str
    channels: list[str]
    """Those that serve it now."""
    created: str
    num_bytes: int
    num_parameters: int | None = None
    """None, as nats_per_token, of a data set."""
    nats_per_token: float | None = None
    num_rows: int | None = None
    """None of a model."""

    @property
    def prefix(self) -> str:
        return artifact_prefix(self.recipe, self.export, self.digest)


class Index(BaseModel):
    """`catalogue.json`; whoever writes it last writes what they found."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    schema_version: int = SCHEMA_VERSION
    artifacts: list[Listing]
    """Without their channels."""


def list_artifacts(store: Store, recipe: str | None = None) -> list[Listing]:
    """List every whole artifact and the channels that serve it, each export's newest first.

    Raises:
        StorageError: a manifest that the index does not know, or a channel's entry, is damaged.
    """
    known: dict[str, Listing] = {}

    def find_exports(name: str) -> list[tuple[str, str]]:
        return [(name, export) for export in store.children(f"artifacts/{name}")]

    def find(key: tuple[str, str, str]) -> Listing | None:
        return known.get(artifact_prefix(*key)) or read_row(store, key)

    with ThreadPoolExecutor(NUM_THREADS) as pool:
        index = pool.submit(read_index, store)
        recipes = [recipe] if recipe else store.children("artifacts")
        exports = list(chain.from_iterable(pool.map(find_exports, recipes)))
        served = pool.map(partial(find_serving, store), exports)
        keys = list(chain.from_iterable(pool.map(partial(find_keys, store), exports)))
        known |= {row.prefix: row for row in index.result()}
        rows = [row for row in pool.map(find, keys) if row]
        serving = {prefix: names for found in served for prefix, names in found.items()}
    rows = [row.model_copy(update={"channels": serving.get(row.prefix, [])}) for row in rows]
    rows.sort(key=lambda row: row.created, reverse=True)
    return sorted(rows, key=lambda row: (row.recipe, row.export))


def find_keys(store: Store, export: tuple[str, str]) -> list[tuple[str, str, str]]:
    """Return (recipe, export, digest) of an export's artifacts, whole or not."""
    found = [(*export, digest) for digest in store.children("/".join(("artifacts", *export)))]
    return [
        key for key in found if MANIFEST_KEY.fullmatch(f"{artifact_prefix(*key)}/{MANIFEST_NAME}")
    ]


def find_serving(store: Store, export: tuple[str, str]) -> dict[str, list[str]]:
    """Return the channels of (recipe, export) by the prefix of what they serve."""
    serving: dict[str, list[str]] = {}
    for channel in store.children("/".join(("channels", *export))):
        if entry := read_newest(store, *export, channel):
            serving.setdefault(artifact_prefix(*export, entry.digest), []).append(channel)
    return serving


def read_row(store: Store, key: tuple[str, str, str]) -> Listing | None:
    """Read an artifact's manifest; None where there is none, as of an upload that was killed."""
    try:
        return describe_artifact(read_manifest(store, *key))
    except StorageError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        raise


def describe_artifact(manifest: AnyManifest) -> Listing:
    model = manifest if isinstance(manifest, Manifest) else None
    return Listing(
        recipe=manifest.recipe_name,
        export=manifest.export,
        digest=manifest.digest,
        channels=[],
        created=manifest.provenance.created,
        num_bytes=manifest.num_bytes,
        num_parameters=model.num_parameters if model else None,
        nats_per_token=model.metrics.nats_per_token if model else None,
        num_rows=None if isinstance(manifest, Manifest) else manifest.num_rows,
    )


def read_index(store: Store) -> list[Listing]:
    """Return what was known when the index was written; nothing where it cannot be read."""
    try:
        return parse_document(Index, store.read(INDEX), SCHEMA_VERSION, INDEX).artifacts
    except (FileNotFoundError, StorageError):
        return []


def write_index(store: Store, artifacts: Iterable[Listing]) -> None:
    rows = [row.model_copy(update={"channels": []}) for row in artifacts]
    store.write(INDEX, Index(artifacts=rows).model_dump_json().encode())
