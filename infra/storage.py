"""The object store: one Protocol, a folder (file://) or a bucket (s3://) behind it.

Keys are POSIX paths relative to the store's URI. Two writes matter: `write` replaces a whole
object or leaves the old one, and `create` is create-only, the one primitive from which every
decision between two writers is built (S3 has no other that all servers offer).
"""

import errno
import re
from pathlib import Path
from typing import Protocol

from infra.file_store import FileStore, sync, temporary_file
from infra.s3_store import S3Store
from infra.stored_object import StoredObject

__all__ = [
    "SCHEME",
    "FileStore",
    "S3Store",
    "Store",
    "StoredObject",
    "localize",
    "open_store",
    "put_folder",
    "sync",
    "temporary_file",
]

SCHEME = "store://"
"""Begins the URI of something inside the store at hand, so that records survive a move of it."""

BUCKET_NAME = re.compile(r"[A-Za-z0-9._-]+")


class Store(Protocol):
    """What every store can do; instances are small and picklable, so that workers get a copy.

    A key with an empty part, `.` or `..` is a ValueError. Whatever the outside world does is an
    OSError: FileNotFoundError where there is no such object, PermissionError where the store
    refuses us. A write that raises has left the old object, or none.
    """

    uri: str

    def read(self, key: str) -> bytes:
        """Return an object. Raises: FileNotFoundError."""

    def read_many(self, keys: list[str]) -> list[bytes]:
        """Return small objects, in the order of their keys. Raises: FileNotFoundError."""

    def write(self, key: str, data: bytes) -> None:
        """Create or replace an object, atomically."""

    def create(self, key: str, data: bytes) -> bool:
        """Create an object; False, and nothing is changed, where there is one already."""

    def exists(self, key: str) -> bool: ...

    def children(self, prefix: str) -> list[str]:
        """Return the names directly below the folder `prefix`, of objects and of folders that hold
        any, sorted by their bytes; what lies deeper costs nothing."""

    def list(self, prefix: str, limit: int | None = None) -> list[str]:
        """Return the keys that begin with `prefix`, sorted by their bytes; never from a cache."""

    def sizes(self, prefix: str) -> dict[str, int]:
        """Return key and bytes of everything below the folder `prefix`."""

    def objects(self, prefix: str) -> dict[str, StoredObject]:
        """Return what the listing says of everything below the folder `prefix`."""

    def put_file(self, local: Path, key: str) -> None:
        """Write a file of any size; until its last byte is there, the object is the old one."""

    def get_file(self, key: str, local: Path) -> str:
        """Write an object to a local path, which holds all of it or what it held before; return
        the sha256 of what was written, in hex."""

    def delete(self, key: str) -> None:
        """Delete an object, if it is there."""

    def local_folder(self, prefix: str) -> Path:
        """Return a local path with what lies below `prefix`, or with the object of that key.

        The objects must be immutable; the folder is the caller's to read, not to change.

        Raises:
            FileNotFoundError: there is neither.
        """

    def clear_uploads(self, older_than_s: float, dry_run: bool = False) -> int:
        """Remove what uploads left behind that were killed; return how many there were."""


def open_store(uri: str, cache: Path | None = None) -> Store:
    """Return the store at a URI, without touching it.

    `cache` is the folder for local copies of what lies in a bucket; None is ~/.cache/nightpress.

    Raises:
        ValueError: not a file:// or s3:// URI with a folder or bucket.
    """
    scheme, _, place = uri.partition("://")
    if scheme == "file" and place:
        return FileStore(uri)
    if scheme == "s3" and BUCKET_NAME.fullmatch(place.partition("/")[0]):
        return S3Store(uri, cache)
    raise ValueError(f"expected a store at file://FOLDER or s3://BUCKET/PREFIX, got {uri!r}")


def put_folder(store: Store, local: Path, prefix: str) -> None:
    """Upload a folder's files, then hold the listing against it.

    Raises:
        OSError: a file is missing or has another size than the local one.
    """
    files = {p.relative_to(local).as_posix(): p for p in local.rglob("*") if p.is_file()}
    for relative, path in sorted(files.items()):
        store.put_file(path, f"{prefix}/{relative}")
    sizes = store.sizes(prefix)
    for relative, path in files.items():
        if sizes.get(f"{prefix}/{relative}") != path.stat().st_size:
            raise OSError(errno.EIO, "did not arrive whole", f"{store.uri}/{prefix}/{relative}")


def localize(store: Store, uri: str) -> Path:
    """Return the local path of a folder or file named by `store://`, by s3:// or by path."""
    if uri.startswith(SCHEME):
        return store.local_folder(uri.removeprefix(SCHEME))
    if uri.startswith("s3://"):
        parent, _, name = uri.rstrip("/").rpartition("/")
        return open_store(parent).local_folder(name)
    return Path(uri.removeprefix("file://"))
