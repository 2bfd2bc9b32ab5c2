"""The store on a real S3 server: first what all stores must do, then what a simulation cannot."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from infra.storage import S3Store
from infra.store_check import check_store
from tests.conformance.empty_bucket import empty_bucket_store
from tests.conformance.test_stores import *  # noqa: F403
from tests.integration.swift_server import Swift

pytestmark = pytest.mark.integration


@pytest.fixture
def store(swift: Swift, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> S3Store:
    return empty_bucket_store(swift.environment, tmp_path, monkeypatch)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("large") / "large"
    path.write_bytes(os.urandom(1 << 20) * 160)  # ten parts
    return path


@pytest.fixture
def outage(swift: Swift) -> Iterator[Callable[[], None]]:
    """Kill the proxy; it is there again at the end of the test at the latest."""
    yield lambda: swift.kill("proxy")
    if "proxy" not in swift.processes:
        swift.start("proxy")
    swift.wait_until_up()


def in_background(work: Callable[..., None], *args: object) -> Future[None]:
    pool = ThreadPoolExecutor(1)
    future = pool.submit(work, *args)
    pool.shutdown(wait=False)
    return future


def wait_for_upload(store: S3Store) -> None:
    """Return when an upload has begun; its parts are then on their way."""
    deadline = time.monotonic() + 20
    name = {"Bucket": store.bucket, "Prefix": store.prefix}
    while not store.fs.call_s3("list_multipart_uploads", **name).get("Uploads"):
        assert time.monotonic() < deadline, "no upload has begun"
        time.sleep(0.02)


def test_wrong_credentials_are_one_clear_permission_error(
    store: S3Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    store.write("key", b"x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not the secret")
    for refused in (
        lambda: store.read("key"),
        lambda: store.write("key", b"y"),
        lambda: store.create("other", b"y"),
        lambda: store.exists("key"),
        lambda: store.list(""),
        lambda: store.get_file("key", tmp_path / "copy"),
        lambda: store.put_file(Path(__file__), "key"),
        lambda: store.delete("key"),
        lambda: store.local_folder("key"),
    ):
        with pytest.raises(PermissionError) as caught:
            refused()
        assert store.uri in str(caught.value)
        assert "not the secret" not in str(caught.value)
    (finding,) = check_store(store.uri)
    assert finding.level == "error"
    assert "credentials refused: SignatureDoesNotMatch" in finding.message
    assert "AWS_SECRET_ACCESS_KEY" in str(finding.remedy)


def test_an_absent_bucket_is_named(store: S3Store) -> None:
    absent = S3Store("s3://no-such-bucket/x", None)
    with pytest.raises(FileNotFoundError, match="NoSuchBucket"):
        absent.write("key", b"x")
    (finding,) = check_store(absent.uri)
    assert finding.message.startswith("bucket 'no-such-bucket' does not exist")
    assert finding.remedy == "create it: aws s3 mb s3://no-such-bucket"


def test_a_damaged_part_is_refused_by_its_checksum(store: S3Store) -> None:
    """The server compares the checksum that the client computes of each part."""
    name = {"Bucket": store.bucket, "Key": f"{store.prefix}/key"}
    upload = store.fs.call_s3("create_multipart_upload", **name)["UploadId"]
    with pytest.raises(OSError) as refused:
        store.fs.call_s3(
            "upload_part",
            **name,
            UploadId=upload,
            PartNumber=1,
            Body=b"x" * 100,
            ChecksumCRC32="AAAAAA==",
        )
    assert "BadDigest" in str(refused.value.__cause__)
    sent = store.fs.call_s3("upload_part", **name, UploadId=upload, PartNumber=1, Body=b"x" * 100)
    assert sent["ResponseMetadata"]["HTTPStatusCode"] == 200
    assert store.clear_uploads(older_than_s=3600) == 0  # too young
    assert store.clear_uploads(older_than_s=-60) == 1
    assert store.clear_uploads(older_than_s=-60) == 0


def test_an_outage_of_three_seconds_is_carried(
    store: S3Store, swift: Swift, outage: Callable[[], None], large: Path, tmp_path: Path
) -> None:
    uploading = in_background(store.put_file, large, "models/large")
    wait_for_upload(store)
    outage()
    down = time.monotonic()
    creating = in_background(store.create, "channel/0", b"entry")
    time.sleep(3)
    assert not uploading.done()
    swift.start("proxy")
    uploading.result(timeout=60)
    assert creating.result(timeout=60) is True
    print(f"carried {time.monotonic() - down:.1f} s after the proxy was killed")
    store.get_file("models/large", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == large.read_bytes()


def test_a_longer_outage_is_an_oserror_and_the_object_is_the_old_one(
    store: S3Store, swift: Swift, outage: Callable[[], None], large: Path
) -> None:
    store.write("models/old", b"old")
    patient = S3Store(store.uri, attempts=3)  # the pauses between three are 3 s at most
    uploads = [in_background(patient.put_file, large, f"models/{name}") for name in ("old", "new")]
    wait_for_upload(store)
    outage()
    began = time.monotonic()
    for upload in uploads:
        with pytest.raises(OSError):
            upload.result(timeout=60)
    with pytest.raises(OSError, match="Could not connect"):
        S3Store(store.uri).write("models/new", b"six attempts")  # as many as a night makes
    assert time.monotonic() - began < 45
    swift.start("proxy")
    swift.wait_until_up()
    assert store.read("models/old") == b"old"
    assert store.list("models/") == ["models/old"]
    assert store.clear_uploads(older_than_s=-60) >= 1
    assert store.list("") == ["models/old"]


def test_a_killed_upload_leaves_nothing_to_see(store: S3Store, large: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from infra.storage import S3Store; "
        "S3Store(sys.argv[1]).put_file(Path(sys.argv[2]), 'key')"
    )
    process = subprocess.Popen([sys.executable, "-c", script, store.uri, str(large)])
    wait_for_upload(store)
    process.kill()
    process.wait()
    assert store.list("") == []
    assert store.clear_uploads(older_than_s=-60) == 1


def test_reading_many_at_once_pays(store: S3Store) -> None:
    keys = [f"units/{i:06d}" for i in range(64)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda key: store.write(key, b"x" * 2000), keys))
    began = time.monotonic()
    one_by_one = [store.read(key) for key in keys]
    alone_s = time.monotonic() - began
    began = time.monotonic()
    assert store.read_many(keys) == one_by_one
    together_s = time.monotonic() - began
    print(f"64 objects: {alone_s:.2f} s one by one, {together_s:.2f} s together")
