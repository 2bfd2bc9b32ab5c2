"""A store of a test's own in a bucket, on whatever S3 server an environment names."""

import uuid
from pathlib import Path

import pytest

from infra.storage import S3Store

BUCKET = "nightpress-tests"


def empty_bucket_store(
    environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> S3Store:
    """A store under a fresh prefix of the tests' bucket, on the server of this environment."""
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    store = S3Store(f"s3://{BUCKET}/{uuid.uuid4().hex}", tmp_path / "cache")
    names = [bucket["Name"] for bucket in store.fs.call_s3("list_buckets")["Buckets"]]
    if BUCKET not in names:
        store.fs.call_s3("create_bucket", Bucket=BUCKET)
    return store
