"""Of all nights of one name one runs, whatever became of the others."""

import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from infra.lease import EXPIRY_S, Holder, Lease, LeaseHeldError, read_holder, take_lease
from infra.storage import FileStore

FOLDER = "leases/tiny"


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    return FileStore(f"file://{tmp_path}/store")


def stored(store: FileStore) -> tuple[str, dict[str, Any]]:
    (key,) = store.list(FOLDER)
    return key, json.loads(store.read(key))


def leave(store: FileStore, **changes: Any) -> None:
    """Leave the lease of a night on another machine that was killed."""
    holder = Holder("gone", "elsewhere", "other boot", "1 1", "then", time.time())
    data = json.dumps(asdict(replace(holder, **changes))).encode()
    store.write(f"{FOLDER}/99999998.json", data)


def test_one_holds_it_until_it_is_given_back(store: FileStore) -> None:
    first = take_lease(store, FOLDER, "first")
    with pytest.raises(LeaseHeldError, match="another night is running: first, since 20"):
        take_lease(store, FOLDER, "second")
    first.release()
    assert read_holder(store, FOLDER) is None
    second = take_lease(store, FOLDER, "second")
    holder = read_holder(store, FOLDER)
    assert holder is not None and holder.run_id == "second"
    assert stored(store)[0] == f"{FOLDER}/99999997.json", "one object is left, the second's"
    second.release()


def test_other_names_are_not_in_the_way(store: FileStore) -> None:
    leases = [take_lease(store, f"leases/{name}", "run") for name in ("tiny", "tiny.2")]
    for lease in leases:
        lease.release()


@pytest.mark.parametrize("before", ["nobody", "killed"])
def test_of_many_that_race_one_wins(store: FileStore, before: str) -> None:
    if before == "killed":
        leave(store, released=True)

    def race(number: int) -> Lease | None:
        try:
            return take_lease(store, FOLDER, f"run {number}")
        except LeaseHeldError:
            return None

    with ThreadPoolExecutor(12) as pool:
        won = [lease for lease in pool.map(race, range(36)) if lease]
    assert len(won) == 1
    assert stored(store)[1]["run_id"] == won[0].holder.run_id
    won[0].release()


def test_who_was_killed_on_this_machine_makes_way_at_once(store: FileStore) -> None:
    program = (
        "import os, signal, sys\nfrom infra.lease import take_lease\n"
        "from infra.storage import FileStore\n"
        f"take_lease(FileStore(sys.argv[1]), {FOLDER!r}, 'killed')\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", program, store.uri], cwd=root, timeout=60, check=False)
    assert stored(store)[1]["run_id"] == "killed"
    began = time.monotonic()
    take_lease(store, FOLDER, "next").release()
    assert time.monotonic() - began < 5


def test_a_process_id_that_is_used_again_is_not_the_holder(store: FileStore) -> None:
    own = take_lease(store, FOLDER, "own")
    own.release()
    key, said = stored(store)
    pid = said["process"].partition(" ")[0]
    store.write(key, json.dumps(said | {"released": False, "process": f"{pid} 1"}).encode())
    take_lease(store, FOLDER, "next").release()


def test_who_was_killed_elsewhere_makes_way_after_a_while(store: FileStore) -> None:
    leave(store)
    with pytest.raises(LeaseHeldError, match="on elsewhere"):
        take_lease(store, FOLDER, "too soon", expiry_s=EXPIRY_S)
    leave(store, renewed=time.time() - 2)
    take_lease(store, FOLDER, "next", expiry_s=1.0).release()


@pytest.mark.parametrize("jump_s", [-3600.0, 3600.0])
def test_a_holder_whose_clock_jumped_is_seen_to_live(
    store: FileStore, monkeypatch: pytest.MonkeyPatch, jump_s: float
) -> None:
    lease = take_lease(store, FOLDER, "first", expiry_s=1.2)
    real = time.time
    monkeypatch.setattr("infra.lease.time.time", lambda: real() + jump_s)
    time.sleep(0.5)  # the lease is renewed with the wrong time
    monkeypatch.undo()
    with pytest.raises(LeaseHeldError):
        take_lease(store, FOLDER, "second", expiry_s=1.2)
    assert not lease.lost
    lease.release()


def test_who_was_silent_for_too_long_learns_that_it_has_lost(
    store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = take_lease(store, FOLDER, "first", expiry_s=1.2)

    def no_answer(*_: Any, **__: Any) -> None:
        raise OSError("cut off")

    with monkeypatch.context() as cut_off:  # its own instance: the rival's store answers
        cut_off.setattr(first.store, "write", no_answer)
        time.sleep(1.3)
        rival = take_lease(FileStore(store.uri), FOLDER, "second", expiry_s=1.2)
    deadline = time.monotonic() + 10
    while not first.lost and time.monotonic() < deadline:
        time.sleep(0.05)
    assert first.lost
    first.release()  # and leaves the other's alone
    assert stored(store)[1]["run_id"] == "second" and not stored(store)[1]["released"]
    rival.release()
