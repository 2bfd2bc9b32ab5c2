"""What happens to a store when something goes wrong: crashes, full disks, faulty networks."""

import errno
import hashlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path

import pytest

from infra import s3_store, s3_transfer
from infra.file_store import PART_NAME
from infra.storage import FileStore, S3Store, open_store, put_folder
from infra.store_check import check_store
from tests.conformance.moto_server import running_moto
from tests.unit.faulty_relay import Fault, Request, running_relay


@pytest.fixture
def folder(tmp_path: Path) -> FileStore:
    return FileStore(f"file://{tmp_path / 'store'}")


@pytest.fixture(scope="module")
def moto() -> Iterator[dict[str, str]]:
    with running_moto() as environment:
        yield environment


@pytest.fixture
def bucket(moto: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> S3Store:
    """An empty store that tries everything three times."""
    for name, value in moto.items():
        monkeypatch.setenv(name, value)
    bucket = f"nightpress-{uuid.uuid4().hex}"
    store = S3Store(f"s3://{bucket}/team", tmp_path / "cache", attempts=3)
    store.fs.call_s3("create_bucket", Bucket=bucket)
    return store


@contextmanager
def faults(
    monkeypatch: pytest.MonkeyPatch, fault: Callable[[Request], Fault | None]
) -> Iterator[None]:
    """Put a relay with faults between the client and the server."""
    upstream = os.environ["AWS_ENDPOINT_URL"]
    with running_relay(upstream, fault) as url, monkeypatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", url)
        yield


def files_in(folder: FileStore) -> list[Path]:
    return [path for path in folder.root.rglob("*") if path.is_file()]


@pytest.mark.parametrize("uri", ["", "/tmp/x", "http://host/x", "file://", "s3://", "s3://a b/c"])
def test_a_uri_that_names_no_store_is_refused(uri: str) -> None:
    with pytest.raises(ValueError, match="expected a store at file://FOLDER or s3://BUCKET"):
        open_store(uri)


def test_no_bucket_library_is_imported_for_a_folder() -> None:
    script = "import sys, infra.storage; sys.exit(bool({'s3fs', 'botocore'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_relative_folder_is_found_from_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    store = open_store("file://./store")
    store.write("key", b"x")
    assert store.uri == f"file://{tmp_path}/store"


WRITER = """
import sys
from infra.storage import FileStore
store = FileStore(sys.argv[1])
print("ready", flush=True)
while True:
    for digit in b"01":
        store.write("written", bytes([digit]) * 10_000_000)
        store.delete("created")
        store.create("created", bytes([digit]) * 10_000_000)
"""


def test_a_killed_writer_leaves_the_old_object_or_the_new_one(folder: FileStore) -> None:
    for seed in range(4):
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, folder.uri], stdout=subprocess.PIPE
        ) as process:
            assert process.stdout
            process.stdout.readline()
            time.sleep(random.Random(seed).uniform(0.0, 0.2))
            process.send_signal(signal.SIGKILL)
        for key in folder.list(""):
            data = folder.read(key)
            assert len(data) == 10_000_000
            assert len(set(data)) == 1
    assert set(folder.list("")) <= {"written", "created"}
    num_parts = len(files_in(folder)) - len(folder.list(""))
    assert folder.clear_uploads(older_than_s=3600) == 0
    assert folder.clear_uploads(older_than_s=-1) == num_parts
    assert len(files_in(folder)) == len(folder.list(""))


FILL_A_DISK = """
import errno, os, pathlib, sys
from infra.storage import FileStore, put_folder
disk = pathlib.Path(sys.argv[1])
source = disk.parent / "source"
source.mkdir()
(source / "large").write_bytes(b"x" * 3_000_000)
store = FileStore(f"file://{disk}/store")
store.write("key", b"old")
for fill in (
    lambda: store.write("key", b"x" * 3_000_000),
    lambda: store.create("other", b"x" * 3_000_000),
    lambda: store.put_file(source / "large", "key"),
    lambda: put_folder(store, source, "model"),
):
    try:
        fill()
    except OSError as error:
        assert error.errno == errno.ENOSPC, error
    else:
        raise AssertionError("the disk holds 1 MB")
assert store.list("") == ["key"] and store.read("key") == b"old"
assert [p.name for p in disk.rglob("*") if p.is_file()] == ["key"]
"""


