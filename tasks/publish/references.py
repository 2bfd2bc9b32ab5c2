"""References: how people name an artifact, `RECIPE[/EXPORT][@CHANNEL | @sha256:<12 or more hex>]`.

The default export is the recipe's first. Which that is, the store itself says: the resolved
recipe in the newest manifest that any export of the channel serves.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tasks.errors import StorageError
from tasks.publish.artifact import MANIFEST_NAME
from tasks.publish.channels import read_newest
from tasks.publish.manifest import AnyManifest, read_manifest
from tasks.publish.names import NAME, offer

if TYPE_CHECKING:
    from infra.storage import Store

DEFAULT_CHANNEL = "nightly"
MANIFEST_KEY = re.compile(rf"artifacts/({NAME})/({NAME})/([0-9a-f]{{64}})/{MANIFEST_NAME}")
PATTERN = re.compile(
    rf"(?P<recipe>{NAME})(/(?P<export>{NAME}))?"
    rf"(@(sha256:(?P<digest>[0-9a-f]{{12,64}})|(?P<channel>{NAME})))?"
)


@dataclass(frozen=True)
class Reference:
    recipe: str
    export: str | None
    """None: the recipe's first."""
    channel: str
    digest: str | None
    """First digits of an artifact's digest; the channel then does not matter."""


def parse_reference(text: str) -> Reference:
    """Raises: ValueError: it is none."""
    match = PATTERN.fullmatch(text)
    if match is None:
        raise ValueError(
            f"expected RECIPE[/EXPORT][@CHANNEL | @sha256:<12 or more hex digits>], got {text!r}"
        )
    channel = match["channel"] or DEFAULT_CHANNEL
    return Reference(match["recipe"], match["export"], channel, match["digest"])


def show(store: Store, text: str) -> AnyManifest:
    """Return the manifest of the artifact that a reference names.

    Raises:
        ValueError: the store has nothing of that name; the message lists what it has.
        StorageError: the channel names an artifact that is gone or damaged.
    """
    reference = parse_reference(text)
    if reference.digest:
        return find_digest(store, reference)
    if reference.export is None:
        return find_default(store, reference)
    found = read_served(store, reference.recipe, reference.export, reference.channel)
    if found is None:
        raise unknown(store, reference)
    return found


def find_channel(store: Store, text: str) -> tuple[str, str, str]:
    """Return the recipe, export and channel that a reference names, whatever it serves.

    Where the export is named, no manifest is read: a channel is rolled back because what it
    serves is damaged or gone.

    Raises:
        ValueError: nothing was ever published there, or it names an artifact and no channel.
    """
    reference = parse_reference(text)
    if reference.digest:
        raise ValueError(f"expected RECIPE[/EXPORT][@CHANNEL], a channel, got {text!r}")
    export = reference.export or find_default(store, reference).export
    if read_newest(store, reference.recipe, export, reference.channel) is None:
        raise unknown(store, reference)
    return reference.recipe, export, reference.channel


def find_default(store: Store, reference: Reference) -> AnyManifest:
    names = store.children(f"channels/{reference.recipe}")
    served = [read_served(store, reference.recipe, e, reference.channel) for e in names]
    manifests = {m.export: m for m in served if m is not None}
    if not manifests:
        raise unknown(store, reference)
    newest = max(manifests.values(), key=lambda manifest: manifest.provenance.created)
    default = first_export(newest)
    if default not in manifests:
        raise ValueError(
            f"{reference.recipe}@{reference.channel}: the first export, {default!r}, was never "
            f"published there; choose from {sorted(manifests)}"
        )
    return manifests[default]


def first_export(manifest: AnyManifest) -> str:
    """Return the name of the first export of the recipe that made an artifact."""
    try:
        return str(manifest.provenance.recipe["exports"][0]["name"])
    except (KeyError, IndexError, TypeError):
        raise StorageError(
            f"{manifest.prefix}/{MANIFEST_NAME}: provenance.recipe names no export",
            f"name the export: {manifest.recipe_name}/EXPORT",
        ) from None


def find_digest(store: Store, reference: Reference) -> AnyManifest:
    """Find an artifact by the first digits of its digest, in one export or in all."""
    scope = f"{reference.export}/{reference.digest}" if reference.export else ""
    keys = manifest_keys(store, f"artifacts/{reference.recipe}/{scope}")
    found = [key for key in keys if key[2].startswith(reference.digest or "")]
    if not found:
        raise unknown(store, reference)
    if len({digest for _, _, digest in found}) > 1:
        names = ", ".join(f"{export}@sha256:{digest}" for _, export, digest in found)
        raise ValueError(f"sha256:{reference.digest} could be any of {names}")
    return read_manifest(store, *found[0])


def read_served(store: Store, recipe: str, export: str, channel: str) -> AnyManifest | None:
    """Return the manifest of what a channel serves; None where nothing was ever published there.

    Raises:
        StorageError: it is gone, or damaged.
    """
    entry = read_newest(store, recipe, export, channel)
    if entry is None:
        return None
    try:
        return read_manifest(store, recipe, export, entry.digest)
    except StorageError as error:
        if not isinstance(error.__cause__, FileNotFoundError):
            raise
        where = f"{recipe}/{export}@{channel}"
        raise StorageError(
            f"{where} serves sha256:{entry.digest[:12]}, and the store has no such artifact any "
            f"more (entry {entry.n}, {entry.action} by {entry.by} at {entry.at})",
            f"`nightpress rollback {where} --why ...` serves the one before; `nightpress list` "
            "says which can be promoted",
        ) from None


def unknown(store: Store, reference: Reference) -> ValueError:
    """Say what is not there, and what there is instead."""
    name, export, channel = reference.recipe, reference.export, reference.channel
    recipes = store.children("artifacts")
    if name not in recipes:
        return ValueError(f"no artifacts of recipe {name!r} in {store.uri}; {offer(name, recipes)}")
    exports = store.children(f"artifacts/{name}")
    if export and export not in exports:
        return ValueError(f"{name} has no export {export!r}; {offer(export, exports)}")
    where = f"{name}/{export}" if export else name
    if reference.digest:
        found = manifest_keys(store, f"artifacts/{where}/")
        digests = [f"{e}@sha256:{digest[:12]}" for _, e, digest in found]
        return ValueError(
            f"{where} has no artifact sha256:{reference.digest}; {offer('', digests)}"
        )
    searched = [export] if export else exports
    channels = {c for e in searched for c in store.children(f"channels/{name}/{e}")}
    return ValueError(
        f"{where} has nothing on channel {channel!r}; {offer(channel, sorted(channels))}"
    )


def manifest_keys(store: Store, prefix: str) -> list[tuple[str, str, str]]:
    """(recipe, export, digest) of every whole artifact below a prefix."""
    matches = (MANIFEST_KEY.fullmatch(key) for key in store.list(prefix))
    return [(match[1], match[2], match[3]) for match in matches if match]
