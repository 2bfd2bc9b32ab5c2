"""Pulling: whole or not at all, resumable, never outside DEST, never over a user's files."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from moto.server import ThreadedMotoServer

from infra.storage import FileStore, S3Store, Store
from tasks.digests import digest_files, digest_folder, list_files
from tasks.errors import StorageError
from tasks.publish.artifact import MANIFEST_NAME, check_relative
from tasks.publish.channels import rollback
from tasks.publish.destination import hidden_sibling
from tasks.publish.listing import list_artifacts
from tasks.publish.manifest import Manifest
from tasks.publish.pulling import pull
from tests.unit.artifact_factory import store_artifact, write_files


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    return FileStore(f"file://{tmp_path / 'store'}")


@pytest.fixture
def artifact(store: FileStore, tmp_path: Path) -> Manifest:
    return store_artifact(store, write_files(tmp_path / "first", "first"))


@pytest.fixture
def dest(tmp_path: Path) -> Path:
    return tmp_path / "pulled" / "model"


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Store]:
    """A store on an S3 server of this process."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    store = S3Store("s3://nightpress-pull/team", tmp_path / "cache", attempts=2)
    store.fs.call_s3("create_bucket", Bucket="nightpress-pull")
    yield store
    server.stop()


def left_beside(dest: Path) -> list[str]:
    return sorted(path.name for path in dest.parent.iterdir() if path != dest)


def names_in(folder: Path) -> frozenset[str]:
    return frozenset(path.name for path in folder.iterdir())


def flip_a_byte(store: Store, key: str) -> None:
    data = bytearray(store.read(key))
    data[10] ^= 1
    store.write(key, bytes(data))


def test_a_pull_is_the_published_folder_and_its_manifest(
    store: FileStore, artifact: Manifest, dest: Path, tmp_path: Path
) -> None:
    seen: list[tuple[int, int]] = []
    assert pull(store, "tiny", dest, progress=lambda *done: seen.append(done)) == artifact
    assert (dest / MANIFEST_NAME).read_bytes() == store.read(f"{artifact.prefix}/{MANIFEST_NAME}")
    assert list_files(dest) == sorted([*artifact.files, MANIFEST_NAME])
    assert seen[0] == (0, artifact.num_bytes)
    assert seen[-1] == (artifact.num_bytes, artifact.num_bytes)
    assert left_beside(dest) == []
    (dest / MANIFEST_NAME).unlink()
    assert digest_folder(dest) == artifact.digest == digest_folder(tmp_path / "first")


def test_a_bucket_is_no_different(bucket: S3Store, dest: Path, tmp_path: Path) -> None:
    first = store_artifact(bucket, write_files(tmp_path / "first", "first"))
    second = store_artifact(bucket, write_files(tmp_path / "second", "second"))
    assert pull(bucket, "tiny", dest) == second
    rollback(bucket, "tiny", "int4", "nightly", "ann", "odd output")
    assert pull(bucket, "tiny", dest) == first
    flip_a_byte(bucket, f"{second.prefix}/files/part-1.bin")
    with pytest.raises(StorageError, match=r"part-1\.bin: expected .* bytes"):
        pull(bucket, f"tiny@sha256:{second.digest}", dest)
    assert (dest / "part-1.bin").read_bytes().startswith(b"first")
    listed = {listing.digest: listing.channels for listing in list_artifacts(bucket)}
    assert listed == {first.digest: ["nightly"], second.digest: []}


