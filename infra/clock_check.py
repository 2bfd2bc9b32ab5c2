"""How far this machine's clock is from the store's: S3 refuses signatures that are too old, and
nights are told apart by their times."""

import time
from datetime import UTC
from email.utils import parsedate_to_datetime

from infra.file_store import FileStore, temporary_file
from infra.findings import Finding
from infra.s3_client import os_errors, request
from infra.s3_store import S3Store
from infra.storage import Store
from infra.store_check import first_existing

TOLERATED_S = 30.0
REFUSED_S = 900.0
"""S3 answers RequestTimeTooSkewed from here on."""
REMEDY = "let both keep time by NTP: `timedatectl set-ntp true`, or chrony"


def check_clock(store: Store) -> Finding:
    """Hold our clock against the store's.

    Raises:
        OSError: the store does not answer.
    """
    return judge_clock(measure_skew(store), f"the clock of {store.uri}")


def judge_clock(skew_s: float, whose: str) -> Finding:
    """Args: skew_s: Seconds by which the other clock is ahead, known to a second or so."""
    if abs(skew_s) <= TOLERATED_S:
        return Finding("ok", "clocks", f"{whose} agrees within {TOLERATED_S:.0f} s")
    side = "ahead of" if skew_s > 0 else "behind"
    message = f"{whose} is {abs(skew_s):,.0f} s {side} this machine's"
    return Finding("error" if abs(skew_s) >= REFUSED_S else "warning", "clocks", message, REMEDY)


def measure_skew(store: Store) -> float:
    """Return by how many seconds the store's clock is ahead: an S3 server's by the Date of its
    answer (RFC 9110, section 6.6.1), a folder's by the time of a new file, which a file server
    stamps."""
    before = time.time()
    if isinstance(store, S3Store):
        with os_errors(store.uri):
            asked = {"Bucket": store.bucket, "Prefix": store.prefix, "MaxKeys": 1}
            answer = request(store.fs, "list_objects_v2", **asked)
        stamp = answer["ResponseMetadata"]["HTTPHeaders"]["date"]
        theirs = parsedate_to_datetime(stamp).astimezone(UTC).timestamp() + 0.5  # whole seconds
    else:
        assert isinstance(store, FileStore)
        with temporary_file(first_existing(store.root)) as probe:
            probe.touch()
            theirs = probe.stat().st_mtime
    return theirs - (before + time.time()) / 2
