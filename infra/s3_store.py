"""A store in a bucket, of AWS or of any server that speaks S3.

Credentials, region and endpoint come from the environment, as botocore reads them.
"""

import errno
import fcntl
import hashlib
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from infra.s3_client import fetch, make_filesystem, os_errors, request
from infra.s3_transfer import download, upload
from infra.store_keys import check_key, check_prefix, folder_prefix
from infra.stored_object import StoredObject

NUM_THREADS = 16
PAGE_KEYS = 1000
WRITER = "writer"
"""Metadata of objects made by `create`: who made it, so that a lost answer can be told apart."""
SETTLE_S = 0.3
"""How long simultaneous creates may overtake each other on a server that does not order them."""


class S3Store:
    """Objects below `s3://BUCKET/PREFIX`; instances hold no connection and can be pickled.

    Requests are tried `attempts` times; the pauses between six are 15 s on average, 31 s at most.
    """

    def __init__(
        self, uri: str, cache: Path | None = None, attempts: int = 6, timeout_s: float = 60.0
    ) -> None:
        self.uri = uri.rstrip("/")
        self.bucket, _, self.prefix = self.uri.removeprefix("s3://").partition("/")
        self.cache = cache
        self.attempts = attempts
        self.timeout_s = timeout_s

    @property
    def fs(self) -> Any:
        """s3fs of this process; threads may share it, a forked child may not."""
        settings = sorted(item for item in os.environ.items() if item[0].startswith("AWS_"))
        return make_filesystem(os.getpid(), tuple(settings), self.attempts, self.timeout_s)

    def _request(self, method: str, **arguments: Any) -> dict[str, Any]:
        return request(self.fs, method, **arguments)

    def _name(self, key: str) -> dict[str, str]:
        return {"Bucket": self.bucket, "Key": self._absolute(check_key(key))}

    def _absolute(self, key: str) -> str:
        return f"{self.prefix}/{key}" if self.prefix else key

    def read(self, key: str) -> bytes:
        name = self._name(key)
        with os_errors(f"{self.uri}/{key}"):
            return fetch(self.fs, self.attempts, **name)

    def read_many(self, keys: list[str]) -> list[bytes]:
        with ThreadPoolExecutor(NUM_THREADS) as pool:
            return list(pool.map(self.read, keys))

    def write(self, key: str, data: bytes) -> None:
        name = self._name(key)
        with os_errors(f"{self.uri}/{key}"):
            self._request("put_object", **name, Body=data)

    def create(self, key: str, data: bytes) -> bool:
        from botocore.exceptions import ClientError

        name = self._name(key)
        writer = uuid.uuid4().hex
        with os_errors(f"{self.uri}/{key}"):
            for left in reversed(range(self.attempts)):
                try:
                    answer = self._request(
                        "put_object",
                        **name,
                        Body=data,
                        IfNoneMatch="*",
                        Metadata={WRITER: writer},
                    )
                except ClientError as error:
                    answer = error.response
                    status = answer["ResponseMetadata"]["HTTPStatusCode"]
                    if status == 409 and left:  # a write of the same key is under way
                        time.sleep(SETTLE_S)
                        continue
                    if status != 412:
                        raise
                else:
                    if orders_creates(answer):
                        return True
                # There is one. Ours, where an earlier try had arrived and its answer was lost, or
                # where the server let several writers in: then the last one stays.
                if not orders_creates(answer):
                    time.sleep(SETTLE_S)
                head = self._request("head_object", **name)
                return bool(head["Metadata"].get(WRITER) == writer)
        raise AssertionError("at least one attempt")

    def exists(self, key: str) -> bool:
        name = self._name(key)
        try:
            with os_errors(f"{self.uri}/{key}"):
                self._request("head_object", **name)
        except FileNotFoundError:
            return False
        return True

    def children(self, prefix: str) -> list[str]:
        folder, names = folder_prefix(prefix), set()
        for page in self._pages(folder, Delimiter="/"):
            keys = [entry["Key"] for entry in page.get("Contents", [])]
            keys += [entry["Prefix"].removesuffix("/") for entry in page.get("CommonPrefixes", [])]
            names |= {key.removeprefix(self._absolute(folder)) for key in keys}
        return sorted((name for name in names if name), key=os.fsencode)

    def list(self, prefix: str, limit: int | None = None) -> list[str]:
        return [self._relative(entry) for entry in self._entries(check_prefix(prefix), limit)]

    def sizes(self, prefix: str) -> dict[str, int]:
        entries = self._entries(folder_prefix(prefix))
        return {self._relative(entry): entry["Size"] for entry in entries}

    def objects(self, prefix: str) -> dict[str, StoredObject]:
        return {
            self._relative(entry): StoredObject(entry["Size"], entry["LastModified"].timestamp())
            for entry in self._entries(folder_prefix(prefix))
        }

    def put_file(self, local: Path, key: str) -> None:
        name = self._name(key)
        with os_errors(f"{self.uri}/{key}"):
            upload(self.fs, local, **name)

    def get_file(self, key: str, local: Path) -> str:
        name = self._name(key)
        with os_errors(f"{self.uri}/{key}"):
            return download(self.fs, local, self.attempts, **name)

    def delete(self, key: str) -> None:
        name = self._name(key)
        with os_errors(f"{self.uri}/{key}"):
            self._request("delete_object", **name)

    def local_folder(self, prefix: str) -> Path:
        """See `Store`. What the listing says (keys, sizes, ETags) names the cached copy, so a
        changed object is never served from an older one; one process of a node downloads it."""
        name = self._name(prefix)
        entries = {check_key(self._relative(e)): e for e in self._entries(f"{prefix}/")}
        if not entries:  # one object, not a folder
            with os_errors(f"{self.uri}/{prefix}"):
                head = self._request("head_object", **name)
            entries = {prefix: {"Size": head["ContentLength"], "ETag": head["ETag"]}}
        lines = [f"{key} {e['Size']} {e['ETag']}\n" for key, e in entries.items()]
        facts = "".join([self.fs.s3.meta.endpoint_url, "\n", self.uri, "\n", *lines])
        slot = self._cache_folder() / hashlib.sha256(facts.encode()).hexdigest()[:32]
        path = slot / Path(prefix).name
        if path.exists():
            return path
        with locked(slot.with_suffix(".lock")):
            if not path.exists():
                part = slot.with_suffix(".part")
                shutil.rmtree(part, ignore_errors=True)
                for key, entry in entries.items():
                    target = part / Path(prefix).name / key.removeprefix(prefix).lstrip("/")
                    self.get_file(key, target)
                    if target.stat().st_size != entry["Size"]:
                        raise OSError(errno.EIO, "did not arrive whole", f"{self.uri}/{key}")
                part.rename(slot)
        return path

    def clear_uploads(self, older_than_s: float, dry_run: bool = False) -> int:
        now = time.time()
        num_old = 0
        bounds = {"Bucket": self.bucket, "Prefix": self._absolute("")}
        with os_errors(self.uri):
            while True:
                page = self._request("list_multipart_uploads", **bounds)
                for found in page.get("Uploads", []):
                    if now - found["Initiated"].timestamp() > older_than_s:
                        name = {"Key": found["Key"], "UploadId": found["UploadId"]}
                        if not dry_run:
                            self._request("abort_multipart_upload", Bucket=self.bucket, **name)
                        num_old += 1
                if not page["IsTruncated"]:
                    return num_old
                bounds["KeyMarker"] = page["NextKeyMarker"]
                bounds["UploadIdMarker"] = page["NextUploadIdMarker"]

    def _entries(self, prefix: str, limit: int | None = None) -> Iterator[dict[str, Any]]:
        """Yield what a listing says of each object, at most `limit` of them."""
        pages = self._pages(prefix, min(limit or PAGE_KEYS, PAGE_KEYS))
        entries = (entry for page in pages for entry in page.get("Contents", []))
        # Consoles mark folders by empty objects.
        objects = (entry for entry in entries if not entry["Key"].endswith("/"))
        return islice(objects, limit)

    def _pages(
        self, prefix: str, num_keys: int = PAGE_KEYS, **more: Any
    ) -> Iterator[dict[str, Any]]:
        bounds = {"Bucket": self.bucket, "Prefix": self._absolute(prefix), **more}
        with os_errors(f"{self.uri}/{prefix}"):
            while True:
                page = self._request("list_objects_v2", **bounds, MaxKeys=num_keys)
                yield page
                if not page["IsTruncated"]:
                    return
                bounds["ContinuationToken"] = page["NextContinuationToken"]

    def _relative(self, entry: dict[str, Any]) -> str:
        key: str = entry["Key"]
        return key.removeprefix(f"{self.prefix}/") if self.prefix else key

    def _cache_folder(self) -> Path:
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        return (self.cache or Path(home) / "nightpress").absolute()


def orders_creates(answer: dict[str, Any]) -> bool:
    """Whether the server lets exactly one of several simultaneous creates succeed.

    OpenStack Swift, known by a header of its own, looks for the object before it takes the body,
    so that writers within some milliseconds of each other may all be told that they succeeded.
    """
    return "x-openstack-request-id" not in answer["ResponseMetadata"]["HTTPHeaders"]


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a file's lock against threads and processes; it goes with the process that dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
