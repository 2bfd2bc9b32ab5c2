"""gc on a folder and on a simulated S3: what may go goes, and what anybody serves stays."""

import os
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from infra.lease import take_lease
from infra.storage import FileStore, S3Store, Store
from tasks.errors import StorageError
from tasks.publish.channels import promote, read_history, read_newest, rollback
from tasks.publish.garbage import Garbage, Keep, delete_garbage, find_garbage
from tasks.publish.manifest import Manifest, read_manifest
from tasks.publish.pulling import pull
from tasks.run_records import RunRecord, StageResult
from tests.unit.artifact_factory import store_artifact, write_files

DAY = 86400.0
KEY = "ab" * 32


def collect(store: Store, days: float, **keep: Any) -> Garbage:
    """Delete what may go when everything in the store is `days` older than it is."""
    now, kept = time.time() + days * DAY, Keep(**keep)
    return delete_garbage(store, find_garbage(store, kept, now), kept, now)


def write_run(store: Store, run_id: str, stages: list[str], recipe: str = "tiny") -> None:
    """Leave what a night leaves in `runs/`; `stages` are keys."""
    store.write(f"runs/{recipe}/{run_id}/recipe.yaml", b"name: tiny")
    record = RunRecord(
        recipe=recipe,
        run_id=run_id,
        started="2026-11-21T02:00:00+00:00",
        seconds=1,
        status="done",
        store_uri=store.uri,
        channel="nightly",
        stages=[
            StageResult(
                title="1 prune", stage="prune", key=key, outcome="computed", seconds=1, nodes=[]
            )
            for key in stages
        ],
        models=[],
        exports=[],
    )
    store.write(f"runs/{recipe}/{run_id}/run.json", record.model_dump_json().encode())


def write_stage(store: Store, key: str, name: str = "prune") -> str:
    prefix = f"stages/{name}/{key}"
    store.write(f"{prefix}/attempts/x/weights", b"w" * 100)
    store.write(f"{prefix}/units/0/000000", b"u" * 10)
    store.write(f"{prefix}/complete.json", b"{}")
    return prefix


def age(store: Store, prefixes: list[str]) -> None:
    """Make folders twenty days old, where the store lets us."""
    if isinstance(store, FileStore):
        for prefix in prefixes:
            for key in store.list(f"{prefix}/"):
                os.utime(store.root / key, (time.time() - 20 * DAY,) * 2)


def test_a_dry_run_says_what_and_why_and_deletes_nothing(store: Store, tmp_path: Path) -> None:
    served = store_artifact(store, write_files(tmp_path / "a", "a"))
    orphan = store_artifact(store, write_files(tmp_path / "b", "b"), channel=None)
    half = store_artifact(store, write_files(tmp_path / "c", "c"), channel=None)
    store.delete(f"{half.prefix}/manifest.json")
    stage = write_stage(store, KEY)
    before = store.list("")
    found = find_garbage(store, Keep(), time.time() + 20 * DAY)
    assert store.list("") == before
    why = {folder.prefix: folder.why for folder in found.folders}
    assert set(why) == {orphan.prefix, half.prefix, stage}
    assert why[orphan.prefix] == "on no channel and in none of the last 14 runs"
    assert why[half.prefix].startswith("never finished, no manifest")
    assert "over 14 days ago" in why[stage]
    assert not found.deleted and found.num_kept_artifacts == 1
    sizes = {folder.prefix: folder.num_bytes for folder in found.folders}
    assert sizes[stage] == 112
    assert sizes[orphan.prefix] == sum(store.sizes(orphan.prefix).values())
    assert served.prefix not in why


def test_what_may_go_goes_and_nothing_else(store: Store, tmp_path: Path) -> None:
    served = store_artifact(store, write_files(tmp_path / "a", "a"))
    orphan = store_artifact(store, write_files(tmp_path / "b", "b"), channel=None)
    write_run(store, "20261120T020000Z-aaaaaa", [])
    foreign = ["notes.txt", "artifacts/tiny/notes.txt", "artifacts/tiny/int4/latest/x", "stages/x"]
    for key in foreign:
        store.write(key, b"mine")
    before = set(store.list(""))
    going = set(store.list(f"{orphan.prefix}/"))
    assert [folder.prefix for folder in collect(store, 20).folders] == [orphan.prefix]
    assert set(store.list("")) == before - going
    pull(store, "tiny/int4", tmp_path / "model")
    assert read_manifest(store, "tiny", "int4", served.digest) == served
    assert collect(store, 20).folders == []


def test_nothing_young_goes(store: Store, tmp_path: Path) -> None:
    orphan = store_artifact(store, write_files(tmp_path / "b", "b"), channel=None)
    write_stage(store, KEY)
    before = store.list("")
    for days in (-400, 0, 0.99):  # also where this machine's clock is behind the store's
        assert collect(store, days, runs=0, stage_days=1).folders == []
    assert store.list("") == before
    assert [f.prefix for f in collect(store, 1.01, runs=0).folders] == [orphan.prefix]
    assert collect(store, 13.9).folders == []
    assert [f.kind for f in collect(store, 14.1).folders] == ["stage"]