def test_a_pulled_model_loads(store: FileStore, tiny_llama: Path, dest: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    store_artifact(store, tiny_llama)
    pull(store, "tiny/int4", dest)
    assert AutoModelForCausalLM.from_pretrained(dest).config.hidden_size == 32
    assert AutoTokenizer.from_pretrained(dest).chat_template


def test_pulling_again_changes_nothing(store: FileStore, artifact: Manifest, dest: Path) -> None:
    pull(store, "tiny", dest)
    before = {path: (dest / path).stat().st_mtime_ns for path in list_files(dest)}
    for path in artifact.files:
        store.delete(f"{artifact.prefix}/files/{path}")  # not needed again
    pull(store, "tiny", dest)
    assert {path: (dest / path).stat().st_mtime_ns for path in list_files(dest)} == before
    assert left_beside(dest) == []


def test_a_newer_artifact_replaces_an_older_pull(
    store: FileStore, artifact: Manifest, dest: Path, tmp_path: Path
) -> None:
    pull(store, "tiny", dest)
    newer = store_artifact(store, write_files(tmp_path / "second", "second", num_files=2))
    assert pull(store, "tiny", dest).digest == newer.digest
    assert list_files(dest) == sorted([*newer.files, MANIFEST_NAME])
    assert left_beside(dest) == []
    pull(store, f"tiny/int4@sha256:{artifact.digest[:12]}", dest)
    assert json.loads((dest / MANIFEST_NAME).read_text())["digest"] == artifact.digest


def test_a_users_files_are_never_touched(
    store: FileStore, artifact: Manifest, dest: Path, tmp_path: Path
) -> None:
    dest.mkdir(parents=True)
    pull(store, "tiny", dest)  # an empty folder is fine
    store_artifact(store, write_files(tmp_path / "second", "second"))
    (dest / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"sha256:[0-9a-f]{12} any more"):
        pull(store, "tiny", dest)
    (dest / "notes.txt").unlink()
    (dest / "part-0.bin").write_bytes(b"x" * artifact.files["part-0.bin"].bytes)  # same size
    with pytest.raises(ValueError, match="any more"):
        pull(store, "tiny", dest)
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("mine")
    with pytest.raises(ValueError, match="not a pulled artifact; give another DEST"):
        pull(store, "tiny", other)
    link = tmp_path / "link"
    link.symlink_to(other)
    with pytest.raises(ValueError, match="not a pulled artifact"):
        pull(store, "tiny", link)
    assert (other / "thesis.tex").read_text() == "mine"
    assert not list(tmp_path.rglob(".*.pull"))


@pytest.mark.parametrize("damage", ["flipped", "truncated", "missing"])
def test_damage_in_the_store_leaves_nothing_at_dest(
    store: FileStore, artifact: Manifest, dest: Path, damage: str
) -> None:
    key = f"{artifact.prefix}/files/part-1.bin"
    good = store.read(key)
    if damage == "flipped":
        flip_a_byte(store, key)
    elif damage == "truncated":
        store.write(key, good[:-7])
    else:
        store.delete(key)
    with pytest.raises(StorageError, match=r"part-1\.bin"):
        pull(store, "tiny", dest)
    assert not dest.exists()
    store.write(key, good)
    pull(store, "tiny", dest)
    assert left_beside(dest) == []


def test_damage_keeps_the_older_pull_in_place(
    store: FileStore, artifact: Manifest, dest: Path, tmp_path: Path
) -> None:
    pull(store, "tiny", dest)
    newer = store_artifact(store, write_files(tmp_path / "second", "second"))
    flip_a_byte(store, f"{newer.prefix}/files/part-0.bin")
    with pytest.raises(StorageError):
        pull(store, "tiny", dest)
    assert json.loads((dest / MANIFEST_NAME).read_text())["digest"] == artifact.digest


def test_a_resumed_pull_keeps_what_is_right_and_nothing_else(
    store: FileStore, artifact: Manifest, dest: Path, tmp_path: Path
) -> None:
    """As after a crash: one file whole, one torn, a stray, and a link that somebody planted."""
    folder = hidden_sibling(dest, artifact.digest)
    folder.mkdir(parents=True)
    (folder / "part-0.bin").write_bytes(store.read(f"{artifact.prefix}/files/part-0.bin"))
    (folder / "part-1.bin").write_bytes(b"torn")
    (folder / ".0123.part").write_bytes(b"torn")
    outside = tmp_path / "outside"
    outside.mkdir()
    (folder / "deep").symlink_to(outside)
    store.delete(f"{artifact.prefix}/files/part-0.bin")  # proof that it is not fetched again
    pull(store, "tiny", dest)
    assert list_files(dest) == sorted([*artifact.files, MANIFEST_NAME])
    assert list(outside.iterdir()) == []
    assert not (dest / "deep").is_symlink()


PULL_IN_A_PROCESS = """
import sys
from pathlib import Path
from infra.storage import FileStore, S3Store, Store
from tasks.publish.pulling import pull
pull(FileStore(sys.argv[1]), "tiny", Path(sys.argv[2]), num_threads=1)
"""


def test_a_killed_pull_goes_on(store: FileStore, dest: Path, tmp_path: Path) -> None:
    artifact = store_artifact(store, write_files(tmp_path / "many", "many", num_files=400))
    command = [sys.executable, "-c", PULL_IN_A_PROCESS, store.uri, str(dest)]
    process = subprocess.Popen(command, cwd=Path(__file__).parents[2])
    folder = hidden_sibling(dest, artifact.digest)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (folder / "part-200.bin").exists():
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not dest.exists()
    whole = [path for path in list_files(folder) if not path.endswith(".part")]
    assert 50 < len(whole) < 401
    before = {path: (folder / path).stat().st_ino for path in whole}
    pull(store, "tiny", dest)
    after = {path: (dest / path).stat().st_ino for path in whole}
    assert sum(after[path] != inode for path, inode in before.items()) <= 1
    assert left_beside(dest) == []


def test_two_pulls_at_once_agree(store: FileStore, artifact: Manifest, dest: Path) -> None:
    threads = [threading.Thread(target=pull, args=(store, "tiny", dest)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list_files(dest) == sorted([*artifact.files, MANIFEST_NAME])
    assert left_beside(dest) == []


def test_a_reader_sees_nothing_or_everything(
    store: FileStore, artifact: Manifest, dest: Path, tmp_path: Path
) -> None:
    """While DEST is pulled and replaced, the folder that stands there is one whole artifact."""
    store_artifact(store, write_files(tmp_path / "second", "second", num_files=9))
    references = [f"tiny/int4@sha256:{artifact.digest[:12]}", "tiny"]
    whole = {names_in(tmp_path / x) | {MANIFEST_NAME} for x in ("first", "second")}
    seen, stop = set(), threading.Event()

    def read() -> None:
        while not stop.is_set():
            try:
                before = dest.stat().st_ino
                listing = names_in(dest)
                if dest.stat().st_ino == before:
                    seen.add(listing)
            except FileNotFoundError:
                continue

    reader = threading.Thread(target=read)
    reader.start()
    for turn in range(10):
        pull(store, references[turn % 2], dest)
    stop.set()
    reader.join()
    assert seen <= whole


BAD_PATHS = [
    "../escape",
    "/etc/passwd",
    "a/../../escape",
    "a\\..\\escape",
    "C:/escape",
    "./a",
    "a//b",
    "",
    "a/",
    "nul\0",
    MANIFEST_NAME,
]


@pytest.mark.parametrize("path", BAD_PATHS)
def test_a_manifest_that_leads_out_is_refused(
    store: FileStore, artifact: Manifest, dest: Path, path: str
) -> None:
    """Even one whose digests all agree."""
    raw = json.loads(artifact.to_json())
    raw["files"][path] = raw["files"].pop("part-0.bin")
    raw["digest"] = digest_files({p: entry["sha256"] for p, entry in raw["files"].items()})
    prefix = f"artifacts/tiny/int4/{raw['digest']}"
    store.write(f"{prefix}/{MANIFEST_NAME}", json.dumps(raw).encode())
    with pytest.raises(StorageError, match="not a plain relative path"):
        pull(store, f"tiny/int4@sha256:{raw['digest'][:12]}", dest)
    assert not dest.parent.exists()


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="a./\\~", max_size=8))
def test_an_accepted_path_stays_inside(path: str) -> None:
    try:
        check_relative(path)
    except ValueError:
        return
    assert os.path.normpath(f"/dest/{path}") == f"/dest/{path}"
