"""An artifact, whatever is in it: its place in the store, its files, and that they add up."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from tasks.digests import digest_file, digest_files, list_files
from tasks.publish.provenance import Provenance
from tasks.records import Record
from tasks.run_records import StageResult

MANIFEST_NAME = "manifest.json"

MAX_PATH_BYTES = 512
"""Of a file's path in UTF-8: a bucket's keys end at 1,024, and what stands before it is counted."""
MAX_NAME_BYTES = 255
"""Of each part of it, as of a file's name on common file systems."""

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class FileEntry(Record):
    sha256: Sha256
    bytes: Annotated[int, Field(ge=0, lt=2**63)]


class Artifact(BaseModel):
    """The part of a manifest that models and data sets share."""

    model_config = ConfigDict(frozen=True, extra="ignore", use_attribute_docstrings=True)

    recipe_name: str
    export: str
    digest: Sha256
    """sha256 of the lines `<sha256>  <path>` of all files, sorted by path."""
    parent: Sha256 | None
    """Digest of the artifact that the channel served when this one was made."""
    num_bytes: Annotated[int, Field(ge=0, lt=2**63)]
    """Sum over the files."""
    files: dict[str, FileEntry]
    """By relative path: all that a loader needs."""
    stages: list[StageResult]
    provenance: Provenance

    @field_validator("files")
    @classmethod
    def check_paths(cls, files: dict[str, FileEntry]) -> dict[str, FileEntry]:
        for path in files:
            check_relative(path)
        check_apart([MANIFEST_NAME, *files])
        return files

    @model_validator(mode="after")
    def check_digest(self) -> Artifact:
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
    plain = path.isprintable() and not {"\\", ":"} & set(path)
    if not plain or {"", ".", ".."} & set(parts) or path == MANIFEST_NAME:
        raise ValueError(f"file path {path!r} is not a plain relative path inside the artifact")
    longest = max(len(part.encode()) for part in parts)
    if len(path.encode()) > MAX_PATH_BYTES or longest > MAX_NAME_BYTES:
        raise ValueError(f"file path {path[:40]!r}... is longer than file systems hold")


def check_apart(paths: Iterable[str]) -> None:
    """Make sure that each path is a file of its own on every file system.

    Raises:
        ValueError: two are the same but for case or Unicode's normal form, or one is a folder of
            another.
    """
    files: dict[str, str] = {}
    folders: dict[str, str] = {}
    for path in paths:
        folded = unicodedata.normalize("NFC", path).casefold()
        if folded in files:
            raise ValueError(f"file paths {files[folded]!r} and {path!r} are one to some systems")
        files[folded] = path
        parts = folded.split("/")
        folders |= {"/".join(parts[:count]): path for count in range(1, len(parts))}
    for folder in files.keys() & folders.keys():
        raise ValueError(f"file path {files[folder]!r} is a folder of {folders[folder]!r}")


def list_entries(folder: Path) -> dict[str, FileEntry]:
    """Hash and measure a folder's files."""
    return {
        path: FileEntry(sha256=digest_file(folder / path), bytes=(folder / path).stat().st_size)
        for path in list_files(folder)
    }
