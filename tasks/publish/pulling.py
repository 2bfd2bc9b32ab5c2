"""Pull an artifact: into a hidden sibling of DEST, every digest checked, renamed into place.

The hidden folder is named by the artifact's digest, so an interrupted pull goes on where it
stopped. A folder lock keeps two pulls of the same artifact apart.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from infra.file_store import sync, temporary_file
from tasks.errors import StorageError
from tasks.publish.artifact import MANIFEST_NAME, FileEntry
from tasks.publish.destination import (
    hidden_sibling,
    holds,
    locked_folder,
    place,
    pulled_digest,
    write_manifest,
)
from tasks.publish.manifest import AnyManifest, parse_manifest
from tasks.publish.references import show
from tasks.publish.signing import check_signature, load_verify_key

if TYPE_CHECKING:
    from infra.storage import Store

REPUBLISH = "the object is damaged; roll the channel back, or publish it again"

Progress = Callable[[int, int], None]
"""Called with bytes in place and bytes in all."""


def pull(
    store: Store,
    reference: str,
    dest: Path,
    num_threads: int = 8,
    progress: Progress = lambda done, total: None,
    verify_key: Path | None = None,
) -> AnyManifest:
    """Make `dest` the folder of files that a reference names, with its manifest.json.

    A `dest` that holds this artifact already is left alone; an older pull is replaced, provided
    that every file in it is still as it was pulled.

    Args:
        verify_key: PEM file of the ed25519 public key that must have signed the manifest.

    Raises:
        ValueError: the reference names nothing, or `dest` holds anything else.
        StorageError: the store's bytes are not those of the manifest, could not be had, or are
            not signed as asked; `dest` is then as it was before.
    """
    key = load_verify_key(verify_key) if verify_key else None
    manifest = show(store, reference)
    data = read_again(store, manifest)
    if key:
        check_signature(store, manifest.prefix, data, key)
    dest = dest.absolute()
    dest.parent.mkdir(parents=True, exist_ok=True)
    with locked_folder(hidden_sibling(dest, manifest.digest)) as folder:
        there = pulled_digest(dest)
        if there == manifest.digest:
            shutil.rmtree(folder, ignore_errors=True)
            write_manifest(dest, data)
            return manifest
        try:
            folder.mkdir(exist_ok=True)
            download(store, manifest, folder, num_threads, progress)
            write_manifest(folder, data)
            place(folder, dest, there)
        except StorageError:  # of what is wrong nothing is kept; of what broke off, all
            shutil.rmtree(folder, ignore_errors=True)
            raise
        except OSError as error:
            raise StorageError(
                f"{store.uri}/{manifest.prefix} could not be pulled: {error}",
                "the same command goes on from there",
            ) from error
    return manifest


def check_stored(store: Store, manifest: AnyManifest, paths: list[str]) -> None:
    """Hold the store's listing against the manifest before the first byte is fetched.

    Raises:
        StorageError: a file is missing, or larger or smaller than the manifest says.
    """
    stored = store.sizes(f"{manifest.prefix}/files")
    for path in paths:
        key, expected = f"{manifest.prefix}/files/{path}", manifest.files[path].bytes
        if stored.get(key) != expected:
            got = f"{stored[key]:,}" if key in stored else "no such object"
            raise StorageError(
                f"{store.uri}/{key}: expected {expected:,} bytes, got {got}", REPUBLISH
            )


def check_space(folder: Path, num_bytes: int) -> None:
    """Raises: OSError: the disk of a folder cannot take so many bytes more."""
    free = shutil.disk_usage(folder).free
    if num_bytes > free:
        raise OSError(
            errno.ENOSPC, f"{num_bytes:,} bytes are to come, and {free:,} are free", str(folder)
        )


def read_again(store: Store, manifest: AnyManifest) -> bytes:
    """Return a manifest's own bytes, which are what is signed, and what lies beside the files.

    Raises:
        StorageError: it was changed since it was read.
    """
    where = f"{manifest.prefix}/{MANIFEST_NAME}"
    data = store.read(where)
    if parse_manifest(data, f"{store.uri}/{where}") != manifest:
        raise StorageError(f"{store.uri}/{where} changed while it was read", "pull again")
    return data


def download(
    store: Store, manifest: AnyManifest, folder: Path, num_threads: int, progress: Progress
) -> None:
    """Fill a folder with the manifest's files, keeping those that are there and right."""
    wanted = {*manifest.files, MANIFEST_NAME}
    for path in list(folder.rglob("*")):
        stray = path.is_file() and path.relative_to(folder).as_posix() not in wanted
        if stray or path.is_symlink():
            path.unlink()
    files = manifest.files

    def holds_path(path: str) -> bool:
        return holds(folder / path, files[path])

    def fetch(path: str) -> int:
        fetch_file(store, f"{manifest.prefix}/files/{path}", folder / path, files[path])
        return files[path].bytes

    with ThreadPoolExecutor(max_workers=num_threads) as pool:
        there = list(pool.map(holds_path, files))
        missing = [path for path, held in zip(files, there, strict=True) if not held]
        check_stored(store, manifest, missing)
        num_missing = sum(files[path].bytes for path in missing)
        check_space(folder, num_missing)
        done = manifest.num_bytes - num_missing
        progress(done, manifest.num_bytes)
        for num_bytes in pool.map(fetch, missing):
            done += num_bytes
            progress(done, manifest.num_bytes)


def fetch_file(store: Store, key: str, target: Path, entry: FileEntry) -> None:
    """Raises: StorageError: the object has other bytes than were published."""
    with temporary_file(target.parent) as part:
        digest, num_bytes = store.get_file(key, part), part.stat().st_size
        if (num_bytes, digest) != (entry.bytes, entry.sha256):
            raise StorageError(
                f"{store.uri}/{key}: expected {entry.bytes:,} bytes with sha256 "
                f"{entry.sha256[:12]}..., got {num_bytes:,} with {digest[:12]}...",
                REPUBLISH,
            )
        sync(part)
        part.replace(target)
