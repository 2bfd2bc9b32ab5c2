"""Whether a store will do, found in seconds by using it: no right is guessed from a policy."""

import errno
import shutil
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from infra.file_store import FileStore
from infra.findings import Finding
from infra.s3_store import S3Store
from infra.storage import Store, open_store

NUM_RIVALS = 8
GIB = 2**30
NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)


def check_store(uri: str, needed_bytes: int = GIB, timeout_s: float = 12.0) -> list[Finding]:
    """Write, read, list, create and delete probe objects; leave nothing behind.

    Args:
        needed_bytes: Free disk that a file:// store must have; under four times that is a warning.
        timeout_s: After so long without an end, what was found so far is returned with an error.
    """
    findings: list[Finding] = []

    def probe() -> None:
        try:
            store = open_store(uri)
            if isinstance(store, S3Store):
                store = S3Store(uri, attempts=2, timeout_s=timeout_s / 3)
            findings.extend(check_space(store, needed_bytes))
            if all(finding.level != "error" for finding in findings):
                findings.extend(try_store(store))
        except (OSError, ValueError) as error:
            findings.append(explain(error, uri))

    # A name server that does not answer takes longer than any time-out that the client knows.
    thread = threading.Thread(target=probe, daemon=True)
    thread.start()
    thread.join(timeout_s)
    if not thread.is_alive():
        return findings
    return [*findings, explain(TimeoutError(f"no answer within {timeout_s:.0f} s"), uri)]


def check_space(store: Store, needed_bytes: int) -> Iterator[Finding]:
    if not isinstance(store, FileStore):
        return
    free = shutil.disk_usage(first_existing(store.root)).free
    message = f"{free / GIB:.1f} GiB free at {store.root}"
    remedy = "free some disk, or set publish.store to another place"
    if free < needed_bytes:
        needed = f"{message}; a run needs {needed_bytes / GIB:.1f} GiB"
        yield Finding("error", "disk", needed, remedy)
    elif free < 4 * needed_bytes:
        yield Finding("warning", "disk", f"{message}: nearly full", remedy)
    else:
        yield Finding("ok", "disk", message)


def try_store(store: Store) -> list[Finding]:
    """Use every request that a night uses.

    Raises:
        OSError: the store is absent, refuses us, or does not do what it is for.
    """
    folder = f"nightpress-check/{uuid.uuid4().hex}"
    key, rival_key = f"{folder}/one object", f"{folder}/rivals"
    before = first_existing(store.root) if isinstance(store, FileStore) else None
    findings = []
    store.write(key, b"first")
    try:
        store.write(key, b"second")
        expect(store.read(key) == b"second", "does not return what was written")
        expect(store.list(f"{folder}/") == [key], "does not list what was written")
        findings.append(Finding("ok", "store", f"writes, reads and lists at {store.uri}"))
        findings.append(check_create(store, key, rival_key))
        store.delete(key)
        expect(not store.exists(key), "does not delete")
    finally:
        with suppress(OSError):
            store.delete(key)
            store.delete(rival_key)
            if before:
                remove_empty(Path(store.local_folder(folder)), before)
    return findings


def check_create(store: Store, key: str, rival_key: str) -> Finding:
    """See that a second create is refused, and that of several at a time one succeeds."""
    remedy = "use a store with conditional writes: AWS S3, MinIO, OpenStack Swift, or file://"
    if store.create(key, b"third") or store.read(key) != b"second":
        message = "ignores If-None-Match, so two nights could overwrite each other's results"
        return Finding("error", "create-only", message, remedy)
    with ThreadPoolExecutor(NUM_RIVALS) as pool:
        rivals = [b"%d" % i for i in range(NUM_RIVALS)]
        num_winners = sum(pool.map(lambda data: store.create(rival_key, data), rivals))
    if num_winners != 1:
        message = f"{num_winners} of {NUM_RIVALS} simultaneous create-only writes succeeded"
        return Finding("warning", "create-only", message, "let one night at a time publish here")
    return Finding("ok", "create-only", "one of several writers wins, and later ones are refused")


def expect(held: bool, failing: str) -> None:
    if not held:
        raise OSError(errno.EIO, f"the store {failing}")


def explain(error: Exception, uri: str) -> Finding:
    """Say what an exception means for the user of the store at `uri`."""
    remote = uri.startswith("s3://")
    bucket = uri.removeprefix("s3://").partition("/")[0]
    reason = getattr(error, "strerror", None) or str(error)
    if isinstance(error, ValueError):
        return Finding("error", "store", reason, "correct publish.store or AWS_ENDPOINT_URL")
    if isinstance(error, PermissionError) and remote:
        return Finding(
            "error",
            "store",
            f"{uri}: credentials refused: {reason}",
            "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or AWS_PROFILE) to an account that "
            f"may list, read, write and delete in bucket {bucket}",
        )
    if isinstance(error, FileNotFoundError) and remote:
        message = f"bucket {bucket!r} does not exist: {reason}"
        return Finding("error", "store", message, f"create it: aws s3 mb s3://{bucket}")
    if remote and (isinstance(error, TimeoutError) or error_number(error) == errno.EHOSTUNREACH):
        remedy = "check AWS_ENDPOINT_URL and AWS_DEFAULT_REGION, and that the server runs"
        return Finding("error", "store", f"{uri} cannot be reached: {reason}", remedy)
    if error_number(error) in NOT_WRITABLE:
        remedy = "make the folder writable for this user, or set publish.store to another place"
        return Finding("error", "store", f"{uri} is not a folder to write in: {reason}", remedy)
    if error_number(error) == errno.ENOSPC:
        remedy = "free some disk, or set publish.store to another place"
        return Finding("error", "disk", f"{uri}: {reason}", remedy)
    return Finding("error", "store", f"{uri}: {reason}", "set publish.store to a store that works")


def error_number(error: Exception) -> int | None:
    return error.errno if isinstance(error, OSError) else None


def first_existing(path: Path) -> Path:
    return next(folder for folder in (path, *path.parents) if folder.exists())


def remove_empty(folder: Path, stop: Path) -> None:
    """Remove `folder` and its parents up to `stop`, which stays; OSError ends it at others'."""
    while folder != stop:
        folder.rmdir()
        folder = folder.parent
