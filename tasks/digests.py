"""sha256 digests of files and folders, and canonical JSON: what every key is made of."""

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any


def canonical_json(value: Any) -> str:
    """Serialise with sorted keys and no spaces, so that equal values give equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def digest_of(value: Any) -> str:
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def digest_file(path: Path) -> str:
    """Hash a file, once per process for as long as its size and time of change stay the same."""
    stat = path.stat()
    return _digest_file(path, stat.st_size, stat.st_mtime_ns)


@cache
def _digest_file(path: Path, size: int, mtime_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def list_files(folder: Path) -> list[str]:
    """Relative POSIX paths of all files below a folder, sorted by their bytes."""
    paths = (p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    return sorted(paths, key=lambda path: path.encode())


def digest_files(files: dict[str, str]) -> str:
    """Digest of a folder from its files' digests: sha256 of the lines `<sha256>  <path>`."""
    paths = sorted(files, key=lambda path: path.encode())
    return hashlib.sha256("".join(f"{files[p]}  {p}\n" for p in paths).encode()).hexdigest()


def digest_folder(folder: Path) -> str:
    return digest_files({path: digest_file(folder / path) for path in list_files(folder)})


def digest_path(path: Path) -> str:
    return digest_folder(path) if path.is_dir() else digest_file(path)
