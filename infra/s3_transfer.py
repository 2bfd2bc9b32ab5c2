"""Files to and from a bucket in parts, each of them tried again by itself.

The requests are made one by one, because `put_file` of s3fs aborts an upload while other parts of
it are still on their way and cuts a key at "?versionId=", and its `get_file` neither asks again for
a range that breaks off nor notices that the object was replaced between two ranges.
"""

import errno
import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from infra.file_store import temporary_file
from infra.s3_client import fetch_into, request

PART_BYTES = 16 * 2**20
"""What is larger is sent in parts of this size."""
MAX_PARTS = 10_000
RANGE_BYTES = 8 * 2**20
"""What is larger is fetched in ranges of this size."""
HASHED_BYTES = 2**20
"""At a time."""
NUM_THREADS = 10
"""Parts on their way at a time."""


def upload(filesystem: Any, local: Path, **name: str) -> None:
    """Send a file; completed by the last request, aborted where any part fails.

    Args:
        name: Bucket and Key.

    Raises:
        ClientError, BotoCoreError: as `request`.
        OSError: the local file cannot be read.
    """
    from botocore.exceptions import BotoCoreError, ClientError

    with local.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size <= PART_BYTES:
            request(filesystem, "put_object", **name, Body=file.read())
            return
        part_bytes = max(PART_BYTES, -(-size // MAX_PARTS))
        num_parts = -(-size // part_bytes)
        created = request(filesystem, "create_multipart_upload", **name)
        ours = {**name, "UploadId": created["UploadId"]}

        def send(number: int) -> dict[str, Any]:
            data = os.pread(file.fileno(), part_bytes, (number - 1) * part_bytes)
            sent = request(filesystem, "upload_part", **ours, PartNumber=number, Body=data)
            facts = {key: sent[key] for key in sent if key in ("ETag", "ChecksumCRC32")}
            return {"PartNumber": number, **facts}

        try:
            with ThreadPoolExecutor(NUM_THREADS) as pool:
                parts = list(pool.map(send, range(1, num_parts + 1)))
            whole = {"Parts": parts}
            request(filesystem, "complete_multipart_upload", **ours, MultipartUpload=whole)
        except BaseException:
            with suppress(BotoCoreError, ClientError):
                request(filesystem, "abort_multipart_upload", **ours)
            raise


def download(filesystem: Any, local: Path, attempts: int, **name: str) -> str:
    """Fetch one version of an object into a temporary file, renamed when all of it is there.

    Parts are hashed in their order while later ones are still on their way.

    Args:
        name: Bucket and Key.

    Raises:
        ClientError, BotoCoreError: as `fetch`; the object was replaced meanwhile.
        OSError: the local file cannot be written, or the server sent another range.

    Returns:
        The sha256 of what was written, in hex.
    """
    head = request(filesystem, "head_object", **name)
    size: int = head["ContentLength"]
    digest, hashed = hashlib.sha256(), memoryview(bytearray(HASHED_BYTES))
    with (
        temporary_file(local.parent) as part,
        part.open("w+b", buffering=0) as file,
        ThreadPoolExecutor(NUM_THREADS) as pool,
    ):

        def receive(start: int) -> int:
            stop = min(start + RANGE_BYTES, size)
            wanted = {"Range": f"bytes={start}-{stop - 1}", "IfMatch": head["ETag"]}
            got = fetch_into(filesystem, attempts, file.fileno(), start, **name, **wanted)
            if got != stop - start:
                raise OSError(errno.EIO, "did not arrive whole", name["Key"])
            return stop

        for stop in pool.map(receive, range(0, size, RANGE_BYTES)):
            while (left := stop - file.tell()) > 0:
                digest.update(hashed[: file.readinto(hashed[:left])])
        part.replace(local)
    return digest.hexdigest()
