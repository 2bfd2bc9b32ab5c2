"""The manifest: what an artifact is, how it was made, and the evidence that it may be served.

It is written last and create-only, so that where there is a manifest, there is a whole artifact.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, ValidationError

from tasks.errors import StorageError
from tasks.publish.artifact import MANIFEST_NAME, Artifact, FileEntry, artifact_prefix
from tasks.publish.documents import parse_document, parse_json
from tasks.publish.load_check import LoadEvidence
from tasks.publish.provenance import Provenance
from tasks.quality_records import GateReport, Metrics
from tasks.records import ArtifactRef, CorpusRef, ModelRef
from tasks.run_records import CorpusStep, StageResult

if TYPE_CHECKING:
    from infra.storage import Store

SCHEMA_VERSION = 1
"""Goes up only when readers of the one before would go wrong; they ignore keys they don't know."""

DATA_SCHEMA_VERSION = 2
"""Of data sets: readers of version 1 know models alone."""


class Manifest(Artifact):
    """`manifest.json` of a model."""

    schema_version: int = SCHEMA_VERSION
    kind: Literal["model"] = "model"
    architecture: str
    num_parameters: Annotated[int, Field(ge=0, lt=2**63)]
    """Tied parameters counted once; packed codes count as the parameters they stand for."""
    facts: dict[str, str | int | float]
    """What the steps say of the model: shape, sparsity got, bits, ..."""
    metrics: Metrics
    gate: GateReport
    load_check: LoadEvidence


class DataManifest(Artifact):
    """`manifest.json` of a data set: the rows that a recipe's students learn from."""

    schema_version: int = DATA_SCHEMA_VERSION
    kind: Literal["dataset"] = "dataset"
    num_rows: Annotated[int, Field(ge=0, lt=2**63)]
    columns: dict[str, str]
    """Arrow's type by name."""
    corpus: CorpusRef
    """What was kept, what was dropped and why; its digest covers the packed blocks, too."""
    steps: list[CorpusStep]
    """What each source and labeller came to, before the filters."""


AnyManifest = Manifest | DataManifest


def make_manifest(
    provenance: Provenance,
    export: str,
    model: ModelRef,
    files: dict[str, FileEntry],
    metrics: Metrics,
    gate: GateReport,
    load_check: LoadEvidence,
    stages: list[StageResult],
    parent: str | None,
) -> Manifest:
    """Raises: StorageError: the folder is no longer what the model's record says."""
    try:
        return Manifest(
            recipe_name=provenance.recipe["name"],
            export=export,
            digest=model.digest,
            parent=parent,
            architecture=model.architecture,
            num_parameters=model.num_parameters,
            num_bytes=model.num_bytes,
            files=files,
            facts=model.facts,
            metrics=metrics,
            gate=gate,
            load_check=load_check,
            stages=stages,
            provenance=provenance,
        )
    except ValidationError as error:
        problem = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise StorageError(f"export {export!r} at {model.uri}: {problem}") from None


def parse_manifest(data: bytes, origin: str) -> AnyManifest:
    """Read a manifest of this major version, whatever keys a newer writer has added.

    Raises:
        StorageError: it is damaged, hostile, or newer than this reader; `origin` says which.
    """
    document = parse_json(data, origin)
    kind = document.get("kind", "model") if isinstance(document, dict) else "model"
    if kind == "dataset":
        return parse_document(DataManifest, data, DATA_SCHEMA_VERSION, origin)
    if kind != "model":
        raise StorageError(
            f"{origin} is of a kind that this reader does not know, expected model or dataset",
            "use a newer nightpress",
        )
    return parse_document(Manifest, data, SCHEMA_VERSION, origin)


def read_manifest(store: Store, recipe_name: str, export: str, digest: str) -> AnyManifest:
    return read_manifests(store, [(recipe_name, export, digest)])[0]


def read_model_manifest(store: Store, recipe_name: str, export: str, digest: str) -> Manifest:
    """Raises: StorageError: as `read_manifests`; it is not a model's."""
    manifest = read_manifest(store, recipe_name, export, digest)
    if not isinstance(manifest, Manifest):
        raise StorageError(
            f"{store.uri}/{manifest.prefix} is a data set, expected a model",
            f"name the export otherwise than {export!r}, or publish no data set of this recipe",
        )
    return manifest


def read_manifests(store: Store, artifacts: list[tuple[str, str, str]]) -> list[AnyManifest]:
    """Read manifests by (recipe, export, digest), and hold each against where it was found.

    Raises:
        StorageError: one is missing, or is another artifact's.
    """
    keys = [f"{artifact_prefix(*artifact)}/{MANIFEST_NAME}" for artifact in artifacts]
    try:
        found = store.read_many(keys)
    except FileNotFoundError as error:
        raise StorageError(f"no such artifact in the store: {error.filename}") from error
    manifests = []
    for key, data, artifact in zip(keys, found, artifacts, strict=True):
        manifest = parse_manifest(data, f"{store.uri}/{key}")
        if (manifest.recipe_name, manifest.export, manifest.digest) != artifact:
            raise StorageError(f"{store.uri}/{key} describes another artifact, {manifest.prefix}")
        manifests.append(manifest)
    return manifests


def artifact_ref(store: Store, manifest: Manifest) -> ArtifactRef:
    return ArtifactRef(
        recipe=manifest.recipe_name,
        export=manifest.export,
        digest=manifest.digest,
        uri=f"{store.uri}/{manifest.prefix}",
        num_parameters=manifest.num_parameters,
        num_bytes=manifest.num_bytes,
    )
