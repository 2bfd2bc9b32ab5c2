"""A lease in the store: of all nights of one name, one runs.

The n-th holder of a lease is the object `<99999999 - n>.json`, made create-only, so of several
that want to be the n-th one wins. Its holder renews it; a lease that has been given back, is not
renewed any more, or belonged to a process of this machine that is gone, makes way for the next.
"""

import errno
import json
import os
import socket
import threading
import time
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

from infra.storage import Store

LAST = 99_999_999
EXPIRY_S = 120.0
"""A lease that was not renewed for so long has lost its holder."""


@dataclass(frozen=True)
class Holder:
    """What a lease's object says."""

    run_id: str
    host: str
    machine: str
    """Boot and process namespace: where `process` means something."""
    process: str
    """Process id and its start in ticks since the boot, since ids are used again."""
    since: str
    """UTC, ISO 8601."""
    renewed: float
    """Seconds since the epoch, by the holder's clock."""
    released: bool = False


class LeaseHeldError(Exception):
    """Somebody else holds the lease."""

    def __init__(self, holder: Holder) -> None:
        super().__init__(
            f"another night is running: {holder.run_id}, since {holder.since}, on {holder.host}"
        )
        self.holder = holder


def read_holder(store: Store, folder: str) -> Holder | None:
    """Return who holds the lease, or has let it expire; None where nobody does."""
    newest = _read_newest(store, folder)
    return None if newest is None or newest[1].released else newest[1]


def take_lease(store: Store, folder: str, run_id: str, expiry_s: float = EXPIRY_S) -> "Lease":
    """Become the one holder of a lease.

    Where the newest holder's clock and ours do not tell whether it lives, it is watched for half
    of `expiry_s`.

    Raises:
        LeaseHeldError: another one holds it.
    """
    newest = _read_newest(store, folder)
    number = 1
    if newest:
        key, holder = newest
        if is_alive(store, key, holder, expiry_s):
            raise LeaseHeldError(holder)
        number = _number_of(key) + 1
    machine, process = describe_process(os.getpid())
    now = datetime.now(UTC)
    own = Holder(
        run_id=run_id,
        host=socket.gethostname(),
        machine=machine,
        process=process,
        since=now.isoformat(timespec="seconds"),
        renewed=now.timestamp(),
    )
    key = f"{folder}/{LAST - number:08d}.json"
    won = store.create(key, _encode(own))
    newest = _read_newest(store, folder)
    assert newest
    if newest[0] != key or not won:
        if won:  # so late that the winner of this number has come, gone and been swept away
            store.delete(key)
        raise LeaseHeldError(newest[1])
    for old in store.list(f"{folder}/")[1:]:
        store.delete(old)
    return Lease(store, folder, key, own, expiry_s)


def is_alive(store: Store, key: str, holder: Holder, expiry_s: float) -> bool:
    """Tell whether a lease's holder still holds it; no clock but our own is trusted."""
    if holder.released or is_gone(holder):
        return False
    if abs(time.time() - holder.renewed) < expiry_s:
        return True
    # Long ago or in the future: its clock or ours may have jumped, so see whether it is renewed.
    end = time.monotonic() + expiry_s / 2
    while time.monotonic() < end:
        time.sleep(min(expiry_s / 20, 5.0))
        try:
            seen = _decode(key, store.read(key))
        except FileNotFoundError:  # swept away: there is a newer one
            return True
        if seen.renewed != holder.renewed:
            return not seen.released
    return False


def is_gone(holder: Holder) -> bool:
    """Tell whether the holder was a process of this machine and has ended."""
    pid = int(holder.process.partition(" ")[0])
    return holder.machine == _describe_machine() and describe_process(pid)[1] != holder.process


def describe_process(pid: int) -> tuple[str, str]:
    """Return the machine and the process as `Holder` has them; one that has ended has no start."""
    try:
        # The name, which is in parentheses and may hold anything, comes before all that is used.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return _describe_machine(), f"{pid} gone"
    state, start = fields[0], fields[19]
    return _describe_machine(), f"{pid} gone" if state in "ZX" else f"{pid} {start}"


@cache
def _describe_machine() -> str:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {Path('/proc/self/ns/pid').readlink()}"


class Lease:
    """A lease that is ours, renewed by a thread until it is given back."""

    def __init__(
        self, store: Store, folder: str, key: str, holder: Holder, expiry_s: float
    ) -> None:
        self.store = store
        self.folder = folder
        self.key = key
        self.holder = holder
        self.expiry_s = expiry_s
        self.lost = False
        """Another one has it: we were not heard of for too long."""
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._thread.start()

    def release(self) -> None:
        """Give the lease back. Raises: OSError: the store does not answer; it expires, then."""
        self._done.set()
        self._thread.join(timeout=10)
        if not self.lost:
            self.store.write(self.key, _encode(replace(self.holder, released=True)))

    def _renew(self) -> None:
        while not self.lost and not self._done.wait(self.expiry_s / 6):
            try:
                self.lost = self.store.list(f"{self.folder}/", limit=1) != [self.key]
                if not self.lost:
                    self.holder = replace(self.holder, renewed=time.time())
                    self.store.write(self.key, _encode(self.holder))
            except OSError:
                continue  # a store that comes back in time has missed nothing


def _read_newest(store: Store, folder: str) -> tuple[str, Holder] | None:
    while keys := store.list(f"{folder}/", limit=1):
        try:
            return keys[0], _decode(keys[0], store.read(keys[0]))
        except FileNotFoundError:
            continue  # swept away meanwhile by a newer one
    return None


def _number_of(key: str) -> int:
    return LAST - int(key.rpartition("/")[2].removesuffix(".json"))


def _encode(holder: Holder) -> bytes:
    return json.dumps(asdict(holder), indent=1).encode()


def _decode(key: str, data: bytes) -> Holder:
    try:
        return Holder(**json.loads(data))
    except (ValueError, TypeError, RecursionError) as error:
        why = f"this is no lease ({str(error)[:200]}); remove it, and nights begin again"
        raise OSError(errno.EBADMSG, why, key) from None
