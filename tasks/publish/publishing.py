"""Publish an export: load gate, files, manifest, channel, in this order: never half of it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from infra.storage import localize, put_folder
from tasks.digests import digest_file
from tasks.errors import QualityGateError, StorageError
from tasks.publish.artifact import MANIFEST_NAME, FileEntry, artifact_prefix, list_entries
from tasks.publish.channels import ChannelEntry, append_entry, read_newest, read_turned_away
from tasks.publish.load_check import Probe, check_loads
from tasks.publish.loader_process import LoaderProcess
from tasks.publish.manifest import (
    AnyManifest,
    Manifest,
    artifact_ref,
    make_manifest,
    parse_manifest,
    read_manifest,
    read_model_manifest,
)
from tasks.publish.model_card import write_model_card
from tasks.publish.provenance import Provenance
from tasks.publish.signing import sign_manifest
from tasks.quality_records import GateReport, Metrics
from tasks.records import ArtifactRef, ModelRef, Record
from tasks.run_records import StageResult

if TYPE_CHECKING:
    from infra.storage import Store

Regate = Callable[[ArtifactRef], GateReport]
"""Holds the candidate against another champion."""


class Release(Record):
    """An export that passed its gate, and all that its manifest will say of it."""

    export: str
    model: ModelRef
    metrics: Metrics
    gate: GateReport
    champion: str | None
    """Digest of the artifact that the gate held it against; None where the channel was empty."""
    stages: list[StageResult]
    """What was done, in order, from the corpus to this export's evaluation."""
    provenance: Provenance


class Publication(Record):
    artifact: ArtifactRef
    outcome: Literal["published", "unchanged", "held"]
    """`unchanged`: the channel serves it already. `held`: a person rolled the channel back from
    this very artifact, and only a person promotes it again."""


def publish_export(
    store: Store,
    release: Release,
    probe: Probe,
    report_html: str,
    channel: str,
    by: str,
    why: str,
    regate: Regate,
    loader: LoaderProcess | None = None,
    signing_key: Path | None = None,
) -> Publication:
    """Put an export into the store and make the channel serve it.

    An artifact that is in the store already is neither loaded nor uploaded again, but for files
    that have lost bytes there. A publisher that finds another champion than the one it was gated
    against is gated again.

    Args:
        probe: Held-out windows for the load gate.
        by: Who publishes, for the channel's history.
        loader: What loads it for the load gate; None is a process of its own.
        signing_key: PEM file of the ed25519 key that signs the manifest.

    Raises:
        ValueError: there is no such key in that file.
        CheckpointError: plain transformers does not load it, or gets other results from it.
        QualityGateError: it does not pass against a champion published in the meantime.
        StorageError: the store refuses it, or returned other bytes than were written.
    """
    assert release.gate.passed
    name, export, digest = release.provenance.recipe["name"], release.export, release.model.digest
    if is_stored(store, name, export, digest):
        manifest = read_model_manifest(store, name, export, digest)
        restore_files(store, manifest, release.model)
    else:
        manifest = upload(store, release, probe, report_html, loader, signing_key)
    outcome = advance_channel(store, manifest, release.champion, channel, by, why, regate)
    return Publication(artifact=artifact_ref(store, manifest), outcome=outcome)


def is_stored(store: Store, recipe_name: str, export: str, digest: str) -> bool:
    """Tell whether an artifact is in the store, whole: its manifest was written last."""
    return store.exists(f"{artifact_prefix(recipe_name, export, digest)}/{MANIFEST_NAME}")


def upload(
    store: Store,
    release: Release,
    probe: Probe,
    report_html: str,
    loader: LoaderProcess | None,
    signing_key: Path | None,
) -> Manifest:
    """Check that the model loads, then write the artifact."""
    folder = localize(store, release.model.uri)
    load_check = check_loads(folder, release.model, probe, trusts_code(release), loader)
    name = release.provenance.recipe["name"]
    prefix = artifact_prefix(name, release.export, release.model.digest)
    manifest = make_manifest(
        provenance=release.provenance,
        export=release.export,
        model=release.model,
        files=write_files(store, prefix, folder),
        metrics=release.metrics,
        gate=release.gate,
        load_check=load_check,
        stages=release.stages,
        parent=release.champion,
    )
    write_manifest(store, manifest, write_model_card(manifest, store.uri), report_html, signing_key)
    return read_model_manifest(store, manifest.recipe_name, manifest.export, manifest.digest)


