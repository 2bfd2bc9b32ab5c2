"""Who writes at the same moment, on a folder and on a simulated S3: one wins, and all know it."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import pytest

from infra.lease import Lease, LeaseHeldError, read_holder, take_lease
from infra.storage import Store
from tasks.errors import StorageError
from tasks.publish.channels import promote, read_history, read_newest, rollback
from tasks.publish.garbage import Keep, delete_garbage, find_garbage
from tasks.publish.manifest import Manifest
from tasks.publish.publishing import advance_channel
from tasks.publish.pulling import pull
from tasks.quality_records import GateReport
from tasks.records import ArtifactRef
from tests.unit.artifact_factory import passed_gate, store_artifact, write_files

NUM_STARTERS = 36
NUM_PUBLISHERS = 5


@pytest.fixture
def artifacts(store: Store, tmp_path: Path) -> list[Manifest]:
    """In the store, and on no channel."""
    folders = [write_files(tmp_path / str(i), str(i), 1) for i in range(NUM_PUBLISHERS)]
    return [store_artifact(store, folder, channel=None) for folder in folders]


def at_once(*work: Callable[[], object]) -> list[object]:
    """Call functions in threads that begin together; return results, and errors of the store."""
    gate = threading.Barrier(len(work))

    def call(do: Callable[[], object]) -> object:
        gate.wait()
        try:
            return do()
        except (StorageError, ValueError) as error:
            return error

    with ThreadPoolExecutor(len(work)) as pool:
        return list(pool.map(call, work))


def test_each_publisher_is_gated_against_the_one_that_it_replaces(
    store: Store, artifacts: list[Manifest]
) -> None:
    gated: dict[str, str] = {}

    def publish(manifest: Manifest) -> str:
        def regate(champion: ArtifactRef) -> GateReport:
            gated[manifest.digest] = champion.digest
            return passed_gate()

        return advance_channel(store, manifest, None, "nightly", "n", "passed", regate)

    outcomes = at_once(*(lambda m=m: publish(m) for m in artifacts))
    assert outcomes == ["published"] * NUM_PUBLISHERS
    history = read_history(store, "tiny", "int4", "nightly")
    assert [entry.n for entry in history] == list(range(NUM_PUBLISHERS, 0, -1))
    assert {entry.digest for entry in history} == {m.digest for m in artifacts}
    for entry in history[:-1]:
        assert gated[entry.digest] == entry.previous


def test_of_many_that_start_a_night_one_does(store: Store) -> None:
    def start(number: int) -> Lease | None:
        try:
            return take_lease(store, "leases/tiny", f"run {number}")
        except LeaseHeldError:
            return None

    started = at_once(*(lambda n=n: start(n) for n in range(NUM_STARTERS)))
    won = [lease for lease in started if isinstance(lease, Lease)]
    assert len(won) == 1
    holder = read_holder(store, "leases/tiny")
    assert holder is not None and holder.run_id == won[0].holder.run_id
    won[0].release()


def test_promote_against_rollback_leaves_one_history(
    store: Store, artifacts: list[Manifest], tmp_path: Path
) -> None:
    """Whoever loses is told; what the channel serves is what the last of them wanted."""
    first, second, third, *_ = artifacts
    for turn in range(3):
        channel = f"turn-{turn}"
        promote(store, first, channel, "ann", "first")
        promote(store, second, channel, "ann", "second")
        done = at_once(
            lambda channel=channel: promote(store, third, channel, "ann", "third"),
            lambda channel=channel: rollback(store, "tiny", "int4", channel, "bob", "odd output"),
        )
        history = read_history(store, "tiny", "int4", channel)
        assert [entry.n for entry in history] == list(range(len(history), 0, -1))
        for newer, older in pairwise(history):
            assert newer.previous == older.digest
        losers = [error for error in done if isinstance(error, StorageError)]
        assert all("was changed by somebody else" in str(error) for error in losers)
        assert len(history) == 4 - len(losers)
        assert len(losers) < 2
        newest = read_newest(store, "tiny", "int4", channel)
        assert newest is not None and newest.digest in {first.digest, second.digest, third.digest}
        pull(store, f"tiny/int4@{channel}", tmp_path / channel)


def test_a_promotion_while_gc_deletes_is_served_or_refused(
    store: Store, artifacts: list[Manifest], tmp_path: Path
) -> None:
    """Of what a channel serves afterwards every byte is there, or the promotion was refused."""
    now = 4e9  # long after all of it was written
    keep = Keep(runs=0)
    found = find_garbage(store, keep, now)
    assert len(found.folders) == NUM_PUBLISHERS
    at_once(
        lambda: delete_garbage(store, found, keep, now),
        *(lambda i=i, m=m: promote(store, m, f"c{i}", "ann", "x") for i, m in enumerate(artifacts)),
    )
    for number, manifest in enumerate(artifacts):
        left = set(store.sizes(manifest.prefix))
        whole = f"{manifest.prefix}/manifest.json" in left
        if whole:
            pull(store, f"tiny/int4@c{number}", tmp_path / f"pulled-{number}")
        else:
            with pytest.raises(StorageError, match="has no such artifact any more"):
                pull(store, f"tiny/int4@c{number}", tmp_path / f"pulled-{number}")