def run_on_disk(disk: Path, options: str, script: str) -> None:
    """Run a script that finds a small file system of its own mounted at `disk`, its argument."""
    disk.mkdir()
    mount = f"mount -t tmpfs -o {options} tmpfs {disk}"
    as_user = [] if os.geteuid() == 0 else ["-r"]
    in_namespace = ["unshare", *as_user, "-m", "sh", "-c"]
    if shutil.which("unshare") is None or subprocess.run([*in_namespace, mount]).returncode:
        pytest.skip("needs the right to mount a small file system")
    command = [*in_namespace, f'{mount} && exec "$0" -c "$1" {disk}', sys.executable, script]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_full_disk_leaves_no_partial_object(tmp_path: Path) -> None:
    run_on_disk(tmp_path / "disk", "size=1m", FILL_A_DISK)


def test_bytes_reach_the_disk_before_their_name(
    folder: FileStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls: list[str] = []
    real_fsync, real_link, real_rename = os.fsync, os.link, os.replace

    def fsync(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        calls.append("bytes" if PART_NAME.fullmatch(path.name) else f"names of {path.name}")
        real_fsync(descriptor)

    def link(source: Path, target: Path) -> None:
        calls.append("link")
        real_link(source, target)

    def replace(source: Path, target: Path) -> None:
        calls.append("rename")
        real_rename(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "link", link)
    monkeypatch.setattr(os, "replace", replace)
    folder.root.mkdir()
    folder.write("a/b/key", b"x")
    assert calls == ["names of store", "names of a", "bytes", "rename", "names of b"]
    calls.clear()
    folder.create("a/b/other", b"x")
    assert calls == ["bytes", "link", "names of b"]
    calls.clear()
    folder.put_file(Path(__file__), "a/b/file")
    assert calls == ["bytes", "rename", "names of b"]


def test_a_file_being_written_is_hidden_and_other_hidden_files_are_not(folder: FileStore) -> None:
    for name in (".hidden", "x.part", ".short.part"):
        folder.write(f"keys/{name}", b"x")
    (folder.root / "keys" / f".{'a' * 32}.part").write_bytes(b"half")
    assert folder.list("") == ["keys/.hidden", "keys/.short.part", "keys/x.part"]
    assert len(folder.sizes("keys")) == 3


def test_a_put_whose_answer_was_lost_is_a_success(
    bucket: S3Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The retry is refused by the object that the first try has made."""
    assert bucket.create("theirs", b"same")

    def lose_first_put(request: Request) -> Fault | None:
        return "lose answer" if request.method == "PUT" and request.number == 0 else None

    with faults(monkeypatch, lose_first_put):
        assert bucket.create("ours", b"same") is True
        assert bucket.create("theirs", b"same") is False
    assert bucket.read("ours") == b"same"


def test_a_conflict_is_asked_again(bucket: S3Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_store, "SETTLE_S", 0.01)

    def conflict_once(request: Request) -> Fault | None:
        return "conflict" if request.method == "PUT" and request.number == 0 else None

    with faults(monkeypatch, conflict_once):
        assert bucket.create("key", b"x") is True
    with faults(monkeypatch, lambda request: "conflict"), pytest.raises(OSError) as caught:
        bucket.create("other", b"x")
    assert caught.value.errno == errno.EBUSY
    assert bucket.list("") == ["key"]


def test_a_failing_create_is_not_taken_for_an_existing_object(
    bucket: S3Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    with faults(monkeypatch, lambda request: "refuse"), pytest.raises(OSError) as caught:
        bucket.create("key", b"x")
    assert caught.value.errno == errno.EBUSY
    assert bucket.list("") == []


def test_a_download_cut_short_is_tried_again_or_an_error(
    bucket: S3Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    data = os.urandom(300_000)
    bucket.write("model/key", data)

    def cut_first(request: Request) -> Fault | None:
        return "cut answer" if request.method == "GET" and request.number == 0 else None

    def cut_all(request: Request) -> Fault | None:
        return "cut answer" if request.path.endswith("/key") else None

    with faults(monkeypatch, cut_first):
        assert bucket.read("model/key") == data
    with faults(monkeypatch, cut_first):
        bucket.get_file("model/key", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == data
    with faults(monkeypatch, cut_all):
        for download in (
            lambda: bucket.read("model/key"),
            lambda: bucket.read_many(["model/key"]),
            lambda: bucket.get_file("model/key", tmp_path / "copy"),
            lambda: bucket.local_folder("model"),
        ):
            with pytest.raises(OSError):
                download()
    assert (tmp_path / "copy").read_bytes() == data
    assert {path.name for path in tmp_path.iterdir()} == {"copy", "cache"}
    assert (bucket.local_folder("model") / "key").read_bytes() == data


def test_an_upload_whose_last_answer_was_lost_is_whole(
    bucket: S3Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(s3_transfer, "PART_BYTES", 5 * 2**20)
    (tmp_path / "large").write_bytes(b"x" * (12 << 20))

    def lose_completion(request: Request) -> Fault | None:
        completes = request.method == "POST" and "uploadId" in request.path
        return "lose answer" if completes and request.number == 0 else None

    with faults(monkeypatch, lose_completion):
        bucket.put_file(tmp_path / "large", "models/large")
    assert bucket.sizes("models") == {"models/large": 12 << 20}
    assert bucket.clear_uploads(older_than_s=-60) == 0


def test_a_part_that_never_arrives_leaves_no_object(
    bucket: S3Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(s3_transfer, "PART_BYTES", 5 * 2**20)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "large").write_bytes(b"x" * (12 << 20))

    def refuse_second_part(request: Request) -> Fault | None:
        return "refuse" if "partNumber=2" in request.path else None

    with faults(monkeypatch, refuse_second_part), pytest.raises(OSError):
        put_folder(bucket, tmp_path / "model", "models/new")
    assert bucket.list("") == []
    assert bucket.clear_uploads(older_than_s=-60) == 0  # aborted already


def test_a_large_download_asks_again_for_the_part_that_broke_off(
    bucket: S3Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(s3_transfer, "RANGE_BYTES", 100_000)
    data = os.urandom(1_234_567)
    bucket.write("key", data)
    num_gets = 0

    def cut_second(request: Request) -> Fault | None:
        nonlocal num_gets
        num_gets += request.method == "GET"
        return "cut answer" if request.method == "GET" and request.number == 1 else None

    with faults(monkeypatch, cut_second):
        digest = bucket.get_file("key", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == data
    assert digest == hashlib.sha256(data).hexdigest()
    assert num_gets == 13 + 1


def test_an_object_replaced_during_its_download_is_an_error(
    bucket: S3Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(s3_transfer, "RANGE_BYTES", 100_000)
    bucket.write("key", b"1" * 1_000_000)
    (tmp_path / "copy").write_bytes(b"old")

    def replace_at_fifth(request: Request) -> Fault | None:
        if request.method == "GET" and request.number == 4:
            bucket.write("key", b"2" * 1_000_000)
        return None

    with faults(monkeypatch, replace_at_fifth), pytest.raises(OSError, match="PreconditionFailed"):
        bucket.get_file("key", tmp_path / "copy")
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]
    assert (tmp_path / "copy").read_bytes() == b"old"


def test_a_forked_child_connects_anew(bucket: S3Store) -> None:
    bucket.write("parent", b"1")  # the connection and its thread exist
    with ProcessPoolExecutor(2, mp_context=get_context("fork")) as pool:
        assert list(pool.map(bucket.read, ["parent"] * 4, timeout=30)) == [b"1"] * 4
    assert bucket.read("parent") == b"1"


def test_a_listing_without_a_file_is_noticed(
    bucket: S3Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_bytes(b"{}")
    put_folder(bucket, tmp_path / "model", "models/new")
    put = S3Store.put_file
    monkeypatch.setattr(
        S3Store, "put_file", lambda self, local, key: put(self, Path(os.devnull), key)
    )
    with pytest.raises(OSError, match=r"did not arrive whole.*config\.json"):
        put_folder(bucket, tmp_path / "model", "models/new")


def test_a_bucket_cannot_write_outside_the_cache(bucket: S3Store, tmp_path: Path) -> None:
    bucket.fs.call_s3(
        "put_object", Bucket=bucket.bucket, Key="team/model/../../../escaped", Body=b"x"
    )
    with pytest.raises(ValueError, match="a key is a relative path"):
        bucket.local_folder("model")
    assert not list(tmp_path.rglob("escaped"))


def test_a_folder_marker_is_no_object(bucket: S3Store) -> None:
    bucket.fs.call_s3("put_object", Bucket=bucket.bucket, Key="team/model/", Body=b"")
    bucket.write("model/config.json", b"{}")
    assert bucket.list("") == ["model/config.json"]
    assert [path.name for path in bucket.local_folder("model").iterdir()] == ["config.json"]


def test_the_cache_belongs_to_the_user(
    bucket: S3Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    bucket.write("model/config.json", b"{}")
    local = S3Store(bucket.uri).local_folder("model")
    assert local.is_relative_to(tmp_path / "home" / "nightpress")


def test_preflight_of_a_folder(tmp_path: Path) -> None:
    store = f"file://{tmp_path}/not/there/yet"
    assert {finding.level for finding in check_store(store, needed_bytes=1)} == {"ok"}
    assert list(tmp_path.iterdir()) == []
    free = shutil.disk_usage(tmp_path).free
    (disk, *_) = check_store(store, needed_bytes=free // 2)
    assert (disk.level, disk.name) == ("warning", "disk")
    (disk,) = check_store(store, needed_bytes=free * 2)
    assert disk.level == "error"
    assert "a run needs" in disk.message
    assert "free some disk" in str(disk.remedy)
    (tmp_path / "file").touch()
    *_, finding = check_store(f"file://{tmp_path}/file/store", needed_bytes=1)
    assert finding.level == "error"
    assert "is not a folder to write in" in finding.message
    (finding,) = check_store("gs://bucket/x")
    assert finding.message.endswith("s3://BUCKET/PREFIX, got 'gs://bucket/x'")


CHECK_A_READ_ONLY_DISK = """
import sys
from infra.store_check import check_store
*_, finding = check_store(f"file://{sys.argv[1]}/store", needed_bytes=1)
assert "is not a folder to write in: Read-only file system" in finding.message, finding
"""


def test_preflight_of_a_folder_that_is_not_writable(tmp_path: Path) -> None:
    run_on_disk(tmp_path / "disk", "size=1m,ro", CHECK_A_READ_ONLY_DISK)


def test_preflight_finds_a_server_without_conditional_writes(
    bucket: S3Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    with faults(monkeypatch, lambda request: "ignore condition"):
        *_, finding = check_store(bucket.uri)
    assert (finding.level, finding.name) == ("error", "create-only")
    assert bucket.list("") == []


def test_preflight_of_a_server_that_is_not_there(
    bucket: S3Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    (finding,) = check_store(bucket.uri)
    assert finding.message.startswith(f"{bucket.uri} cannot be reached: Could not connect")
    assert "AWS_ENDPOINT_URL" in str(finding.remedy)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "nonsense")
    (finding,) = check_store(bucket.uri)
    assert finding.message.startswith("AWS_ENDPOINT_URL is a URL such as")


@pytest.mark.parametrize("timeout_s", [2.0, 0.5])
def test_preflight_of_a_server_that_does_not_answer(
    bucket: S3Store, monkeypatch: pytest.MonkeyPatch, timeout_s: float
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        began = time.monotonic()
        (finding,) = check_store(bucket.uri, timeout_s=timeout_s)
        assert time.monotonic() - began < timeout_s + 5
    assert "cannot be reached" in finding.message


def test_preflight_of_a_bucket_that_is_absent_or_refused(
    bucket: S3Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    (finding,) = check_store("s3://absent-bucket/x")
    assert finding.message.startswith("bucket 'absent-bucket' does not exist")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    (finding,) = check_store(bucket.uri)
    assert "credentials refused: Unable to locate credentials" in finding.message
