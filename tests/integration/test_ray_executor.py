"""The Ray executor where the cluster is smaller than the recipe thinks."""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from infra.ray_cluster import RayExecutor


def nothing() -> None:
    return None


def work(_: None, unit: int) -> tuple[int, int]:
    """Return the unit and who has done it."""
    time.sleep(0.5)
    return unit, os.getpid()


@pytest.fixture
def executor(tmp_path: Path) -> Iterator[RayExecutor]:
    running = RayExecutor("local", 2, 0, 1, tmp_path)
    yield running
    running.close()


@pytest.mark.integration
def test_a_worker_that_finds_no_room_holds_nothing_up(executor: RayExecutor) -> None:
    """One of two CPUs is somebody else's for a while; the worker that comes late takes part."""
    ray = executor.connect()

    class Guest:
        def sit(self) -> None:
            return None

    guest: Any = ray.remote(Guest).options(num_cpus=1).remote()
    ray.get(guest.sit.remote())
    done = []
    for unit, pid in executor.map(work, range(40), nothing):
        done.append((unit, pid))
        if len(done) == 4:
            assert len({pid for _, pid in done}) == 1
            ray.kill(guest)
    assert sorted(unit for unit, _ in done) == list(range(40))
    assert len({pid for _, pid in done}) == 2
