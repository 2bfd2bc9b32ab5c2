"""A store in a folder: temporary file, fsync, then rename (replace) or link (create-only)."""

import errno
import hashlib
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from infra.store_keys import check_key, check_prefix, folder_prefix
from infra.stored_object import StoredObject

PART_NAME = re.compile(r"\.[0-9a-f]{32}\.part")
"""Name of a file that is still being written; listings leave it out."""


class FileStore:
    """Objects are files below `file://FOLDER`; the folder must support hard links.

    What is below it may be others' work: a listing, after which gc deletes, follows no link.
    """

    def __init__(self, uri: str) -> None:
        # Absolute, so that a worker with another working directory finds the same folder.
        self.root = Path(uri.removeprefix("file://")).absolute()
        self.uri = f"file://{self.root}"

    def _path(self, key: str) -> Path:
        return self.root / check_key(key)

    def _regular(self, key: str) -> Path:
        """Return the path of an object; a device or a pipe in its place is none."""
        path = self._path(key)
        if not path.is_file():
            raise FileNotFoundError
        return path

    def read(self, key: str) -> bytes:
        with self._missing(key):
            return self._regular(key).read_bytes()

    def read_many(self, keys: list[str]) -> list[bytes]:
        return [self.read(key) for key in keys]

    def write(self, key: str, data: bytes) -> None:
        self._replace(key, lambda part: part.write_bytes(data))

    def create(self, key: str, data: bytes) -> bool:
        path = self._path(key)
        with temporary_file(path.parent) as part:
            part.write_bytes(data)
            sync(part)
            try:
                os.link(part, path)
            except FileExistsError:
                # NFS may have linked, lost its answer and tried again: two names tell.
                return part.stat().st_nlink == 2
            sync(path.parent)
            return True

    def exists(self, key: str) -> bool:
        return self._path(key).is_file()

    def children(self, prefix: str) -> list[str]:
        folder = folder_prefix(prefix)
        try:
            paths = list_paths(self.root / folder)
        except (FileNotFoundError, NotADirectoryError):
            return []
        found = (
            path.name
            for path in paths
            if path.is_file() or next(self._entries(f"{folder}{path.name}/"), None)
        )
        return sorted(found, key=os.fsencode)

    def list(self, prefix: str, limit: int | None = None) -> list[str]:
        return sorted((key for key, _ in self._entries(prefix)), key=os.fsencode)[:limit]

    def sizes(self, prefix: str) -> dict[str, int]:
        return {key: stat.st_size for key, stat in self._stats(prefix)}

    def objects(self, prefix: str) -> dict[str, StoredObject]:
        return {k: StoredObject(s.st_size, s.st_mtime) for k, s in self._stats(prefix)}

    def put_file(self, local: Path, key: str) -> None:
        self._replace(key, lambda part: shutil.copyfile(local, part))

    def get_file(self, key: str, local: Path) -> str:
        with temporary_file(local.parent) as part:
            with self._missing(key):
                shutil.copyfile(self._regular(key), part)
            with part.open("rb") as written:
                digest = hashlib.file_digest(written, "sha256").hexdigest()
            part.replace(local)
        return digest

    def delete(self, key: str) -> None:
        with suppress(FileNotFoundError, IsADirectoryError, NotADirectoryError):
            self._path(key).unlink()

    def local_folder(self, prefix: str) -> Path:
        path = self._path(prefix)
        if not path.exists():
            raise FileNotFoundError(errno.ENOENT, "no such folder or object", str(path))
        return path

    def clear_uploads(self, older_than_s: float, dry_run: bool = False) -> int:
        now = time.time()
        parts = [path for path in self.root.rglob(".*.part") if PART_NAME.fullmatch(path.name)]
        num_old = 0
        for path in parts:
            with suppress(FileNotFoundError):  # renamed into place since it was listed
                if now - path.stat().st_mtime > older_than_s:
                    num_old += 1
                    if not dry_run:
                        path.unlink()
        return num_old

    def _replace(self, key: str, fill: Callable[[Path], object]) -> None:
        path = self._path(key)
        with temporary_file(path.parent) as part:
            fill(part)
            sync(part)  # the bytes first, then the name
            part.replace(path)
            sync(path.parent)

    @contextmanager
    def _missing(self, key: str) -> Iterator[None]:
        """A folder, or what a file has "below" it, is as absent as in a bucket."""
        try:
            yield
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            path = str(self.root / key)
            raise FileNotFoundError(errno.ENOENT, "no such object", path) from None

    def _entries(self, prefix: str) -> Iterator[tuple[str, os.DirEntry[str]]]:
        waiting = [check_prefix(prefix).rpartition("/")[0]]
        while waiting:
            folder = waiting.pop()
            with (
                suppress(FileNotFoundError, NotADirectoryError),
                os.scandir(self.root / folder) as entries,
            ):
                for entry in entries:
                    key = f"{folder}/{entry.name}" if folder else entry.name
                    if entry.is_dir(follow_symlinks=False):
                        if f"{key}/".startswith(prefix):
                            waiting.append(key)
                    elif (
                        key.startswith(prefix)
                        and entry.is_file(follow_symlinks=False)
                        and not PART_NAME.fullmatch(entry.name)
                    ):
                        yield key, entry

    def _stats(self, prefix: str) -> Iterator[tuple[str, os.stat_result]]:
        for key, entry in self._entries(folder_prefix(prefix)):
            with suppress(FileNotFoundError):  # deleted since it was listed
                yield key, entry.stat()


def list_paths(folder: Path) -> list[Path]:
    """Return what is in a folder but for writes under way."""
    return [path for path in folder.iterdir() if not PART_NAME.fullmatch(path.name)]


@contextmanager
def temporary_file(folder: Path) -> Iterator[Path]:
    """Yield a hidden path in `folder` for a file that is renamed or linked into place."""
    make_folder(folder)
    path = folder / f".{uuid.uuid4().hex}.part"
    try:
        yield path
    except OSError as error:
        if error.errno:  # a write to a full disk names no file
            error.filename = error.filename or str(folder)
        raise
    finally:
        path.unlink(missing_ok=True)


def make_folder(folder: Path) -> None:
    """Create a folder and its parents, each flushed into the one that holds it."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync(folder.parent)


def sync(path: Path) -> None:
    """Flush a file's data, or a folder's names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
