"""References: how people name an artifact, `RECIPE[/EXPORT][@CHANNEL | @sha256:<12 or more hex>]`.

The default export is the recipe's first. Which that is, the store itself says: the resolved
recipe in the newest manifest that any export of the channel serves.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tasks.publish.artifact import MANIFEST_NAME, artifact_prefix
from tasks.publish.channels import read_newest
from tasks.publish.manifest import AnyManifest, Manifest, read_manifest, read_manifests
from tasks.records import Record

if TYPE_CHECKING:
    from infra.storage import Store

DEFAULT_CHANNEL = "nightly"
NAME = r"[a-z0-9][a-z0-9._-]{0,62}"
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


def find_default(store: Store, reference: Reference) -> AnyManifest:
    names = children(store, f"channels/{reference.recipe}/")
    served = [read_served(store, reference.recipe, e, reference.channel) for e in names]
    manifests = {m.export: m for m in served if m is not None}
    if not manifests:
        raise unknown(store, reference)
    newest = max(manifests.values(), key=lambda manifest: manifest.provenance.created)
    default = newest.provenance.recipe["exports"][0]["name"]
    if default not in manifests:
        raise ValueError(
            f"{reference.recipe}@{reference.channel}: the first export, {default!r}, was never "
            f"published there; choose from {sorted(manifests)}"
        )
    return manifests[default]


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
    entry = read_newest(store, recipe, export, channel)
    return read_manifest(store, recipe, export, entry.digest) if entry else None


def unknown(store: Store, reference: Reference) -> ValueError:
    """Say what is not there, and what there is instead."""
    recipes = children(store, "artifacts/")
    if reference.recipe not in recipes:
        return ValueError(f"no artifacts of recipe {reference.recipe!r} in {store.uri}; {recipes}")
    exports = children(store, f"artifacts/{reference.recipe}/")
    if reference.export and reference.export not in exports:
        return ValueError(f"{reference.recipe} has no export {reference.export!r}; {exports}")
    if reference.digest:
        return ValueError(f"{reference.recipe} has no artifact sha256:{reference.digest}")
    channels = sorted(
        {c for e in exports for c in children(store, f"channels/{reference.recipe}/{e}/")}
    )
    return ValueError(
        f"{reference.recipe} has nothing on channel {reference.channel!r}; {channels}"
    )


def children(store: Store, prefix: str) -> list[str]:
    """Names directly below a prefix."""
    return sorted({key.removeprefix(prefix).split("/")[0] for key in store.list(prefix)})


def manifest_keys(store: Store, prefix: str) -> list[tuple[str, str, str]]:
    """(recipe, export, digest) of every whole artifact below a prefix."""
    keys: Iterable[list[str]] = (key.split("/") for key in store.list(prefix))
    return [
        (parts[1], parts[2], parts[3])
        for parts in keys
        if len(parts) == 5 and parts[4] == MANIFEST_NAME
    ]


def list_artifacts(store: Store, recipe: str | None = None) -> list[Listing]:
    """List every whole artifact and the channels that serve it, each export's newest first."""
    found = manifest_keys(store, f"artifacts/{recipe}/" if recipe else "artifacts/")
    serving: dict[str, list[str]] = {}
    for name, export in sorted({(name, export) for name, export, _ in found}):
        for channel in children(store, f"channels/{name}/{export}/"):
            entry = read_newest(store, name, export, channel)
            if entry:
                prefix = artifact_prefix(name, export, entry.digest)
                serving.setdefault(prefix, []).append(channel)
    manifests = read_manifests(store, found)
    manifests.sort(key=lambda m: m.provenance.created, reverse=True)
    manifests.sort(key=lambda m: (m.recipe_name, m.export))
    return [describe_artifact(m, serving.get(m.prefix, [])) for m in manifests]


def describe_artifact(manifest: AnyManifest, channels: list[str]) -> Listing:
    model = manifest if isinstance(manifest, Manifest) else None
    return Listing(
        recipe=manifest.recipe_name,
        export=manifest.export,
        digest=manifest.digest,
        channels=channels,
        created=manifest.provenance.created,
        num_bytes=manifest.num_bytes,
        num_parameters=model.num_parameters if model else None,
        nats_per_token=model.metrics.nats_per_token if model else None,
        num_rows=None if isinstance(manifest, Manifest) else manifest.num_rows,
    )