def test_the_last_runs_keep_their_stages(store: Store) -> None:
    keys = [f"{number:064x}" for number in range(4)]
    prefixes = [write_stage(store, key) for key in keys]
    for day, key in enumerate(keys):
        write_run(store, f"2026112{day}T020000Z-aaaaaa", [key])
    write_run(store, "20261121T020000Z-bbbbbb", [], recipe="other")
    assert [f.prefix for f in collect(store, 20, runs=2).folders] == prefixes[:2]
    assert [f.prefix for f in collect(store, 20, runs=0).folders] == prefixes[2:]
    assert len(store.list("runs/")) == 10, "runs stay: the front over all nights is read from them"


def test_the_last_entries_of_each_channel_keep_their_artifacts(
    store: Store, tmp_path: Path
) -> None:
    made = [store_artifact(store, write_files(tmp_path / x, x)) for x in "abcd"]
    promote(store, made[0], "stable", "ann", "a year ago")
    assert collect(store, 20).folders == [], "without a limit all that was ever served stays"
    assert collect(store, 20, entries=3, runs=0).folders == [], "the oldest is on stable"
    promote(store, made[3], "stable", "ann", "now")
    gone = collect(store, 20, entries=1, runs=0).folders
    assert {folder.prefix for folder in gone} == {m.prefix for m in made[:3]}
    assert "in none of the last 1 entries of a channel" in gone[0].why
    for channel in ("nightly", "stable"):
        pull(store, f"tiny/int4@{channel}", tmp_path / channel)
    with pytest.raises(StorageError, match="no such artifact"):
        rollback(store, "tiny", "int4", "nightly", "ann", "odd output")


def test_a_night_at_work_keeps_its_artifacts_and_all_stages(store: Store, tmp_path: Path) -> None:
    orphan = store_artifact(store, write_files(tmp_path / "b", "b"), channel=None)
    stage = write_stage(store, KEY)
    later = time.time() + 20 * DAY
    found = find_garbage(store, Keep(), later)
    assert {folder.prefix for folder in found.folders} == {orphan.prefix, stage}

    lease = take_lease(store, "leases/tiny", "20261121T020000Z-aaaaaa")
    try:
        tomorrow = time.time() + 0.9 * DAY  # the lease was renewed less than a day ago
        (note,) = find_garbage(store, Keep(), tomorrow).notes
        assert "a night of tiny is at work" in note
        age(store, [orphan.prefix, stage])
        assert collect(store, 0, runs=0).folders == []
    finally:
        lease.release()
    if isinstance(store, FileStore):
        assert {found.prefix for found in collect(store, 0).folders} == {orphan.prefix, stage}