def restore_files(store: Store, manifest: Manifest, model: ModelRef) -> None:
    """Upload again what is missing or has lost bytes since it was published, and nothing else."""
    prefix = f"{manifest.prefix}/files"
    stored = store.sizes(prefix)
    lost = {p: f for p, f in manifest.files.items() if stored.get(f"{prefix}/{p}") != f.bytes}
    folder = localize(store, model.uri) if lost else Path()
    for path, file in lost.items():
        if digest_file(folder / path) == file.sha256:
            store.put_file(folder / path, f"{prefix}/{path}")


def write_files(store: Store, prefix: str, folder: Path, place: str = "") -> dict[str, FileEntry]:
    """Upload an artifact's files, and hash them meanwhile.

    Args:
        prefix: Of the artifact.
        place: Of the folder among the files: empty, or ending in a slash.

    Returns:
        The files by their path.

    Raises:
        StorageError: they did not arrive, or others are there.
    """
    with ThreadPoolExecutor(1) as pool:
        hashed = pool.submit(list_entries, folder)
        try:
            put_folder(store, folder, f"{prefix}/files/{place}".rstrip("/"))
            stored = store.sizes(f"{prefix}/files")
        except OSError as error:
            raise StorageError(f"{store.uri}/{prefix} could not be written: {error}") from error
    files = {f"{place}{path}": entry for path, entry in hashed.result().items()}
    expected = {f"{prefix}/files/{path}": entry.bytes for path, entry in files.items()}
    if stored != expected:
        wrong = sorted(set(stored.items()) ^ set(expected.items()))[0][0]
        raise StorageError(f"{store.uri}/{wrong} is not what was uploaded")
    return files


def write_manifest(
    store: Store, manifest: AnyManifest, card: str, report_html: str, signing_key: Path | None
) -> None:
    """Write an artifact's card and report, and its manifest, which makes it whole.

    Raises:
        StorageError: the store refuses one, or returned another manifest than was written.
    """
    prefix = manifest.prefix
    try:
        store.write(f"{prefix}/README.md", card.encode())
        store.write(f"{prefix}/report.html", report_html.encode())
        data = manifest.to_json()
        if signing_key:
            data = sign_manifest(store, prefix, data, signing_key)
        created = store.create(f"{prefix}/{MANIFEST_NAME}", data)
        written = read_manifest(store, manifest.recipe_name, manifest.export, manifest.digest)
    except OSError as error:
        raise StorageError(f"{store.uri}/{prefix} could not be written: {error}") from error
    if created and written != parse_manifest(data, prefix):
        raise StorageError(f"{store.uri}/{prefix}/{MANIFEST_NAME} does not read back as written")


def trusts_code(release: Release) -> bool:
    """Tell whether the recipe lets Python files that come with a model run."""
    return bool(release.provenance.recipe["teacher"].get("trust_remote_code", False))


def advance_channel(
    store: Store,
    manifest: AnyManifest,
    gated_against: str | None,
    channel: str,
    by: str,
    why: str,
    regate: Regate | None,
) -> Literal["published", "unchanged", "held"]:
    """Append the artifact to its channel, gated against whatever stands there at that moment.

    Args:
        regate: None for what is not gated.
    """
    name, export, digest = manifest.recipe_name, manifest.export, manifest.digest
    entry: ChannelEntry | None = None
    while entry is None:
        newest = read_newest(store, name, export, channel)
        if newest and newest.digest == digest:
            return "unchanged"
        if digest in read_turned_away(store, name, export, channel):
            return "held"
        if regate and newest and newest.digest != gated_against:
            champion = read_model_manifest(store, name, export, newest.digest)
            report = regate(artifact_ref(store, champion))
            if not report.passed:
                reasons = "; ".join(check.reason for check in report.checks if check.reason)
                raise QualityGateError(
                    f"{name}/{export}: refused against the new champion "
                    f"sha256:{newest.digest[:12]} on {channel}: {reasons}"
                )
            gated_against = newest.digest
            why = f"{why}; gated again, against sha256:{newest.digest[:12]}"
        entry = append_entry(store, name, export, channel, newest, digest, "publish", by, why)
    return "published"
