"""Look at every node of a Ray cluster: versions, clocks, CPUs and GPUs.

Run in a process of its own (`survey_cluster`), so that a cluster which hangs can be left, and the
night's own session begins untouched.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any

from infra.ray_session import start_ray
from infra.version_check import NAMED

TIMEOUT_S = 15.0
MAX_NODES = 64
"""Looked at; of a larger cluster, the first ones."""


@dataclass(frozen=True)
class Node:
    host: str
    num_cpus: float
    num_gpus: float
    versions: dict[str, str]
    """By library; empty where the node did not answer in time."""
    skew_s: float = 0.0
    """By how much its clock is ahead of ours at least, knowing how long the answer took."""


def survey_cluster(address: str, timeout_s: float = TIMEOUT_S) -> list[Node]:
    """Return the nodes of the cluster at an address.

    Raises:
        ValueError: it does not let us in: no such cluster, another version of Ray, no token.
        TimeoutError: it did not answer in time.
    """
    command = [sys.executable, "-m", __name__, address, str(timeout_s * 0.7)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s)
    except subprocess.TimeoutExpired:
        raise TimeoutError(
            f"the cluster at {address} did not answer in {timeout_s:.0f} s"
        ) from None
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise ValueError(said[-1])
    return [Node(**node) for node in json.loads(done.stdout.splitlines()[-1])]


def look(address: str, timeout_s: float) -> list[Node]:
    """Join the cluster; ask each node twice, since the first answer waits for a new process."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    ray = start_ray(address)
    end = time.monotonic() + timeout_s
    alive = [node for node in ray.nodes() if node["Alive"]][:MAX_NODES]
    ask = ray.remote(num_cpus=0)(answer)

    def send(node: dict[str, Any]) -> Any:
        here = NodeAffinitySchedulingStrategy(node_id=node["NodeID"], soft=False)
        return ask.options(scheduling_strategy=here).remote(NAMED)

    first = [send(node) for node in alive]
    ray.wait(first, num_returns=len(first), timeout=max(end - time.monotonic(), 0.1))
    found = []
    for node in alive:
        versions, skew = {}, 0.0
        with contextlib.suppress(ray.exceptions.RayError):
            sent = time.time()
            versions, theirs = ray.get(send(node), timeout=max(end - time.monotonic(), 0.1))
            skew = least_skew(sent, theirs, time.time())
        resources = node["Resources"]
        host, cpus, gpus = node["NodeManagerHostname"], resources.get("CPU"), resources.get("GPU")
        found.append(Node(host, cpus or 0.0, gpus or 0.0, versions, skew))
    ray.shutdown()
    return found


def answer(names: tuple[str, ...]) -> tuple[dict[str, str], float]:
    """Say what a node has and what time it is there; it has nothing of this project yet."""
    import platform
    import time
    from importlib.metadata import PackageNotFoundError, version

    versions = {"python": platform.python_version()}
    for name in names:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "none"
    return versions, time.time()


def least_skew(sent: float, theirs: float, received: float) -> float:
    """Return the least seconds that a clock read between two of ours must be ahead (or behind)."""
    return max(theirs - received, 0.0) + min(theirs - sent, 0.0)


if __name__ == "__main__":
    print(json.dumps([asdict(node) for node in look(sys.argv[1], float(sys.argv[2]))]))