def test_a_night_that_was_killed_keeps_nothing(store: Store) -> None:
    stage = write_stage(store, KEY)
    script = (
        "import os, signal, sys; from infra.lease import take_lease; "
        "from infra.storage import open_store; "
        "take_lease(open_store(sys.argv[1]), 'leases/tiny', 'x'); "
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", script, store.uri], cwd=root, check=False)
    assert store.list("leases/tiny/")
    age(store, [stage])
    assert find_garbage(store, Keep(), time.time()).notes == []


def test_what_is_wanted_again_between_finding_and_deleting_stays(
    store: Store, tmp_path: Path
) -> None:
    promoted = store_artifact(store, write_files(tmp_path / "a", "a"), channel=None)
    named = store_artifact(store, write_files(tmp_path / "b", "b"), export="int8", channel=None)
    stage = write_stage(store, KEY)
    now, keep = time.time() + 20 * DAY, Keep()
    found = find_garbage(store, keep, now)
    assert len(found.folders) == 3
    promote(store, promoted, "stable", "ann", "it is good after all")
    write_run(store, "20261121T020000Z-aaaaaa", [KEY])
    done = delete_garbage(store, found, keep, now)
    assert [folder.prefix for folder in done.folders] == [named.prefix]
    assert sum("is wanted again" in note for note in done.notes) == 2
    pull(store, "tiny/int4@stable", tmp_path / "model")
    assert store.exists(f"{stage}/complete.json")


def test_a_promotion_while_the_manifest_is_going_brings_it_back(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worst moment: the channel is appended right after the manifest was deleted."""
    manifest = store_artifact(store, write_files(tmp_path / "a", "a"), channel=None)
    delete = type(store).delete

    def delete_then_promote(self: Store, key: str) -> None:
        delete(self, key)
        if key.endswith("/manifest.json"):
            promote(store, manifest, "stable", "ann", "just now")

    monkeypatch.setattr(type(store), "delete", delete_then_promote)
    assert collect(store, 20).folders == []
    pull(store, "tiny/int4@stable", tmp_path / "model")


@pytest.mark.parametrize("data", [b"", b"{}", b'{"schema_version": 2}', b"\xff"])
def test_what_cannot_be_read_stops_it(store: Store, tmp_path: Path, data: bytes) -> None:
    store_artifact(store, write_files(tmp_path / "b", "b"), channel=None)
    for key in ("channels/tiny/int4/nightly/99999998.json", "runs/tiny/20261121T0Z-a/run.json"):
        store.write(key, data)
        before = store.list("")
        with pytest.raises(StorageError, match=r"nothing is deleted|use a newer nightpress"):
            collect(store, 20)
        assert store.list("") == before
        store.delete(key)


def test_dangling_uploads_are_counted_and_cleared(store: Store, tmp_path: Path) -> None:
    if isinstance(store, FileStore):
        store.write("key", b"x")
        part = tmp_path / "store" / f".{uuid.uuid4().hex}.part"
        part.write_bytes(b"torn")
        assert collect(store, 20).num_uploads == 0, "somebody may be writing it"
        assert part.exists()
        os.utime(part, (time.time() - 2 * DAY,) * 2)
    elif isinstance(store, S3Store):  # moto says of every upload that it began in 2010
        name = {"Bucket": store.bucket, "Key": f"{store.prefix}/artifacts/torn"}
        store.fs.call_s3("create_multipart_upload", **name)
    for _ in range(2):
        assert find_garbage(store, Keep(), time.time()).num_uploads == 1
    assert collect(store, 0).num_uploads == 1
    assert collect(store, 0).num_uploads == 0


Action = tuple[str, int, str]
ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(["publish", "store", "tear", "promote", "rollback", "stage", "run", "gc"]),
        st.integers(0, 3),
        st.sampled_from(["nightly", "stable"]),
    ),
    max_size=14,
)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(actions=ACTIONS, keep_runs=st.integers(0, 2))
def test_in_any_order_what_a_channel_serves_still_pulls(
    actions: list[Action], keep_runs: int
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = FileStore(f"file://{folder / 'store'}")
        for content in "0123":
            write_files(folder / content, content)
        made: dict[int, Manifest] = {}
        for step, action in enumerate([*actions, ("gc", 0, "")]):
            apply(store, folder, made, step, action, keep_runs)
            for channel in ("nightly", "stable"):
                for entry in read_history(store, "tiny", "int4", channel):
                    manifest = read_manifest(store, "tiny", "int4", entry.digest)
                    stored = store.sizes(f"{manifest.prefix}/files")
                    assert sum(stored.values()) == manifest.num_bytes
                if read_newest(store, "tiny", "int4", channel):
                    pull(store, f"tiny/int4@{channel}", folder / f"pulled {channel}")


def apply(
    store: FileStore,
    folder: Path,
    made: dict[int, Manifest],
    step: int,
    action: Action,
    keep_runs: int,
) -> None:
    """Do one thing that happens to a store; what cannot be done now is left out."""
    verb, number, channel = action
    served = {
        entry.digest
        for name in ("nightly", "stable")
        for entry in read_history(store, "tiny", "int4", name)
    }
    if verb in ("publish", "store", "promote") and number not in made:
        made[number] = store_artifact(store, folder / str(number), channel=None)
    if verb in ("publish", "promote"):
        newest = read_newest(store, "tiny", "int4", channel)
        if newest is None or newest.digest != made[number].digest:
            promote(store, made[number], channel, "ann", "a test")
    elif verb == "tear" and number in made and made[number].digest not in served:
        store.delete(f"{made.pop(number).prefix}/manifest.json")
    elif verb == "rollback":
        try:
            rollback(store, "tiny", "int4", channel, "ann", "a test")
        except ValueError:
            assert len(read_history(store, "tiny", "int4", channel)) < 100
    elif verb == "stage":
        write_stage(store, f"{number:064x}")
    elif verb == "run":
        write_run(store, f"20261121T02{step:04d}Z-aaaaaa", [f"{number:064x}"])
    elif verb == "gc":
        done = collect(store, 20, runs=keep_runs)
        gone = {found.prefix for found in done.folders}
        assert not any(store.list(f"{prefix}/") for prefix in gone)
        for key in [number for number, manifest in made.items() if manifest.prefix in gone]:
            assert made.pop(key).digest not in served


def test_a_publisher_at_work_is_not_disturbed(store: Store, tmp_path: Path) -> None:
    """gc runs all the while; of what is published meanwhile, every byte is there afterwards."""
    folders = [write_files(tmp_path / str(i), str(i)) for i in range(8)]
    done = threading.Event()

    def publish() -> None:
        for folder in folders:
            store_artifact(store, folder)
        done.set()

    publisher = threading.Thread(target=publish)
    publisher.start()
    rounds = 0
    while not done.is_set():
        assert collect(store, 0, runs=0).folders == []
        rounds += 1
    publisher.join()
    history = read_history(store, "tiny", "int4", "nightly")
    assert len(history) == 8 and rounds > 0
    for entry in history:
        target = tmp_path / entry.digest[:12]
        pull(store, f"tiny/int4@sha256:{entry.digest[:12]}", target)
