"""Pull an artifact: into a hidden sibling of DEST, every digest checked, renamed into place.

The hidden folder is named by the artifact's digest, so an interrupted pull goes on where it
stopped. A folder lock keeps two pulls of the same artifact apart.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from infra.file_store import sync, temporary_file
from tasks.digests import digest_file, list_files
from tasks.errors import StorageError
from tasks.publish.artifact import MANIFEST_NAME, FileEntry
from tasks.publish.manifest import AnyManifest, parse_manifest
from tasks.publish.references import show
from tasks.publish.signing import check_signature, load_verify_key

if TYPE_CHECKING:
    from infra.storage import Store

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
        folder.mkdir(exist_ok=True)
        download(store, manifest, folder, num_threads, progress)
        write_manifest(folder, data)
        place(folder, dest, there)
    return manifest


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
    """Hold a folder's lock, which stays with the folder when it is renamed."""
    folder.mkdir(exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY | os.O_NOFOLLOW)
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


def download(
    store: Store, manifest: AnyManifest, folder: Path, num_threads: int, progress: Progress
) -> None:
    """Fill a folder with the manifest's files, keeping those that are there and right."""
    wanted = {*manifest.files, MANIFEST_NAME}
    for path in list(folder.rglob("*")):
        stray = path.is_file() and path.relative_to(folder).as_posix() not in wanted
        if stray or path.is_symlink():
            path.unlink()
    done = 0
    progress(done, manifest.num_bytes)

    def fetch(item: tuple[str, FileEntry]) -> int:
        path, entry = item
        if not holds(folder / path, entry):
            fetch_file(store, f"{manifest.prefix}/files/{path}", folder / path, entry)
        return entry.bytes

    with ThreadPoolExecutor(max_workers=num_threads) as pool:
        for num_bytes in pool.map(fetch, manifest.files.items()):
            done += num_bytes
            progress(done, manifest.num_bytes)


def fetch_file(store: Store, key: str, target: Path, entry: FileEntry) -> None:
    """Raises: StorageError: the object is missing, or has other bytes than were published."""
    try:
        with temporary_file(target.parent) as part:
            store.get_file(key, part)
            num_bytes, digest = part.stat().st_size, digest_file(part)
            if (num_bytes, digest) != (entry.bytes, entry.sha256):
                raise StorageError(
                    f"{store.uri}/{key}: expected {entry.bytes:,} bytes with sha256 "
                    f"{entry.sha256[:12]}..., got {num_bytes:,} with {digest[:12]}...",
                    "the object is damaged; roll the channel back, or publish it again",
                )
            sync(part)
            part.replace(target)
    except OSError as error:
        raise StorageError(f"{store.uri}/{key} could not be pulled: {error}") from error


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
