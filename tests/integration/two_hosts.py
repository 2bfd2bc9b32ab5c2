"""Two hosts on one machine, with addresses of their own: namespaces on an isolated bridge.

A host has its own network, host name, processes, shared memory, Ray session and state folder; the
rest of the file system is shared. The second one has none of this checkout's code, so that what
runs there was shipped. Everything on a host ends with its first process, and that with the thread
that started it, whatever way it goes.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.integration.swift_server import die_with_parent

ROOT = Path(__file__).parents[2]
PACKAGES = ("flows", "infra", "kernels", "tasks")
START_S = 120.0
RAY_PORT = 6379

BECOME_A_HOST = """
set -e
hostname "$0"
mount -t tmpfs -o size=2g tmpfs /dev/shm
mkdir -p /tmp/ray "$2/ray" "$2/local" "$2/empty"
mount --bind "$2/ray" /tmp/ray
mount --bind "$2/local" "$1"
for hidden in "${@:3}"; do mount --bind "$2/empty" "$hidden"; done
echo ready
while :; do sleep 1000 & wait $! || true; done
"""
"""Called with the host's name, the path of its local disk, where that really is, and folders to
hide. As the first process it also collects orphans."""

IMPATIENT = {
    "RAY_health_check_initial_delay_ms": "0",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "3000",
    "RAY_health_check_failure_threshold": "5",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "10",
}
"""A host that is cut off counts as lost after seconds; with Ray's own settings, after a minute."""


def run_ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


@dataclass
class Host:
    name: str
    address: str
    root: Path
    """Its local disk, its Ray session and the output of what runs there."""
    environment: dict[str, str]
    first: subprocess.Popen[str]
    """Whose child is the host's first process."""
    port: str
    """The bridge's end of its cable."""
    ray: subprocess.Popen[bytes] | None = None

    @property
    def enter(self) -> tuple[str, ...]:
        """What a command begins with that is to run on this host."""
        (init,) = psutil.Process(self.first.pid).children()
        return ("nsenter", f"--target={init.pid}", *("-m", "-n", "-u", "-i", "-p"), f"--wd={ROOT}")

    def start_ray(self, *how: str) -> None:
        """Start a node of one CPU and wait until it has joined."""
        ray = [str(Path(sys.executable).with_name("ray")), "start", "--block", *how]
        ray += [f"--node-ip-address={self.address}", "--num-cpus=1", "--disable-usage-stats"]
        ray += ["--object-store-memory=200000000"]
        log = self.root / "ray_start.log"
        with log.open("wb") as out:
            self.ray = subprocess.Popen(
                [*self.enter, *ray], env=self.environment, stdout=out, stderr=out
            )
        deadline = time.monotonic() + START_S
        while "Ray runtime started" not in log.read_text():
            assert self.ray.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)

    def cut_off(self) -> None:
        """Pull the cable."""
        run_ip("link", "set", self.port, "down")

    def come_back(self, *how: str) -> None:
        """Plug the cable in again and join Ray anew, as a machine does that was started again."""
        self.run("bash", "-c", "kill -9 -1")  # all but the first, and on this host alone
        if self.ray:
            self.ray.wait()
        run_ip("link", "set", self.port, "up")
        self.start_ray(*how)

    def kill(self, pid: int) -> None:
        """kill -9 one of this host's processes, by the number that it has there."""
        self.run("kill", "-9", str(pid))

    def run(self, *command: str) -> None:
        subprocess.run([*self.enter, *command], capture_output=True, check=False)


@dataclass
class TwoHosts:
    head: Host
    other: Host
    gateway: str
    """Address of the bridge, where both reach servers on this machine."""
    local: Path
    """A path that is another folder on each host."""

    @property
    def join(self) -> tuple[str, ...]:
        return (f"--address={self.head.address}:{RAY_PORT}",)

    def start_ray(self) -> None:
        self.head.start_ray("--head", f"--port={RAY_PORT}", "--include-dashboard=false")
        self.other.start_ray(*self.join)


@contextmanager
def running_hosts(root: Path) -> Iterator[TwoHosts]:
    """Yield two hosts on a bridge, without Ray yet; skip the test where that is not allowed."""
    if os.geteuid() != 0:
        pytest.skip("two hosts need root, for network namespaces")
    for program in ("ip", "unshare", "nsenter"):
        if not shutil.which(program):
            pytest.skip(f"two hosts need `{program}` (Debian's iproute2 and util-linux)")
    bridge, network = f"np{os.getpid()}", f"10.77.{os.getpid() % 256}"
    local = root / "local"
    local.mkdir()
    token = root / "ray_token"
    token.write_text(os.urandom(24).hex())
    hosts: list[Host] = []
    try:
        try:
            run_ip("link", "add", bridge, "type", "bridge")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no bridge can be made: {error.stderr.strip()}")
        run_ip("address", "add", f"{network}.254/24", "dev", bridge)
        run_ip("link", "set", bridge, "up")
        for number, name in enumerate(("node-a", "node-b"), start=1):
            address, port = f"{network}.{number}", f"{bridge}p{number}"
            environment = make_environment(address, f"{network}.254", token)
            add_namespace(f"{bridge}-{name}", bridge, port, address)
            hidden = [str(ROOT / package) for package in PACKAGES] if number == 2 else []
            first = become_host(f"{bridge}-{name}", name, local, root / name, hidden)
            hosts.append(Host(name, address, root / name, environment, first, port))
        yield TwoHosts(*hosts, gateway=f"{network}.254", local=local)
    finally:
        for host in hosts:
            host.first.kill()
            host.first.wait()
            if host.ray:
                host.ray.wait()
        for command in (
            *(("netns", "delete", f"{bridge}-{name}") for name in ("node-a", "node-b")),
            *(("link", "delete", f"{bridge}p{number}") for number in (1, 2)),
            ("link", "delete", bridge),
        ):
            subprocess.run(["ip", *command], capture_output=True, check=False)


def make_environment(address: str, gateway: str, token: Path) -> dict[str, str]:
    """Return what every process of a host has in its environment."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("NIGHTPRESS", "RAY", "AWS"))}
    return kept | {
        "DS_ACCELERATOR": "cpu",
        "GLOO_SOCKET_IFNAME": "eth0",
        "OMP_NUM_THREADS": "1",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        "NO_PROXY": f"127.0.0.1,localhost,{address},{gateway}",
        **IMPATIENT,
    }


def add_namespace(name: str, bridge: str, port: str, address: str) -> None:
    """Make a network namespace whose eth0 hangs on the bridge."""
    run_ip("netns", "add", name)
    run_ip("link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", name)
    run_ip("link", "set", port, "master", bridge, "up")
    run_ip("-n", name, "address", "add", f"{address}/24", "dev", "eth0")
    for interface in ("eth0", "lo"):
        run_ip("-n", name, "link", "set", interface, "up")


def become_host(
    namespace: str, name: str, local: Path, root: Path, hidden: list[str]
) -> subprocess.Popen[str]:
    unshare = ["unshare", *("-m", "-u", "-i", "-p"), "--fork", "--kill-child", "--mount-proc"]
    arguments = [name, str(local), str(root), *hidden]
    first = subprocess.Popen(
        ["ip", "netns", "exec", namespace, *unshare, "bash", "-c", BECOME_A_HOST, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=die_with_parent,
    )
    assert first.stdout and first.stdout.readline() == "ready\n"
    return first
