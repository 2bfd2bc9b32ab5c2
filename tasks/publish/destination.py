"""DEST on this machine: what it holds, and the hidden folder beside it that takes its place."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from infra.file_store import sync, temporary_file
from tasks.digests import digest_file, list_files
from tasks.publish.artifact import MANIFEST_NAME, FileEntry
from tasks.publish.manifest import parse_manifest


def write_manifest(folder: Path, data: bytes) -> None:
    """Put a manifest beside its files, in place of one that other bytes came with."""
    target = folder / MANIFEST_NAME
    if target.is_file() and not target.is_symlink() and target.read_bytes() == data:
        return
    with temporary_file(folder) as part:
        part.write_bytes(data)
        sync(part)
        part.replace(target)


def hidden_sibling(dest: Path, digest: str) -> Path:
    return dest.with_name(f".{dest.name}.{digest[:12]}.pull")


@contextmanager
def locked_folder(folder: Path) -> Iterator[Path]:
    """Hold a folder's lock, which stays with the folder when it is renamed.

    Raises:
        ValueError: something else than a folder has its name.
    """
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise ValueError(f"{folder} is not the folder of an earlier pull; move it away first")
    folder.mkdir(exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield folder
    finally:
        with suppress(OSError):
            folder.rmdir()  # only where nothing was pulled into it
        os.close(descriptor)


def pulled_digest(dest: Path) -> str | None:
    """Return the digest of the artifact that `dest` holds, None where it holds nothing.

    Raises:
        ValueError: there is something else there, or a pulled artifact that was changed.
    """
    if not dest.exists() and not dest.is_symlink():
        return None
    if dest.is_dir() and not dest.is_symlink() and not any(dest.iterdir()):
        return None
    problem = "it is not a pulled artifact"
    if dest.is_dir() and not dest.is_symlink() and (dest / MANIFEST_NAME).is_file():
        manifest = parse_manifest((dest / MANIFEST_NAME).read_bytes(), str(dest / MANIFEST_NAME))
        found = {path: (dest / path).stat().st_size for path in list_files(dest)}
        found.pop(MANIFEST_NAME)
        same = found == {path: entry.bytes for path, entry in manifest.files.items()}
        if same and all(holds(dest / path, entry) for path, entry in manifest.files.items()):
            return manifest.digest
        problem = f"its files are not those of sha256:{manifest.digest[:12]} any more"
    raise ValueError(f"{dest} exists and {problem}; give another DEST, or move it away first")


def holds(path: Path, entry: FileEntry) -> bool:
    """Whether a file is there, is no link, and has the right bytes."""
    return path.is_file() and not path.is_symlink() and digest_file(path) == entry.sha256


def place(folder: Path, dest: Path, replaced: str | None) -> None:
    """Rename a complete folder to `dest`; an older pull there takes a hidden name and goes."""
    if replaced is None:
        folder.rename(dest)
    else:
        old = hidden_sibling(dest, replaced)
        shutil.rmtree(old, ignore_errors=True)
        dest.rename(old)
        try:
            folder.rename(dest)
        except OSError:
            old.rename(dest)
            raise
        shutil.rmtree(old)
    sync(dest.parent)
