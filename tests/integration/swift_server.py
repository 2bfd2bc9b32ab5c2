"""A real S3 server for tests: OpenStack Swift with its S3 API, one replica in a folder.

Object, container, account and proxy server each run as one process on a free port of 127.0.0.1,
and die with the thread that started them, whatever way it goes. Swift lives in a virtual
environment of its own below NIGHTPRESS_TEST_CACHE (default ~/.cache/nightpress-tests), made once.
Unlike a simulated S3 it checks signatures, writes to a disk, and can be killed.
"""

import ctypes
import fcntl
import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

VERSION = "2.38.3"
START_S = 60.0
LIBC = ctypes.CDLL(None)
SERVERS = ("object", "container", "account", "proxy")

SWIFT_CONF = """
[swift-hash]
swift_hash_path_prefix = nightpress
swift_hash_path_suffix = nightpress
[storage-policy:0]
name = gold
default = yes
"""

DEFAULT_CONF = """
[DEFAULT]
bind_ip = {address}
bind_port = {port}
workers = 0
user = {user}
swift_dir = {root}
devices = {root}/srv
mount_check = false
"""

STORAGE_CONF = """
[pipeline:main]
pipeline = {server}-server
[app:{server}-server]
use = egg:swift#{server}
"""

PROXY_CONF = """
[pipeline:main]
pipeline = healthcheck {cache} s3api tempauth slo proxy-server
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
[filter:healthcheck]
use = egg:swift#healthcheck
[filter:cache]
use = egg:swift#memcache
memcache_servers = 127.0.0.1:{memcached_port}
[filter:s3api]
use = egg:swift#s3api
location = us-east-1
s3_acl = false
check_bucket_owner = false
min_segment_size = 5242880
[filter:tempauth]
use = egg:swift#tempauth
user_test_tester = testing .admin
[filter:slo]
use = egg:swift#slo
"""

MAKE_RINGS = """
import sys
from swift.common.ring import RingBuilder
for server, port in zip(("object", "container", "account"), sys.argv[2:]):
    builder = RingBuilder(6, 1, 1)
    device = dict(id=0, region=1, zone=1, ip="127.0.0.1", port=int(port), device="d1", weight=1.0)
    builder.add_dev(device)
    builder.rebalance()
    builder.get_ring().save(f"{sys.argv[1]}/{server}.ring.gz")
"""


class Swift:
    """A running server; its proxy can be killed and started again, from the thread that began."""

    def __init__(self, venv: Path, root: Path, ports: dict[str, int], address: str) -> None:
        self.venv = venv
        self.address = address
        self.root = root
        self.ports = ports
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def environment(self) -> dict[str, str]:
        """The variables with which a client finds this server and its one account."""
        return {
            "AWS_ENDPOINT_URL": f"http://{self.address}:{self.ports['proxy']}",
            "AWS_ACCESS_KEY_ID": "test:tester",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def start(self, name: str) -> None:
        program = [str(self.venv / "bin" / f"swift-{name}-server"), str(self.root / f"{name}.conf")]
        if name == "memcached":
            program = ["memcached", "-l", "127.0.0.1", "-p", str(self.ports[name])]
            program += ["-u", getpass.getuser()]
        with (self.root / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                program,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=die_with_parent,
            )

    def kill(self, name: str) -> None:
        process = self.processes.pop(name)
        process.kill()
        process.wait()

    def wait_until_up(self) -> None:
        url = f"{self.environment['AWS_ENDPOINT_URL']}/healthcheck"
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        deadline = time.monotonic() + START_S
        while True:
            try:
                opener.open(url, timeout=2).close()
                return
            except OSError as error:
                dead = [name for name, process in self.processes.items() if process.poll()]
                if dead or time.monotonic() > deadline:
                    logs = {name: (self.root / f"{name}.log").read_text()[-2000:] for name in dead}
                    raise RuntimeError(f"Swift did not start: {error} {logs}") from error
                time.sleep(0.05)


@contextmanager
def running_swift(root: Path, address: str = "127.0.0.1") -> Iterator[Swift]:
    """Yield a server that keeps its data, configuration and logs below `root`.

    Args:
        address: Of this machine, where clients find it.

    Skips the test where Swift cannot be installed, or the file system cannot hold its metadata.
    """
    venv = install(cache_folder())
    try:
        os.setxattr(root, "user.nightpress", b"1")
    except OSError as error:
        pytest.skip(f"Swift needs extended attributes in {root}: {error}")
    with_cache = shutil.which("memcached") is not None  # faster, and not needed
    ports = free_ports([*SERVERS, "memcached"])
    (root / "srv" / "d1").mkdir(parents=True)
    (root / "swift.conf").write_text(SWIFT_CONF)
    for name in SERVERS:
        conf = DEFAULT_CONF + (PROXY_CONF if name == "proxy" else STORAGE_CONF)
        text = conf.format(
            server=name,
            port=ports[name],
            root=root,
            address=address if name == "proxy" else "127.0.0.1",
            user=getpass.getuser(),
            cache="cache" if with_cache else "",
            memcached_port=ports["memcached"],
        )
        (root / f"{name}.conf").write_text(text)
    rings = [str(ports[name]) for name in SERVERS if name != "proxy"]
    subprocess.run([venv / "bin/python", "-c", MAKE_RINGS, root, *rings], check=True)
    swift = Swift(venv, root, ports, address)
    try:
        for name in [*SERVERS, "memcached"] if with_cache else SERVERS:
            swift.start(name)
        swift.wait_until_up()
        yield swift
    finally:
        for name in list(swift.processes):
            swift.kill(name)


def cache_folder() -> Path:
    return Path(
        os.environ.get("NIGHTPRESS_TEST_CACHE") or Path.home() / ".cache" / "nightpress-tests"
    )


def install(cache: Path) -> Path:
    """Return the virtual environment with Swift; made by whoever comes first."""
    venv = cache / f"swift-{VERSION}"
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / f"swift-{VERSION}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        installed = venv / "installed"  # written last
        if not installed.exists():
            shutil.rmtree(venv, ignore_errors=True)
            subprocess.run([sys.executable, "-m", "venv", venv], check=True)
            pip = [f"{venv}/bin/python", "-m", "pip", "install", "--quiet", f"swift=={VERSION}"]
            done = subprocess.run(pip, capture_output=True, text=True)
            if done.returncode:
                pytest.skip(f"pip cannot install swift=={VERSION}: {done.stderr}")
            installed.touch()
    return venv


def free_ports(names: list[str]) -> dict[str, int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in names]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return {name: each.getsockname()[1] for name, each in zip(names, sockets, strict=True)}


def die_with_parent() -> None:
    """Ask Linux for SIGKILL at the parent's death (prctl PR_SET_PDEATHSIG)."""
    LIBC.prctl(1, signal.SIGKILL)
