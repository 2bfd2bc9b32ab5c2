"""s3fs as this project uses it, and its exceptions as those of a folder.

s3fs is imported at the first request, so that a command which needs no bucket does not wait.
"""

import errno
import os
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, TypeVar

R = TypeVar("R")

NUM_CONNECTIONS = 32
CHUNK_BYTES = 256 * 2**10
"""Of a body, at a time."""

STATUS_ERRNO = {
    401: errno.EACCES,
    403: errno.EACCES,
    404: errno.ENOENT,
    409: errno.EBUSY,
    501: errno.ENOSYS,
    503: errno.EBUSY,
    507: errno.ENOSPC,
}


@cache
def make_filesystem(
    process: int, settings: tuple[tuple[str, str], ...], attempts: int, timeout_s: float
) -> Any:
    """Connect an s3fs.S3FileSystem whose requests are each tried `attempts` times.

    The first two arguments only say for which process and environment: its event loop runs in a
    thread, which a forked child does not have.
    """
    import s3fs

    named = {name for name, _ in settings} & {"AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"}
    filesystem = s3fs.S3FileSystem(
        skip_instance_cache=True,
        use_listings_cache=False,
        config_kwargs={
            "connect_timeout": min(timeout_s, 10.0),
            "read_timeout": timeout_s,
            "retries": {"mode": "standard", "total_max_attempts": attempts},
            "max_pool_connections": NUM_CONNECTIONS,
            # A server of one's own rarely has a host name for each bucket.
            "s3": {"addressing_style": "path"} if named else None,
        },
    )
    filesystem.retries = 1  # else s3fs would repeat all the attempts that botocore makes
    try:
        filesystem.connect()
    except ValueError as error:
        raise ValueError(f"AWS_ENDPOINT_URL is a URL such as http://host:9000: {error}") from error
    return filesystem


def request(filesystem: Any, method: str, **arguments: Any) -> dict[str, Any]:
    """Make one request of S3's API, named as by botocore, and return its answer.

    Raises:
        ClientError: the server refused. s3fs would tell an OSError without the answer's headers,
            and with the same errno for several statuses.
        BotoCoreError: there was no answer.
    """
    from botocore.exceptions import ClientError

    try:
        answer: dict[str, Any] = filesystem.call_s3(method, **arguments)
    except OSError as error:
        if isinstance(error.__cause__, ClientError):
            raise error.__cause__ from None
        raise
    return answer


def fetch(filesystem: Any, attempts: int, **arguments: Any) -> bytes:
    """Return what `get_object` answers; a body that breaks off is asked for again.

    Raises:
        ClientError: as `request`.
        BotoCoreError: as `request`; or the body broke off each time, if no aiohttp.ClientError.
    """

    async def read(body: Any) -> bytes:
        return bytes(await body.read())

    return consume(filesystem, attempts, read, **arguments)


def fetch_into(
    filesystem: Any, attempts: int, descriptor: int, start: int, **arguments: Any
) -> int:
    """Write what `get_object` answers into an open file, from `start` on, as it arrives.

    Nothing as large as a body is held in memory: to fetch 1 GB so takes half the CPU's time.

    Raises:
        ClientError, BotoCoreError: as `fetch`.
        OSError: the file cannot be written.

    Returns:
        How many bytes there were.
    """

    async def write(body: Any) -> int:
        place = start
        while data := await body.read(CHUNK_BYTES):
            place += os.pwrite(descriptor, data, place)
        return place - start

    return consume(filesystem, attempts, write, **arguments)


def consume(
    filesystem: Any, attempts: int, use: Callable[[Any], Awaitable[R]], **arguments: Any
) -> R:
    """Return what `use`, in the event loop's thread, makes of the body that `get_object` answers.

    Raises:
        ClientError, BotoCoreError: as `fetch`.
    """
    from botocore.exceptions import IncompleteReadError
    from fsspec.asyn import sync
    from s3fs.core import S3_RETRYABLE_ERRORS

    for left in reversed(range(attempts)):
        body = request(filesystem, "get_object", **arguments)["Body"]
        try:
            found: R = sync(filesystem.loop, use, body)
            return found
        except (IncompleteReadError, *S3_RETRYABLE_ERRORS):
            if not left:
                raise
    raise AssertionError("at least one attempt")


@contextmanager
def os_errors(uri: str) -> Iterator[None]:
    """Turn the client's exceptions into the OSError that a folder would raise.

    Raises:
        FileNotFoundError: no such object or bucket.
        PermissionError: credentials absent or refused, or a right is missing.
        ValueError: the key or the endpoint is none that S3 knows.
        OSError: anything else, after all attempts.
    """
    import aiohttp
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except (BotoCoreError, ClientError, aiohttp.ClientError) as error:
        raise os_error(error, uri) from error


def os_error(error: Exception, uri: str) -> Exception:
    from botocore import exceptions as boto

    unreachable = (boto.ConnectionError, boto.ConnectionClosedError)
    no_credentials = (
        boto.NoCredentialsError,
        boto.PartialCredentialsError,
        boto.CredentialRetrievalError,
        boto.ProfileNotFound,
    )
    if isinstance(error, boto.ClientError):
        status = error.response["ResponseMetadata"].get("HTTPStatusCode")
        facts = error.response["Error"]
        message = f"{facts.get('Code')}: {facts.get('Message')}"
        return OSError(STATUS_ERRNO.get(status, errno.EIO), message, uri)
    if isinstance(error, no_credentials):
        return PermissionError(errno.EACCES, str(error), uri)
    if isinstance(error, boto.ParamValidationError):
        return ValueError(f"{uri}: {error}")
    if isinstance(error, boto.ReadTimeoutError):
        return TimeoutError(errno.ETIMEDOUT, str(error), uri)
    if isinstance(error, unreachable):
        return OSError(errno.EHOSTUNREACH, str(error), uri)
    return OSError(errno.EIO, str(error), uri)
