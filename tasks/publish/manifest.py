"""The manifest: what an artifact is, how it was made, and the evidence that it may be served.

It is written last and create-only, so that where there is a manifest, there is a whole artifact.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from tasks.digests import digest_file, digest_files, list_files
from tasks.errors import StorageError
from tasks.publish.load_check import LoadEvidence
from tasks.publish.provenance import Provenance
from tasks.records import ArtifactRef, GateReport, Metrics, ModelRef, Record, StageResult

if TYPE_CHECKING:
    from infra.storage import Store

SCHEMA_VERSION = 1
"""Goes up only when readers of the one before would go wrong; they ignore keys they don't know."""

MANIFEST_NAME = "manifest.json"

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class FileEntry(Record):
    sha256: Sha256
    bytes: Annotated[int, Field(ge=0)]


class Manifest(BaseModel):
    """`manifest.json` of an artifact."""

    model_config = ConfigDict(frozen=True, extra="ignore", use_attribute_docstrings=True)

    schema_version: int = SCHEMA_VERSION
    recipe_name: str
    export: str
    digest: Sha256
    """sha256 of the lines `<sha256>  <path>` of all files, sorted by path."""
    parent: Sha256 | None
    """Digest of the artifact that the channel served when this one was made."""
    architecture: str
    num_parameters: int
    """Tied parameters counted once; packed codes count as the parameters they stand for."""
    num_bytes: int
    """Sum over the files."""
    files: dict[str, FileEntry]
    """By relative path: weights, config, tokenizer and what else a loader needs."""
    facts: dict[str, str | int | float]
    """What the steps say of the model: shape, sparsity got, bits, ..."""
    metrics: Metrics
    gate: GateReport
    load_check: LoadEvidence
    stages: list[StageResult]
    provenance: Provenance

    @field_validator("files")
    @classmethod
    def check_paths(cls, files: dict[str, FileEntry]) -> dict[str, FileEntry]:
        for path in files:
            check_relative(path)
        return files

    @model_validator(mode="after")
    def check_digest(self) -> Manifest:
        if self.digest != digest_files({path: f.sha256 for path, f in self.files.items()}):
            raise ValueError("the files' digests do not add up to the artifact's")
        if self.num_bytes != sum(entry.bytes for entry in self.files.values()):
            raise ValueError("the files' bytes do not add up to num_bytes")
        return self

    @property
    def prefix(self) -> str:
        return artifact_prefix(self.recipe_name, self.export, self.digest)

    def to_json(self) -> bytes:
        return self.model_dump_json(indent=1).encode()


def artifact_prefix(recipe_name: str, export: str, digest: str) -> str:
    return f"artifacts/{recipe_name}/{export}/{digest}"


def check_relative(path: str) -> None:
    """Raises: ValueError: the path could lead out of the folder that it is to be written into."""
    parts = path.split("/")
    inside = not ({"", ".", ".."} & set(parts)) and not any(c in path for c in "\\\0:")
    if not inside or PurePosixPath(path).is_absolute() or path == MANIFEST_NAME:
        raise ValueError(f"file path {path!r} is not a plain relative path inside the artifact")


def list_entries(folder: Path) -> dict[str, FileEntry]:
    """Hash and measure a model folder's files."""
    return {
        path: FileEntry(sha256=digest_file(folder / path), bytes=(folder / path).stat().st_size)
        for path in list_files(folder)
    }


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


def parse_manifest(data: bytes, origin: str) -> Manifest:
    """Read a manifest of this major version, whatever keys a newer writer has added.

    Raises:
        StorageError: it is damaged, hostile, or newer than this reader; `origin` says which.
    """
    try:
        manifest = Manifest.model_validate_json(data, extra="ignore")
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        raise StorageError(f"{origin}: {f'{where}: ' if where else ''}{message}") from None
    if manifest.schema_version > SCHEMA_VERSION:
        raise StorageError(
            f"{origin} has schema version {manifest.schema_version}, this reader knows "
            f"{SCHEMA_VERSION}",
            "use a newer nightpress",
        )
    return manifest


def read_manifest(store: Store, recipe_name: str, export: str, digest: str) -> Manifest:
    return read_manifests(store, [(recipe_name, export, digest)])[0]


def read_manifests(store: Store, artifacts: list[tuple[str, str, str]]) -> list[Manifest]:
    """Read manifests by (recipe, export, digest), and hold each against where it was found.

    Raises:
        StorageError: one is missing, or is another artifact's.
    """
    keys = [f"{artifact_prefix(*artifact)}/{MANIFEST_NAME}" for artifact in artifacts]
    try:
        found = store.read_many(keys)
    except FileNotFoundError as error:
        raise StorageError(f"no such artifact in the store: {error.filename}") from None
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
